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
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from nin.artifact.manifest import read_manifest, write_manifest
from nin.contract import Contract, load_contract
from nin.errors import CheckError, InputError
from nin.export.formats import FORMATS
from nin.gate.proof import prove, refused_files
from nin.network.build import load_model
from nin.paths import MODEL_REPOSITORY, ROOT
from nin.serve.configs import CONFIG, WARMUP, layout_for, parse
from nin.serve.repository import (
    model_names,
    not_models,
    prune,
    publish,
    require_published,
    rollback,
    versions,
)
from tests.conftest import Ended, Script, export_all, vouch

PUBLISH = "export/to_triton.py"


PUBLISHED = ("lenet_onnx", "lenet_torchscript", "small", "small_torchscript")


@pytest.fixture
def own(lenet_repository: Path, tmp_path: Path) -> Path:
    """A repository with version 1, of this test's own."""
    return Path(shutil.copytree(lenet_repository, tmp_path / "own"))


@pytest.fixture
def exports(lenet_artifacts: Path, tmp_path: Path) -> Path:
    """A copy of the artifacts, of this test's own."""
    return Path(shutil.copytree(lenet_artifacts, tmp_path / "exports"))


def numbers(repository: Path, contract: Contract | None = None) -> dict[str, list[int]]:
    """The versions that a server would find, the newest first; of LeNet's models if not told."""
    names = [model.name for model in contract.published] if contract else PUBLISHED
    found: dict[str, list[int]] = {name: [] for name in names}
    for version in versions(repository):
        if version.model in found:
            found[version.model].append(version.number)
    return found


def everywhere(*expected: int) -> dict[str, list[int]]:
    return {name: list(expected) for name in PUBLISHED}


def test_a_new_repository_is_complete(lenet: Contract, lenet_repository: Path) -> None:
    assert numbers(lenet_repository) == everywhere(1)
    assert model_names(lenet_repository) == sorted(model.name for model in lenet.models)
    assert not [p for p in lenet_repository.rglob(".*") if p.name != ".gitkeep"]
    require_published(lenet_repository)


def test_published_files_are_the_artifacts(
    lenet: Contract, lenet_repository: Path, lenet_artifacts: Path
) -> None:
    for model in lenet.published:
        artifact = lenet_artifacts / f"{model.graph.name}{model.format}"
        folder = lenet_repository / model.name / "1"
        assert (folder / model.filename).read_bytes() == artifact.read_bytes()
        exported = read_manifest(lenet_artifacts)[artifact.name]
        assert read_manifest(folder)[model.filename] == replace(exported, proof="unproven")


