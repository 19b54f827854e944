"""What the tests share: the shipped weights, the real test images, and the exports of both."""

import hashlib
import platform
import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nin.artifact import read_manifest, write_manifest
from nin.checkpoint import Checkpoint, load_checkpoint
from nin.data import load
from nin.errors import InputError
from nin.paths import CPP_TOOLS, ROOT, WEIGHTS
from nin.reference import Reference, compute_reference
from nin.triton.repository import publish
from nin.triton.server import PORTS, Server, find_tritonserver, serve


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


@pytest.fixture(scope="session")
def repository(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with version 1 of everything; tests that change it make their own."""
    folder = tmp_path_factory.mktemp("repository") / "model_repository"
    publish(artifacts, folder)
    return folder


@pytest.fixture(scope="session")
def embedded() -> None:
    """For tests that start a server: skips them where none can run, on other systems only."""
    try:
        find_tritonserver()
    except InputError as error:
        if (sys.platform, platform.machine()) == ("linux", "x86_64"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def server(embedded: None, repository: Path) -> Iterator[Server]:
    """The embedded Triton with all models, on free ports; it must outlive whatever is sent."""
    with serve(repository, ports=dict.fromkeys(PORTS, 0)) as running:
        yield running


@pytest.fixture(scope="session")
def cpp_build() -> Path:
    """The build folder of the C++ project, which `make test` has built before."""
    assert (CPP_TOOLS / "nin_classify").is_file(), "no C++ build; run `make cpp`"
    return CPP_TOOLS.parent


def vouch(folder: Path, name: str, data: bytes) -> None:
    """Writes a file and makes the manifest agree with it."""
    (folder / name).write_bytes(data)
    entries = read_manifest(folder)
    digest = hashlib.sha256(data).hexdigest()
    entries[name] = replace(entries[name], sha256=digest, size=len(data))
    write_manifest(folder, entries)
