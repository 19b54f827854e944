"""The C++ command-line tools, run as a person runs them: one process for each call.

The batch goes in as an IDX file on the standard input, all outputs come back as JSON.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nin.artifact.manifest import read_artifact
from nin.artifact.metadata import Metadata
from nin.artifact.texts import read_torchscript_texts
from nin.contract import Graph, Model, Outputs
from nin.errors import CheckError, InputError
from nin.images import encode_idx
from nin.paths import CPP_TOOLS
from nin.runtimes.triton import TritonRuntime


def cpp_tools_are_built() -> bool:
    return all((CPP_TOOLS / name).is_file() for name in ("nin_classify", "nin_triton"))


class LibTorchRuntime:
    """`nin_classify`.

    Raises InputError where it isn't built, CheckError where it can't run the file.
    """

    def __init__(self, file: Path, graph: Graph, *, device: str = "cpu") -> None:
        # in a .pt2 they lie in the same place
        texts = read_torchscript_texts(read_artifact(file.parent, file.name))
        metadata = Metadata.from_texts(texts)
        self.contract = metadata.contract
        self.weights_sha256 = metadata.weights_sha256
        self.golden = metadata.golden
        self._graph = graph
        self._command = ["nin_classify", "--model", str(file), "--device", device]
        # once with the golden vectors, which every call would replay
        self.labels = _labels(self._command, graph)

    def __call__(self, batch: NDArray[Any]) -> Outputs:
        return _run([*self._command, "--no-replay"], self._graph, batch)[0]


class CppTritonRuntime:
    """`nin_triton`; what the server says of its model is asked by the Python client."""

    def __init__(self, url: str, model: Model, weights_sha256: str | None) -> None:
        served = TritonRuntime(url, model, weights_sha256, protocol="http")
        self.contract = served.contract
        self.weights_sha256 = weights_sha256
        self.golden = None
        self._graph = model.graph
        self._command = ["nin_triton", "--url", url, "--model", model.name]
        self.labels = _labels(self._command, model.graph)

    def __call__(self, batch: NDArray[Any]) -> Outputs:
        return _run(self._command, self._graph, batch)[0]


def _labels(command: list[str], graph: Graph) -> tuple[str, ...]:
    black = np.zeros((1, *graph.input.shape), graph.input.dtype)
    return _run(command, graph, black)[1]


def _run(command: list[str], graph: Graph, batch: NDArray[Any]) -> tuple[Outputs, tuple[str, ...]]:
    """The outputs for a batch of the graph's input, and the labels in order."""
    tool, *options = command
    path = CPP_TOOLS / tool
    if not path.is_file():
        raise InputError(f"no {tool} in {CPP_TOOLS}; build it by `make cpp`")
    batching = (
        "--batch-size",
        str(graph.max_batch),
        "--top",
        str(graph.classes),
        "--format",
        "json",
    )
    ended = subprocess.run(  # noqa: S603  our own program
        [path, "-", *options, *batching], input=encode_idx(batch), capture_output=True
    )
    if ended.returncode:
        reason = ended.stderr.decode(errors="replace").strip() or "no message"
        raise CheckError(f"{tool} ended with exit code {ended.returncode}: {reason}")
    try:
        images = json.loads(ended.stdout)
    except ValueError as error:  # the model itself may print
        start = ended.stdout[:60].decode(errors="replace")
        raise CheckError(f"{tool} printed no JSON but {start!r}") from error
    ordered = [sorted(image["predictions"], key=lambda p: p["index"]) for image in images]
    values = {
        "logits": [image["logits"] for image in images],
        "probabilities": [[p["probability"] for p in row] for row in ordered],
    }
    outputs = {t.name: np.array(values[t.name], np.float32) for t in graph.outputs}
    return outputs, tuple(p["label"] for p in ordered[0])
