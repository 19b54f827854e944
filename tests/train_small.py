"""train/train.py on the test images: the repository doesn't hold the training set.

It is a program, so that torchrun and signals meet the real thing.
"""

import os
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import nin.training.data
import nin.training.trainer
from nin.paths import ROOT
from nin.training.recipes import BEST, RECIPES, Recipe

_load = nin.training.data.load


def load_test_images(_: str, data_dir: Path | None = None) -> Any:
    return _load("test", data_dir)


def without_batch_norm() -> Recipe:
    return replace(BEST, batch_norm=False)


if __name__ == "__main__":
    nin.training.data.load = load_test_images  # type: ignore[assignment]
    if "WITHOUT_BATCH_NORM" in os.environ:
        RECIPES["best"] = without_batch_norm()
    if "FLOAT64" in os.environ:
        torch.set_default_dtype(torch.float64)
    if os.environ.get("RANK") == "1":
        # always due for one process, never for the other: they have to agree
        nin.training.trainer._CHECKPOINT_EVERY_S = 0
    sys.argv[0] = "train.py"
    runpy.run_path(str(ROOT / "train/train.py"), run_name="__main__")
