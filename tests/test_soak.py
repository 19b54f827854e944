"""The server under stress: paused, and on a machine that is busy. No answer may be another's."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from nin.client import URLS, Client
from nin.errors import InputError
from nin.images import encode_png, encoded
from nin.reference.exact import Reference
from nin.serve.server import PORTS, Server, serve

CLIENTS = 8
MODELS = ("fashion_mnist", "fashion_mnist_torchscript", "fashion_mnist_image")


@pytest.fixture
def server(embedded: None, repository: Path) -> Iterator[Server]:
    with serve(repository, ports=dict.fromkeys(PORTS, 0)) as running:
        yield running


class Tally:
    """What the clients have seen."""

    def __init__(self) -> None:
        self.right = 0
        self.wrong: list[str] = []
        self.failed: list[str] = []


def ask(
    server: Server, reference: Reference, tally: Tally, stop: threading.Event, seed: int
) -> None:
    """Mixed requests of 1 to 4 images over both protocols, until told to stop."""
    random = np.random.default_rng(seed)
    files = [encode_png(image) for image in reference.pixels]
    protocol = list(URLS)[seed % 2]
    with Client(getattr(server, protocol), protocol=protocol, retries=0) as client:
        while not stop.is_set():
            indices = random.integers(0, len(files), random.integers(1, 5))
            model = str(random.choice(MODELS))
            inputs = (
                {"encoded_image": encoded([files[i] for i in indices])}
                if model == "fashion_mnist_image"
                else {"pixels": reference.pixels[indices]}
            )
            try:
                logits = client.infer(model, inputs)["logits"]
            except InputError as error:
                tally.failed.append(f"{model}: {error}")
                continue
            right = reference.outputs["logits"][indices]
            if (
                logits.shape == right.shape
                and np.abs(logits - right).max() <= reference.budget["logits"]
            ):
                tally.right += 1
            else:
                tally.wrong.append(f"{model} of {indices.tolist()}: {logits.argmax(1).tolist()}")


@contextmanager
def clients(server: Server, reference: Reference) -> Iterator[Tally]:
    tally, stop = Tally(), threading.Event()
    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = [pool.submit(ask, server, reference, tally, stop, n) for n in range(CLIENTS)]
        try:
            yield tally
        finally:
            stop.set()
        for future in asked:
            future.result()


def wait_for(tally: Tally, count: int, server: Server) -> None:
    """Until `count` requests have been answered rightly; stops early where something is wrong."""
    deadline = time.monotonic() + 1800
    while tally.right < count and not tally.wrong and not tally.failed:
        assert server.process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def pause(server: Server, reference: Reference, pauses: list[float]) -> None:
    with clients(server, reference) as tally:
        for seconds in pauses:
            wait_for(tally, tally.right + 16, server)
            os.kill(server.process.pid, signal.SIGSTOP)
            time.sleep(seconds)
            os.kill(server.process.pid, signal.SIGCONT)
        wait_for(tally, tally.right + 50, server)
    assert (tally.wrong, tally.failed) == ([], [])
    assert server.process.poll() is None


def test_a_pause_mixes_up_no_answers(server: Server, reference: Reference) -> None:
    """As of a machine that was suspended; with a process to a model it gave others' answers."""
    pause(server, reference, [1.2, 2.0])


@pytest.mark.slow
def test_twenty_pauses_mix_up_no_answers(server: Server, reference: Reference) -> None:
    pause(server, reference, [1.0, 2.0, 5.0] * 7)


def spin(stop: "multiprocessing.synchronize.Event") -> None:
    while not stop.is_set():
        sum(range(10_000))


@contextmanager
def busy_cores() -> Iterator[None]:
    """A load that takes every core."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    load = [context.Process(target=spin, args=(stop,)) for _ in range(os.cpu_count() or 1)]
    for process in load:
        process.start()
    try:
        yield
    finally:
        stop.set()
        for process in load:
            process.join()


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mixed_requests_on_a_busy_machine(server: Server, reference: Reference, count: int) -> None:
    with busy_cores(), clients(server, reference) as tally:
        wait_for(tally, count, server)
    assert (tally.wrong, tally.failed) == ([], [])
    assert tally.right >= count
