"""The part of the module `triton_python_backend_utils` that the repository's models use.

The names are Triton's: https://github.com/triton-inference-server/python_backend
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from nin.serve.backends.batching import INTERNAL, INVALID_ARG, Inputs


class TritonError:
    INTERNAL = INTERNAL
    INVALID_ARG = INVALID_ARG

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self.message = message
        self.code = code


@dataclass(frozen=True)
class Tensor:
    name: str
    array: NDArray[Any]

    def as_numpy(self) -> NDArray[Any]:
        return self.array


@dataclass(frozen=True)
class InferenceRequest:
    inputs: Inputs


@dataclass(frozen=True)
class InferenceResponse:
    output_tensors: Sequence[Tensor] = ()
    error: TritonError | None = None


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    array = request.inputs.get(name)
    return None if array is None else Tensor(name, array)
