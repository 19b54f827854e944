"""What the benchmark's workers load in tests: they import no torch for it."""

import os
import signal
from functools import partial
from typing import Any

import numpy as np

from nin.bench.worker import Loaded, memory_mib


def hold(mib: int) -> Loaded:
    """A model of that size."""
    before = memory_mib("VmRSS")
    weights = np.ones((mib, 1 << 20), np.uint8)

    def run(batch: Any) -> dict[str, Any]:
        return {"logits": weights[: len(batch), :10] * np.arange(10)}

    return Loaded([partial(partial, run)], run, before)


def die() -> Loaded:
    """A model that ends the process when it is asked."""

    def run(batch: Any) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    return Loaded([partial(partial, run)], run, None)
