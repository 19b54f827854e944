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

from nin.contract import Graph, Outputs
from nin.gate.questions import Batch, Plan, Questions, plan_batches
from nin.gate.reduced import Losses, check_scale
from nin.reference.exact import Reference, margins
from nin.runtimes import Runtime
from nin.terminal import table

# Sizes of the calls that are made at once, each by a thread of its own.
_AT_ONCE = range(1, 9)

# The budget is derived from float32's error on the machine that exports, and float64 outputs are
# rounded there: another machine adds in another order.
_BUDGET_RATIO = 2
_FLOAT64_ROUNDING = 1e-9


@dataclass
class Row:
    """One runtime and graph, measured; it passes if `failures` is empty."""

    runtime: str
    graph: str
    images: int  # samples
    budget: dict[str, float]  # by output name, as are the errors
    sizes: tuple[int, ...] = ()  # of the batches that were asked
    asked: int = 0  # images in all batches
    max_error: dict[str, float] = field(default_factory=dict)
    mean_error: dict[str, float] = field(default_factory=dict)
    flips: int = 0
    near_ties: list[str] = field(default_factory=list)  # changed images that rule 3 allows
    accuracy: float | None = None  # None where classes aren't known
    format: str = "-"  # the file's suffix
    agreement: float | None = None  # of int8: the share of the samples that keep their class
    accuracy_loss: float | None = None  # of int8, where classes are known
    standard_error: float | None = None  # of the loss
    # of int8: samples of another class, and margins
    changed: list[str] = field(default_factory=list)
    seconds: float = 0.0  # for all batches
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.failures


@dataclass(frozen=True)
class Answers:
    """What a runtime answered, batch after batch, one row for each image of each batch."""

    images: Batch
    sizes: NDArray[np.intp]  # of the batch that the image was in
    outputs: Outputs

    @classmethod
    def of(cls, batches: list[Batch], outputs: list[Outputs]) -> "Answers":
        sizes = [len(batch) for batch in batches]
        joined = {name: np.concatenate([o[name] for o in outputs]) for name in outputs[0]}
        return cls(np.concatenate(batches), np.repeat(sizes, sizes), joined)

    def logits_of(self, samples: int) -> NDArray[Any]:
        """The first answer for each of the samples, (samples, K)."""
        _, first = np.unique(self.images, return_index=True)
        logits: NDArray[Any] = self.outputs["logits"][first][:samples]
        return logits


def check_parity(
    name: str, runtime: Runtime, graph: Graph, questions: Questions, plan: Plan, suffix: str = "-"
) -> Row:
    """Holds one loaded runtime against the reference.

    Args:
        suffix: of the file that it runs.
    """
    questions = questions.of(graph)
    budget = {t.name: questions.reference.budget[t.name] for t in graph.outputs}
    row = Row(name, graph.name, questions.samples, budget, plan.sizes, format=suffix)
    batches = plan_batches(questions.count, plan, questions.seed)
    outputs: list[Outputs] = []
    try:
        row.failures += check_identity(
            runtime, graph, labels=questions.labels, weights_sha256=questions.weights_sha256
        )
        row.failures += check_golden(runtime, graph, questions)
        row.failures += questions.faults
        if row.failures:
            return row  # it is another export than the one that the gate is asked about
        start = time.perf_counter()
        row.failures += check_outputs(name, runtime, graph, questions, batches, outputs)
        row.seconds = time.perf_counter() - start
        if len(outputs) < len(batches):
            return row  # what has another form can't be compared
        answers = Answers.of(batches, outputs)
        row.asked = len(answers.images)
        row.accuracy = _accuracy(answers, questions.classes)
        row.failures += check_budget(answers, questions, row)
        row.failures += check_classes(answers, questions, row)
        row.failures += check_batches(answers, questions)
        row.failures += check_concurrency(runtime, graph, questions)
        if questions.exact:
            row.failures += check_losses(answers, questions, row)
    except Exception as error:  # whatever a runtime throws, the gate's answer is no
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        row.failures.append(f"it raised {type(error).__name__}: {reason}")
    return row


