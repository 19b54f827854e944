"""What the tests share: the built-in model, a second one, their exports, and a server of each."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: a core for each worker
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import fcntl
import hashlib
import platform
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nin.artifact.manifest import read_manifest, write_manifest
from nin.commands import main
from nin.contract import Contract, load_contract
from nin.errors import InputError
from nin.network.build import TrainedModel, load_model
from nin.paths import CPP_TOOLS, NIN, ROOT
from nin.reference.exact import Reference, compute_reference
from nin.serve.repository import publish
from nin.serve.server import PORTS, Server, find_tritonserver, serve
from nin.training.data import load
from tests.models import make_lenet, make_small_resnet18
from tests.packages import compile_graph, package


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
def model() -> TrainedModel:
    """The built-in one."""
    return load_model(NIN)


@pytest.fixture(scope="session")
def contract(model: TrainedModel) -> Contract:
    return model.contract


@pytest.fixture(scope="session")
def pixels() -> NDArray[np.uint8]:
    return load("test")[0]


@pytest.fixture(scope="session")
def labels() -> NDArray[np.uint8]:
    return load("test")[1]


@pytest.fixture(scope="session")
def reference(model: TrainedModel, pixels: NDArray[np.uint8]) -> Reference:
    """64 images: enough to derive the budget on."""
    return compute_reference(model, pixels[:64])


@pytest.fixture
def script(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Script:
    """Runs one of the project's scripts in this process: as a person does, but in milliseconds."""

    def run(path: str, *options: object) -> Ended:
        capfd.readouterr()
        code = run_script(monkeypatch, path, *options)
        return Ended(code, *capfd.readouterr())

    return run


@pytest.fixture
def nin(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Script:
    """Runs the console program in this process: `nin("init", folder, ...)`."""

    def run(*options: object) -> Ended:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["nin", *map(str, options)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, *capfd.readouterr())

    return run


def run_script(monkeypatch: pytest.MonkeyPatch, path: str, *options: object) -> int:
    monkeypatch.setattr(sys, "argv", [path, *map(str, options)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / path), run_name="__main__")
    code = ended.value.code
    assert isinstance(code, int)
    return code


@contextmanager
def made_once(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[tuple[Path, bool]]:
    """A folder that all workers of this run share; the first has to fill it.

    Yields the folder, and whether it is filled already.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder.with_suffix(".done")
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        yield folder, done.exists()
        done.touch()


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all exports, made by the scripts; tests that change it copy it first."""
    with made_once(tmp_path_factory, "artifacts") as (folder, filled):
        if not filled:
            export_all(NIN, folder)
    return folder


@pytest.fixture(scope="session")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of another network: RGB, 1,000 classes, smaller than models/resnet18."""
    with made_once(tmp_path_factory, "resnet18") as (folder, filled):
        if not filled:
            make_small_resnet18(folder)
    return folder


@pytest.fixture(scope="session")
def lenet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third model: grey, small, and quick to export and to publish."""
    with made_once(tmp_path_factory, "lenet") as (folder, filled):
        if not filled:
            make_lenet(folder)
    return folder


@pytest.fixture(scope="session")
def resnet18_artifacts(resnet18: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with made_once(tmp_path_factory, "resnet18_artifacts") as (folder, filled):
        if not filled:
            export_all(resnet18, folder)
    return folder


@pytest.fixture(scope="session")
def lenet_model(lenet_folder: Path) -> TrainedModel:
    return load_model(lenet_folder)


@pytest.fixture(scope="session")
def lenet(lenet_model: TrainedModel) -> Contract:
    return lenet_model.contract


@pytest.fixture(scope="session")
def lenet_artifacts(lenet: Contract, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with made_once(tmp_path_factory, "lenet_artifacts") as (folder, filled):
        if not filled:
            export_all(lenet.folder, folder)
    return folder


@pytest.fixture(scope="session")
def pt2_packages(
    lenet: Contract, lenet_model: TrainedModel, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The small model's network in float32 and its classifier in int8: lenet, small.int8."""
    with made_once(tmp_path_factory, "pt2_packages") as (folder, filled):
        if not filled:
            for graph, int8 in ((lenet.network_graph, False), (lenet.classifier_graph, True)):
                program = compile_graph(lenet_model, graph, int8=int8)
                data = package(lenet_model, graph, program)
                (folder / f"{graph.name}{'.int8' * int8}.pt2").write_bytes(data)
    return folder


@pytest.fixture(scope="session")
def lenet_repository(
    lenet: Contract, lenet_artifacts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model repository with its version 1; tests that change it make their own."""
    with made_once(tmp_path_factory, "lenet_repository") as (folder, filled):
        if not filled:
            publish(lenet, lenet_artifacts, folder / "model_repository")
    return folder / "model_repository"


def export_all(model: Path, folder: Path) -> None:
    """Both graphs in every format that is published; of int8 the classifier."""
    options: tuple[object, ...] = ("--model", model, "--output", folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        for path in ("export/to_onnx.py", "export/to_torchscript.py"):
            assert run_script(monkeypatch, path, *options) == 0
        if load_contract(model).calibration:
            int8 = ("--precision", "int8")
            assert run_script(monkeypatch, "export/to_onnx.py", *int8, *options) == 0


@pytest.fixture(scope="session")
def repository(
    artifacts: Path, contract: Contract, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model repository with version 1 of everything; tests that change it make their own."""
    with made_once(tmp_path_factory, "repository") as (folder, filled):
        if not filled:
            publish(contract, artifacts, folder / "model_repository")
    return folder / "model_repository"


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
