"""The file formats: a new one is a module that writes and reads it, and an entry here."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from nin.artifact.manifest import suffix_of
from nin.artifact.pt2_package import read_pt2_texts
from nin.artifact.texts import read_onnx_texts, read_torchscript_texts
from nin.contract import Graph, Run
from nin.export import int8_onnx, onnx_file, pt2_file, torchscript_file
from nin.runtimes import Runtime
from nin.runtimes.ort import OrtRuntime, unfused
from nin.runtimes.pt2 import Pt2Runtime
from nin.runtimes.torchscript import TorchScriptRuntime

Precision = Literal["float32", "int8"]
Program = Any  # what a format compiles a module to, before the texts are with it


@dataclass(frozen=True)
class Format:
    """How to write one file format in one precision, and how to read back what was written."""

    name: str
    precision: Precision
    suffix: str
    compile: Callable[..., Program]  # of module, example, graph; of int8 also calibration images
    write: Callable[[Program, dict[str, str]], bytes]
    read_texts: Callable[[bytes], dict[str, str]]
    open: Callable[[bytes, Graph], Runtime]
    versions: Callable[[], dict[str, str]]
    unfused: Callable[[bytes, Graph], tuple[Run, ...]] | None = None  # of int8: see `ort.unfused`
    weight_faults: Callable[..., list[str]] | None = None  # of int8: bytes, module, example, graph
    all_graphs: bool = True  # by default; else the classifier alone, which is what is deployed
    opset: int | None = None
    ir_version: int | None = None


ONNX = Format(
    name="onnx",
    precision="float32",
    suffix=".onnx",
    compile=onnx_file.compile_onnx,
    write=onnx_file.write_onnx,
    read_texts=read_onnx_texts,
    open=OrtRuntime,
    versions=onnx_file.exporter_versions,
    opset=onnx_file.DEFAULT_OPSET,
    ir_version=onnx_file.ir_version(onnx_file.DEFAULT_OPSET),
)

INT8_ONNX = replace(
    ONNX,
    precision="int8",
    suffix=".int8.onnx",
    compile=int8_onnx.compile_int8_onnx,
    versions=int8_onnx.exporter_versions,
    unfused=unfused,
    weight_faults=int8_onnx.weight_faults,
    all_graphs=False,
)

TORCHSCRIPT = Format(
    name="torchscript",
    precision="float32",
    suffix=".pt",
    compile=torchscript_file.compile_torchscript,
    write=torchscript_file.write_torchscript,
    read_texts=read_torchscript_texts,
    open=TorchScriptRuntime,
    versions=torchscript_file.exporter_versions,
)

PT2 = Format(
    name="pt2",
    precision="float32",
    suffix=".pt2",
    compile=pt2_file.compile_pt2,
    write=pt2_file.write_pt2,
    read_texts=read_pt2_texts,
    open=Pt2Runtime,
    versions=pt2_file.exporter_versions,
    all_graphs=False,
)

INT8_PT2 = replace(
    PT2,
    precision="int8",
    suffix=".int8.pt2",
    versions=pt2_file.int8_exporter_versions,
    unfused=pt2_file.unfused_pt2,
    weight_faults=pt2_file.weight_faults,
)

FORMATS = {fmt.suffix: fmt for fmt in (ONNX, INT8_ONNX, TORCHSCRIPT, PT2, INT8_PT2)}


def format_of(name: str) -> Format:
    """The format of a file by its name, GRAPH.SUFFIX."""
    return FORMATS[suffix_of(name)]
