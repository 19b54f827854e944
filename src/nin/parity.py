"""The parity gate: does a runtime answer like the trained network?

Four rules, each with its own function: the outputs are the contract's (1), within the derived
budget (2), no image changes its class (3), no image's result depends on its batch (4).
Rule 0 comes before them: the export says of itself what the gate expects of it.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nin.cli import table
from nin.contract import BATCH_SIZES, LABELS, MAX_BATCH, Graph
from nin.reference import Outputs, Reference, graph_input
from nin.runtimes import Runtime

# So many images are run alone, in the middle and at the end of a batch.
_PROBES = 4

# So many calls are made, by so many threads at once.
_CALLS = 10
_THREADS = 8


@dataclass
class Row:
    """One runtime and graph, measured; it passes if `failures` is empty."""

    runtime: str
    graph: str
    images: int
    budget: dict[str, float]  # by output name, as are the errors
    max_error: dict[str, float] = field(default_factory=dict)
    mean_error: dict[str, float] = field(default_factory=dict)
    flips: int = 0
    near_ties: list[int] = field(default_factory=list)  # changed images that rule 3 allows
    accuracy: float = 0.0
    seconds: float = 0.0  # for all images, in the largest batches
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.failures


def check_parity(
    name: str,
    runtime: Runtime,
    graph: Graph,
    reference: Reference,
    labels: NDArray[np.uint8],
    *,
    weights_sha256: str,
) -> Row:
    """Holds one loaded runtime against the reference.

    Args:
        labels: (N,), the true classes of the reference's images.
        weights_sha256: digest of the weights that the reference was computed with.
    """
    budget = {t.name: reference.budget[t.name] for t in graph.outputs}
    row = Row(name, graph.name, len(reference.pixels), budget)
    try:
        row.failures += check_identity(runtime, graph, weights_sha256)
        runs: list[tuple[NDArray[np.intp], Outputs]] = []
        row.failures += check_outputs(runtime, graph, reference.pixels, runs)
        if row.failures:
            return row  # what has another form can't be compared
        start = time.perf_counter()
        outputs = run_all(runtime, graph, reference.pixels, f"{graph.name} {name}")
        row.seconds = time.perf_counter() - start
        row.accuracy = float((outputs["logits"].argmax(1) == labels).mean())
        row.failures += check_budget(outputs, reference, row)
        row.failures += check_classes(outputs, reference, row)
        row.failures += check_sizes(runs, reference)
        row.failures += check_batches(runtime, graph, reference)
        row.failures += check_concurrency(runtime, graph, reference)
    except Exception as error:  # whatever a runtime throws, the gate's answer is no
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        row.failures.append(f"it raised {type(error).__name__}: {reason}")
    return row


def check_identity(runtime: Runtime, graph: Graph, weights_sha256: str) -> Iterator[str]:
    """Rule 0: contract, labels and weights that the export carries are those expected."""
    if runtime.contract != graph.describe():
        yield f"contract: it carries {runtime.contract}, expected {graph.describe()}"
    if runtime.labels != LABELS:
        yield f"labels: it carries {list(runtime.labels)}, expected {list(LABELS)}"
    if runtime.weights_sha256 not in (None, weights_sha256):
        yield (
            f"weights: it was exported from {str(runtime.weights_sha256)[:12]}, "
            f"the reference is {weights_sha256[:12]}; export again"
        )


def check_outputs(
    runtime: Runtime,
    graph: Graph,
    pixels: NDArray[np.uint8],
    runs: list[tuple[NDArray[np.intp], Outputs]],
) -> Iterator[str]:
    """Rule 1: names, dtypes and shapes are the contract's for every batch size.

    Args:
        runs: takes what was run, indices of images and outputs, for `check_sizes` to judge.
    """
    for size in BATCH_SIZES:
        indices = np.resize(np.arange(len(pixels)), size)
        try:
            outputs = _run(runtime, graph, pixels[indices])
        except Exception as error:  # a fixed batch, a wrong input name or dtype, ...
            reason = str(error).strip().splitlines() or [type(error).__name__]
            yield f"outputs: batch of {size} can't be run: {reason[-1]}"
            return
        found = [(name, str(a.dtype), a.shape) for name, a in outputs.items()]
        expected = [(t.name, t.dtype, (size, *t.shape)) for t in graph.outputs]
        if found != expected:
            yield f"outputs: batch of {size} gives {found}, expected {expected}"
            return
        runs.append((indices, outputs))


def check_budget(outputs: Outputs, reference: Reference, row: Row) -> Iterator[str]:
    """Rule 2: no value is further from the float64 reference than the budget."""
    for name, found in outputs.items():
        errors = np.abs(found - reference.outputs[name])
        worst = errors.max(axis=1)  # NaN stays NaN
        row.max_error[name], row.mean_error[name] = float(worst.max()), float(errors.mean())
        beyond = np.flatnonzero(~(worst <= row.budget[name]))
        if len(beyond):
            yield (
                f"budget: {name} of {len(beyond)} of {len(worst)} images off by up to "
                f"{worst.max():.3g}, allowed is {row.budget[name]:.3g}; first image {beyond[0]}"
            )


def check_classes(outputs: Outputs, reference: Reference, row: Row) -> Iterator[str]:
    """Rule 3: no image changes its class, in any output, but for ties within twice the budget."""
    exact = reference.outputs["logits"]
    top = np.sort(exact, axis=1)
    margin = top[:, -1] - top[:, -2]
    changed = np.zeros(len(exact), dtype=bool)
    for found in outputs.values():
        changed |= found.argmax(1) != exact.argmax(1)
    tie = margin < 2 * row.budget["logits"]
    row.flips = int(changed.sum())
    row.near_ties = np.flatnonzero(changed & tie).tolist()
    flipped = np.flatnonzero(changed & ~tie)
    if len(flipped):
        yield f"classes: {len(flipped)} images changed class; first image {flipped[0]}"


def check_sizes(
    runs: list[tuple[NDArray[np.intp], Outputs]], reference: Reference
) -> Iterator[str]:
    """Rule 4, first half: every batch size gives the right values, the very first call too."""
    for indices, outputs in runs:
        for name, error in _beyond_budget(indices, outputs, reference):
            yield f"batches: {name} of a batch of {len(indices)} off by {error:.3g}"


def check_batches(runtime: Runtime, graph: Graph, reference: Reference) -> Iterator[str]:
    """Rule 4: an image gives the same, right result alone, again, and anywhere in a batch."""
    pixels = reference.pixels
    black, white = np.zeros_like(pixels[:1]), np.full_like(pixels[:1], 255)
    company = np.concatenate([black, np.resize(pixels[::-1], (4, 28, 28)), white])
    for index in np.linspace(0, len(pixels) - 1, _PROBES).astype(int).tolist():
        image = pixels[index : index + 1]
        alone = _run(runtime, graph, image)
        settings = {
            "alone": (image, 0),
            "alone once more": (image, 0),
            "at the start of a batch": (np.concatenate([image, company]), 0),
            "in the middle of a batch": (np.concatenate([company[:3], image, company[3:]]), 3),
            "at the end of a batch": (np.concatenate([company, image]), len(company)),
        }
        for where, (batch, position) in settings.items():
            outputs = _run(runtime, graph, batch)
            for name, budget in ((t.name, reference.budget[t.name]) for t in graph.outputs):
                found, right = outputs[name][position], reference.outputs[name][index]
                error = np.abs([found - right, found - alone[name][0]]).max()
                if not error <= budget:
                    yield f"batches: image {index} gives another {name} {where}: off by {error:.3g}"
                    return


def check_concurrency(runtime: Runtime, graph: Graph, reference: Reference) -> Iterator[str]:
    """Rule 4, last part: calls of mixed sizes at the same time don't get each other's results.

    In a server these meet in dynamic batches, whose outputs it has to split again.
    """
    sizes = np.resize(BATCH_SIZES[:-1], _CALLS)
    starts = np.cumsum([0, *sizes[:-1]])
    batches = [
        (start + np.arange(size)) % len(reference.pixels)
        for start, size in zip(starts, sizes, strict=True)
    ]

    def call(indices: NDArray[np.intp]) -> Outputs:
        return _run(runtime, graph, reference.pixels[indices])

    with ThreadPoolExecutor(_THREADS) as pool:
        for indices, outputs in zip(batches, pool.map(call, batches), strict=True):
            for name, error in _beyond_budget(indices, outputs, reference):
                yield (
                    f"batches: {name} of a batch of {len(indices)} off by {error:.3g} "
                    "beside other calls"
                )
                return


def _beyond_budget(
    indices: NDArray[np.intp], outputs: Outputs, reference: Reference
) -> Iterator[tuple[str, float]]:
    """The outputs of these images that are further off than allowed, each with its error."""
    for name, found in outputs.items():
        error = float(np.abs(found - reference.outputs[name][indices]).max())
        if not error <= reference.budget[name]:  # so that NaN is reported too
            yield name, error


def _run(runtime: Runtime, graph: Graph, pixels: NDArray[np.uint8]) -> Outputs:
    return runtime(graph_input(graph, pixels))


def run_all(runtime: Runtime, graph: Graph, pixels: NDArray[np.uint8], description: str) -> Outputs:
    """The outputs for pixels (N, 28, 28), any N, in the largest batches."""
    starts = range(0, len(pixels), MAX_BATCH)
    bar = tqdm(starts, description, disable=None, leave=False)
    batches = [_run(runtime, graph, pixels[start : start + MAX_BATCH]) for start in bar]
    return {t.name: np.concatenate([b[t.name] for b in batches]) for t in graph.outputs}


HEADER = (
    "graph", "runtime", "verdict", "largest error", "budget", "mean error",
    "flips", "accuracy", "images", "seconds",
)  # fmt: skip


def table_rows(rows: list[Row]) -> list[tuple[str, ...]]:
    """The rows as texts under HEADER; errors and budget are those of the logits."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.2e}"

    return [
        (
            row.graph,
            row.runtime,
            "pass" if row.passed else "FAIL",
            number(row.max_error.get("logits")),
            number(row.budget.get("logits")),
            number(row.mean_error.get("logits")),
            str(row.flips),
            f"{row.accuracy:.4f}",
            str(row.images),
            f"{row.seconds:.1f}",
        )
        for row in rows
    ]


def markdown(rows: list[Row], about: dict[str, Any]) -> str:
    """The report as a page: the table, the reasons of failures, the near ties."""
    lines = [
        "# Parity report",
        "",
        f"`{about['command']}`, {about['machine']}, {about['versions']}",
    ]
    lines += ["", table(HEADER, table_rows(rows)), ""]
    lines += [f"- **{r.graph} in {r.runtime}**: {text}" for r in rows for text in r.failures]
    lines += [
        f"- {r.graph} in {r.runtime}: near ties that changed class: images {r.near_ties}"
        for r in rows
        if r.near_ties
    ]
    return "\n".join([*lines, ""])


def report(rows: list[Row], about: dict[str, Any]) -> dict[str, Any]:
    """The report as plain data: what was run where, and every row with its verdict."""
    return {
        "passed": all(row.passed for row in rows),
        **about,
        "rows": [{"passed": row.passed, **asdict(row)} for row in rows],
    }
