"""ONNX Runtime, as Triton's onnxruntime backend runs it."""

from typing import Any

import onnxruntime
from numpy.typing import NDArray

from nin.contract import Graph, Outputs
from nin.errors import InputError
from nin.export.artifact import Metadata
from nin.gate.runtimes.threads import threads

_PROVIDERS: dict[str, list[Any]] = {
    "cpu": ["CPUExecutionProvider"],
    # TensorFloat-32 keeps 10 bits of the mantissa: what is proven here is float32.
    "cuda": [("CUDAExecutionProvider", {"use_tf32": 0})],
}


class OrtRuntime:
    """Raises InputError where the bytes aren't an ONNX export of this project, or no such device.

    onnxruntime itself falls back to the CPU without an error where CUDA doesn't start.
    """

    def __init__(self, data: bytes, graph: Graph, *, device: str = "cpu") -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised, once
        options.intra_op_num_threads = threads()
        try:
            self._session = onnxruntime.InferenceSession(data, options, _PROVIDERS[device])
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
