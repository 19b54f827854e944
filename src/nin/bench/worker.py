"""A process of its own for each way to run a model: its memory and its threads are its own."""

import os
import re
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from nin.bench.load import PREPARE, Call, Measured, measure
from nin.client import Protocol
from nin.contract import Graph, Model, Run, load_contract
from nin.errors import CheckError, first_line
from nin.serve.configs import Layout

EAGER = "eager"  # the network as trained, fed by the naive form: scale, normalise, resize

# What prepares the calls of each caller from a batch, and what answers one.
Callers = tuple[list[Callable[[NDArray[Any]], Call]], Run]

_T = TypeVar("_T")
_WARMUP = 3  # calls of each batch size: the first ones of TorchScript compile

# In the worker's process.
_opened: Callers
_before_mib = 0.0


class Worker:
    """Asks a process of its own. Raises CheckError with the reason where that fails."""

    def __init__(self, opener: Callable[[], Callers], pixels: NDArray[np.uint8]) -> None:
        """Args: opener: a partial of a function below. pixels: the largest batch."""
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self._pixels = pixels
        self._ask(_start, opener)

    def warm_up(self, batches: Sequence[int]) -> None:
        for batch in batches:
            self._ask(_warm_up, self._pixels[:batch])

    def measure(self, batch: int, concurrency: int, seconds: float) -> Measured:
        return self._ask(_measure, self._pixels[:batch], concurrency, seconds)

    def classes(self, pixels: NDArray[np.uint8], batch: int) -> NDArray[np.intp]:
        return self._ask(_classes, pixels, batch)

    def memory_mib(self) -> tuple[float, float]:
        """The process's peak, and by how much it is more than before the model was loaded."""
        peak = self._ask(peak_memory_mib)
        return peak, peak - self._ask(_memory_before_mib)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _ask(self, function: Callable[..., _T], *arguments: Any) -> _T:
        try:
            return self._pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise CheckError("its process ended by itself") from error
        except Exception as error:  # whatever a runtime throws
            raise CheckError(first_line(error)) from error


def _start(opener: Callable[[], Callers]) -> None:
    global _opened
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _opened = opener()


def _warm_up(batch: NDArray[np.uint8]) -> None:
    callers, _ = _opened
    for prepare in dict.fromkeys(callers):  # clients of a server are all alike
        call = prepare(batch)
        for _ in range(_WARMUP):
            call()


def _measure(batch: NDArray[np.uint8], concurrency: int, seconds: float) -> Measured:
    callers, _ = _opened
    return measure([prepare(batch) for prepare in callers[:concurrency]], len(batch), seconds)


def _classes(pixels: NDArray[np.uint8], batch: int) -> NDArray[np.intp]:
    return classes_of(_opened[1], pixels, batch)


def classes_of(run: Run, pixels: NDArray[np.uint8], batch: int) -> NDArray[np.intp]:
    """The most probable class of each image, asked in batches of this size."""
    starts = range(0, len(pixels), batch)
    return np.concatenate([run(pixels[i : i + batch])["logits"].argmax(axis=1) for i in starts])


def peak_memory_mib(process: int | str = "self") -> float:
    """Linux's own count; getrusage's is at least the memory of the process that started this."""
    return _memory_mib("VmHWM", process)


def _memory_mib(kind: str, process: int | str = "self") -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.findall(rf"{kind}:\s+(\d+) kB", status)[0]) / 1024


def _memory_before_mib() -> float:
    return _before_mib


def open_in_process(
    runtime: str, folder: Path, weights: Path, artifacts: Path, layout: Layout
) -> Callers:
    """Instances of EAGER or of the registry's `runtime`; 0 threads are as many as it takes."""
    global _before_mib
    if layout.threads:
        os.environ["OMP_NUM_THREADS"] = str(layout.threads)  # before torch is imported
    import torch

    from nin.gate.runtimes.registry import open_runtime
    from nin.gate.runtimes.threads import set_threads

    if layout.threads:
        torch.set_num_threads(layout.threads)
    set_threads(layout.threads)
    graph = load_contract(folder).classifier_graph

    def load() -> Run:
        if runtime == EAGER:
            return _open_eager(folder, weights, graph)
        return open_runtime(runtime, graph, artifacts=artifacts)

    _before_mib = _memory_mib("VmRSS")
    runs = [load() for _ in range(layout.instances)]
    return [partial(partial, run) for run in runs], runs[0]


def _open_eager(folder: Path, weights: Path, graph: Graph) -> Run:
    from nin.gate.runtimes.eager import run_module
    from nin.network.build import load_model
    from nin.network.classifier import Classifier

    model = load_model(folder, weights)
    module = Classifier(model.network, model.contract).eval()
    return lambda batch: run_module(module, graph, batch, "cpu")


def open_clients(url: str, protocol: Protocol, model: Model, clients: int) -> Callers:
    """Clients of a server's model, each with a connection of its own."""
    from nin.gate.runtimes.triton import TritonRuntime

    prepare = partial(PREPARE[protocol], url, model)
    return [prepare] * clients, TritonRuntime(url, model, None, protocol=protocol)
