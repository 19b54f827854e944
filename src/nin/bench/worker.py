"""A process of its own for each way to run a model: its memory and its threads are its own."""

import os
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from nin import client
from nin.bench.load import PREPARE, Call, Measured, measure
from nin.contract import Graph, Model, Run, load_contract
from nin.serve.configs import Layout

EAGER = "eager"  # the network as trained, fed by the naive form: scale, normalise, resize


class Loaded(NamedTuple):
    callers: list[Callable[[NDArray[Any]], Call]]  # what prepares the calls of each from a batch
    run: Run  # answers a batch
    before_mib: float | None  # memory when all was imported and no model was loaded, where known
    process: int | str = "self"  # that holds the model


_WARMUP = 3  # calls of each batch size: the first ones of TorchScript compile


class Way(Protocol):
    """One way to run a model, loaded."""

    def measure(self, batch: int, concurrency: int, seconds: float) -> Measured: ...

    def classes(self, pixels: NDArray[np.uint8], batch: int) -> NDArray[np.intp]:
        """The most probable class of each image, asked in batches of this size."""

    def memory_mib(self) -> tuple[float, float | None]:
        """The peak of the process that holds the model, and the model's part where it is known."""


class Worker:
    """A way in a process of its own; `start_worker` makes them."""

    def open(
        self, opener: Callable[[], Loaded], pixels: NDArray[np.uint8], batches: Sequence[int]
    ) -> None:
        self._loaded = opener()
        self._pixels = pixels
        for batch in batches:
            for prepare in dict.fromkeys(self._loaded.callers):  # clients of a server are all alike
                call = prepare(pixels[:batch])
                for _ in range(_WARMUP):
                    call()

    def measure(self, batch: int, concurrency: int, seconds: float) -> Measured:
        calls = [prepare(self._pixels[:batch]) for prepare in self._loaded.callers[:concurrency]]
        return measure(calls, batch, seconds)

    def classes(self, pixels: NDArray[np.uint8], batch: int) -> NDArray[np.intp]:
        return classes_of(self._loaded.run, pixels, batch)

    def memory_mib(self) -> tuple[float, float | None]:
        peak, before = memory_mib("VmHWM", self._loaded.process), self._loaded.before_mib
        return peak, None if before is None else peak - before


class _Manager(BaseManager): ...


_Manager.register("Worker", Worker)


def start_worker(
    stack: ExitStack,
    opener: Callable[[], Loaded],
    pixels: NDArray[np.uint8],
    batches: Sequence[int],
) -> Worker:
    """A worker that ends with `stack`, warm for these batches.

    Args:
        opener: a partial of `open_in_process` or `open_clients`, which is called there.
        pixels: the largest batch.
    """
    manager: Any = stack.enter_context(_Manager(ctx=get_context("spawn")))
    worker: Worker = manager.Worker()
    worker.open(opener, pixels, batches)
    return worker


def classes_of(run: Run, pixels: NDArray[np.uint8], batch: int) -> NDArray[np.intp]:
    starts = range(0, len(pixels), batch)
    return np.concatenate([run(pixels[i : i + batch])["logits"].argmax(axis=1) for i in starts])


def memory_mib(kind: str, process: int | str = "self") -> float:
    """Linux's own count, VmRSS or its peak VmHWM.

    getrusage's peak is at least the memory of the process that started this.
    """
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.findall(rf"{kind}:\s+(\d+) kB", status)[0]) / 1024


def open_in_process(
    runtime: str, suffix: str, folder: Path, weights: Path, artifacts: Path, layout: Layout
) -> Loaded:
    """Instances of EAGER or of the registry's `runtime`; 0 threads are as many as it takes.

    Args:
        suffix: of the export that the runtime loads.
    """
    if layout.threads:
        os.environ["OMP_NUM_THREADS"] = str(layout.threads)  # before torch is imported
    import torch

    from nin.runtimes.registry import open_runtime
    from nin.runtimes.threads import set_threads

    if layout.threads:
        torch.set_num_threads(layout.threads)
    set_threads(layout.threads)
    graph = load_contract(folder).classifier_graph

    def load() -> Run:
        if runtime == EAGER:
            return _open_eager(folder, weights, graph)
        return open_runtime(runtime, graph, suffix, artifacts=artifacts)

    before_mib = memory_mib("VmRSS")
    runs = [load() for _ in range(layout.instances)]
    return Loaded([partial(partial, run) for run in runs], runs[0], before_mib)


def _open_eager(folder: Path, weights: Path, graph: Graph) -> Run:
    from nin.network.build import load_model
    from nin.network.classifier import Classifier
    from nin.runtimes.eager import run_module

    model = load_model(folder, weights)
    module = Classifier(model.network, model.contract).eval()
    return lambda batch: run_module(module, graph, batch, "cpu")


def open_clients(
    url: str, protocol: client.Protocol, model: Model, clients: int, process: int
) -> Loaded:
    """Clients of a server's model, each with a connection of its own; `process` is the server."""
    from nin.runtimes.triton import TritonRuntime

    prepare = partial(PREPARE[protocol], url, model)
    run = TritonRuntime(url, model, None, protocol=protocol)
    return Loaded([prepare] * clients, run, None, process)
