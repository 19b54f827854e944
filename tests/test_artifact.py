import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nin.artifact.golden import Golden, replay
from nin.artifact.manifest import read_artifact, read_manifest
from nin.artifact.metadata import Metadata
from nin.contract import Outputs, Run
from nin.errors import CheckError, InputError
from nin.files import atomic_path, locked, make_folder, sweep, temporary_path, write_atomically
from nin.reference.exact import Reference
from tests.models import CLASSIFIER, LABELS


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"first")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_bytes(b"half of the sec")
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"first"


@pytest.fixture
def ended() -> int:
    """The id of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_sweeps_up_what_a_killed_writer_left(tmp_path: Path, ended: int) -> None:
    (tmp_path / f".nin-nin.onnx.{ended}.tmp").write_bytes(b"half")
    staged = tmp_path / f".nin-2.{ended}.tmp" / "below"
    staged.mkdir(parents=True)
    temporary_path(tmp_path / "own").touch()
    with locked(tmp_path):
        assert list(tmp_path.iterdir()) == []


def test_does_not_sweep_what_is_not_its_own(tmp_path: Path, ended: int) -> None:
    """Other programs' files, a living writer's, and links with all they lead to."""
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    for name in (
        f".notes.{ended}.tmp", ".notes.tmp", f"nin-x.{ended}.tmp", f".nin-x.{ended}.tmp.bak",
        ".nin-x.tmp", ".nin-x.y.tmp", f".nin-.{ended}.tmp",
        ".nin-x.1.tmp", f".nin-x.{'9' * 40}.tmp",
    ):  # fmt: skip
        (folder / name / "below").mkdir(parents=True)
        (folder / f"{name[:-4]}.file.tmp").touch()
    (folder / f".nin-link.{ended}.tmp").symlink_to(elsewhere)
    (folder / f".nin-file.{ended}.tmp").symlink_to(elsewhere / "file")
    (folder / f".nin-broken.{ended}.tmp").symlink_to(elsewhere / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    sweep(folder)
    assert sorted(tmp_path.rglob("*")) == before


def test_says_which_file_cannot_be_written_and_what_helps(tmp_path: Path) -> None:
    path = tmp_path / "file"
    message = rf"^can't write {path}: No space left on device; free some space"
    with pytest.raises(InputError, match=message), atomic_path(path):
        Path("/dev/full").write_bytes(b"1")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="File name too long; choose a shorter name"):
        write_atomically(tmp_path / ("a" * 250), b"")


def test_says_that_a_limit_of_the_shell_is_reached(tmp_path: Path) -> None:
    """In a process of its own: the limit is for the output of the tests too."""
    path = tmp_path / "file"
    code = (
        "import pathlib, resource, nin.files\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"nin.files.write_atomically(pathlib.Path({str(path)!r}), bytes(2000))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert f"InputError: can't write {path}: File too large; raise the limit" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_leaves_the_errors_of_other_files_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"), atomic_path(tmp_path / "file"):
        (tmp_path / "nowhere").read_bytes()
    with pytest.raises(OSError, match="^of no file$"), atomic_path(tmp_path / "file"):
        raise OSError("of no file")


def test_two_writers_do_not_lose_each_others_entries(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from nin.artifact.manifest import MANIFEST, Entry, read_manifest, write_manifest
from nin.files import locked
folder, name = Path(sys.argv[1]), sys.argv[2]
for i in range(20):
    with locked(folder):
        entries = read_manifest(folder) if (folder / MANIFEST).exists() else {}
        entries[f"{name}{i}"] = Entry("", 0, "nin", "onnx", "float32", 18, 8, "", {})
        write_manifest(folder, entries)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    writers = [subprocess.Popen([*command, name]) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(read_manifest(tmp_path)) == 40


def test_a_changed_byte_is_noticed(artifacts: Path, tmp_path: Path) -> None:
    for name in read_manifest(artifacts):
        data = bytearray(read_artifact(artifacts, name))
        data[len(data) // 2] ^= 1
        (tmp_path / name).write_bytes(data)
    (tmp_path / "manifest.json").write_bytes((artifacts / "manifest.json").read_bytes())
    for name in read_manifest(tmp_path):
        with pytest.raises(InputError, match=f"{name} has SHA-256 .* its manifest says"):
            read_artifact(tmp_path, name)


def test_says_what_is_missing(artifacts: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no manifest\.json in .* export first"):
        read_manifest(tmp_path)
    with pytest.raises(InputError, match=r"no vgg\.onnx in"):
        read_artifact(artifacts, "vgg.onnx")


@pytest.mark.parametrize(
    "content", ["", "[]", '{"artifacts": {"nin.onnx": {"size": 3}}}', "\0", "[" * 200_000]
)
def test_refuses_another_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match="isn't a manifest of this project"):
        read_manifest(tmp_path)


def test_refuses_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can't write to the folder"):
        make_folder(tmp_path / "file" / "below")


@pytest.fixture
def golden(reference: Reference) -> Golden:
    return Golden(reference.pixels, reference.outputs, reference.budget)


def test_metadata_survives_its_texts(golden: Golden) -> None:
    metadata = Metadata(CLASSIFIER.describe(), LABELS, golden, "abc", {"torch": "2"})
    texts = metadata.to_texts()
    again = Metadata.from_texts(texts)
    assert (again.contract, again.labels) == (CLASSIFIER.describe(), LABELS)
    assert (again.weights_sha256, again.versions) == ("abc", {"torch": "2"})
    np.testing.assert_array_equal(again.golden.inputs, golden.inputs)
    for name, values in golden.outputs.items():
        np.testing.assert_array_equal(again.golden.outputs[name], values)  # bit for bit
    for key in texts:
        with pytest.raises(InputError, match="not an export of this project"):
            Metadata.from_texts({k: v for k, v in texts.items() if k != key})
    with pytest.raises(InputError, match="not an export of this project"):
        Metadata.from_texts({**texts, "golden": json.dumps({"inputs": "AAA", "shape": [1]})})


def test_replay_sees_every_kind_of_wrong_answer(golden: Golden) -> None:
    right = golden.outputs
    replay(answering(golden, right), CLASSIFIER, golden)
    nan = right["logits"].copy()
    nan[5, 5] = np.nan
    off = right["probabilities"].copy()
    off[0, 0] += 2 * golden.budget["probabilities"]
    for wrong, message in (
        ({"logits": right["logits"]}, "probabilities is missing"),
        ({**right, "logits": right["logits"][:, :9]}, r"logits is \(64, 9\), expected \(64, 10\)"),
        ({**right, "logits": nan}, "logits is off by nan"),
        ({**right, "probabilities": off}, "probabilities is off by"),
    ):
        with pytest.raises(CheckError, match=message):
            replay(answering(golden, wrong), CLASSIFIER, golden)


def test_replay_sees_an_image_that_is_wrong_alone(golden: Golden) -> None:
    right = answering(golden, golden.outputs)

    def run(batch: NDArray[Any]) -> Outputs:
        outputs = right(batch)
        spoilt = len(batch) == 1 and np.array_equal(batch[0], golden.inputs[9])
        return {**outputs, "logits": outputs["logits"] + float(spoilt)}

    with pytest.raises(CheckError, match="logits is off by 1 for image 9 alone, allowed is"):
        replay(run, CLASSIFIER, golden)


def answering(golden: Golden, outputs: Outputs) -> Run:
    """A runtime that answers by these outputs for the golden images."""
    rows = {image.tobytes(): row for row, image in enumerate(golden.inputs)}

    def run(batch: NDArray[Any]) -> Outputs:
        indices = [rows[image.tobytes()] for image in batch]
        return {name: values[indices] for name, values in outputs.items()}

    return run
