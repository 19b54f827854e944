"""Publishing into a model repository: whole versions or nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nin.artifact import read_manifest, write_manifest
from nin.checkpoint import Checkpoint
from nin.contract import FASHION_MNIST
from nin.errors import CheckError, InputError
from nin.onnx_export import export_onnx, read_onnx_texts
from nin.paths import ROOT
from nin.runtimes.eager import graph_module
from nin.torchscript_export import export_torchscript, read_torchscript_texts
from nin.triton.repository import PUBLISHED, prune, publish, rollback, versions
from tests.conftest import Script, vouch

PUBLISH = "export/to_triton.py"


@pytest.fixture
def own(repository: Path, tmp_path: Path) -> Path:
    """A repository with version 1, of this test's own."""
    return Path(shutil.copytree(repository, tmp_path / "own"))


def numbers(repository: Path) -> dict[str, list[int]]:
    """The versions that a server would find, the newest first."""
    found: dict[str, list[int]] = {model.name: [] for model in PUBLISHED}
    for version in versions(repository):
        found[version.model].append(version.number)
    return found


def everywhere(*expected: int) -> dict[str, list[int]]:
    return {model.name: list(expected) for model in PUBLISHED}


def test_a_new_repository_is_complete(repository: Path) -> None:
    assert numbers(repository) == everywhere(1)
    committed = [
        path.relative_to(ROOT / "model_repository")
        for path in (ROOT / "model_repository").glob("*/*")
        if path.is_file()
    ]
    assert len(committed) >= 10
    for path in (*committed, "decode_image/1/model.py", "fashion_mnist_image/1/.gitkeep"):
        assert (repository / path).is_file()


def test_published_files_are_the_artifacts(repository: Path, artifacts: Path) -> None:
    for model in PUBLISHED:
        artifact = artifacts / f"{model.graph.name}{model.format}"
        folder = repository / model.name / "1"
        assert (folder / model.filename).read_bytes() == artifact.read_bytes()
        assert read_manifest(folder)[model.filename] == read_manifest(artifacts)[artifact.name]


def test_versions_count_up_and_may_be_given(script: Script, artifacts: Path, own: Path) -> None:
    options = ("--artifacts", artifacts, "--repository", own)
    assert script(PUBLISH, *options).code == 0
    assert numbers(own) == everywhere(2, 1)
    ended = script(PUBLISH, *options, "--version", 7)
    assert ended.code == 0
    assert "version 7" in ended.out
    assert numbers(own) == everywhere(7, 2, 1)


@pytest.mark.parametrize("version", [1, 2])
def test_a_version_that_no_server_would_choose_is_refused(
    artifacts: Path, own: Path, version: int
) -> None:
    publish(artifacts, own)
    with pytest.raises(InputError, match=f"version {version} isn't newer than 2"):
        publish(artifacts, own, version=version)
    assert numbers(own) == everywhere(2, 1)


def test_rollback_publishes_the_version_before_again(
    script: Script, artifacts: Path, own: Path
) -> None:
    """And so does another, which brings back what was rolled back."""
    for model in PUBLISHED:
        mark(own / model.name / "1", model.filename, "first")
    publish(artifacts, own)
    ended = script(PUBLISH, "--repository", own, "--rollback")
    assert ended.code == 0
    assert "version 3 is version 1 again" in ended.out
    assert numbers(own) == everywhere(3, 2, 1)
    assert rollback(own) == (2, 4)
    exporters = [v.entry.versions["nin"] for v in versions(own)[:4] if v.entry]
    assert exporters == [exporters[2], "first", exporters[2], "first"]


def test_rollback_needs_an_older_version(script: Script, own: Path) -> None:
    ended = script(PUBLISH, "--repository", own, "--rollback")
    assert ended.code == 2
    assert "no older version of all models" in ended.err
    assert numbers(own) == everywhere(1)


def test_rollback_to_a_changed_file_is_refused(artifacts: Path, own: Path) -> None:
    publish(artifacts, own)
    (own / "fashion_mnist" / "1" / "model.onnx").write_bytes(b"changed")
    with pytest.raises(InputError, match=r"fashion_mnist/1/model.onnx has SHA-256"):
        rollback(own)
    assert numbers(own) == everywhere(2, 1)


def test_rollback_after_a_publisher_that_was_killed_between_renames(
    artifacts: Path, own: Path
) -> None:
    publish(artifacts, own)
    for model in PUBLISHED[1:]:  # as if only the first had been renamed
        shutil.rmtree(own / model.name / "2")
    assert rollback(own) == (1, 3)
    assert {model: found[0] for model, found in numbers(own).items()} == {
        model.name: 3 for model in PUBLISHED
    }


def test_keep_removes_the_oldest(script: Script, artifacts: Path, own: Path) -> None:
    publish(artifacts, own)
    ended = script(PUBLISH, "--artifacts", artifacts, "--repository", own, "--keep", 1)
    assert ended.code == 0
    assert "removed version 1, 2" in ended.out
    assert numbers(own) == everywhere(3)
    assert {p.name for p in (own / "nin_onnx").iterdir() if p.is_dir()} == {"3", "warmup"}


def test_keep_never_removes_the_newest(own: Path) -> None:
    assert prune(own, 1) == []
    assert numbers(own) == everywhere(1)