def check_identity(
    runtime: Runtime, graph: Graph, *, labels: tuple[str, ...], weights_sha256: str
) -> Iterator[str]:
    """Rule 0: contract, labels and weights that the export carries are those expected."""
    # only a file says how its input came about; a server knows names, dtypes and shapes
    contract = graph.signature() if runtime.golden is None else graph.describe()
    for key in sorted(runtime.contract.keys() | contract.keys()):
        carried, expected = runtime.contract.get(key), contract.get(key)
        if carried != expected:
            yield f"contract: it carries {key} {carried!r}, expected {expected!r}"
    if runtime.labels != labels:
        yield f"labels: {_first_difference(runtime.labels, labels)}"
    if runtime.weights_sha256 not in (None, weights_sha256):
        yield (
            f"weights: it was exported from {str(runtime.weights_sha256)[:12]}, "
            f"the reference is {weights_sha256[:12]}; export again"
        )


def _first_difference(carried: tuple[str, ...], expected: tuple[str, ...]) -> str:
    if len(carried) != len(expected):
        return f"it carries {len(carried)}, expected {len(expected)}"
    pairs = zip(carried, expected, strict=True)
    index, (label, right) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    return f"class {index} is {label!r}, expected {right!r}"


def check_golden(runtime: Runtime, graph: Graph, questions: Questions) -> Iterator[str]:
    """Rule 0, second half: the golden vectors that the export carries are the reference's.

    They are what every program trusts that loads it.
    """
    golden, expected = runtime.golden, questions.golden.get(graph.name)
    reduced = questions.exact is not None  # made in float32, where another machine rounds otherwise
    if golden is None or expected is None:  # it carries none, or can't be asked
        return
    if not np.array_equal(golden.inputs, expected.inputs):
        yield f"golden vectors: not those of the first {len(expected.inputs)} samples"
        return
    names = {t.name for t in graph.outputs}
    if golden.outputs.keys() != names or golden.budget.keys() != names:
        yield f"golden vectors: of {sorted(golden.outputs)}, expected {sorted(names)}"
        return
    for name, values in golden.outputs.items():
        right = expected.outputs[name]
        if values.shape != right.shape:
            yield f"golden vectors: {name} is {values.shape}, expected {right.shape}"
        elif not (error := np.abs(values - right).max()) <= (
            expected.budget[name] if reduced else _FLOAT64_ROUNDING
        ):
            yield f"golden vectors: {name} is off by {error:.3g} from the reference; export again"
        ratio = golden.budget[name] / expected.budget[name]
        if not (0 if reduced else 1 / _BUDGET_RATIO) <= ratio <= _BUDGET_RATIO:
            yield (
                f"golden vectors: they allow {name} to be off by {golden.budget[name]:.3g}, "
                f"the reference by {expected.budget[name]:.3g}; export again"
            )


def check_outputs(
    name: str,
    runtime: Runtime,
    graph: Graph,
    questions: Questions,
    batches: list[Batch],
    outputs: list[Outputs],
) -> Iterator[str]:
    """Rule 1: names, dtypes and shapes are the contract's for every batch.

    Args:
        outputs: takes what the batches gave, up to the first that fails, for the next rules.
    """
    for batch in tqdm(batches, f"{graph.name} {name}", disable=None, leave=False):
        size = len(batch)
        try:
            answer = runtime(questions.batch(graph, batch))
        except Exception as error:  # a fixed batch, a wrong input name or dtype, ...
            reason = str(error).strip().splitlines() or [type(error).__name__]
            yield f"outputs: batch of {size} can't be run: {reason[-1]}"
            return
        found = [(name, str(a.dtype), a.shape) for name, a in answer.items()]
        expected = [(t.name, t.dtype, (size, *t.shape)) for t in graph.outputs]
        if found != expected:
            yield f"outputs: batch of {size} gives {found}, expected {expected}"
            return
        outputs.append(answer)


