"""int8: what its runtimes are held against, and what it may lose.

A quantised graph has right answers of its own: those of the same graph in plain float32. A runtime
that is further off than float32's rounding explains computes something else: it saturates, say, or
scales otherwise. And those right answers may be off the network's only so far.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nin.artifact.manifest import read_artifact
from nin.contract import Graph, Int8, Run
from nin.errors import InputError, first_line
from nin.export.formats import FORMATS
from nin.gate.questions import Questions
from nin.network.build import TrainedModel
from nin.reference.exact import Reference, margins
from nin.reference.quantised import quantised_golden, with_budget

# The logits of a runtime are those of the quantised graph times a number this near to 1.
_SCALE_ERROR = 0.005

# Of fewer samples than these the shares are known less well: by so many standard errors.
_MANY = 10_000
_STANDARD_ERRORS = 3

_BATCH = 16


def questions_of_file(
    questions: Questions, graph: Graph, suffix: str | None, artifacts: Path, model: TrainedModel
) -> Questions:
    """The questions for the runtimes of a file: of int8 the right answers are the file's own.

    Args:
        suffix: None where no file is run.

    Raises InputError where the file isn't there.
    """
    fmt = FORMATS[suffix] if suffix else None
    if fmt is None or fmt.unfused is None:
        return questions
    assert fmt.weight_faults is not None
    questions = questions.of(graph)
    data = read_artifact(artifacts, f"{graph.name}{suffix}")
    example = torch.tensor(questions.batch(graph, np.arange(2)))
    try:
        faults = fmt.weight_faults(data, model.module(graph), example, graph)
        return quantised_questions(fmt.unfused(data, graph), graph, questions, faults)
    except InputError:  # what reads it isn't installed
        raise
    except Exception as error:  # whatever a broken file makes its reader throw
        return replace(questions, faults=(f"it can't be read: {first_line(error)}",))


def quantised_questions(
    runs: tuple[Run, ...], graph: Graph, questions: Questions, faults: list[str]
) -> Questions:
    """The same questions for the runtimes of a quantised file.

    Args:
        runs: the file's graph in plain float32, and with its ties rounded otherwise.
        faults: what is wrong with the file, whoever runs it.
    """
    exact = questions.reference
    count = questions.count
    parts = np.split(np.arange(count), range(_BATCH, count, _BATCH))
    batches = [partial(questions.batch, graph, part) for part in parts]
    outputs, budget, mean_budget = with_budget(runs, batches)
    golden = quantised_golden(runs, graph, questions.golden[graph.name])
    return replace(
        questions,
        reference=Reference(exact.pixels, outputs, budget),
        golden={graph.name: golden},
        exact=exact,
        faults=tuple(faults),
        mean_budget=mean_budget,
    )


def scale_of(logits: NDArray[np.floating], right: NDArray[np.floating]) -> float:
    """The number that `right` has to be multiplied by to be nearest to `logits`, (N, K) both."""
    logits = logits - logits.mean(axis=1, keepdims=True)
    right = right - right.mean(axis=1, keepdims=True)
    return float((logits * right).sum() / (right * right).sum())


def check_scale(
    logits: NDArray[np.floating], right: NDArray[np.floating], mean_budget: float
) -> Iterator[str]:
    """No layer scales otherwise than the quantised graph: by 2 % shows in every layer of NiN."""
    mean = float(np.abs(logits - right).mean())
    if not mean <= mean_budget:
        yield (
            f"mean: the logits are off by {mean:.3g} on average, rounding ties otherwise explains "
            f"{mean_budget:.3g}"
        )
    scale = scale_of(logits, right)
    if not abs(scale - 1) <= _SCALE_ERROR:
        yield (
            f"scale: the logits are {scale:.4f} times those of the quantised graph, "
            f"allowed is 1 within {_SCALE_ERROR}"
        )


class Losses:
    """What quantising cost on the samples."""

    def __init__(
        self,
        logits: NDArray[np.floating],
        exact: NDArray[np.floating],
        classes: NDArray[np.int64] | None,
        allowed: Int8,
    ) -> None:
        """
        Args:
            logits, exact: of the quantised runtime and of the reference, (N, K) both.
            classes: (N,), where they are known.
        """
        self.count = len(exact)
        found, right = logits.argmax(axis=1), exact.argmax(axis=1)
        self.margins = margins(exact)
        self.changed = np.flatnonzero(found != right)
        self.agreement = 1 - len(self.changed) / self.count
        self.largest_margin = allowed.margin * float(exact.std())
        # widened by what so few samples leave open
        spread = np.sqrt(allowed.agreement * (1 - allowed.agreement))
        self.least_agreement = allowed.agreement - self._slack(spread)
        self.accuracy_loss: float | None = None
        self.standard_error: float | None = None
        if classes is not None:
            lost = (right == classes).astype(float) - (found == classes)
            self.accuracy_loss = float(lost.mean())
            self.standard_error = float(lost.std() / np.sqrt(self.count))
            self.largest_loss = allowed.accuracy_loss + self._slack(float(lost.std()))

    def _slack(self, deviation: float) -> float:
        few = self.count < _MANY
        return _STANDARD_ERRORS * float(deviation) / float(np.sqrt(self.count)) if few else 0.0

    def check(self, names: tuple[str, ...]) -> Iterator[str]:
        """Args: names: of the samples."""
        if self.accuracy_loss is not None and not self.accuracy_loss <= self.largest_loss:
            yield (
                f"accuracy: {self.accuracy_loss:.2%} below the reference's on {self.count} "
                f"samples, allowed is {self.largest_loss:.2%} "
                f"(paired standard error {self.standard_error:.2%})"
            )
        if not self.agreement >= self.least_agreement:
            yield (
                f"agreement: {self.agreement:.2%} of {self.count} samples keep their class, "
                f"expected {self.least_agreement:.2%} or more"
            )
        sure = self.changed[self.margins[self.changed] > self.largest_margin]
        if len(sure):
            first = sure[np.argmax(self.margins[sure])]
            yield (
                f"margin: {names[first]} changes its class, though the reference is "
                f"{self.margins[first]:.2f} ahead; allowed is {self.largest_margin:.2f}"
            )
