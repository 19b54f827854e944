"""The ways to run a model's classifier, and how each is opened.

Formats, runtimes and served models are those of the registries, as far as their exports exist.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nin.artifact.manifest import read_manifest, suffix_of
from nin.bench.load import MOST_CALLS, Measured
from nin.bench.worker import (
    EAGER,
    Way,
    classes_of,
    memory_mib,
    open_clients,
    open_in_process,
    start_worker,
)
from nin.contract import Contract, Model, Run
from nin.errors import CheckError, InputError
from nin.export.formats import FORMATS
from nin.images import encode_idx
from nin.paths import CPP_TOOLS
from nin.runtimes.cpp import cpp_tools_are_built
from nin.runtimes.openvino import openvino_is_installed
from nin.runtimes.registry import available_runtimes, open_runtime, open_served, suffixes_of
from nin.runtimes.triton import SERVER_RUNTIMES
from nin.serve.configs import Layout, layout_for
from nin.serve.repository import stage_alone
from nin.serve.server import PORTS, Server, find_tritonserver, serve

CLIENTS = (1, 16)  # requests in flight at a server

_LIBTORCH, _CPP_CLIENT = "libtorch", "triton-cpp"  # the C++ tools measure themselves
_LEAST_CALLS = 3
_ONE = Layout(1, 0)  # with as many threads as the runtime takes by itself


@dataclass(frozen=True)
class Row:
    """One way to run the classifier."""

    name: str
    runtime: str  # EAGER, one of the registry's, or a server's client
    file: Path  # what is run: an export, or the weights
    layout: Layout = _ONE
    precision: str = "float32"
    model: Model | None = None  # the served one

    @property
    def concurrencies(self) -> tuple[int, ...]:
        """Calls at the same time: an instance's one, or the requests in flight."""
        if self.model:
            return (1,) if self.runtime == _CPP_CLIENT else CLIENTS
        return (self.layout.instances,)

    def takes(self, batch: int) -> bool:
        return self.model is None or batch <= self.model.graph.max_batch

    @property
    def suffix(self) -> str:
        return suffix_of(self.file.name)

    @property
    def sizes(self) -> str:
        return f"{self.layout.instances}x{self.layout.threads or 'all'}"


def list_rows(contract: Contract, weights: Path, artifacts: Path) -> list[Row]:
    """Every row that can be measured here; the first is eager, which the others are compared with.

    Raises InputError where nothing is exported.
    """
    exported = read_manifest(artifacts)
    there = {name for name in exported if (artifacts / name).is_file()}
    rows = [Row(EAGER, EAGER, weights)]
    for runtime in available_runtimes():
        for suffix in suffixes_of(runtime):
            name = f"{contract.name}{suffix}"
            if name in there:
                rows += _runtime_rows(runtime, artifacts / name, suffix)
    try:
        find_tritonserver()
    except InputError as error:
        print(f"served rows are left out: {error}", file=sys.stderr)
        return rows
    for model in replace(contract, openvino=openvino_is_installed()).published:
        file = artifacts / f"{model.graph.name}{model.format}"
        if model.graph.name == contract.name and file.name in there:
            rows += _served_rows(model, file)
    return rows


def _runtime_rows(runtime: str, file: Path, suffix: str) -> Iterator[Row]:
    name, precision = f"{runtime}{suffix}", FORMATS[suffix].precision
    if runtime.startswith(_LIBTORCH) or runtime.endswith("-cuda"):
        yield Row(name, runtime, file, precision=precision)
        return
    for layout in (_ONE, layout_for()):
        row = Row(name, runtime, file, layout, precision)
        yield replace(row, name=f"{name}/{row.sizes}")


def _served_rows(model: Model, file: Path) -> Iterator[Row]:
    assert model.format is not None
    precision = FORMATS[model.format].precision
    for client in SERVER_RUNTIMES:
        if client != _CPP_CLIENT or cpp_tools_are_built():
            yield Row(f"{client}/{model.name}", client, file, layout_for(), precision, model)


