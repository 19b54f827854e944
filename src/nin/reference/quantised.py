"""int8's right answers: those of the quantised graph in plain float32."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nin.artifact.golden import Golden
from nin.contract import Graph, Outputs, Run

# By how much, relatively, a quantised graph's scales are changed to round its ties otherwise: more
# than what float32 rounds, in sums of thousands of products.
TIE = 1e-5

# A runtime may be off the quantised graph by this many times what rounding its ties otherwise does:
# each moves an activation by a step, and those after it.
BUDGET_FACTOR = 2

# The last place of 8 bits, relative to the largest output.
_LAST_PLACE = 1 / 127

# On average a runtime may be off by what rounding all ties otherwise does, or by this many last
# places. Of NiN that is 0.008; right kernels are off by 0.001 to 0.002, and one layer's scale that
# is off by 2 % makes 0.012 to 0.027, whichever layer.
_MEAN = 1 / 8


def quantised_golden(runs: tuple[Run, ...], graph: Graph, golden: Golden) -> Golden:
    """The vectors of a quantised file: the same images, the quantised graph's own outputs."""
    outputs, budget, _ = with_budget(runs, [partial(golden.batch, graph)])
    outputs = {name: values.astype(np.float64) for name, values in outputs.items()}
    return Golden(golden.inputs, outputs, budget)


def with_budget(
    runs: tuple[Run, ...], batches: Sequence[Callable[[], NDArray[Any]]]
) -> tuple[Outputs, dict[str, float], float]:
    """The outputs, the largest error allowed of each, and the mean error allowed of the logits."""
    outputs, *others = (_run(run, batches) for run in runs)
    budget = {}
    for name, values in outputs.items():
        differences = [float(np.abs(other[name] - values).max()) for other in others]
        last_place = _LAST_PLACE * float(np.abs(values).max())
        budget[name] = BUDGET_FACTOR * max(last_place, *differences)
    logits = outputs["logits"]
    means = [float(np.abs(other["logits"] - logits).mean()) for other in others]
    return outputs, budget, max(*means, _MEAN * _LAST_PLACE * float(np.abs(logits).max()))


def _run(run: Run, batches: Sequence[Callable[[], NDArray[Any]]]) -> Outputs:
    bar = tqdm(batches, "the quantised graph in float32", disable=None, leave=False)
    outputs = [run(batch()) for batch in bar]
    return {name: np.concatenate([o[name] for o in outputs]) for name in outputs[0]}
