"""`nin_classify` on `.pt2` packages: as on TorchScript, and what is particular to machine code."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nin.artifact.golden import Golden
from nin.artifact.metadata import Metadata
from nin.artifact.pt2_package import read_pt2_texts
from nin.contract import Contract, Graph
from nin.images import encode_idx
from nin.network.build import load_model
from tests.packages import read_record, with_record, with_text

KINDS = ("lenet.pt2", "small.int8.pt2")


def classify(cpp_build: Path, *options: object, stdin: bytes = b"") -> tuple[int, bytes, str]:
    command = [str(cpp_build / "tools" / "nin_classify"), *map(str, options)]
    ended = subprocess.run(command, input=stdin, capture_output=True)
    return ended.returncode, ended.stdout, ended.stderr.decode()


def golden_of(path: Path, lenet: Contract) -> tuple[Graph, Golden]:
    graph = lenet.graphs[path.name.partition(".")[0]]
    return graph, Metadata.from_texts(read_pt2_texts(path.read_bytes())).golden


def twenty(values: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([values, values[::-1]])[:20]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", KINDS)
def test_any_number_of_images(
    name: str, threads: int, cpp_build: Path, lenet: Contract, pt2_packages: Path
) -> None:
    """One call for all; its largest batch is five."""
    model = pt2_packages / name
    graph, golden = golden_of(model, lenet)
    batch = twenty(golden.batch(graph))
    right = twenty(golden.outputs["logits"])
    options = ("-", "--model", model, "--threads", threads, "--format", "f32")
    for count in (1, 2, 3, 4, 5, 7, 20):
        stdin = encode_idx(batch[:count])
        code, out, err = classify(cpp_build, *options, stdin=stdin)
        assert (code, err) == (0, "")
        logits = np.frombuffer(out, "<f4").reshape(count, -1)
        assert np.abs(logits - right[:count]).max() <= golden.budget["logits"]


def test_what_a_file_is_does_not_depend_on_its_name(
    cpp_build: Path, lenet: Contract, pt2_packages: Path, lenet_artifacts: Path, tmp_path: Path
) -> None:
    graph, golden = golden_of(pt2_packages / "lenet.pt2", lenet)
    stdin = encode_idx(golden.batch(graph))
    shutil.copy(pt2_packages / "lenet.pt2", tmp_path / "a.pt")
    shutil.copy(lenet_artifacts / "lenet.pt", tmp_path / "b.pt2")
    for name in ("a.pt", "b.pt2"):
        code, out, err = classify(
            cpp_build, "-", "--model", tmp_path / name, "--format", "f32", stdin=stdin
        )
        assert (code, err) == (0, "")
        logits = np.frombuffer(out, "<f4").reshape(len(golden.inputs), -1)
        assert np.abs(logits - golden.outputs["logits"]).max() <= golden.budget["logits"]


def test_the_benchmark(cpp_build: Path, lenet: Contract, pt2_packages: Path) -> None:
    graph, golden = golden_of(pt2_packages / "small.int8.pt2", lenet)
    stdin = encode_idx(golden.batch(graph))
    options = ("--benchmark", "--repetitions", 5, "--batch-size", 5)
    code, out, err = classify(
        cpp_build, "-", "--model", pt2_packages / "small.int8.pt2", *options, stdin=stdin
    )
    assert (code, err) == (0, "")
    assert b"batch 5, 5 calls" in out


@pytest.mark.parametrize(
    ("key", "text", "reason"),
    [
        (
            "instruction_set",
            "avx9000",
            "machine code for 'avx9000', known are avx2, avx512, avx512_vnni",
        ),
        ("instruction_set", "", "machine code for '', known are"),
        ("batch_sizes", "[4]", r"its batch sizes are '\[4\]', expected 1 and others"),
        ("batch_sizes", "[1, 0]", r"its batch sizes are '\[1, 0\]', expected"),
        ("batch_sizes", "x", "its batch sizes are 'x', expected"),
        ("batch_sizes", "[1, 2]", "it can't be run: "),
        ("labels", "[]", "it has 0 labels"),
        ("golden", "", "it carries no golden"),
    ],
)
def test_packages_that_can_not_be_used(
    key: str, text: str, reason: str, cpp_build: Path, pt2_packages: Path, tmp_path: Path
) -> None:
    path = tmp_path / "changed.pt2"
    path.write_bytes(with_text((pt2_packages / "lenet.pt2").read_bytes(), key, text))
    code, out, err = classify(cpp_build, "-", "--model", path)
    assert (code, out, err.count("\n")) == (2, b"", 1)
    assert re.search(reason, err), err
    assert str(path) in err


def test_broken_packages(cpp_build: Path, pt2_packages: Path, tmp_path: Path) -> None:
    whole = (pt2_packages / "lenet.pt2").read_bytes()
    path = tmp_path / "part.pt2"
    for part in (whole[: len(whole) // 2], b"x" * 1000):
        path.write_bytes(part)
        code, _, err = classify(cpp_build, "-", "--model", path)
        assert (code, err.count("\n")) == (2, 1)
        assert f"{path} is not a whole .pt2 package: " in err


def test_golden_vectors_are_replayed_in_every_batch_size(
    cpp_build: Path, lenet: Contract, pt2_packages: Path, tmp_path: Path
) -> None:
    """A bias of the library for four images is changed: single images don't show it."""
    data = (pt2_packages / "lenet.pt2").read_bytes()
    bias = load_model(lenet.folder).network.get_parameter("head.2.bias").detach().numpy()
    name = "data/aotinductor/batch_4/batch_4.wrapper.so"
    library = read_record(data, name)
    assert library.count(bias.tobytes()) == 1
    path = tmp_path / "damaged.pt2"
    damaged = library.replace(bias.tobytes(), (bias + np.float32(0.01)).tobytes())
    path.write_bytes(with_record(data, name, damaged))
    graph, golden = golden_of(pt2_packages / "lenet.pt2", lenet)
    stdin = encode_idx(golden.batch(graph)[:1])
    code, _, err = classify(cpp_build, "-", "--model", path, stdin=stdin)
    assert code == 2
    assert re.search(r"golden vectors: logits is off by 0.01\d* in a batch", err), err
    assert classify(cpp_build, "-", "--model", path, "--no-replay", stdin=stdin)[0] == 0
