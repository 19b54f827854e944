"""What every runtime is held against: the eager network in float64 on the CPU, naive form."""

import base64
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from nin.classifier import preprocess
from nin.contract import BUDGET_FACTOR, ENCODED_IMAGE, NIN, Graph
from nin.errors import CheckError
from nin.images import encode_png, encoded

Outputs = dict[str, NDArray[Any]]  # by output name, each (N, 10)
Run = Callable[[NDArray[Any]], Outputs]

# Float64 activations of so many 224x224 images stay within a few hundred MB.
_BATCH = 16


@dataclass(frozen=True)
class Reference:
    """Images with the answers that are right, and how far a float32 runtime may be from them."""

    pixels: NDArray[np.uint8]  # (N, 28, 28)
    outputs: Outputs  # logits and probabilities, float64
    budget: dict[str, float]  # by output name, the largest absolute error allowed

    def to_json(self, graph: Graph) -> str:
        """The form in which the golden vectors travel in an artifact of `graph`."""
        names = [t.name for t in graph.outputs]
        return json.dumps(
            {
                "pixels": base64.b64encode(self.pixels.tobytes()).decode(),
                "shape": self.pixels.shape,
                "outputs": {name: self.outputs[name].tolist() for name in names},
                "budget": {name: self.budget[name] for name in names},
            }
        )

    def first(self, count: int) -> "Reference":
        """The first `count` images, with the budget derived on all."""
        outputs = {name: values[:count] for name, values in self.outputs.items()}
        return Reference(self.pixels[:count], outputs, self.budget)

    @classmethod
    def from_json(cls, text: str) -> "Reference":
        data = json.loads(text)
        pixels = np.frombuffer(base64.b64decode(data["pixels"]), np.uint8)
        return cls(
            pixels=pixels.reshape(data["shape"]),
            outputs={name: np.array(rows) for name, rows in data["outputs"].items()},
            budget=data["budget"],
        )


def compute_reference(network: nn.Module, pixels: NDArray[np.uint8]) -> Reference:
    """Runs `network` in float64, and in float32 to derive the budget from its error.

    The budget is BUDGET_FACTOR times the largest error of float32 eager on the same images. Both
    run the naive form (divide, resize, network), which shares no code with the folded stem.

    Args:
        network: image (N, 1, 224, 224) -> logits (N, 10), float32; it isn't changed.
        pixels: (N, 28, 28).
    """
    exact = _run_naive(network, pixels, torch.float64)
    rounded = _run_naive(network, pixels, torch.float32)
    errors = {name: float(np.abs(rounded[name] - exact[name]).max()) for name in exact}
    if not all(np.isfinite(error) for error in errors.values()):
        raise CheckError("the network's float32 outputs are not finite on these images")
    return Reference(pixels, exact, {name: BUDGET_FACTOR * e for name, e in errors.items()})


def graph_input(graph: Graph, pixels: NDArray[np.uint8]) -> NDArray[Any]:
    """The input of `graph` for pixels (N, 28, 28): themselves, images or PNG files of them."""
    if graph.input == ENCODED_IMAGE:
        return encoded([encode_png(image) for image in pixels])
    if graph.input == NIN.input:
        return preprocess(torch.tensor(pixels)).numpy()
    return pixels


def replay(run: Run, graph: Graph, golden: Reference) -> None:
    """Runs the golden vectors, as one batch and each image alone.

    Raises CheckError if an output is further off than its budget.
    """
    batch = graph_input(graph, golden.pixels)
    _compare(run(batch), golden.outputs, golden.budget)
    for index in range(len(batch)):
        one = slice(index, index + 1)
        expected = {name: values[one] for name, values in golden.outputs.items()}
        _compare(run(batch[one]), expected, golden.budget, f" for image {index} alone")


def _compare(
    outputs: Outputs, expected: Outputs, budget: dict[str, float], where: str = ""
) -> None:
    for name, right in expected.items():
        found = outputs.get(name)
        if found is None or found.shape != right.shape:
            shape = "missing" if found is None else found.shape
            raise CheckError(f"golden vectors: {name} is {shape}{where}, expected {right.shape}")
        error = np.abs(found - right).max()
        if not error <= budget[name]:  # so that NaN fails too
            raise CheckError(
                f"golden vectors: {name} is off by {error:.3g}{where}, "
                f"allowed is {budget[name]:.3g}"
            )


def _run_naive(network: nn.Module, pixels: NDArray[np.uint8], dtype: torch.dtype) -> Outputs:
    network = deepcopy(network).to(device="cpu", dtype=dtype).eval()
    batches = torch.split(torch.tensor(pixels), _BATCH)
    bar = tqdm(batches, f"reference in {dtype}", disable=None, leave=False)
    with torch.inference_mode():
        logits = torch.cat([network(preprocess(batch, dtype)) for batch in bar])
        probabilities = logits.softmax(dim=1)
    return {"logits": logits.double().numpy(), "probabilities": probabilities.double().numpy()}