def choose_rows(rows: Sequence[Row], patterns: Sequence[str]) -> list[Row]:
    """The rows whose names match one of the patterns, and eager.

    Raises InputError where nothing matches one.
    """
    for pattern in patterns:
        if not any(fnmatchcase(row.name, pattern) for row in rows):
            names = ", ".join(row.name for row in rows)
            raise InputError(f"no row {pattern}; there are {names}")
    first, *others = rows
    return [first, *(r for r in others if any(fnmatchcase(r.name, p) for p in patterns))]


@dataclass(frozen=True)
class Opener:
    """Opens rows; what it starts lives as long as `stack`."""

    contract: Contract
    weights: Path
    artifacts: Path
    pixels: NDArray[np.uint8]  # the largest batch
    batches: Sequence[int]
    stack: ExitStack
    _servers: dict[str, Server] = field(default_factory=dict)

    def open(self, row: Row) -> Way:
        if row.model:
            return self._open_served(row, row.model)
        if row.runtime.startswith(_LIBTORCH):
            device = row.runtime.partition("-")[2] or "cpu"
            options = ("--model", row.file, "--device", device, "--no-replay")
            graph, suffix = self.contract.classifier_graph, row.suffix
            run = open_runtime(row.runtime, graph, suffix, artifacts=self.artifacts)
            return CppTool("nin_classify", options, run, self.pixels)
        folders = (self.contract.folder, self.weights, self.artifacts)
        opener = partial(open_in_process, row.runtime, row.suffix, *folders, row.layout)
        return start_worker(self.stack, opener, self.pixels, self.batches)

    def _open_served(self, row: Row, model: Model) -> Way:
        name = model.name
        if name not in self._servers:  # of this model alone, so that its memory is the model's
            folder = self.stack.enter_context(tempfile.TemporaryDirectory(prefix="nin-"))
            stage_alone(self.contract, model, self.artifacts, Path(folder), row.layout)
            starting = serve(Path(folder), ports=dict.fromkeys(PORTS, 0))
            self._servers[name] = self.stack.enter_context(starting)
        server, protocol = self._servers[name], SERVER_RUNTIMES[row.runtime]
        url, process = getattr(server, protocol), server.process.pid
        if row.runtime != _CPP_CLIENT:
            opener = partial(open_clients, url, protocol, model, max(CLIENTS), process)
            batches = list(filter(row.takes, self.batches))
            return start_worker(self.stack, opener, self.pixels, batches)
        run = open_served(row.runtime, url, model, None)
        return CppTool("nin_triton", ("--url", url, "--model", name), run, self.pixels, process)


class CppTool:
    """`nin_classify` or `nin_triton`, which measure themselves: one call at a time."""

    def __init__(
        self, tool: str, options: Sequence[object], run: Run, pixels: NDArray[np.uint8],
        server: int | None = None,
    ) -> None:  # fmt: skip
        self._command = [CPP_TOOLS / tool, "-", *options, "--benchmark", "--format", "json"]
        self._run, self._pixels, self._server = run, pixels, server
        self._found: dict[int, dict[str, float]] = {}  # by batch size, the last one's

    def measure(self, batch: int, concurrency: int, seconds: float) -> Measured:
        assert concurrency == 1
        known = self._found.get(batch) or self._benchmark(batch, _LEAST_CALLS)
        calls = int(1000 * seconds / known["median_ms"])
        found = self._benchmark(batch, min(max(calls, _LEAST_CALLS), MOST_CALLS))
        return Measured(found["images_per_second"], found["median_ms"], found["p95_ms"])

    def classes(self, pixels: NDArray[np.uint8], batch: int) -> NDArray[np.intp]:
        return classes_of(self._run, pixels, batch)

    def memory_mib(self) -> tuple[float, float | None]:
        if self._server is not None:
            return memory_mib("VmHWM", self._server), None
        return max(found["peak_memory_mib"] for found in self._found.values()), None

    def _benchmark(self, batch: int, calls: int) -> dict[str, float]:
        command = [*self._command, "--batch-size", batch, "--repetitions", calls]
        images = encode_idx(self._pixels[:batch])
        ended = subprocess.run(list(map(str, command)), input=images, capture_output=True)  # noqa: S603
        if ended.returncode:
            reason = ended.stderr.decode(errors="replace").strip()
            raise CheckError(f"it ended with exit code {ended.returncode}: {reason}")
        self._found[batch] = json.loads(ended.stdout)
        return self._found[batch]
