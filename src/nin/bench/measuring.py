"""All rows in rounds: what is compared is measured one after the other, in every round."""

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from nin.bench.rows import Opener, Row
from nin.bench.worker import Way
from nin.errors import CheckError, first_line
from nin.serve.server import RELEASE
from nin.terminal import processor

_PACKAGES = ("nin", "torch", "onnxruntime", "onnxruntime-gpu", "openvino", "numpy", "tritonclient")


@dataclass(frozen=True)
class Judge:
    """Images, and what is right for them."""

    pixels: NDArray[np.uint8]
    reference: NDArray[np.intp]  # the classes that the network gives in float64
    true: NDArray[np.int64] | None

    def shares(self, classes: NDArray[np.intp]) -> dict[str, float | None]:
        return {
            "accuracy": None if self.true is None else float((classes == self.true).mean()),
            "agreement": float((classes == self.reference).mean()),
        }


@dataclass(frozen=True)
class Length:
    """How long it is measured."""

    rounds: int
    seconds: float  # each row, batch size and concurrency in a round
    images: int  # whose classes are compared


def measure_rows(
    rows: Sequence[Row], opener: Opener, judge: Judge, length: Length
) -> dict[str, Any]:
    """The rows with what is measured once, and the rounds with what is measured in each.

    Raises CheckError naming the row where one fails.
    """
    points = [
        (batch, row, concurrency)
        for batch in opener.batches
        for row in rows
        if row.takes(batch)
        for concurrency in row.concurrencies
    ]
    steps = 2 * len(rows) + length.rounds * len(points)
    with tqdm(total=steps, disable=None, leave=False) as bar:

        @contextmanager
        def step(row: Row, what: str) -> Iterator[None]:
            bar.set_description(f"{row.name}, {what}")
            try:
                yield
            except (EOFError, ConnectionError) as error:
                raise CheckError(f"{row.name}: its process ended by itself") from error
            except Exception as error:  # whatever a runtime throws
                raise CheckError(f"{row.name}: {first_line(error)}") from error
            bar.update()

        ways: dict[Row, Way] = {}
        for row in rows:
            with step(row, "loading"):
                ways[row] = opener.open(row)
        rounds: list[list[dict[str, Any]]] = [[] for _ in range(length.rounds)]
        for found in rounds:
            for batch, row, concurrency in points:
                with step(row, f"batch of {batch}"):
                    measured = ways[row].measure(batch, concurrency, length.seconds)
                point = {"row": row.name, "batch": batch, "concurrency": concurrency}
                found.append(point | asdict(measured))
        described = []
        for row in rows:
            with step(row, "classes"):
                batch = max(filter(row.takes, opener.batches))
                described.append(_describe(row, ways[row], judge, batch))
    return {"rows": described, "rounds": rounds}


def _describe(row: Row, way: Way, judge: Judge, batch: int) -> dict[str, Any]:
    peak_mib, model_mib = way.memory_mib()  # before it is asked for the classes
    return {
        "name": row.name,
        "runtime": row.runtime,
        "served": row.model.name if row.model else None,
        "file": row.file.name,
        "file_bytes": row.file.stat().st_size,
        "precision": row.precision,
        "instances": row.layout.instances,
        "sizes": row.sizes,
        "peak_memory_mib": peak_mib,
        "model_memory_mib": model_mib,
        **judge.shares(way.classes(judge.pixels, batch)),
    }


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            "triton": RELEASE,
            **{name: v for name in _PACKAGES if (v := _installed(name))},
        },
    }


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
