"""The file formats: a new one is a module that writes and reads it, and an entry here."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from nin.contract import Graph
from nin.export import onnx_file, torchscript_file
from nin.gate.runtimes import Runtime
from nin.gate.runtimes.ort import OrtRuntime
from nin.gate.runtimes.torchscript import TorchScriptRuntime


@dataclass(frozen=True)
class Format:
    """How to write one file format, and how to read back what was written."""

    name: str
    suffix: str
    export: Callable[[nn.Module, torch.Tensor, Graph, dict[str, str]], bytes]
    read_texts: Callable[[bytes], dict[str, str]]
    open: Callable[[bytes, Graph], Runtime]
    versions: Callable[[], dict[str, str]]
    opset: int | None = None
    ir_version: int | None = None
    precision: str = "float32"


ONNX = Format(
    name="onnx",
    suffix=".onnx",
    export=onnx_file.export_onnx,
    read_texts=onnx_file.read_onnx_texts,
    open=OrtRuntime,
    versions=onnx_file.exporter_versions,
    opset=onnx_file.DEFAULT_OPSET,
    ir_version=onnx_file.ir_version(onnx_file.DEFAULT_OPSET),
)

TORCHSCRIPT = Format(
    name="torchscript",
    suffix=".pt",
    export=torchscript_file.export_torchscript,
    read_texts=torchscript_file.read_torchscript_texts,
    open=TorchScriptRuntime,
    versions=torchscript_file.exporter_versions,
)

FORMATS = {fmt.suffix: fmt for fmt in (ONNX, TORCHSCRIPT)}
