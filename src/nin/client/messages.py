"""From arrays to tritonclient's requests, and from its responses to arrays and predictions."""

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import np_to_triton_dtype

from nin.client.shared_memory import Regions
from nin.contract import Outputs


@dataclass(frozen=True)
class Prediction:
    """One class of one image; label and probability are the server's."""

    index: int
    label: str
    probability: float


def make_request(
    library: ModuleType, inputs: dict[str, NDArray[Any]], classes_of: str, top: int,
    regions: Regions | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The arguments of a library's infer(); all outputs as arrays, or the classes of one."""
    tensors = []
    for name, array in inputs.items():
        tensor = library.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        if regions and array.dtype != object and array.nbytes:  # there are no empty regions
            region = regions.put(name, np.ascontiguousarray(array))
            tensor.set_shared_memory(region, array.nbytes)
        else:
            tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    outputs = [library.InferRequestedOutput(classes_of, class_count=top)] if classes_of else None
    return {"inputs": tensors, "outputs": outputs}


def read_predictions(result: Any, output: str) -> list[list[Prediction]]:
    """The classification extension's texts: value:index:label."""
    images = result.as_numpy(output)
    return [[_prediction(text.decode()) for text in image] for image in images]


def _prediction(text: str) -> Prediction:
    probability, index, label = text.split(":", 2)
    if not math.isfinite(float(probability)):
        raise ValueError(f"class {index} ({label}) has the probability {probability}")
    return Prediction(int(index), label, float(probability))


def read_arrays(result: Any) -> Outputs:
    response = result.get_response()
    if isinstance(response, dict):
        names = [output["name"] for output in response["outputs"]]
    else:
        names = [output.name for output in response.outputs]
    return {name: result.as_numpy(name) for name in names}
