"""The runtimes by name: a new one is a module of this folder, and an entry here."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from nin.contract import Graph, Model
from nin.errors import InputError
from nin.export.artifact import read_artifact
from nin.gate.runtimes import Runtime
from nin.gate.runtimes.cpp import CppTritonRuntime, LibTorchRuntime, cpp_tools_are_built
from nin.gate.runtimes.eager import EagerRuntime
from nin.gate.runtimes.ort import OrtRuntime
from nin.gate.runtimes.torchscript import TorchScriptRuntime
from nin.gate.runtimes.triton import SERVER_RUNTIMES, TritonRuntime
from nin.network.build import TrainedModel

Open = Callable[[Path, Graph, str], Runtime]  # from the folder of the exports, on a device


def _open_ort(artifacts: Path, graph: Graph, device: str) -> Runtime:
    return OrtRuntime(read_artifact(artifacts, f"{graph.name}.onnx"), graph, device=device)


def _open_torchscript(artifacts: Path, graph: Graph, device: str) -> Runtime:
    return TorchScriptRuntime(read_artifact(artifacts, f"{graph.name}.pt"), graph, device=device)


def _open_libtorch(artifacts: Path, graph: Graph, device: str) -> Runtime:
    return LibTorchRuntime(artifacts, graph, device=device)


@dataclass(frozen=True)
class _Kind:
    suffix: str  # of the file that it loads
    open: Open


_EAGER = "eager"  # what was trained: it loads no file
_KINDS = {
    "torchscript": _Kind(".pt", _open_torchscript),
    "onnxruntime": _Kind(".onnx", _open_ort),
    "libtorch": _Kind(".pt", _open_libtorch),
}

CPU_RUNTIMES = (_EAGER, *_KINDS)
RUNTIMES = (*CPU_RUNTIMES, *(f"{name}-cuda" for name in CPU_RUNTIMES))


def available_runtimes() -> tuple[str, ...]:
    """The runtimes that this machine has the devices for, and that are built."""
    names = RUNTIMES if torch.cuda.is_available() else CPU_RUNTIMES
    return tuple(n for n in names if not n.startswith("libtorch") or cpp_tools_are_built())


def artifact_of(name: str, graph: Graph) -> str | None:
    """The file that the runtime `name`, one of RUNTIMES, loads; None for eager."""
    kind = _KINDS.get(name.partition("-")[0])
    return f"{graph.name}{kind.suffix}" if kind else None


def open_runtime(
    name: str, graph: Graph, *, artifacts: Path, model: TrainedModel | None = None
) -> Runtime:
    """Loads `graph` in the runtime `name`, one of RUNTIMES.

    Args:
        artifacts: folder of the exports; what is loaded is what its manifest vouches for.
        model: for eager alone, which runs the network itself.

    Raises:
        InputError: the runtime is unknown or its device missing, or the file can't be used.
    """
    if name not in RUNTIMES:
        raise InputError(f"unknown runtime {name}; known are {', '.join(RUNTIMES)}")
    kind, _, accelerator = name.partition("-")
    device = accelerator or "cpu"
    if device == "cuda" and kind != "onnxruntime" and not torch.cuda.is_available():
        raise InputError(f"no CUDA device for {name}; this machine has {', '.join(CPU_RUNTIMES)}")
    if kind == _EAGER:
        assert model is not None
        return EagerRuntime(model, graph, device=device)
    return _KINDS[kind].open(artifacts, graph, device)


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
