"""What the tests share: the shipped weights, the real test images, and the exports of both."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nin.checkpoint import Checkpoint, load_checkpoint
from nin.data import load
from nin.paths import ROOT, WEIGHTS
from nin.reference import Reference, compute_reference


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Script = Callable[..., Ended]


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    return load_checkpoint(WEIGHTS)


@pytest.fixture(scope="session")
def pixels() -> NDArray[np.uint8]:
    return load("test")[0]


@pytest.fixture(scope="session")
def labels() -> NDArray[np.uint8]:
    return load("test")[1]


@pytest.fixture(scope="session")
def reference(checkpoint: Checkpoint, pixels: NDArray[np.uint8]) -> Reference:
    """64 images: enough to derive the budget on."""
    return compute_reference(checkpoint.network, pixels[:64])


@pytest.fixture
def script(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Script:
    """Runs one of the project's scripts in this process: as a person does, but in milliseconds."""

    def run(path: str, *options: object) -> Ended:
        capfd.readouterr()
        code = run_script(monkeypatch, path, *options)
        return Ended(code, *capfd.readouterr())

    return run


def run_script(monkeypatch: pytest.MonkeyPatch, path: str, *options: object) -> int:
    monkeypatch.setattr(sys, "argv", [path, *map(str, options)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / path), run_name="__main__")
    code = ended.value.code
    assert isinstance(code, int)
    return code


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all four exports, made by the scripts; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("artifacts")
    with pytest.MonkeyPatch.context() as monkeypatch:
        for path in ("export/to_onnx.py", "export/to_torchscript.py"):
            assert run_script(monkeypatch, path, "--output", folder) == 0
    return folder
