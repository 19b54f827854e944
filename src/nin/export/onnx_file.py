"""Writes a graph as one self-contained ONNX file."""

import io
from contextlib import redirect_stderr
from importlib.metadata import version
from typing import Any

import onnx
import torch
from torch import nn

from nin.contract import BATCH, Graph
from nin.errors import CheckError, InputError, first_line
from nin.network.torch_settings import ignore_deprecations
from nin.releases import triton_release

# torch.onnx translates to 18 itself and converts from there; beyond 25 the converter gives up.
OPSETS = range(18, 26)
DEFAULT_OPSET = 18  # what every Triton release in nin.releases loads


def choose_opset(opset: int | None, target_triton: str | None) -> int:
    """The opset asked for, or the newest that a Triton release loads, or the portable default.

    Raises:
        InputError: the opset is out of range or too new for the release, or that is unknown.
    """
    if opset is not None and opset not in OPSETS:
        raise InputError(f"opset {opset} is out of range; choose {OPSETS[0]} to {OPSETS[-1]}")
    if target_triton is None:
        return DEFAULT_OPSET if opset is None else opset
    release = triton_release(target_triton)
    loads = [o for o in OPSETS if o <= release.opset and ir_version(o) <= release.ir_version]
    if opset is None:
        return max(loads)
    if opset not in loads:
        raise InputError(
            f"opset {opset} is too new for Triton {target_triton}: its onnxruntime "
            f"{release.onnxruntime} loads up to opset {max(loads)}"
        )
    return opset


def ir_version(opset: int) -> int:
    """The oldest, so the most widely loaded, IR version that knows the opset."""
    return int(onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)]))


def compile_onnx(
    module: nn.Module, example: torch.Tensor, graph: Graph, opset: int = DEFAULT_OPSET
) -> onnx.ModelProto:
    """Exports `module`, which must be in evaluation mode, and checks what was made.

    Args:
        example: a batch of two; with one the exporters might take the batch for a constant.

    Raises:
        InputError: torch can't export the module; the reason is its own.
        CheckError: the model isn't valid ONNX, or doesn't have the graph's inputs and outputs.
    """
    try:
        # torch writes half a graph there before it raises its reason
        with ignore_deprecations(), redirect_stderr(io.StringIO()):
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                external_data=False,
                input_names=[graph.input.name],
                output_names=[t.name for t in graph.outputs],
                dynamic_shapes=({0: torch.export.Dim(BATCH)},),
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:  # of torch, or of the network's own code
        raise InputError(
            f"{graph.name} can't be exported to ONNX: {first_line(error.__cause__ or error)}; "
            "forward() may only use tensor operations; try TorchScript"
        ) from error
    assert program is not None  # it is only None for dynamo=False
    model = program.model_proto
    _remove_traces(model)
    model.ir_version = ir_version(opset)
    check_onnx(model, graph, opset)
    return model


def write_onnx(model: onnx.ModelProto, texts: dict[str, str]) -> bytes:
    """The file of a model with the texts as its `metadata_props`."""
    onnx.helper.set_model_props(model, texts)
    return bytes(model.SerializeToString(deterministic=True))


def exporter_versions() -> dict[str, str]:
    return {name: version(name) for name in ("nin", "torch", "onnx", "onnxscript")}


def _remove_traces(model: onnx.ModelProto) -> None:
    """Removes the exporter's notes on every node: they hold paths of this machine."""
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
    notes: list[Any] = [model, graph, *graph.node, *values]
    for item in notes:
        item.ClearField("metadata_props")
        item.ClearField("doc_string")


def check_onnx(model: onnx.ModelProto, graph: Graph, opset: int) -> None:
    """Raises CheckError unless it is valid ONNX with the graph's inputs and outputs."""
    try:
        onnx.checker.check_model(model, full_check=True)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckError(f"{graph.name}: not valid ONNX: {error}") from error
    found_opset = {o.domain: o.version for o in model.opset_import}
    if found_opset != {"": opset}:
        raise CheckError(f"{graph.name}: opsets {found_opset}, expected {opset}")
    found = [_describe(v) for v in [*model.graph.input, *model.graph.output]]
    expected = [
        (t.name, t.dtype, (BATCH, *t.shape)) for t in (graph.input, *graph.outputs)
    ]  # fmt: skip
    if found != expected:
        raise CheckError(f"{graph.name}: inputs and outputs {found}, expected {expected}")


def _describe(value: onnx.ValueInfoProto) -> tuple[str, str, tuple[str | int, ...]]:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
    return value.name, dtype, shape
