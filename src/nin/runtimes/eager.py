"""Eager PyTorch in float32: the trained network itself, nothing exported."""

from copy import deepcopy
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from nin.contract import Graph, Outputs
from nin.network.build import TrainedModel
from nin.network.torch_settings import without_tf32


class EagerRuntime:
    def __init__(self, model: TrainedModel, graph: Graph, *, device: str = "cpu") -> None:
        self.contract = graph.signature()
        self.labels = model.contract.labels
        self.weights_sha256 = model.weights_sha256
        self.golden = None
        self._module = deepcopy(model.module(graph)).to(device)
        self._graph = graph
        self._device = device

    def __call__(self, batch: NDArray[Any]) -> Outputs:
        return run_module(self._module, self._graph, batch, self._device)


def run_module(module: nn.Module, graph: Graph, batch: NDArray[Any], device: str) -> Outputs:
    """Runs a module, eager or TorchScript, and names its outputs in the contract's order."""
    with torch.inference_mode(), without_tf32():
        outputs = module(torch.tensor(batch, device=device))
    if isinstance(outputs, torch.Tensor):
        outputs = (outputs,)
    if not isinstance(outputs, tuple):  # servers and C++ take no list and no dictionary
        raise TypeError(f"a {type(outputs).__name__} as output, expected a tensor or a tuple")
    names = [t.name for t in graph.outputs]
    if len(outputs) != len(names):
        raise ValueError(f"{len(outputs)} outputs, expected {len(names)}: {', '.join(names)}")
    return {name: t.cpu().numpy() for name, t in zip(names, outputs, strict=True)}