def test_the_checkouts_own_repository_needs_no_configuration_to_be_written(
    contract: Contract, artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in git: publishing adds versions and warm-ups, which git ignores, and nothing else."""
    files = subprocess.run(
        ["git", "ls-files", MODEL_REPOSITORY], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    committed = {name: (ROOT / name).read_bytes() for name in files}
    assert len(committed) >= 13
    for name, data in committed.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    monkeypatch.setattr("nin.serve.repository.replay", lambda *_: None)  # takes seconds
    assert publish(contract, artifacts, tmp_path / "model_repository") == 1
    assert {name: (tmp_path / name).read_bytes() for name in files} == committed


def publish_script(script: Script, lenet: Contract, *options: object) -> Ended:
    return script(PUBLISH, "--model", lenet.folder, *options)


def test_versions_count_up_and_may_be_given(
    lenet: Contract, script: Script, lenet_artifacts: Path, own: Path
) -> None:
    options = ("--artifacts", lenet_artifacts, "--repository", own, "--unproven")
    assert publish_script(script, lenet, *options).code == 0
    assert numbers(own) == everywhere(2, 1)
    ended = publish_script(script, lenet, *options, "--version", 7)
    assert ended.code == 0
    assert "version 7" in ended.out
    assert numbers(own) == everywhere(7, 2, 1)


@pytest.mark.parametrize("version", [1, 2])
def test_a_version_that_no_server_would_choose_is_refused(
    lenet: Contract, lenet_artifacts: Path, own: Path, version: int
) -> None:
    publish(lenet, lenet_artifacts, own)
    with pytest.raises(InputError, match=f"version {version} isn't newer than 2"):
        publish(lenet, lenet_artifacts, own, version=version)
    assert numbers(own) == everywhere(2, 1)


def test_a_version_that_is_too_large_is_refused(
    lenet: Contract, lenet_artifacts: Path, own: Path
) -> None:
    most = 10**18 - 1
    with pytest.raises(
        InputError, match=f"version {most + 1} is too large, expected at most {most}"
    ):
        publish(lenet, lenet_artifacts, own, version=most + 1)
    assert_untouched(own)
    assert publish(lenet, lenet_artifacts, own, version=most) == most
    with pytest.raises(InputError, match=f"version {most + 1} is too large"):
        publish(lenet, lenet_artifacts, own)


def test_rollback_publishes_the_version_before_again(
    lenet: Contract, script: Script, lenet_artifacts: Path, own: Path
) -> None:
    """And so does another, which brings back what was rolled back."""
    for model in lenet.published:
        mark(own / model.name / "1", model.filename, "first")
    publish(lenet, lenet_artifacts, own)
    ended = publish_script(script, lenet, "--repository", own, "--rollback")
    assert ended.code == 0
    assert "version 3 is version 1 again" in ended.out
    assert numbers(own) == everywhere(3, 2, 1)
    assert rollback(lenet, own) == (2, 4)
    exporters = [v.entry.versions["nin"] for v in versions(own)[:4] if v.entry]
    assert exporters == [exporters[2], "first", exporters[2], "first"]


def test_rollback_needs_an_older_version(lenet: Contract, script: Script, own: Path) -> None:
    ended = publish_script(script, lenet, "--repository", own, "--rollback")
    assert ended.code == 2
    assert "no older version of all models" in ended.err
    assert numbers(own) == everywhere(1)


def test_rollback_to_a_changed_file_is_refused(
    lenet: Contract, lenet_artifacts: Path, own: Path
) -> None:
    publish(lenet, lenet_artifacts, own)
    (own / "small" / "1" / "model.onnx").write_bytes(b"changed")
    with pytest.raises(InputError, match=r"small/1/model.onnx has SHA-256"):
        rollback(lenet, own)
    assert numbers(own) == everywhere(2, 1)


def test_rollback_after_a_publisher_that_was_killed_between_renames(
    lenet: Contract, lenet_artifacts: Path, own: Path
) -> None:
    publish(lenet, lenet_artifacts, own)
    for model in PUBLISHED[1:]:  # as if only the first had been renamed
        shutil.rmtree(own / model / "2")
    assert rollback(lenet, own) == (1, 3)
    assert {found[0] for found in numbers(own).values()} == {3}


def test_keep_removes_the_oldest(
    lenet: Contract, script: Script, lenet_artifacts: Path, own: Path
) -> None:
    publish(lenet, lenet_artifacts, own)
    options = ("--artifacts", lenet_artifacts, "--repository", own, "--unproven")
    ended = publish_script(script, lenet, *options, "--keep", 1)
    assert ended.code == 0
    assert "removed version 1, 2" in ended.out
    assert numbers(own) == everywhere(3)
    assert {p.name for p in (own / "lenet_onnx").iterdir() if p.is_dir()} == {"3", "warmup"}


def test_keep_never_removes_the_newest(lenet: Contract, own: Path) -> None:
    assert prune(lenet, own, 1) == []
    assert numbers(own) == everywhere(1)


def test_list_shows_versions_and_finds_changes(
    lenet: Contract, script: Script, lenet_artifacts: Path, own: Path
) -> None:
    publish(lenet, lenet_artifacts, own)
    ended = publish_script(script, lenet, "--repository", own, "--list")
    assert ended.code == 0
    rows = [line.split("|")[1:3] for line in ended.out.splitlines()[2:]]
    assert [(name.strip(), int(number)) for name, number in rows] == [
        (name, number) for name in PUBLISHED for number in (2, 1)
    ]
    with (own / "lenet_torchscript" / "1" / "model.pt").open("ab") as file:
        file.write(b"x")
    ended = publish_script(script, lenet, "--repository", own, "--list")
    assert ended.code == 1
    assert "CHANGED" in ended.out
    assert "lenet_torchscript/1/model.pt has SHA-256" in ended.err


def test_an_artifact_with_a_changed_byte_is_refused(
    lenet: Contract, lenet_artifacts: Path, own: Path
) -> None:
    changed = Path(shutil.copytree(lenet_artifacts, own.parent / "changed"))
    with (changed / "small.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="has SHA-256"):
        publish(lenet, changed, own)
    assert_untouched(own)


@pytest.mark.parametrize("suffix", [".onnx", ".pt"])
def test_an_artifact_off_its_golden_vectors_is_never_published(
    lenet: Contract, exports: Path, own: Path, suffix: str
) -> None:
    """The sign of one bias differs; digest, contract and golden vectors are as they should be."""
    model, graph, fmt = load_model(lenet.folder), lenet.classifier_graph, FORMATS[suffix]
    changed = replace(model, network=deepcopy(model.network))
    with torch.no_grad():
        biases = [p for p in changed.network.parameters() if p.ndim == 1]
        biases[-1][0].neg_()
    example = torch.zeros(2, *graph.input.shape, dtype=torch.uint8)
    texts = fmt.read_texts((exports / f"small{suffix}").read_bytes())
    data = fmt.write(fmt.compile(changed.module(graph), example, graph), texts)
    vouch(exports, f"small{suffix}", data)
    with pytest.raises(CheckError, match=r"^small.* is not published: golden vectors: lo"):
        publish(lenet, exports, own)
    assert_untouched(own)


def write_report(
    folder: Path, *, passed: bool, images: int = 256, digests: dict[str, str] | None = None
) -> None:
    """As the gate writes it, about the files there unless a digest is given."""
    judged = {name: entry.sha256 for name, entry in read_manifest(folder).items()}
    refusal = {"images": images, "runtimes": ["onnxruntime"]}
    refused = {} if passed else dict.fromkeys(judged.values(), refusal)
    report = {"passed": passed, "images": images, "artifacts": judged | (digests or {})}
    report["refused"] = refused
    (folder / "parity.json").write_text(json.dumps(report))


def test_what_the_gate_let_through_is_published(
    lenet: Contract, script: Script, exports: Path, own: Path
) -> None:
    """Its report is about these very files, so that nothing is asked again."""
    write_report(exports, passed=True)
    options = ("--artifacts", exports, "--repository", own)
    ended = publish_script(script, lenet, *options, "--weights", "isn't read")
    assert ended.code == 0
    assert ended.out.endswith("small_torchscript, proof: gate\n")
    proofs = {(v.number, v.entry.proof) for v in versions(own) if v.entry}
    assert proofs == {(2, "gate"), (1, "unproven")}
    assert publish_script(script, lenet, *options, "--rollback").code == 0
    rows = publish_script(script, lenet, *options, "--list").out.splitlines()[2:]
    assert [row.split("|")[-2].strip() for row in rows] == ["unproven", "gate", "unproven"] * 4


def test_what_the_gate_refused_is_published_only_unproven(
    lenet: Contract, script: Script, exports: Path, own: Path
) -> None:
    write_report(exports, passed=False)
    options = ("--artifacts", exports, "--repository", own)
    ended = publish_script(script, lenet, *options)
    assert ended.code == 1
    assert (
        "the gate is closed for lenet.onnx: so said `nin verify --images 256 --runtimes "
        "onnxruntime`" in ended.err
    )
    assert_untouched(own)
    ended = publish_script(script, lenet, *options, "--unproven")
    assert ended.code == 0
    assert ended.out.endswith("proof: unproven\n")
    assert {v.entry.proof for v in versions(own) if v.entry} == {"unproven"}


def test_exports_that_no_report_is_about_pass_a_quick_gate(
    lenet: Contract, script: Script, exports: Path, own: Path
) -> None:
    """Reports of other files don't count, whatever they say."""
    write_report(exports, passed=True, digests={"lenet.pt": "0" * 64})
    ended = publish_script(script, lenet, "--artifacts", exports, "--repository", own)
    assert ended.code == 0
    assert "no report of these exports in " in ended.out
    assert ended.out.endswith("proof: quick gate\n")


def test_the_quick_gate_closes(lenet: Contract, script: Script, exports: Path, own: Path) -> None:
    """On weights rounded to bfloat16 under golden vectors that allow anything."""
    data = (exports / "lenet.onnx").read_bytes()
    model = onnx.load_from_string(data)
    golden = next(p for p in model.metadata_props if p.key == "golden")
    golden.value = json.dumps({**json.loads(golden.value), "budget": {"logits": 1e9}})
    for weight in model.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT:
            bits = np.frombuffer(weight.raw_data, np.uint32) & np.uint32(0xFFFF0000)
            weight.raw_data = bits.tobytes()
    vouch(exports, "lenet.onnx", model.SerializeToString())
    ended = publish_script(script, lenet, "--artifacts", exports, "--repository", own)
    assert ended.code == 1
    assert "nothing is published, the gate is closed" in ended.err
    assert (
        "lenet.onnx in onnxruntime: golden vectors: they allow logits to be off by 1e+09"
        in ended.err
    )
    assert_untouched(own)


@pytest.mark.parametrize("content", ["", "[]", '{"passed": true}', "[" * 200_000])
def test_a_report_that_is_none_does_not_count(
    lenet: Contract, exports: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    (exports / "parity.json").write_text(content)
    monkeypatch.setattr("nin.gate.proof._pass_quick_gate", lambda *_, **__: None)
    assert prove(lenet, exports, weights=None, data_dir=None) == "quick gate"


def test_a_report_of_few_images_may_refuse_but_does_not_prove(
    lenet: Contract, exports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nin.gate.proof._pass_quick_gate", lambda *_, **__: None)
    write_report(exports, passed=True, images=16)
    assert prove(lenet, exports, weights=None, data_dir=None) == "quick gate"
    write_report(exports, passed=False, images=16)
    with pytest.raises(CheckError, match="the gate is closed"):
        prove(lenet, exports, weights=None, data_dir=None)


def zero_for_a_batch_of(count: int, exports: Path, suffix: str = ".onnx") -> None:
    """Spoils lenet's export for batches of one size, golden vectors and all else as they were."""
    name = f"lenet{suffix}"
    model = onnx.load(exports / name)
    (output,) = (node for node in model.graph.node if node.output[0] == "logits")
    output.output[0] = "right"
    constants: dict[str, Any] = {"size": np.array([count]), "zero": np.zeros(1, np.float32)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in constants.items())
    node = onnx.helper.make_node
    model.graph.node.extend(
        (
            node("Shape", ["image"], ["batch"], start=0, end=1),
            node("Equal", ["batch", "size"], ["wrong"]),
            node("Where", ["wrong", "zero", "right"], ["logits"]),
        )
    )
    vouch(exports, name, model.SerializeToString())


def test_a_file_that_the_gate_refused_stays_refused(
    lenet: Contract, script: Script, exports: Path, own: Path
) -> None:
    """Until a run that asks as much lets it through: not by one that doesn't ask it at all."""
    zero_for_a_batch_of(5, exports)
    verify = ("export/verify.py", "--model", lenet.folder, "--artifacts", exports)
    assert script(*verify, "--runtimes", "onnxruntime", "torchscript").code == 1
    for less in (("eager",), ("onnxruntime", "--graph", "small")):
        assert script(*verify, "--runtimes", *less).code == 0
        ended = publish_script(script, lenet, "--artifacts", exports, "--repository", own)
        assert (ended.code, "the gate is closed for lenet.onnx" in ended.err) == (1, True)
    assert_untouched(own)


def report_of(passed: bool, images: int | str, *runtimes: str, judged: str) -> dict[str, Any]:
    files = {"lenet.onnx": judged}
    return {"passed": passed, "images": images, "runtimes": [*runtimes], "artifacts": files}


@pytest.mark.parametrize(
    ("report", "opened"),
    [
        (report_of(True, 100, "onnxruntime", "openvino", judged="a"), True),
        (report_of(True, "all", "openvino", "onnxruntime", "eager", judged="a"), True),
        (report_of(True, 99, "onnxruntime", "openvino", judged="a"), False),
        (report_of(True, 100, "onnxruntime", judged="a"), False),
        (report_of(True, 100, "onnxruntime", "openvino", judged="b"), False),
        (report_of(False, 100, "onnxruntime", "openvino", judged="a"), False),
    ],
)
def test_what_opens_the_gate_again(tmp_path: Path, report: dict[str, Any], opened: bool) -> None:
    path = tmp_path / "parity.json"
    first = report_of(False, 100, "onnxruntime", "openvino", judged="a")
    refused = refused_files(path, first, {"lenet.onnx": "a"}, {"a", "b"})
    assert refused == {"a": {"images": 100, "runtimes": ["onnxruntime", "openvino"]}}
    path.write_text(json.dumps(first | {"refused": refused}))
    assert ("a" not in refused_files(path, report, {}, {"a", "b"})) == opened
    assert refused_files(path, report, {}, {"b"}) == {}  # the file is gone


def test_the_quick_gate_asks_every_batch_size(
    lenet: Contract, script: Script, exports: Path, own: Path
) -> None:
    zero_for_a_batch_of(lenet.triton.max_batch, exports)
    ended = publish_script(script, lenet, "--artifacts", exports, "--repository", own)
    assert ended.code == 1
    assert f" in a batch of {lenet.triton.max_batch}, allowed is " in ended.err
    assert_untouched(own)


@pytest.mark.parametrize(
    "changed", [{"weights_sha256": "0" * 64}, {"precision": "int8"}, {"graph": "x"}, {"size": 1}]
)
def test_a_manifest_that_says_otherwise_than_the_file_is_refused(
    lenet: Contract, script: Script, exports: Path, own: Path, changed: dict[str, Any]
) -> None:
    entries = read_manifest(exports)
    write_manifest(exports, entries | {"lenet.pt": replace(entries["lenet.pt"], **changed)})
    reason = f"manifest: its {next(iter(changed))} is {next(iter(changed.values()))!r}, the file's "
    ended = publish_script(script, lenet, "--artifacts", exports, "--repository", own)
    assert (ended.code, reason in ended.err) == (1, True)
    assert_untouched(own)
    options = ("--model", lenet.folder, "--artifacts", exports, "--runtimes", "torchscript")
    ended = script("export/verify.py", *options)
    assert (ended.code, reason in ended.err) == (1, True)


def test_artifacts_of_different_weights_are_refused(
    lenet: Contract, lenet_artifacts: Path, own: Path
) -> None:
    mixed = Path(shutil.copytree(lenet_artifacts, own.parent / "mixed"))
    manifest = json.loads((mixed / "manifest.json").read_text())
    manifest["artifacts"]["lenet.pt"]["weights_sha256"] = "0" * 64
    (mixed / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="come from different weights"):
        publish(lenet, mixed, own)
    assert_untouched(own)


def test_two_publishers_at_once_make_two_versions(
    lenet: Contract, lenet_artifacts: Path, own: Path
) -> None:
    publishers = [start_publisher(lenet, lenet_artifacts, own) for _ in range(2)]
    assert [p.wait(120) for p in publishers] == [0, 0]
    assert numbers(own) == everywhere(3, 2, 1)
    assert not [v for v in versions(own) if v.problem]


def test_a_killed_publisher_leaves_the_repository_as_it_was(
    lenet: Contract, lenet_artifacts: Path, own: Path
) -> None:
    """Killed while it stages; the next one sweeps up and publishes."""
    publisher = start_publisher(lenet, lenet_artifacts, own)
    deadline = time.monotonic() + 60
    while not list(own.glob("*/.nin-new.*.tmp/2/*")):
        assert publisher.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(publisher.pid, signal.SIGKILL)
    publisher.wait()
    assert list(own.glob("*/.nin-new.*.tmp"))
    assert numbers(own) == everywhere(1)
    assert publish(lenet, lenet_artifacts, own) == 2
    assert not list(own.glob("*/.*.tmp"))
    assert not [v for v in versions(own) if v.problem]


@pytest.mark.parametrize("writes", [0, 5, 11, 14])
def test_a_full_disk_leaves_nothing(
    lenet: Contract,
    lenet_artifacts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writes: int,
) -> None:
    """The disk takes so many files; the first publication, so that no warm-up is there yet."""
    repository = tmp_path / "own"
    monkeypatch.setattr("nin.serve.repository.replay", lambda *_: None)  # takes a second
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
            publish(lenet, lenet_artifacts, repository)
    assert not list(repository.iterdir())
    assert publish(lenet, lenet_artifacts, repository) == 1
    assert all(
        (repository / m.name / WARMUP / m.graph.input.name).is_file() for m in lenet.published
    )


@pytest.mark.slow
def test_publishers_killed_at_random_leave_a_repository_that_loads(
    lenet: Contract, lenet_artifacts: Path, own: Path
) -> None:
    """Every version whole, and each with what its warm-up reads."""
    random = np.random.default_rng(0)
    for _ in range(20):
        publisher = start_publisher(lenet, lenet_artifacts, own)
        time.sleep(random.uniform(1, 8))
        publisher.kill()
        publisher.wait()
        assert not [v for v in versions(own) if v.problem]
        assert all((own / m.name / WARMUP / m.graph.input.name).is_file() for m in lenet.published)
    publish(lenet, lenet_artifacts, own)
    assert not list(own.glob("*/.*.tmp"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--version", 0), "0 is not a whole number from 1 on"),
        (("--keep", "x"), "x is not a whole number from 1 on"),
        (("--version", 2, "--rollback"), "not allowed with"),
        (("--artifacts", "nowhere"), "no manifest.json in nowhere"),
        (("--repository", "README.md", "--unproven"), "is a file"),
        (
            ("--repository", "docs", "--unproven"),
            "docs isn't a model repository: it holds cpp.md",
        ),
        (("--gpu", "--instances", 2), "--gpu is one instance of each model"),
        (("--version", "9" * 5000), "invalid positive value"),
        (("--cores", 0), "0 is not a whole number from 1 on"),
        (("--rollback", "--cores", 2), "--rollback leaves the configurations"),
        (("--repository", "nowhere/at/all", "--rollback"), "no model repository at"),
        (("--repository", "nowhere/at/all", "--list"), "no model repository at"),
        (("--load", "here"), "isn't a server's address"),
    ],
)
def test_mistakes_are_one_line(
    lenet: Contract,
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[object, ...],
    message: str,
) -> None:
    monkeypatch.chdir(ROOT)
    ended = publish_script(script, lenet, *options)
    assert ended.code == 2
    assert message in ended.err
    assert "Traceback" not in ended.err


def start_publisher(lenet: Contract, artifacts: Path, repository: Path) -> subprocess.Popen[bytes]:
    options = ("--model", lenet.folder, "--artifacts", artifacts, "--repository", repository)
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


# Several models


def test_a_repository_holds_the_models_of_several_contracts(
    lenet: Contract, lenet_artifacts: Path, own: Path, other: Contract, other_artifacts: Path
) -> None:
    """Each with versions of its own, which are rolled back and removed alone."""
    assert publish(other, other_artifacts, own) == 1
    assert publish(other, other_artifacts, own) == 2
    assert set(model_names(own)) == {m.name for m in (*lenet.models, *other.models)}
    assert {v.model for v in versions(own)} == {
        m.name for m in (*lenet.published, *other.published)
    }
    assert numbers(own, other) == {model.name: [2, 1] for model in other.published}
    assert rollback(other, own) == (1, 3)
    assert prune(other, own, 1) == [1, 2]
    assert numbers(own) == everywhere(1)


@pytest.fixture
def other(lenet: Contract, tmp_path: Path) -> Contract:
    """The same network under other names."""
    folder = Path(shutil.copytree(lenet.folder, tmp_path / "other"))
    text = (folder / "model.toml").read_text()
    text = text.replace('name = "small"', 'name = "large"').replace('"lenet"', '"resnet"')
    (folder / "model.toml").write_text(text)
    return load_contract(folder)


@pytest.fixture
def other_artifacts(other: Contract, tmp_path: Path) -> Path:
    folder = tmp_path / "other artifacts"
    export_all(other.folder, folder)
    return folder


def renamed(lenet: Contract, folder: Path, old: str, new: str) -> Contract:
    """A model folder whose contract differs in one place."""
    shutil.copytree(lenet.folder, folder)
    text = (folder / "model.toml").read_text()
    assert old in text
    (folder / "model.toml").write_text(text.replace(old, new))
    return load_contract(folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_batch = 5", "max_batch = 7", r"lenet_onnx/config.pbtxt: its max_batch_size isn't"),
        ("height = 32", "height = 36", r"lenet_onnx/config.pbtxt: its input isn't what"),
        ('path = "samples"', 'path = "samples"\n[files]\nresize = "pad"',
         r"small/config.pbtxt: its parameters isn't what"),
    ],
)  # fmt: skip
def test_a_name_that_another_contract_has_taken_is_refused(
    lenet: Contract, lenet_artifacts: Path, own: Path, tmp_path: Path, old: str, new: str,
    message: str,
) -> None:  # fmt: skip
    other = renamed(lenet, tmp_path / "other", old, new)
    with pytest.raises(InputError, match=f"{message}.*another --repository"):
        publish(other, lenet_artifacts, own)
    assert_untouched(own)


def test_other_labels_are_refused(
    lenet: Contract, lenet_artifacts: Path, own: Path, tmp_path: Path
) -> None:
    other = replace(lenet, labels=("x", *lenet.labels[1:]))
    with pytest.raises(InputError, match=r"labels.txt isn't what this contract gives"):
        publish(other, lenet_artifacts, own)
    with pytest.raises(CheckError, match="was exported under another contract"):
        publish(other, lenet_artifacts, tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())


# Configurations


def instances(repository: Path, name: str) -> int:
    [group] = parse((repository / name / CONFIG).read_bytes()).instance_group
    return int(group.count)


def test_a_new_repository_is_laid_out_for_this_machine(lenet_repository: Path) -> None:
    assert instances(lenet_repository, "small") == len(os.sched_getaffinity(0))


def test_a_layout_is_written_when_it_is_asked_for(
    script: Script, lenet: Contract, lenet_artifacts: Path, own: Path
) -> None:
    options = ("--artifacts", lenet_artifacts, "--repository", own, "--unproven")
    assert publish_script(script, lenet, *options, "--cores", 6, "--instances", 3).code == 0
    assert {instances(own, name) for name in (*PUBLISHED, "small_decode")} == {3}
    parameters = parse((own / "small" / CONFIG).read_bytes()).parameters
    assert parameters["intra_op_thread_count"].string_value == "2"
    publish(lenet, lenet_artifacts, own)
    assert instances(own, "small") == 3


def test_what_was_tuned_by_hand_stays(lenet: Contract, lenet_artifacts: Path, own: Path) -> None:
    path = own / "small" / CONFIG
    text = path.read_text()
    tuned = text.replace("max_queue_delay_microseconds: 500", "max_queue_delay_microseconds: 99")
    tuned = f"# ours\n{tuned}".replace('"intra_op_thread_count"', '"inter_op_thread_count"')
    assert tuned.count("99") == 1
    path.write_text(tuned)
    publish(lenet, lenet_artifacts, own)
    assert path.read_text() == tuned


def test_a_configuration_that_can_not_be_read_is_named_and_can_be_written_anew(
    lenet: Contract, lenet_artifacts: Path, own: Path
) -> None:
    (own / "small" / CONFIG).write_text("max_batch_size: many")
    with pytest.raises(InputError, match=r"small/config.pbtxt can't be read: .*--cores N"):
        publish(lenet, lenet_artifacts, own)
    publish(lenet, lenet_artifacts, own, layout=layout_for(cores=2))
    assert instances(own, "small") == 2


def test_a_model_without_a_configuration_gets_it(
    lenet: Contract, lenet_artifacts: Path, own: Path
) -> None:
    """As if a publisher had been killed before it was there: no server takes it for a model."""
    (own / "small_decode" / CONFIG).unlink()
    assert "small_decode" not in model_names(own)
    publish(lenet, lenet_artifacts, own)
    assert "small_decode" in model_names(own)


def test_only_what_a_server_takes_for_a_version_is_one(lenet: Contract, own: Path) -> None:
    for name in ("0", "01", "2a", "\u0663", "9" * 20):
        (own / "small" / name).mkdir()
    (own / "small" / "7").write_text("a file")
    assert [version.number for version in versions(own) if version.model == "small"] == [1]


def test_a_folder_whose_configuration_has_another_name_is_no_model(
    lenet: Contract, own: Path
) -> None:
    shutil.copytree(own / "small", own / "small.bak")
    (own / "broken").mkdir()
    (own / "broken" / "config.pbtxt").symlink_to("nowhere")
    (own / "folder" / "config.pbtxt").mkdir(parents=True)
    (own / "nameless").mkdir()
    (own / "nameless" / "config.pbtxt").write_text("")
    (own / "unreadable").mkdir()
    (own / "unreadable" / "config.pbtxt").write_text("max_batch_size: many")
    models = {model.name for model in lenet.models}
    assert set(model_names(own)) == models | {"nameless", "unreadable"}
    assert not_models(own) == ["folder", "small.bak"]


def test_openvino_needs_a_model_that_is_calibrated(
    script: Script, lenet: Contract, own: Path
) -> None:
    ended = script(
        "export/to_triton.py", "--model", lenet.folder, "--repository", own, "--openvino"
    )
    assert ended.code == 2
    assert "--openvino serves int8, for which" in ended.err
