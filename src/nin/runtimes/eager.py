"""Eager PyTorch in float32: the trained network itself, nothing exported."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from nin.checkpoint import Checkpoint
from nin.classifier import Classifier
from nin.contract import LABELS, NIN, Graph
from nin.model import NiN
from nin.reference import Outputs
from nin.torch_settings import without_tf32


def graph_module(network: NiN, graph: Graph) -> nn.Module:
    """The module that computes `graph`: the network, or the classifier made from it."""
    return network if graph is NIN else Classifier(network)


class EagerRuntime:
    def __init__(self, checkpoint: Checkpoint, graph: Graph, *, device: str = "cpu") -> None:
        self.contract = graph.describe()
        self.labels = LABELS
        self.weights_sha256 = checkpoint.sha256
        self.golden = None
        self._module = graph_module(checkpoint.network, graph).to(device)
        self._graph = graph
        self._device = device

    def __call__(self, batch: NDArray[Any]) -> Outputs:
        return run_module(self._module, self._graph, batch, self._device)


def run_module(module: nn.Module, graph: Graph, batch: NDArray[Any], device: str) -> Outputs:
    """Runs a module, eager or TorchScript, and names its outputs in the contract's order."""
    with torch.inference_mode(), without_tf32():
        outputs = module(**{graph.input.name: torch.tensor(batch, device=device)})
    if isinstance(outputs, torch.Tensor):
        outputs = (outputs,)
    names = [t.name for t in graph.outputs]
    if len(outputs) != len(names):
        raise ValueError(f"{len(outputs)} outputs, expected {len(names)}: {', '.join(names)}")
    return {name: t.cpu().numpy() for name, t in zip(names, outputs, strict=True)}
