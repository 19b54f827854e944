"""OpenVINO, as Triton's openvino backend runs it; the extra `openvino` installs it."""

import importlib
import importlib.util
import re
import threading
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from nin.artifact.metadata import Metadata
from nin.artifact.texts import read_onnx_texts
from nin.contract import Graph, Outputs
from nin.errors import InputError

# A CPU with bfloat16 would compute in that: what is proven here is float32.
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}

# A line of its errors that says only where in its source.
_PLACE = re.compile(
    r"Exception from \S+:\d+:$|Check '.*' failed at \S+:\d+:$|FrontEnd API failed with"
)


class OpenVinoRuntime:
    """Raises InputError where OpenVINO isn't installed, or the bytes aren't an ONNX export of ours.

    May be called from several threads: each gets an infer request of its own.

    Args:
        streams: how many requests run at the same time; None leaves it to OpenVINO, one.
        threads: of all streams together; None takes all cores.
    """

    def __init__(
        self, data: bytes, graph: Graph, *, streams: int | None = None, threads: int | None = None
    ) -> None:
        openvino = import_openvino()
        metadata = Metadata.from_texts(read_onnx_texts(data))
        sizes = {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": threads}
        options: dict[str, Any] = {name: n for name, n in sizes.items() if n is not None}
        if threads is not None:  # else the threads of all instances would share the first cores
            options["ENABLE_CPU_PINNING"] = False
        try:
            core = openvino.Core()
            self._model = core.compile_model(core.read_model(data), "CPU", FLOAT32 | options)
        except RuntimeError as error:
            raise InputError(f"OpenVINO can't load the model: {reason_of(error)}") from error
        self.contract = metadata.contract
        self.labels = metadata.labels
        self.weights_sha256 = metadata.weights_sha256
        self.golden = metadata.golden
        self._input = graph.input.name
        self._names = [output.get_any_name() for output in self._model.outputs]
        self._requests = threading.local()

    def __call__(self, batch: NDArray[Any]) -> Outputs:
        if not hasattr(self._requests, "own"):
            self._requests.own = self._model.create_infer_request()
        outputs = self._requests.own.infer({self._input: batch}, share_inputs=True)
        return {name: outputs[name] for name in self._names}


def openvino_is_installed() -> bool:
    return importlib.util.find_spec("openvino") is not None


def import_openvino() -> ModuleType:
    """Raises InputError where it isn't installed."""
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise InputError(
            f"OpenVINO can't be imported ({error}); install it: `pip install 'nin[openvino]'`"
        ) from error


def reason_of(error: Exception) -> str:
    """What OpenVINO says, in one line, without the places of its source that it went through."""
    lines = (line.strip() for line in str(error).splitlines())
    said = [line for line in lines if line and not _PLACE.match(line)]
    return " ".join(said) or type(error).__name__