def test_list_shows_versions_and_finds_changes(script: Script, artifacts: Path, own: Path) -> None:
    publish(artifacts, own)
    ended = script(PUBLISH, "--repository", own, "--list")
    assert ended.code == 0
    rows = [line.split("|")[1:3] for line in ended.out.splitlines()[2:]]
    assert [(name.strip(), int(number)) for name, number in rows] == [
        (model.name, number) for model in PUBLISHED for number in (2, 1)
    ]
    with (own / "nin_torchscript" / "1" / "model.pt").open("ab") as file:
        file.write(b"x")
    ended = script(PUBLISH, "--repository", own, "--list")
    assert ended.code == 1
    assert "CHANGED" in ended.out
    assert "nin_torchscript/1/model.pt has SHA-256" in ended.err


def test_an_artifact_with_a_changed_byte_is_refused(artifacts: Path, own: Path) -> None:
    changed = Path(shutil.copytree(artifacts, own.parent / "changed"))
    with (changed / "fashion_mnist.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="has SHA-256"):
        publish(changed, own)
    assert_untouched(own)


@pytest.mark.parametrize("suffix", [".onnx", ".pt"])
def test_an_artifact_off_its_golden_vectors_is_never_published(
    checkpoint: Checkpoint, artifacts: Path, own: Path, suffix: str
) -> None:
    """The sign of one bias differs; digest, contract and golden vectors are as they should be."""
    changed = Path(shutil.copytree(artifacts, own.parent / "changed"))
    network = deepcopy(checkpoint.network)
    with torch.no_grad():
        next(p for p in network.parameters() if p.ndim == 1)[0].neg_()
    example = torch.zeros(2, *FASHION_MNIST.input.shape, dtype=torch.uint8)
    module = graph_module(network, FASHION_MNIST)
    data = (changed / f"fashion_mnist{suffix}").read_bytes()
    if suffix == ".pt":
        texts = read_torchscript_texts(data)
        data = export_torchscript(module, example, FASHION_MNIST, texts)
    else:
        data = export_onnx(module, example, FASHION_MNIST, read_onnx_texts(data), opset=18)
    vouch(changed, f"fashion_mnist{suffix}", data)
    with pytest.raises(CheckError, match=r"^fashion_mnist.* is not published: golden vectors: lo"):
        publish(changed, own)
    assert_untouched(own)


def test_artifacts_of_different_weights_are_refused(artifacts: Path, own: Path) -> None:
    mixed = Path(shutil.copytree(artifacts, own.parent / "mixed"))
    manifest = json.loads((mixed / "manifest.json").read_text())
    manifest["artifacts"]["nin.pt"]["weights_sha256"] = "0" * 64
    (mixed / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="come from different weights"):
        publish(mixed, own)
    assert_untouched(own)


def test_two_publishers_at_once_make_two_versions(artifacts: Path, own: Path) -> None:
    publishers = [start_publisher(artifacts, own) for _ in range(2)]
    assert [p.wait(120) for p in publishers] == [0, 0]
    assert numbers(own) == everywhere(3, 2, 1)
    assert not [v for v in versions(own) if v.problem]


def test_a_killed_publisher_leaves_the_repository_as_it_was(artifacts: Path, own: Path) -> None:
    """Killed while it stages; the next one sweeps up and publishes."""
    publisher = start_publisher(artifacts, own)
    deadline = time.monotonic() + 60
    while not list(own.glob("*/.nin-2.*.tmp/*")):
        assert publisher.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(publisher.pid, signal.SIGKILL)
    publisher.wait()
    assert list(own.glob("*/.nin-2.*.tmp"))
    assert numbers(own) == everywhere(1)
    assert publish(artifacts, own) == 2
    assert not list(own.glob("*/.*.tmp"))
    assert not [v for v in versions(own) if v.problem]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--version", 0), "0 is not a whole number from 1 on"),
        (("--keep", "x"), "x is not a whole number from 1 on"),
        (("--version", 2, "--rollback"), "not allowed with"),
        (("--artifacts", "nowhere"), "no manifest.json in nowhere"),
        (("--repository", "README.md"), "is a file"),
        (("--repository", "docs"), "isn't a model repository of this project"),
        (("--repository", "nowhere/at/all", "--rollback"), "no model repository at"),
        (("--repository", "nowhere/at/all", "--list"), "no model repository at"),
        (("--load", "here"), "isn't a server's address"),
    ],
)
def test_mistakes_are_one_line(
    script: Script, monkeypatch: pytest.MonkeyPatch, options: tuple[object, ...], message: str
) -> None:
    monkeypatch.chdir(ROOT)
    ended = script(PUBLISH, *options)
    assert ended.code == 2
    assert message in ended.err
    assert "Traceback" not in ended.err


def start_publisher(artifacts: Path, repository: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, PUBLISH, "--artifacts", artifacts, "--repository", repository],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )


def mark(folder: Path, name: str, exporter: str) -> None:
    """Makes a version tell itself from others of the same artifacts."""
    entry = read_manifest(folder)[name]
    write_manifest(folder, {name: replace(entry, versions={"nin": exporter})})


def assert_untouched(repository: Path) -> None:
    """Version 1 only, and nothing half made beside it."""
    assert numbers(repository) == everywhere(1)
    assert not list(repository.glob("*/.*"))
