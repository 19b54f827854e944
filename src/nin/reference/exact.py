"""What every runtime is held against: the eager network in float64 on the CPU, naive form."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from nin.artifact.golden import Golden, golden_count, graph_input, normalise
from nin.contract import Graph, Outputs
from nin.errors import CheckError
from nin.network.build import TrainedModel
from nin.network.classifier import Preprocess

# A runtime may be off by this many times the error that float32 eager makes itself: it may add
# the same products in any order, and nothing else. Measured: docs/parity.md.
BUDGET_FACTOR = 8

# The last place of a float32.
_EPSILON = float(np.finfo(np.float32).eps)

# Float64 activations of so many 224x224 images stay within a few hundred MB.
_BATCH = 16


@dataclass(frozen=True)
class Reference:
    """Images with the answers that are right, and how far a float32 runtime may be from them."""

    pixels: NDArray[np.uint8]  # (N, h, w[, 3])
    outputs: Outputs  # logits and probabilities, float64
    budget: dict[str, float]  # by output name, the largest absolute error allowed

    def first(self, count: int) -> "Reference":
        """The first `count` images, with the budget derived on all."""
        outputs = {name: values[:count] for name, values in self.outputs.items()}
        return Reference(self.pixels[:count], outputs, self.budget)


def compute_reference(model: TrainedModel, pixels: NDArray[np.uint8]) -> Reference:
    """Runs the network in float64, and in float32 to derive the budget from its error.

    The budget is BUDGET_FACTOR times the largest error of float32 eager on the same images. Both
    run the naive form (scale, normalise, resize, network), whatever is exported.

    Args:
        pixels: (N, h, w[, 3]).
    """
    preprocess = Preprocess(model.contract)

    def run(dtype: torch.dtype) -> Outputs:
        scale = deepcopy(preprocess).to(dtype)
        return _run(model.network, torch.tensor(pixels), dtype, scale)

    outputs, budget = _with_budget(run(torch.float64), run(torch.float32))
    return Reference(pixels, outputs, budget)


def compute_golden(model: TrainedModel, graph: Graph, pixels: NDArray[np.uint8]) -> Golden:
    """The golden vectors of an artifact of `graph`: the first of these samples.

    A network's are its images rounded to bytes, so that whoever loads it needs no resizing.
    """
    pixels = pixels[: golden_count(graph, len(pixels))]
    if graph.image is None:
        reference = compute_reference(model, pixels)
        return Golden(pixels, reference.outputs, reference.budget)
    images = _bytes_of_images(model, pixels)
    outputs, budget = compute_network_reference(model, normalise(images, graph.image))
    return Golden(images, outputs, budget)


def compute_network_reference(
    model: TrainedModel, images: NDArray[np.float32]
) -> tuple[Outputs, dict[str, float]]:
    """As `compute_reference`, of images (N, C, H, W) that the network takes as they are."""
    batch = torch.tensor(images)

    def run(dtype: torch.dtype) -> Outputs:
        logits = _run(model.network, batch, dtype, lambda part: part.to(dtype))["logits"]
        return {"logits": logits}

    return _with_budget(run(torch.float64), run(torch.float32))


def batch_for(model_input: "Preprocess", graph: Graph, pixels: NDArray[np.uint8]) -> NDArray[Any]:
    """The input of any graph for pixels: themselves, float32 images, or PNG files."""
    if graph.image is None:
        return graph_input(graph, pixels)
    images: NDArray[np.float32] = model_input(torch.tensor(pixels)).numpy()
    return images


def margins(logits: NDArray[np.floating]) -> NDArray[np.floating]:
    """How far the best logit of each image is ahead of the next, (N,)."""
    top = np.sort(logits, axis=1)
    ahead: NDArray[np.floating] = top[:, -1] - top[:, -2]
    return ahead


def _bytes_of_images(model: TrainedModel, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    preprocess = Preprocess(model.contract).double()
    image = preprocess(torch.tensor(pixels)) * preprocess.std + preprocess.mean
    images: NDArray[np.uint8] = (image * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    return images


def _with_budget(exact: Outputs, rounded: Outputs) -> tuple[Outputs, dict[str, float]]:
    errors = {name: float(np.abs(rounded[name] - exact[name]).max()) for name in exact}
    if not all(np.isfinite(error) for error in errors.values()):
        raise CheckError("the network's float32 outputs are not finite on these images")
    # of few images a small network may happen to get all nearly right: no runtime has to
    least = {name: _EPSILON * float(np.abs(exact[name]).max()) for name in exact}
    return exact, {name: BUDGET_FACTOR * max(errors[name], least[name]) for name in exact}


def _run(network: nn.Module, inputs: Tensor, dtype: torch.dtype, prepare: Any) -> Outputs:
    network = deepcopy(network).to(device="cpu", dtype=dtype).eval()
    bar = tqdm(torch.split(inputs, _BATCH), f"reference in {dtype}", disable=None, leave=False)
    with torch.inference_mode():
        logits = torch.cat([network(prepare(batch)) for batch in bar])
        probabilities = logits.softmax(dim=1)
    return {"logits": logits.double().numpy(), "probabilities": probabilities.double().numpy()}