def check_budget(answers: Answers, questions: Questions, row: Row) -> Iterator[str]:
    """Rule 2: no value is further from the float64 reference than the budget."""
    for name, found in answers.outputs.items():
        errors = np.abs(found - questions.reference.outputs[name][answers.images])
        worst = errors.max(axis=1)  # NaN stays NaN
        row.max_error[name], row.mean_error[name] = float(worst.max()), float(errors.mean())
        beyond = np.flatnonzero(~(worst <= row.budget[name]))
        if len(beyond):
            images = np.unique(answers.images[beyond])
            sizes = np.unique(answers.sizes[beyond])
            where = f"a batch of {sizes[0]}" if len(sizes) == 1 else f"{len(sizes)} batch sizes"
            yield (
                f"budget: {name} of {len(images)} of {len(questions.names)} images off by up to "
                f"{worst.max():.3g} in {where}, allowed is {row.budget[name]:.3g}; "
                f"first {questions.names[answers.images[beyond[0]]]}"
            )


def check_classes(answers: Answers, questions: Questions, row: Row) -> Iterator[str]:
    """Rule 3: no image changes its class, in any output, but for ties within twice the budget."""
    exact = questions.reference.outputs["logits"]
    tie = margins(exact) < 2 * row.budget["logits"]
    changed = np.zeros(len(exact), dtype=bool)
    for found in answers.outputs.values():
        changed[answers.images[found.argmax(1) != exact.argmax(1)[answers.images]]] = True
    row.flips = int(changed.sum())
    row.near_ties = [questions.names[i] for i in np.flatnonzero(changed & tie)]
    flipped = np.flatnonzero(changed & ~tie)
    if len(flipped):
        first = questions.names[flipped[0]]
        yield f"classes: {len(flipped)} images changed class; first {first}"


def check_batches(answers: Answers, questions: Questions) -> Iterator[str]:
    """Rule 4, first half: an image gives the same alone, again, and anywhere in any batch.

    int8 too but for float32's rounding: its sums are exact in any order.
    """
    budget = (questions.exact or questions.reference).budget
    _, first, of_image = np.unique(answers.images, return_index=True, return_inverse=True)
    before = first[of_image]
    for name, found in answers.outputs.items():
        change = np.abs(found - found[before]).max(axis=1)
        changed = np.flatnonzero(~(change <= budget[name]))
        if len(changed):
            i = changed[0]
            yield (
                f"batches: {questions.names[answers.images[i]]} gives another {name} in a batch "
                f"of {answers.sizes[i]} than in one of {answers.sizes[before[i]]}: "
                f"off by {change[i]:.3g}"
            )


def check_concurrency(runtime: Runtime, graph: Graph, questions: Questions) -> Iterator[str]:
    """Rule 4, second half: calls of mixed sizes at once don't get each other's results.

    In a server these meet in dynamic batches, whose outputs it has to split again.
    """
    reference = questions.reference
    sizes = [min(size, graph.max_batch) for size in _AT_ONCE]
    batches = [
        np.arange(end - size, end) % questions.count
        for end, size in zip(np.cumsum(sizes), sizes, strict=True)
    ]

    def call(indices: Batch) -> Outputs:
        return runtime(questions.batch(graph, indices))

    with ThreadPoolExecutor(len(batches)) as pool:
        for indices, outputs in zip(batches, pool.map(call, batches), strict=True):
            for name, error in _beyond_budget(indices, outputs, reference):
                yield (
                    f"batches: {name} of a batch of {len(indices)} off by {error:.3g} "
                    "beside other calls"
                )
                return


