"""ONNX Runtime, as Triton's onnxruntime backend runs it."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from nin.artifact.metadata import Metadata
from nin.contract import Graph, Outputs, Run
from nin.errors import InputError
from nin.reference.quantised import TIE
from nin.runtimes.threads import threads

_PROVIDERS: dict[str, list[Any]] = {
    "cpu": ["CPUExecutionProvider"],
    # TensorFloat-32 keeps 10 bits of the mantissa: what is proven here is float32.
    "cuda": [("CUDAExecutionProvider", {"use_tf32": 0})],
}


def unfused(data: bytes, graph: Graph) -> tuple[Run, ...]:
    """A quantised graph in plain float32, node by node; then with its ties rounded up, and down.

    What is right for a kernel lies between those: it may round a tie, or what float32 makes of
    one, either way.
    """
    model = onnx.load_from_string(data)
    files = (data, *(_with_ties(model, 1 + sign * TIE).SerializeToString() for sign in (-1, 1)))
    return tuple(_run(file, graph) for file in files)


def _with_ties(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """The model whose activations are quantised by scales a little smaller or larger."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    scales = {t.name: t for t in model.graph.initializer}
    for index, node in enumerate(changed.graph.node):
        if node.op_type == "QuantizeLinear" and node.input[1] in scales:
            name = f"scale_{index}"
            scale = numpy_helper.to_array(scales[node.input[1]]) * np.float32(factor)
            changed.graph.initializer.append(numpy_helper.from_array(scale, name))
            node.input[1] = name
    return changed


def _run(data: bytes, graph: Graph) -> Run:
    options = _options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(data, options, _PROVIDERS["cpu"])
    names = [output.name for output in graph.outputs]
    return lambda batch: dict(
        zip(names, session.run(names, {graph.input.name: batch}), strict=True)
    )


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, once
    options.intra_op_num_threads = threads()
    return options


class OrtRuntime:
    """Raises InputError where the bytes aren't an ONNX export of this project, or no such device.

    onnxruntime itself falls back to the CPU without an error where CUDA doesn't start.
    """

    def __init__(self, data: bytes, graph: Graph, *, device: str = "cpu") -> None:
        try:
            self._session = onnxruntime.InferenceSession(data, _options(), _PROVIDERS[device])
        except Exception as error:  # its exceptions share no other base class
            reason = str(error).splitlines()[0]
            raise InputError(f"onnxruntime can't load the model: {reason}") from error
        providers = self._session.get_providers()
        if device == "cuda" and "CUDAExecutionProvider" not in providers:
            raise InputError(
                f"onnxruntime fell back to {', '.join(providers)}: it found no CUDA device "
                "or not the CUDA libraries it was built for"
            )
        metadata = Metadata.from_texts(self._session.get_modelmeta().custom_metadata_map)
        self.contract = metadata.contract
        self.labels = metadata.labels
        self.weights_sha256 = metadata.weights_sha256
        self.golden = metadata.golden
        self._input = graph.input.name
        self._names = [output.name for output in self._session.get_outputs()]

    def __call__(self, batch: NDArray[Any]) -> Outputs:
        outputs = self._session.run(None, {self._input: batch})
        return dict(zip(self._names, outputs, strict=True))
