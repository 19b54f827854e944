"""The ways to run a model's classifier, and how each is opened.

Formats, runtimes and served models are those of the registries, as far as their exports exist.
"""

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from nin.bench.load import MOST_CALLS, Measured
from nin.bench.worker import (
    EAGER,
    Callers,
    Worker,
    classes_of,
    open_clients,
    open_in_process,
    peak_memory_mib,
)
from nin.contract import Contract, Graph, Model, Run
from nin.errors import CheckError, InputError
from nin.export.artifact import read_manifest
from nin.export.formats import FORMATS
from nin.gate.runtimes.cpp import cpp_tools_are_built
from nin.gate.runtimes.registry import artifact_of, available_runtimes, open_runtime, open_served
from nin.gate.runtimes.triton import SERVER_RUNTIMES
from nin.images import encode_idx
from nin.paths import CPP_TOOLS
from nin.serve.configs import Layout, layout_for
from nin.serve.repository import stage_alone
from nin.serve.server import PORTS, Server, serve

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
    precision: str
    layout: Layout
    model: Model | None = None  # the served one

    @property
    def concurrencies(self) -> tuple[int, ...]:
        """Calls at the same time: an instance's one, or the requests in flight."""
        if self.model:
            return (1,) if self.runtime == _CPP_CLIENT else CLIENTS
        return (self.layout.instances,)


class Way(Protocol):
    def measure(self, batch: int, concurrency: int, seconds: float) -> Measured: ...

    def classes(self, pixels: NDArray[np.uint8], batch: int) -> NDArray[np.intp]: ...


class Opened(NamedTuple):
    way: Way
    # of the process that holds the model: the peak, and the model's own part where it is known
    memory_mib: Callable[[], tuple[float, float | None]]


def list_rows(contract: Contract, weights: Path, artifacts: Path, *, server: bool) -> list[Row]:
    """Every row that can be measured; the first is eager, which the others are compared with.

    Args:
        server: whether one can be started.

    Raises InputError where nothing is exported.
    """
    graph, exported = contract.classifier_graph, read_manifest(artifacts)
    rows = [Row(EAGER, EAGER, weights, "float32", _ONE)]
    for runtime in available_runtimes():
        name = artifact_of(runtime, graph)
        if name in exported and (artifacts / name).is_file():
            rows += _runtime_rows(runtime, graph, artifacts / name)
    for model in contract.published if server else ():
        file = artifacts / f"{graph.name}{model.format}"
        if model.graph == graph and file.name in exported and file.is_file():
            rows += _served_rows(model, file)
    return rows


def _runtime_rows(runtime: str, graph: Graph, file: Path) -> Iterator[Row]:
    suffix = file.name.removeprefix(graph.name)
    name, precision = f"{runtime}{suffix}", FORMATS[suffix].precision
    if _is_libtorch(runtime) or runtime.endswith("-cuda"):
        yield Row(name, runtime, file, precision, _ONE)
        return
    for layout in (_ONE, layout_for()):
        yield Row(f"{name}/{describe(layout)}", runtime, file, precision, layout)


def _served_rows(model: Model, file: Path) -> Iterator[Row]:
    assert model.format is not None
    for client in SERVER_RUNTIMES:
        if client != _CPP_CLIENT or cpp_tools_are_built():
            precision = FORMATS[model.format].precision
            yield Row(f"{client}/{model.name}", client, file, precision, layout_for(), model)


def describe(layout: Layout) -> str:
    """Instances x threads."""
    return f"{layout.instances}x{layout.threads or 'all'}"


def _is_libtorch(runtime: str) -> bool:
    return runtime.partition("-")[0] == _LIBTORCH


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
    _servers: dict[Model, Server] = field(default_factory=dict)

    def open(self, row: Row) -> Opened:
        if row.model:
            return self._open_served(row, row.model)
        if _is_libtorch(row.runtime):
            return self._open_libtorch(row)
        folders = (self.contract.folder, self.weights, self.artifacts)
        worker = self._worker(partial(open_in_process, row.runtime, *folders, row.layout))
        return Opened(worker, worker.memory_mib)

    def _open_libtorch(self, row: Row) -> Opened:
        device = row.runtime.partition("-")[2] or "cpu"
        options = ("--model", str(row.file), "--device", device, "--no-replay")
        run = open_runtime(row.runtime, self.contract.classifier_graph, artifacts=self.artifacts)
        tool = CppTool("nin_classify", options, run, self.pixels)
        return Opened(tool, lambda: (tool.peak_memory_mib(), None))

    def _open_served(self, row: Row, model: Model) -> Opened:
        if model not in self._servers:
            self._servers[model] = self._serve(model, row.layout)
        server, protocol = self._servers[model], SERVER_RUNTIMES[row.runtime]
        url = getattr(server, protocol)
        way: Way
        if row.runtime == _CPP_CLIENT:
            run = open_served(row.runtime, url, model, None)
            options = ("--url", url, "--model", model.name)
            way = CppTool("nin_triton", options, run, self.pixels)
        else:
            way = self._worker(partial(open_clients, url, protocol, model, max(CLIENTS)))
        return Opened(way, lambda: (peak_memory_mib(server.process.pid), None))

    def _serve(self, model: Model, layout: Layout) -> Server:
        """A server of this model alone, so that its memory is the model's."""
        repository = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="nin-")))
        stage_alone(self.contract, model, self.artifacts, repository, layout)
        return self.stack.enter_context(serve(repository, ports=dict.fromkeys(PORTS, 0)))

    def _worker(self, opener: Callable[[], Callers]) -> Worker:
        worker = self.stack.enter_context(Worker(opener, self.pixels))
        worker.warm_up(self.batches)
        return worker


class CppTool:
    """`nin_classify` or `nin_triton`, which measure themselves: one call at a time."""

    def __init__(
        self, tool: str, options: Sequence[str], run: Run, pixels: NDArray[np.uint8]
    ) -> None:
        self._command = [str(CPP_TOOLS / tool), "-", *options, "--benchmark", "--format", "json"]
        self._run, self._pixels = run, pixels
        self._found: dict[int, dict[str, float]] = {}  # by batch size, the last one's

    def measure(self, batch: int, concurrency: int, seconds: float) -> Measured:
        assert concurrency == 1
        if batch not in self._found:
            self._benchmark(batch, _LEAST_CALLS)
        calls = int(1000 * seconds / self._found[batch]["median_ms"])
        found = self._benchmark(batch, min(max(calls, _LEAST_CALLS), MOST_CALLS))
        return Measured(found["images_per_second"], found["median_ms"], found["p95_ms"])

    def classes(self, pixels: NDArray[np.uint8], batch: int) -> NDArray[np.intp]:
        return classes_of(self._run, pixels, batch)

    def peak_memory_mib(self) -> float:
        return max(found["peak_memory_mib"] for found in self._found.values())

    def _benchmark(self, batch: int, calls: int) -> dict[str, float]:
        command = [*self._command, "--batch-size", str(batch), "--repetitions", str(calls)]
        images = encode_idx(self._pixels[:batch])
        ended = subprocess.run(command, input=images, capture_output=True)  # noqa: S603  our own
        if ended.returncode:
            reason = ended.stderr.decode(errors="replace").strip()
            raise CheckError(f"it ended with exit code {ended.returncode}: {reason}")
        self._found[batch] = json.loads(ended.stdout)
        return self._found[batch]