def check_losses(answers: Answers, questions: Questions, row: Row) -> Iterator[str]:
    """Rule 5, of int8: no layer is scaled otherwise, and the samples keep their classes."""
    assert questions.exact is not None
    logits = answers.outputs["logits"]
    right = questions.reference.outputs["logits"][answers.images]
    yield from check_scale(logits, right, questions.mean_budget)
    exact = questions.exact.outputs["logits"][: questions.samples]
    found = answers.logits_of(questions.samples)
    losses = Losses(found, exact, questions.classes, questions.int8)
    row.agreement, row.accuracy_loss = losses.agreement, losses.accuracy_loss
    row.standard_error = losses.standard_error
    row.changed = [f"{questions.names[i]} ({losses.margins[i]:.2f})" for i in losses.changed]
    yield from losses.check(questions.names)


def _accuracy(answers: Answers, classes: NDArray[np.int64] | None) -> float | None:
    """The share of the samples whose first answer is their class."""
    if classes is None:
        return None
    return float((answers.logits_of(len(classes)).argmax(1) == classes).mean())


def _beyond_budget(
    indices: NDArray[np.intp], outputs: Outputs, reference: Reference
) -> Iterator[tuple[str, float]]:
    """The outputs of these images that are further off than allowed, each with its error."""
    for name, found in outputs.items():
        error = float(np.abs(found - reference.outputs[name][indices]).max())
        if not error <= reference.budget[name]:  # so that NaN is reported too
            yield name, error


HEADER = (
    "graph", "format", "runtime", "verdict", "largest error", "budget", "mean error",
    "flips", "agreement", "accuracy", "images", "seconds",
)  # fmt: skip


def table_rows(rows: list[Row]) -> list[tuple[str, ...]]:
    """The rows as texts under HEADER; errors and budget are those of the logits.

    Those of int8, and flips, are against the quantised graph, agreement is with the network.
    """

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.2e}"

    return [
        (
            row.graph,
            row.format,
            row.runtime,
            "pass" if row.passed else "FAIL",
            number(row.max_error.get("logits")),
            number(row.budget.get("logits")),
            number(row.mean_error.get("logits")),
            str(row.flips),
            "-" if row.agreement is None else f"{row.agreement:.2%}",
            "-" if row.accuracy is None else f"{row.accuracy:.4f}",
            str(row.images),
            f"{row.seconds:.1f}",
        )
        for row in rows
    ]


def failures_of(rows: list[Row]) -> list[str]:
    """What failed in all of them, a line each."""
    return [f"{_subject(row)}: {text}" for row in rows for text in row.failures]


def _subject(row: Row) -> str:
    """FILE in RUNTIME, or GRAPH in RUNTIME where it runs none."""
    return f"{row.graph}{row.format.strip('-')} in {row.runtime}"


def markdown(rows: list[Row], about: dict[str, Any]) -> str:
    """The report as a page: the table, the reasons of failures, the near ties."""
    lines = [
        "# Parity report",
        "",
        f"`{about['command']}`, {about['machine']}, {about['versions']}",
        "",
        f"{about['images']} samples by seed {about['seed']}, and synthetic ones; files judged: "
        + (", ".join(f"{name} {d[:12]}" for name, d in about["artifacts"].items()) or "none"),
    ]
    lines += ["", table(HEADER, table_rows(rows)), ""]
    lines += [f"- **{_subject(row)}**: {text}" for row in rows for text in row.failures]
    for row in rows:
        if row.near_ties:
            ties = ", ".join(row.near_ties)
            lines.append(f"- {_subject(row)}: near ties that changed class: {ties}")
        if row.agreement is not None:
            lines.append(f"- {_subject(row)}: {_losses(row)}")
    return "\n".join([*lines, ""])


def _losses(row: Row) -> str:
    loss = ""
    if row.accuracy_loss is not None:
        loss = f"accuracy {row.accuracy_loss:+.2%} lost (standard error {row.standard_error:.2%}), "
    listed = ", ".join(row.changed) or "none"
    return f"{loss}samples of another class than the network's, with its margin: {listed}"


def report(rows: list[Row], about: dict[str, Any]) -> dict[str, Any]:
    """The report as plain data: what was run where, and every row with its verdict."""
    return {
        "passed": all(row.passed for row in rows),
        **about,
        "rows": [{"passed": row.passed, **asdict(row)} for row in rows],
    }
