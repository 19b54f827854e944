"""The exports in the onnxruntime and torch of Triton's releases, each installed in its own folder.

A release of Triton loads what its onnxruntime and torch load: what passes here passes there, as
far as the packages of the index are what NVIDIA builds into the container.
"""

import os
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from nin.artifact.manifest import read_artifact, read_manifest, suffix_of
from nin.artifact.metadata import Metadata
from nin.contract import Graph, Outputs
from nin.errors import CheckError, InputError, first_line
from nin.export.formats import INT8_ONNX, ONNX, TORCHSCRIPT, format_of
from nin.gate.parity import Row, check_parity
from nin.gate.questions import Questions, quick_plan
from nin.gate.reduced import questions_of_file
from nin.network.build import TrainedModel
from nin.paths import ROOT
from nin.releases import TritonRelease, triton_release
from nin.runtimes import release_runner
from nin.runtimes.release_runner import receive, send
from nin.terminal import short

FOLDER = ROOT / ".releases"

_COMPLETE = "complete"  # the file in an environment that says what was installed


class ReleaseRuntime:
    """An export in a process of a release's own Python. Calls wait for each other."""

    def __init__(self, python: Path, path: Path, graph: Graph) -> None:
        """Raises CheckError where the file can't be loaded there."""
        texts = format_of(path.name).read_texts(read_artifact(path.parent, path.name))
        metadata = Metadata.from_texts(texts)
        self.contract, self.labels = metadata.contract, metadata.labels
        self.golden, self.weights_sha256 = metadata.golden, metadata.weights_sha256
        self._names = [output.name for output in graph.outputs]
        self._lock = threading.Lock()
        self._process = subprocess.Popen(  # noqa: S603 - our own file in our own environment
            [python, release_runner.__file__, path.resolve()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"},
        )
        try:
            self._read()  # it is loaded
        except CheckError:
            self.close()
            raise

    def __call__(self, batch: NDArray[Any]) -> Outputs:
        with self._lock:
            assert self._process.stdin is not None
            send(self._process.stdin, batch)
            return dict(zip(self._names, self._read(), strict=True))

    def _read(self) -> list[NDArray[Any]]:
        assert self._process.stdout is not None
        try:
            count = int(receive(self._process.stdout))
            arrays = [receive(self._process.stdout) for _ in range(count or 1)]
        except EOFError as error:
            raise CheckError(f"its process ended with {self._process.wait()}") from error
        if count == 0:
            raise CheckError(str(arrays[0]))
        return arrays

    def close(self) -> None:
        self._process.communicate()


def check_releases(
    names: list[str], model: TrainedModel, artifacts: Path, questions: Questions
) -> list[Row]:
    """One row for each release, graph and format.

    Raises InputError for an unknown release, or one whose packages can't be installed.
    """

    @cache
    def questions_for(graph: Graph, suffix: str) -> Questions:
        return questions_of_file(questions, graph, suffix, artifacts, model)

    rows = []
    listed = read_manifest(artifacts)
    for name in names:
        release = triton_release(name)
        python = install(name, release)
        for fmt in (ONNX, INT8_ONNX, TORCHSCRIPT):
            package = "torch" if fmt == TORCHSCRIPT else "onnxruntime"
            runtime = f"{name}: {package} {getattr(release, package)}"
            for graph in model.contract.graphs.values():
                path = artifacts / f"{graph.name}{fmt.suffix}"
                if fmt.precision == "float32" or path.name in listed:
                    own = questions_for(graph, fmt.suffix)
                    rows.append(_check(runtime, python, path, graph, own))
    return rows


def _check(runtime: str, python: Path, path: Path, graph: Graph, questions: Questions) -> Row:
    try:
        loaded = ReleaseRuntime(python, path, graph)
    except CheckError as error:
        reason = f"it can't be loaded: {first_line(error)}"
        return Row(runtime, graph.name, 0, {}, failures=[reason])
    try:
        plan = quick_plan(graph.max_batch)
        return check_parity(runtime, loaded, graph, questions, plan, suffix_of(path.name))
    finally:
        loaded.close()


def install(name: str, release: TritonRelease, folder: Path = FOLDER) -> Path:
    """The Python of an environment with a release's packages, made unless it is there.

    Raises InputError where they can't be installed.
    """
    environment = folder / name
    python = environment / "bin" / "python"
    requirements = requirements_of(release)
    complete = environment / _COMPLETE
    if complete.is_file() and complete.read_text().splitlines() == requirements:
        return python
    listed = ", ".join(requirements)
    print(f"installing {listed} in {short(environment)}; this takes minutes", flush=True)
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(environment)],
        [str(python), "-m", "pip", "install", "--quiet", *requirements],
    ):
        ended = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
        if ended.returncode:
            lines = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
            raise InputError(f"can't install what Triton {name} carries: {lines[-1]}")
    complete.write_text("\n".join(requirements))
    return python


def requirements_of(release: TritonRelease) -> list[str]:
    """What pip is asked for: the exact onnxruntime, and the last fix of the torch."""
    return [f"onnxruntime=={release.onnxruntime}", f"torch=={release.torch}.*", "numpy"]
