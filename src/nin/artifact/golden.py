"""Golden vectors: what an artifact carries to prove itself wherever it is loaded. No torch."""

import base64
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nin.contract import ENCODED_IMAGE, Graph, Image, Outputs, Run
from nin.errors import CheckError
from nin.images import encode_png, encoded

# How many samples travel in every artifact with their reference outputs: as many as stay within
# the bytes, but no fewer than the least.
GOLDEN_IMAGES = 32
LEAST_IMAGES = 4
_LARGEST_BYTES = 750_000  # 1 MB as base64


@dataclass(frozen=True)
class Golden:
    """Inputs with the answers that are right, and how far a float32 runtime may be from them."""

    inputs: NDArray[np.uint8]  # pixels (N, h, w[, 3]); of a network images (N, C, H, W)
    outputs: Outputs  # float64
    budget: dict[str, float]  # by output name, the largest absolute error allowed

    def batch(self, graph: Graph) -> NDArray[Any]:
        """The inputs in the form that `graph` takes."""
        if graph.image:
            return normalise(self.inputs, graph.image)
        return graph_input(graph, self.inputs)

    def to_json(self) -> str:
        return json.dumps(
            {
                "inputs": _encode(self.inputs),
                "shape": self.inputs.shape,
                "outputs": {n: _encode(v.astype("<f8")) for n, v in self.outputs.items()},
                "budget": self.budget,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Golden":
        """Raises ValueError, KeyError or TypeError where it isn't what `to_json` writes."""
        data = json.loads(text)
        inputs = np.frombuffer(base64.b64decode(data["inputs"]), np.uint8).reshape(data["shape"])
        outputs = {
            name: np.frombuffer(base64.b64decode(values), "<f8").reshape(len(inputs), -1)
            for name, values in data["outputs"].items()
        }
        return cls(inputs, outputs, dict(data["budget"]))


def _encode(array: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def golden_count(graph: Graph, samples: int) -> int:
    """How many of so many samples an artifact of `graph` carries."""
    outputs = sum(8 * math.prod(t.shape) for t in graph.outputs)  # float64
    size = math.prod(graph.input.shape) + outputs
    return min(samples, max(LEAST_IMAGES, min(GOLDEN_IMAGES, _LARGEST_BYTES // size)))


def normalise(images: NDArray[np.uint8], image: Image) -> NDArray[np.float32]:
    """Images (N, C, H, W) in [0, 255] as the network's float32 input; C++ does the same steps."""
    mean, std = (np.array(v, np.float32).reshape(-1, 1, 1) for v in (image.mean, image.std))
    return (images.astype(np.float32) / np.float32(255) - mean) / std


def graph_input(graph: Graph, pixels: NDArray[np.uint8]) -> NDArray[Any]:
    """The input for pixels (N, h, w[, 3]) of a graph that takes them, or PNG files of them."""
    if graph.input == ENCODED_IMAGE:
        return encoded([encode_png(image) for image in pixels])
    return pixels


def replay(run: Run, graph: Graph, golden: Golden) -> None:
    """Runs the golden vectors, as one batch and each image alone.

    Raises CheckError if an output is further off than its budget.
    """
    batch = golden.batch(graph)
    _compare(run(batch), golden.outputs, golden.budget)
    for index in range(len(batch)):
        one = slice(index, index + 1)
        expected = {name: values[one] for name, values in golden.outputs.items()}
        _compare(run(batch[one]), expected, golden.budget, f" for image {index} alone")


def _compare(
    outputs: Outputs, expected: Outputs, budget: dict[str, float], where: str = ""
) -> None:
    for name, right in expected.items():
        output = outputs.get(name)
        if output is None or output.shape != right.shape:
            shape = "missing" if output is None else output.shape
            raise CheckError(f"golden vectors: {name} is {shape}{where}, expected {right.shape}")
        error = np.abs(output - right).max()
        if not error <= budget[name]:  # so that NaN fails too
            raise CheckError(
                f"golden vectors: {name} is off by {error:.3g}{where}, "
                f"allowed is {budget[name]:.3g}"
            )
