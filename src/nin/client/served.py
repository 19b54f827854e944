"""What a server says of its models."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import triton_to_np_dtype

from nin.contract import Outputs, Tensor
from nin.errors import InputError, ServerError

# The parameter of a model that names the one that makes its pixels of files.
DECODER = "decoder"

# The output whose largest values are a classifier's predictions.
PROBABILITIES = "probabilities"

# Beside each classifier a server has a model that takes files; its name ends like this.
OF_FILES = "_image"


@dataclass(frozen=True)
class Served:
    """What a server says of one of its models."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch: int
    decoder: str = ""  # the model that makes its pixels of files, where no ensemble does both

    @classmethod
    def read(cls, answer: Any) -> Self:
        config = read_config(answer)
        inputs, outputs = (tuple(map(_tensor, config[key])) for key in ("input", "output"))
        decoder = config.get("parameters", {}).get(DECODER, {}).get("string_value", "")
        return cls(config["name"], inputs, outputs, int(config.get("max_batch_size", 0)), decoder)

    def checked(self, array: NDArray[Any], top: int) -> Self:
        """Raises InputError where the model can't be asked this."""
        if refusal := self.refusal(array, top):
            raise InputError(refusal)
        return self

    @property
    def unfit(self) -> str:
        """Why it is no classifier; empty if it is one."""
        known = any(output.name == PROBABILITIES for output in self.outputs)
        if known and len(self.inputs) == 1 and self.max_batch > 0:
            return ""
        inputs, outputs = (
            ", ".join(t.name for t in tensors) for tensors in (self.inputs, self.outputs)
        )
        return (
            f"{self.name} is no classifier: it makes {outputs} of {inputs} in batches of at most "
            f"{self.max_batch}, expected {PROBABILITIES} of one input in batches"
        )

    def refusal(self, array: NDArray[Any], top: int) -> str:
        """Why it can't be asked for the `top` classes of each item; empty if it can."""
        if self.unfit:
            return self.unfit
        (classes,) = (t.shape[-1] for t in self.outputs if t.name == PROBABILITIES)
        if top < 1 or 0 < classes < top:
            return f"top is {top}, expected 1 to {classes}, as many as {self.name} has classes"
        (expected,) = self.inputs
        sizes = zip(array.shape[1:], expected.shape, strict=False)
        fits = array.ndim == 1 + len(expected.shape) and all(b in (a, -1) for a, b in sizes)
        if array.dtype != expected.dtype or not fits:
            shape = ", ".join(["N", *map(str, expected.shape)])
            found = f"{expected.name} are {array.dtype} {array.shape}"
            return f"{found}, {self.name} expects {expected.dtype} ({shape})"
        return ""

    def requests(self, array: NDArray[Any]) -> list[dict[str, NDArray[Any]]]:
        """The inputs of as many requests as it takes."""
        starts = range(0, len(array), self.max_batch)
        return [{self.inputs[0].name: array[at : at + self.max_batch]} for at in starts]


@dataclass
class Known:
    """What a server has said of itself."""

    classifier: str | None = None
    models: dict[str, Served] = field(default_factory=dict)

    @contextmanager
    def until_error(self) -> Iterator[None]:
        """Forgets all of it where the server says no: it may be another one by now."""
        try:
            yield
        except ServerError:
            self.classifier = None
            self.models.clear()
            raise


def join_pixels(decoder: Served, parts: Sequence[Outputs]) -> NDArray[np.uint8]:
    """The pixels that a decoder made of all files."""
    (output,) = decoder.outputs
    empty = np.empty((0, *output.shape), output.dtype)
    return np.concatenate([empty, *(part[output.name] for part in parts)])


def as_json(library: ModuleType) -> dict[str, bool]:
    """What makes gRPC describe models in plain data, as HTTP does."""
    return {} if library.__name__.startswith("tritonclient.http") else {"as_json": True}


def read_config(answer: dict[str, Any]) -> dict[str, Any]:
    return dict(answer.get("config", answer))  # gRPC wraps it


def read_statistics(answer: dict[str, Any]) -> dict[str, Any]:
    return dict(answer["model_stats"][0])


def _tensor(described: dict[str, Any]) -> Tensor:
    datatype = described["data_type"].removeprefix("TYPE_").replace("STRING", "BYTES")
    dtype = np.dtype(triton_to_np_dtype(datatype)).name
    return Tensor(described["name"], dtype, tuple(map(int, described.get("dims", []))))


def read_classifiers(statistics: dict[str, Any]) -> list[str]:
    """The models that are ready and have another beside them that takes files."""
    names = {model["name"] for model in statistics["model_stats"]}
    return sorted(name for name in names if f"{name}{OF_FILES}" in names)


def only_classifier(classifiers: Sequence[str], url: str) -> str:
    if len(classifiers) == 1:
        return classifiers[0]
    several = f"several classifiers, {', '.join(classifiers)}"
    none = f"no classifier NAME with a NAME{OF_FILES} beside it"
    raise InputError(f"{url} serves {several if classifiers else none}; say which by model=")
