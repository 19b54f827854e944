"""Publishing into a model repository: whole versions or nothing."""

import errno
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

import numpy as np
import onnx
import pytest
import torch

from nin.artifact import read_manifest, write_manifest
from nin.checkpoint import Checkpoint
from nin.contract import FASHION_MNIST
from nin.errors import CheckError, InputError
from nin.onnx_export import export_onnx, read_onnx_texts
from nin.paths import ROOT, WEIGHTS
from nin.proof import prove
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
        exported = read_manifest(artifacts)[artifact.name]
        assert read_manifest(folder)[model.filename] == replace(exported, proof="unproven")


def test_versions_count_up_and_may_be_given(script: Script, artifacts: Path, own: Path) -> None:
    options = ("--artifacts", artifacts, "--repository", own, "--unproven")
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
    options = ("--artifacts", artifacts, "--repository", own, "--unproven")
    ended = script(PUBLISH, *options, "--keep", 1)
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


@pytest.fixture
def exports(artifacts: Path, tmp_path: Path) -> Path:
    """A copy of the artifacts, of this test's own."""
    return Path(shutil.copytree(artifacts, tmp_path / "exports"))


def write_report(folder: Path, *, passed: bool, images: int = 256, **digests: str) -> None:
    """As the gate writes it, about the files there unless a digest is given."""
    judged = {name: entry.sha256 for name, entry in read_manifest(folder).items()} | digests
    report = {"passed": passed, "images": images, "artifacts": judged}
    (folder / "parity.json").write_text(json.dumps(report))


def test_what_the_gate_let_through_is_published(script: Script, exports: Path, own: Path) -> None:
    """Its report is about these very files, so that nothing is asked again."""
    write_report(exports, passed=True)
    options = ("--artifacts", exports, "--repository", own)
    ended = script(PUBLISH, *options, "--weights", "isn't read")
    assert ended.code == 0
    assert ended.out.endswith("fashion_mnist_torchscript, proof: gate\n")
    proofs = {(v.number, v.entry.proof) for v in versions(own) if v.entry}
    assert proofs == {(2, "gate"), (1, "unproven")}
    assert script(PUBLISH, *options, "--rollback").code == 0
    rows = script(PUBLISH, *options, "--list").out.splitlines()[2:]
    assert [row.split("|")[-2].strip() for row in rows] == ["unproven", "gate", "unproven"] * 4


def test_what_the_gate_refused_is_published_only_unproven(
    script: Script, exports: Path, own: Path
) -> None:
    write_report(exports, passed=False)
    options = ("--artifacts", exports, "--repository", own)
    ended = script(PUBLISH, *options)
    assert ended.code == 1
    assert "parity.json says that the gate is closed for these exports" in ended.err
    assert_untouched(own)
    ended = script(PUBLISH, *options, "--unproven")
    assert ended.code == 0
    assert ended.out.endswith("proof: unproven\n")
    assert {v.entry.proof for v in versions(own) if v.entry} == {"unproven"}


def test_exports_that_no_report_is_about_pass_a_quick_gate(
    script: Script, exports: Path, own: Path
) -> None:
    """Reports of other files don't count, whatever they say."""
    write_report(exports, passed=True, **{"nin.pt": "0" * 64})
    ended = script(PUBLISH, "--artifacts", exports, "--repository", own)
    assert ended.code == 0
    assert "no report of these exports in " in ended.out
    assert ended.out.endswith("proof: quick gate\n")


def test_the_quick_gate_closes(script: Script, exports: Path, own: Path) -> None:
    """On weights rounded to bfloat16 under golden vectors that allow anything."""
    data = (exports / "nin.onnx").read_bytes()
    model = onnx.load_from_string(data)
    golden = next(p for p in model.metadata_props if p.key == "golden")
    golden.value = json.dumps({**json.loads(golden.value), "budget": {"logits": 1e9}})
    for weight in model.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT:
            bits = np.frombuffer(weight.raw_data, np.uint32) & np.uint32(0xFFFF0000)
            weight.raw_data = bits.tobytes()
    vouch(exports, "nin.onnx", model.SerializeToString())
    ended = script(PUBLISH, "--artifacts", exports, "--repository", own)
    assert ended.code == 1
    assert "nothing is published, the gate is closed" in ended.err
    assert "nin in onnxruntime: golden vectors: they allow logits to be off by 1e+09" in ended.err
    assert_untouched(own)


@pytest.mark.parametrize("content", ["", "[]", '{"passed": true}', "[" * 200_000])
def test_a_report_that_is_none_does_not_count(
    exports: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    (exports / "parity.json").write_text(content)
    monkeypatch.setattr("nin.proof._pass_quick_gate", lambda *_, **__: None)
    assert prove(exports, weights=WEIGHTS, data_dir=None) == "quick gate"


def test_a_report_of_few_images_may_refuse_but_does_not_prove(
    exports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nin.proof._pass_quick_gate", lambda *_, **__: None)
    write_report(exports, passed=True, images=16)
    assert prove(exports, weights=WEIGHTS, data_dir=None) == "quick gate"
    write_report(exports, passed=False, images=16)
    with pytest.raises(CheckError, match="the gate is closed"):
        prove(exports, weights=WEIGHTS, data_dir=None)


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


@pytest.mark.parametrize("writes", [0, 5, 11])
def test_a_full_disk_leaves_nothing(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """The disk takes so many files; the first publication, so that no warm-up is there yet."""
    repository = tmp_path / "own"
    monkeypatch.setattr("nin.triton.repository.replay", lambda *_: None)  # takes a second
    write, written = Path.write_bytes, []

    def write_bytes(path: Path, data: bytes) -> int:
        written.append(path)
        if len(written) > writes:
            write(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    with monkeypatch.context() as full:
        full.setattr(Path, "write_bytes", write_bytes)
        with pytest.raises((OSError, InputError), match="No space left on device"):
            publish(artifacts, repository)
    assert numbers(repository) == everywhere()
    assert not [m.name for m in PUBLISHED if (repository / m.name / "warmup").exists()]
    assert not [p for p in repository.glob("*/.*") if p.is_dir()]
    assert publish(artifacts, repository) == 1
    assert all((repository / m.name / "warmup" / m.graph.input.name).is_file() for m in PUBLISHED)


@pytest.mark.slow
def test_publishers_killed_at_random_leave_a_repository_that_loads(
    artifacts: Path, own: Path
) -> None:
    """Every version whole, and each with what its warm-up reads."""
    random = np.random.default_rng(0)
    for _ in range(20):
        publisher = start_publisher(artifacts, own)
        time.sleep(random.uniform(1, 8))
        publisher.kill()
        publisher.wait()
        assert not [v for v in versions(own) if v.problem]
        assert all((own / m.name / "warmup" / m.graph.input.name).is_file() for m in PUBLISHED)
    publish(artifacts, own)
    assert not list(own.glob("*/.*.tmp"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--version", 0), "0 is not a whole number from 1 on"),
        (("--keep", "x"), "x is not a whole number from 1 on"),
        (("--version", 2, "--rollback"), "not allowed with"),
        (("--artifacts", "nowhere"), "no manifest.json in nowhere"),
        (("--repository", "README.md", "--unproven"), "is a file"),
        (("--repository", "docs", "--unproven"), "isn't a model repository of this project"),
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
    options = ("--artifacts", artifacts, "--repository", repository)
    return subprocess.Popen(
        [sys.executable, PUBLISH, *options, "--unproven"],
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
