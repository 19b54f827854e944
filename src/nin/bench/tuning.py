"""Which layout of a served model answers the most images a second on this machine."""

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nin.bench.load import Measured, measure, prepare_http
from nin.contract import Contract, Model
from nin.errors import CheckError
from nin.serve.configs import Layout
from nin.serve.repository import stage_alone
from nin.serve.server import PORTS, serve
from nin.terminal import processor, spread, table

ROUNDS, SECONDS = 3, 1.0

HEADER = ("instances x threads", "preferred batch", "queue delay ms", "images/s", "p95 ms")


@dataclass(frozen=True)
class Tried:
    """A layout, and what each round gave."""

    layout: Layout
    rounds: Sequence[Measured]

    @property
    def images_per_s(self) -> float:
        return median(measured.images_per_s for measured in self.rounds)

    @property
    def p95_ms(self) -> float:
        return median(measured.p95_ms for measured in self.rounds)

    @property
    def cells(self) -> tuple[str, ...]:
        """Texts under HEADER."""
        layout = self.layout
        assert layout.max_queue_delay_us is not None
        return (
            f"{layout.instances}x{layout.threads}",
            str(layout.preferred_batch),
            f"{layout.max_queue_delay_us / 1000:g}",
            spread([measured.images_per_s for measured in self.rounds], ".1f"),
            spread([measured.p95_ms for measured in self.rounds], ".1f"),
        )

    def describe(self) -> str:
        sizes, batch, delay, *_ = self.cells
        return (
            f"{sizes} threads, batches of {batch}, {delay} ms delay "
            f"({self.images_per_s:.1f} images/s, p95 {self.p95_ms:.1f} ms)"
        )


def candidates(contract: Contract, cores: int) -> list[Layout]:
    """Cores divided in up to three ways; batches of one, of four and the contract's."""
    triton = contract.triton
    divisions = dict.fromkeys(((cores, 1), (max(1, cores // 2), min(2, cores)), (1, cores)))
    batching = dict.fromkeys(
        (
            (1, 0),
            (min(4, triton.max_batch), 0),
            (triton.preferred_batch, 0),
            (triton.preferred_batch, triton.max_queue_delay_us),
        )
    )
    return [
        Layout(*division, preferred_batch=batch, max_queue_delay_us=delay_us)
        for division in divisions
        for batch, delay_us in batching
    ]


def try_layouts(
    contract: Contract, model: Model, artifacts: Path, *, image: NDArray[np.uint8], clients: int
) -> list[Tried]:
    """Every candidate, the best first; one server has the model once for each.

    Args:
        image: (1, h, w[, 3]), which all requests hold.
        clients: requests in flight.
    """
    layouts = candidates(contract, len(os.sched_getaffinity(0)))
    models = [replace(model, name=f"{model.name}_{i}") for i in range(len(layouts))]
    rounds: list[list[Measured]] = [[] for _ in layouts]
    with tempfile.TemporaryDirectory(prefix="nin-") as folder:
        for one, layout in zip(models, layouts, strict=True):
            stage_alone(contract, one, artifacts, Path(folder), layout)
        with (
            serve(Path(folder), ports=dict.fromkeys(PORTS, 0)) as server,
            tqdm(total=ROUNDS * len(models), desc="tuning", disable=None, leave=False) as bar,
        ):
            for _ in range(ROUNDS):
                for one, found in zip(models, rounds, strict=True):
                    calls = [prepare_http(server.http, one, image) for _ in range(clients)]
                    found.append(measure(calls, 1, SECONDS))
                    bar.update()
    tried = [Tried(layout, found) for layout, found in zip(layouts, rounds, strict=True)]
    return sorted(tried, key=lambda one: -one.images_per_s)


def tuning_table(tried: Iterable[Tried]) -> str:
    return table(HEADER, [one.cells for one in tried])


def choose(tried: Sequence[Tried], latency_ms: float | None, *, model: str, clients: int) -> Layout:
    """The best layout within the bound of the p95 latency, with the reason.

    Raises CheckError where none is.
    """
    within = [one for one in tried if latency_ms is None or one.p95_ms <= latency_ms]
    if not within:
        least = min(one.p95_ms for one in tried)
        raise CheckError(
            f"no layout answers within {latency_ms:g} ms: the least p95 is {least:.1f} ms with "
            f"{clients} requests in flight; allow more, or less load: --clients"
        )
    best, *others = within
    bound = "" if latency_ms is None else f", of those with a p95 of at most {latency_ms:g} ms"
    reason = (
        f"{best.describe()}: the best for {model} by `nin publish --tune` on {processor()}, "
        f"{len(os.sched_getaffinity(0))} cores, {clients} requests of one image in flight{bound}."
    )
    if others:
        reason += f" Next best: {others[0].describe()}."
    return replace(best.layout, reason=reason)
