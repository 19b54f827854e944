"""The runtimes by name: a new one is a module of this folder, and an entry here."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from nin.artifact.manifest import read_artifact
from nin.contract import Graph, Model
from nin.errors import InputError
from nin.network.build import TrainedModel
from nin.runtimes import Runtime
from nin.runtimes.cpp import CppTritonRuntime, LibTorchRuntime, cpp_tools_are_built
from nin.runtimes.eager import EagerRuntime
from nin.runtimes.openvino import OpenVinoRuntime, openvino_is_installed
from nin.runtimes.ort import OrtRuntime
from nin.runtimes.pt2 import Pt2Runtime
from nin.runtimes.threads import threads
from nin.runtimes.torchscript import TorchScriptRuntime
from nin.runtimes.triton import SERVER_RUNTIMES, TritonRuntime

Open = Callable[[Path, Graph, str], Runtime]  # from the file of an export, on a device


def _open_ort(file: Path, graph: Graph, device: str) -> Runtime:
    return OrtRuntime(read_artifact(file.parent, file.name), graph, device=device)


def _open_torchscript(file: Path, graph: Graph, device: str) -> Runtime:
    return TorchScriptRuntime(read_artifact(file.parent, file.name), graph, device=device)


def _open_openvino(file: Path, graph: Graph, device: str) -> Runtime:
    assert device == "cpu"
    data = read_artifact(file.parent, file.name)
    return OpenVinoRuntime(data, graph, threads=threads() or None)


def _open_pt2(file: Path, graph: Graph, device: str) -> Runtime:
    assert device == "cpu"
    return Pt2Runtime(read_artifact(file.parent, file.name), graph)


def _open_libtorch(file: Path, graph: Graph, device: str) -> Runtime:
    return LibTorchRuntime(file, graph, device=device)


@dataclass(frozen=True)
class _Kind:
    suffixes: tuple[str, ...]  # of the files that it loads
    open: Open


_EAGER = "eager"  # what was trained: it loads no file
_KINDS = {
    "torchscript": _Kind((".pt",), _open_torchscript),
    "onnxruntime": _Kind((".onnx", ".int8.onnx"), _open_ort),
    "openvino": _Kind((".onnx", ".int8.onnx"), _open_openvino),
    "aotinductor": _Kind((".pt2", ".int8.pt2"), _open_pt2),
    "libtorch": _Kind((".pt", ".pt2", ".int8.pt2"), _open_libtorch),
}
_CPU_ONLY = ("openvino", "aotinductor")

CPU_RUNTIMES = (_EAGER, *_KINDS)
CUDA_RUNTIMES = tuple(f"{name}-cuda" for name in CPU_RUNTIMES if name not in _CPU_ONLY)
RUNTIMES = (*CPU_RUNTIMES, *CUDA_RUNTIMES)


def available_runtimes() -> tuple[str, ...]:
    """The runtimes that this machine has the devices for, and that are built or installed."""
    names = RUNTIMES if torch.cuda.is_available() else CPU_RUNTIMES
    there = {"libtorch": cpp_tools_are_built(), "openvino": openvino_is_installed()}
    return tuple(name for name in names if there.get(name.partition("-")[0], True))


def suffixes_of(name: str) -> tuple[str, ...]:
    """Of the files that the runtime `name`, one of RUNTIMES, loads; none for eager."""
    kind = _KINDS.get(name.partition("-")[0])
    return kind.suffixes if kind else ()


def runtime_of(suffix: str) -> str:
    """The first runtime of this process that loads such a file."""
    return next(name for name, kind in _KINDS.items() if suffix in kind.suffixes)


def open_runtime(
    name: str,
    graph: Graph,
    suffix: str | None = None,
    *,
    artifacts: Path,
    model: TrainedModel | None = None,
) -> Runtime:
    """Loads `graph` in the runtime `name`, one of RUNTIMES.

    Args:
        suffix: of the file; the first of `suffixes_of(name)` if not given.
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
    suffix = suffix or suffixes_of(kind)[0]
    return _KINDS[kind].open(artifacts / f"{graph.name}{suffix}", graph, device)


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
