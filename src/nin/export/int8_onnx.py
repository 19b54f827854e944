"""Quantises a graph's ONNX file: static QDQ by onnxruntime's own quantizer.

Activations are uint8 with ranges seen on calibration images, weights int8 for each channel. The
weights keep 7 bits: nin.export.int8_layers says why.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from nin.contract import Graph
from nin.errors import InputError, first_line
from nin.export import onnx_file
from nin.export.int8_layers import Constant, Layer, layer_faults
from nin.export.onnx_file import DEFAULT_OPSET, check_onnx, compile_onnx

_BATCH = 16
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # their second input is a weight


def compile_int8_onnx(
    module: nn.Module,
    example: torch.Tensor,
    graph: Graph,
    calibration: torch.Tensor,
    opset: int = DEFAULT_OPSET,
) -> onnx.ModelProto:
    """Exports and quantises `module`.

    Args:
        example: as for `compile_onnx`.
        calibration: the graph's input for images whose activations give the ranges.

    Raises:
        InputError: it can't be exported, or nothing in it can be quantised.
    """
    float32 = prepared(compile_onnx(module, example, graph, opset))
    with _folder(float32) as (source, target):
        quantization.quantize_static(
            source,
            target,
            _Reader(graph.input.name, calibration.numpy()),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
        model = onnx.load(target)
    if all(layer.weight.codes is None for layer in layers(model)):
        raise InputError(
            f"{graph.name} has nothing to quantise: no convolution or linear layer with constant "
            "weights; use --precision float32"
        )
    del model.metadata_props[:]
    del model.opset_import[1:]  # the quantizer names domains that it didn't need
    check_onnx(model, graph, opset)
    return model


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph as it is quantised: constants folded, batch norms in their convolutions."""
    with _folder(model) as (source, target):
        try:
            # its symbolic shapes are for transformers, and fail for some networks
            quant_pre_process(source, target, skip_symbolic_shape=True)
        except Exception as error:  # its exceptions share no other base class
            raise InputError(f"onnxruntime can't prepare the graph: {first_line(error)}") from error
        return onnx.load(target)


@contextmanager
def _folder(model: onnx.ModelProto) -> Iterator[tuple[Path, Path]]:
    """The model as a file, and where to write another; the quantizer's advice isn't printed."""
    logging.disable(logging.WARNING)
    try:
        with TemporaryDirectory(prefix="nin-int8-") as name:
            source = Path(name) / "source.onnx"
            source.write_bytes(model.SerializeToString())
            yield source, Path(name) / "target.onnx"
    finally:
        logging.disable(logging.NOTSET)


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, images: NDArray[Any]) -> None:
        self._batches = iter(np.split(images, range(_BATCH, len(images), _BATCH)))
        self._name = name

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


def layers(model: onnx.ModelProto) -> list[Layer]:
    """The layers with constant weights, in the graph's order, whether quantised or not."""
    constants = {t.name: t for t in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}

    def read(name: str) -> Constant | None:
        if name in constants:
            return Constant(numpy_helper.to_array(constants[name]))
        node = makers.get(name)
        if node is None or node.op_type != "DequantizeLinear":
            return None
        if any(i not in constants for i in node.input):
            return None
        codes, scale, zero = (numpy_helper.to_array(constants[i]) for i in node.input)
        if scale.size > 1:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            shape = [1] * codes.ndim
            shape[axis] = -1
            scale, zero = scale.reshape(shape), zero.reshape(shape)
        return Constant((codes.astype(np.float32) - zero.astype(np.float32)) * scale, codes, scale)

    found = []
    for node in model.graph.node:
        if node.op_type not in _WEIGHTED or (weight := read(node.input[1])) is None:
            continue
        bias = read(node.input[2]) if len(node.input) > 2 else None
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        first = node.op_type == "Conv" or (node.op_type == "Gemm" and transposed)
        axis = 0 if first else 1 if node.op_type == "ConvTranspose" else weight.values.ndim - 1
        found.append(Layer(node.name, weight, axis, bias))
    return found


def weight_faults(data: bytes, module: nn.Module, example: torch.Tensor, graph: Graph) -> list[str]:
    """What is wrong with the constants of a quantised file, held against `module`'s."""
    model = onnx.load_from_string(data)
    exact = prepared(compile_onnx(module, example, graph))
    return layer_faults(layers(model), layers(exact)) + [
        f"scales: {name} is written by one scale and read by another"
        for name in _uneven_pairs(model)
    ]


def _uneven_pairs(model: onnx.ModelProto) -> list[str]:
    """The tensors that are quantised by one scale and read back by another."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    quantizers = {n.output[0]: n for n in model.graph.node if n.op_type == "QuantizeLinear"}
    return [
        node.input[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        and (pair := quantizers.get(node.input[0])) is not None
        and any(
            not np.array_equal(constants[ours], constants[theirs])
            for ours, theirs in zip(node.input[1:], pair.input[1:], strict=True)
        )
    ]


def exporter_versions() -> dict[str, str]:
    return onnx_file.exporter_versions() | {"onnxruntime": onnxruntime.__version__}
