"""One small adapter per runtime, all of the same shape, so that the gate can compare them."""

from pathlib import Path
from typing import Any, Protocol

import torch
from numpy.typing import NDArray

from nin.artifact import read_artifact
from nin.checkpoint import load_checkpoint
from nin.contract import Graph, Model
from nin.errors import InputError
from nin.reference import Outputs, Reference
from nin.runtimes.cpp import CppTritonRuntime, LibTorchRuntime, cpp_tools_are_built
from nin.runtimes.eager import EagerRuntime
from nin.runtimes.ort import OrtRuntime
from nin.runtimes.torchscript import TorchScriptRuntime
from nin.runtimes.triton import SERVER_RUNTIMES, TritonRuntime


class Runtime(Protocol):
    """A graph, loaded. Call it with a batch of its input; it answers by output name."""

    contract: dict[str, Any]
    labels: tuple[str, ...]

    @property
    def golden(self) -> Reference | None:
        """None where it carries none, or can't be asked."""

    @property
    def weights_sha256(self) -> str | None:
        """None where it can't be asked."""

    def __call__(self, batch: NDArray[Any]) -> Outputs: ...


CPU_RUNTIMES = ("eager", "torchscript", "onnxruntime", "libtorch")
RUNTIMES = (*CPU_RUNTIMES, *(f"{name}-cuda" for name in CPU_RUNTIMES))


def available_runtimes() -> tuple[str, ...]:
    """The runtimes that this machine has the devices for, and that are built."""
    names = RUNTIMES if torch.cuda.is_available() else CPU_RUNTIMES
    return tuple(n for n in names if not n.startswith("libtorch") or cpp_tools_are_built())


def artifact_of(name: str, graph: Graph) -> str | None:
    """The file that the runtime `name`, one of RUNTIMES, loads; None for eager."""
    suffix = {"torchscript": ".pt", "libtorch": ".pt", "onnxruntime": ".onnx"}
    kind = name.partition("-")[0]
    return f"{graph.name}{suffix[kind]}" if kind in suffix else None


def open_runtime(name: str, graph: Graph, *, artifacts: Path, weights: Path) -> Runtime:
    """Loads `graph` in the runtime `name`, one of RUNTIMES.

    Args:
        artifacts: folder of the exports; what is loaded is what its manifest vouches for.
        weights: for eager, which runs the checkpoint itself.

    Raises:
        InputError: the runtime is unknown or its device missing, or the file can't be used.
    """
    if name not in RUNTIMES:
        raise InputError(f"unknown runtime {name}; known are {', '.join(RUNTIMES)}")
    kind, _, accelerator = name.partition("-")
    device = accelerator or "cpu"
    if device == "cuda" and kind != "onnxruntime" and not torch.cuda.is_available():
        raise InputError(f"no CUDA device for {name}; this machine has {', '.join(CPU_RUNTIMES)}")
    if kind == "eager":
        return EagerRuntime(load_checkpoint(weights), graph, device=device)
    if kind == "torchscript":
        data = read_artifact(artifacts, f"{graph.name}.pt")
        return TorchScriptRuntime(data, graph, device=device)
    if kind == "libtorch":
        return LibTorchRuntime(artifacts, graph, device=device)
    return OrtRuntime(read_artifact(artifacts, f"{graph.name}.onnx"), graph, device=device)


def open_served(name: str, url: str, model: Model, weights_sha256: str | None) -> Runtime:
    """The model of a running server by the client `name`, one of SERVER_RUNTIMES.

    Args:
        url: HOST:PORT of the protocol that SERVER_RUNTIMES says.
        weights_sha256: what the published version was exported from; None where the server isn't
            ours and can't be asked.
    """
    if name == "triton-cpp":
        return CppTritonRuntime(url, model, weights_sha256)
    return TritonRuntime(url, model, weights_sha256, protocol=SERVER_RUNTIMES[name])
