"""`nin_classify` as a user runs it. That the gate is open to it is in test_parity.py."""

import gzip
import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nin.artifact.texts import read_torchscript_texts
from nin.contract import Graph
from nin.errors import InputError
from nin.images import encode_idx, encode_png
from nin.network.build import TrainedModel
from nin.network.classifier import Preprocess
from nin.network.torch_settings import ignore_deprecations
from nin.paths import CPP_TOOLS, DATA
from nin.reference.exact import Reference, batch_for
from nin.runtimes.registry import open_runtime
from tests.conftest import Ended
from tests.models import CONTRACT, GRAPHS, LABELS

TEST_IMAGES = DATA / "fashion-mnist" / "t10k-images-idx3-ubyte.gz"
TEST_LABELS = DATA / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz"

Classify = Callable[..., Ended]


@pytest.fixture
def classify(cpp_build: Path, artifacts: Path) -> Classify:
    """Runs the program on the session's classifier unless another --model is given.

    Without the replay, which takes longer than all else; that has its own tests.
    """

    def run(*options: object, stdin: bytes = b"") -> Ended:
        command = [str(cpp_build / "tools" / "nin_classify"), *map(str, options)]
        if "--model" not in options:
            command += ["--model", str(artifacts / "fashion_mnist.pt"), "--no-replay"]
        ended = subprocess.run(command, input=stdin, capture_output=True)
        return Ended(ended.returncode, ended.stdout.decode("latin-1"), ended.stderr.decode())

    return run


def refused(ended: Ended, *parts: str) -> None:
    """A person's mistake: exit code 2, one line that says what, nothing on stdout."""
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    for part in parts:
        assert part in ended.err


@pytest.fixture
def pictures(pixels: NDArray[np.uint8], tmp_path: Path) -> list[Path]:
    """The first three test images as PNG files."""
    files = [tmp_path / f"{name}.png" for name in ("boot", "pullover", "trouser")]
    for file, image in zip(files, pixels, strict=False):
        file.write_bytes(encode_png(image))
    return files


# --- the numbers ---


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_raw_logits_are_within_the_budget(
    classify: Classify, artifacts: Path, reference: Reference, graph: Graph
) -> None:
    idx = encode_idx(batch_for(Preprocess(CONTRACT), graph, reference.pixels))
    model = ("--model", artifacts / f"{graph.name}.pt")
    ended = classify("-", "--format", "f32", "--batch-size", 7, *model, stdin=idx)
    assert (ended.code, ended.err) == (0, "")
    logits = np.frombuffer(ended.out.encode("latin-1"), "<f4").reshape(-1, len(LABELS))
    assert np.abs(logits - reference.outputs["logits"]).max() <= reference.budget["logits"]


def test_json_and_csv_have_the_same_numbers(classify: Classify) -> None:
    options = (TEST_IMAGES, "--limit", 4, "--top", 3)
    images = json.loads(classify(*options, "--format", "json").out)
    assert [image["image"] for image in images] == [f"{TEST_IMAGES}[{i}]" for i in range(4)]
    logits = np.array([image["logits"] for image in images], np.float32)
    raw = classify(*options, "--format", "f32").out.encode("latin-1")
    assert logits.tobytes() == raw
    header, *lines = classify(*options, "--format", "csv").out.splitlines()
    assert header == "image,rank,index,label,probability"
    found = [
        (f"{image['image']},{rank},{p['index']},{p['label']}", p["probability"])
        for image in images
        for rank, p in enumerate(image["predictions"], 1)
    ]
    assert [line.rpartition(",")[0] for line in lines] == [start for start, _ in found]
    for line, (_, probability) in zip(lines, found, strict=True):
        assert float(line.rpartition(",")[2]) == pytest.approx(probability, rel=1e-7)


# --- as a user ---


def test_classifies_pictures(classify: Classify, pictures: list[Path]) -> None:
    ended = classify(*pictures)
    assert (ended.code, ended.err) == (0, "")
    header, rule, *rows = ended.out.splitlines()
    assert header.split("|")[1:4] == [f" {'image':<{len(str(pictures[1]))}} ", " prediction ",
                                      " probability "]  # fmt: skip
    assert set(rule) <= set("|-:")
    assert [row.split("|")[2].strip() for row in rows] == ["Ankle boot", "Pullover", "Trouser"]


def test_prints_the_accuracy(classify: Classify, labels: NDArray[np.uint8]) -> None:
    options = (TEST_IMAGES, "--labels", TEST_LABELS, "--limit", 50)
    ended = classify(*options)
    assert ended.out.splitlines()[-1].endswith("of 50 images")
    csv = classify(*options, "--format", "csv")
    assert csv.err == ended.out.splitlines()[-1] + "\n"  # stdout is for the data
    best = [int(line.split(",")[2]) for line in csv.out.splitlines()[1:]]
    share = (np.array(best) == labels[:50]).mean()
    assert f"accuracy {share:.4f}, " in csv.err


def test_benchmark_measures(classify: Classify) -> None:
    options = (TEST_IMAGES, "--limit", 4, "--benchmark", "--batch-size", 2, "--repetitions", 5)
    measured = json.loads(classify(*options, "--format", "json").out)
    assert measured["repetitions"] == 5
    assert 0 < measured["median_ms"] <= measured["p95_ms"]
    rate = 2000 / measured["mean_ms"]
    assert measured["images_per_second"] == pytest.approx(rate)
    assert measured["peak_memory_mib"] > 20
    assert "median" in classify(*options).out
    refused(classify(*options, "--format", "csv"), "--benchmark prints a table or json")
    refused(classify(TEST_IMAGES, "--limit", 1, "--benchmark"), "a batch of 16 needs as many")


def test_shows_progress_on_a_terminal_only(cpp_build: Path, artifacts: Path) -> None:
    if shutil.which("script") is None:
        pytest.skip("needs util-linux's script, which makes a terminal")
    command = f"{cpp_build}/tools/nin_classify {TEST_IMAGES} --limit 40"
    command += f" --model {artifacts}/fashion_mnist.pt"
    shown = subprocess.run(["script", "-qec", command, "/dev/null"], capture_output=True, text=True)
    assert "16 of 40 images" in shown.stdout


def test_help_shows_defaults(classify: Classify) -> None:
    ended = classify("--help")
    assert (ended.code, ended.err) == (0, "")
    for text in ("--batch-size", "=16", "Exit codes: 0 fine, 2"):
        assert text in ended.out


# --- bad input ---


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ((), "files is required"),
        (("a.png", "--nonsense"), "--nonsense"),
        (("a.png", "--batch-size", "0"), "--batch-size"),
        (("a.png", "--batch-size", "65"), "--batch-size"),
        (("a.png", "--top", "x"), "--top"),
        (("a.png", "--threads", "0"), "--threads"),
        (("a.png", "--format", "xml"), "--format"),
        (("no-such.png",), "no-such.png: can't open it"),
        (("/",), "/: it is a folder"),
        ((TEST_IMAGES, "--top", 11), "--top 11: there are 10 classes"),
        ((TEST_IMAGES, "--device", "tpu"), "unknown device 'tpu'; expected cpu, cuda or cuda:N"),
        ((TEST_IMAGES, "--model", "no/such.pt"), "no model file at no/such.pt"),
        ((TEST_IMAGES, "--model", TEST_IMAGES), "is not a whole TorchScript file"),
        ((TEST_IMAGES, "--labels", "none"), "none: can't open it"),
        ((TEST_IMAGES, "--labels", TEST_IMAGES), "not an IDX file of labels"),
    ],
)
def test_wrong_usage(classify: Classify, options: tuple[object, ...], reason: str) -> None:
    refused(classify(*options), reason)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_says_that_there_is_no_cuda_device(classify: Classify, device: str) -> None:
    refused(classify(TEST_IMAGES, "--device", device), f"no device {device}: 0 CUDA devices found")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes"),
        (b"hello", "not a PNG or JPEG file"),
        (b"\0\0\x08\x01\0\0\0\x01\0", "its header is"),
        (b"\0\0\x08\x03" + bytes([0, 0, 0, 1, 0, 0, 0, 27, 0, 0, 0, 28]), "27, 28"),
        (b"\0\0\x08\x03" + bytes([0, 0, 0, 9, 0, 0, 0, 28, 0, 0, 0, 28]), "promises 9 images"),
        (b"\0\0\x08\x03\xff\xff\xff\xff\0\0\0\x1c\0\0\0\x1c", "promises 4294967295 images"),
        (b"\x1f\x8b\x08nonsense", "can't decompress"),
        (encode_idx(np.zeros((0, 28, 28), np.uint8)), "holds no images"),
    ],
    ids=["empty", "text", "labels", "other size", "short", "huge", "gzip", "no images"],
)
def test_files_that_are_no_images(
    classify: Classify, data: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "image"
    path.write_bytes(data)
    refused(classify(path), reason)
    refused(classify("-", stdin=data), reason)


def test_truncated_images(classify: Classify, pictures: list[Path], tmp_path: Path) -> None:
    idx = gzip.compress(encode_idx(np.zeros((5, 28, 28), np.uint8)))
    for whole in (pictures[0].read_bytes(), idx):
        for tenth in range(1, 10):
            (tmp_path / "cut").write_bytes(whole[: len(whole) * tenth // 10])
            refused(classify(tmp_path / "cut"), f"{tmp_path}/cut: ")


def test_labels_of_another_count(classify: Classify, tmp_path: Path) -> None:
    (tmp_path / "labels").write_bytes(b"\0\0\x08\x01\0\0\0\x02\x01\x02")
    options = ("--limit", 3, "--labels", tmp_path / "labels")
    refused(classify(TEST_IMAGES, *options), "2 labels for 3 images")
    refused(classify(TEST_IMAGES, "--labels", tmp_path / "labels"), "2 labels for 10000 images")


def test_labels_with_a_limit_are_for_one_file(classify: Classify) -> None:
    options = ("--limit", 3, "--labels", TEST_LABELS)
    refused(classify(TEST_IMAGES, TEST_IMAGES, *options), "for a single IDX file, 2 files given")
    refused(classify(TEST_IMAGES, "--labels", ""), ": can't open it")


def test_a_file_that_can_not_be_read(classify: Classify) -> None:
    if not Path("/proc/self/mem").exists():
        pytest.skip("needs /proc")
    refused(classify("/proc/self/mem"), "/proc/self/mem: can't read it")


def test_a_name_with_a_line_break_stays_one_line(classify: Classify) -> None:
    refused(classify("a\nb.png"), "a\\x0ab.png: can't open it")


def test_names_that_no_terminal_can_print(cpp_build: Path, artifacts: Path, tmp_path: Path) -> None:
    name = b"latin\xe9\x1b[1m\xc2\x85\xe5\x9b\xbe.png"
    (tmp_path / os.fsdecode(name)).write_bytes(encode_png(np.zeros((28, 28), np.uint8)))
    command: list[str | bytes | Path] = [cpp_build / "tools" / "nin_classify", name, "--no-replay"]
    command += ["--model", artifacts / "fashion_mnist.pt", "--format"]
    outs = {
        kind: subprocess.run([*command, kind], cwd=tmp_path, capture_output=True, check=True).stdout
        for kind in ("table", "csv", "json")
    }
    assert r"| latin\xe9\x1b[1m\xc2\x85图.png |" in outs["table"].decode()
    shown = "latin\\xe9\x1b[1m\x85图.png"  # data keep what is UTF-8
    assert outs["csv"].decode().split("\n")[1].startswith(shown + ",")
    assert json.loads(outs["json"])[0]["image"] == shown


def test_a_closed_standard_output(cpp_build: Path, artifacts: Path) -> None:
    tool = cpp_build / "tools" / "nin_classify"
    command = f"{tool} {TEST_IMAGES} --limit 1 --model {artifacts}/fashion_mnist.pt >&-"
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    refused(Ended(ended.returncode, ended.stdout, ended.stderr), "the standard output is closed")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("cat /dev/zero", "not a PNG or JPEG file"),
        ("cat /dev/zero | gzip -1", "its header is [0]"),
        (r"printf '\0\0\10\3\0\0\0\1\0\0\0\34\0\0\0\34'; cat /dev/zero", "it has more"),
        (r"printf '\377\330\377'; cat /dev/zero", "it has more than 512 MiB"),
    ],
)
def test_what_never_ends_is_refused(
    cpp_build: Path, artifacts: Path, source: str, reason: str
) -> None:
    tool = cpp_build / "tools" / "nin_classify"
    command = f"({source}) 2> /dev/null | {tool} - --model {artifacts}/fashion_mnist.pt"
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    refused(Ended(ended.returncode, ended.stdout, ended.stderr), reason)


def test_a_model_takes_pixels_or_floats(
    classify: Classify, artifacts: Path, pictures: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "floats").write_bytes(encode_idx(np.zeros((1, 1, 224, 224), np.float32)))
    reason = "not an IDX file of 28x28 unsigned bytes, which the model takes: its header is [3332, "
    refused(classify(TEST_IMAGES, tmp_path / "floats", "--limit", 1), f"floats: {reason}")
    network = ("--model", artifacts / "nin.pt")
    refused(classify(TEST_IMAGES, *network), "not an IDX file of 1x224x224 floats")
    refused(classify(pictures[0], *network), "takes float images, no image files")


def test_a_full_disk(cpp_build: Path, artifacts: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    command = [str(cpp_build / "tools" / "nin_classify"), str(TEST_IMAGES), "--limit", "1"]
    command += ["--model", str(artifacts / "fashion_mnist.pt")]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 2
    assert "can't write the results" in ended.stderr


# --- damaged models ---


def changed_copy(model: Path, target: Path, record: str, change: Callable[[bytes], bytes]) -> Path:
    """A copy of a TorchScript archive with one record changed."""
    reader = torch._C.PyTorchFileReader(str(model))
    writer = torch._C.PyTorchFileWriter(str(target))
    for name in reader.get_all_records():
        if name not in ("version", ".data/serialization_id"):  # the writer adds its own
            data = reader.get_record(name)
            data = change(data) if name == record else data
            writer.write_record(name, data, len(data))
    writer.write_end_of_file()
    return target


def test_models_truncated_at_every_tenth(
    classify: Classify, artifacts: Path, tmp_path: Path
) -> None:
    whole = (artifacts / "nin.pt").read_bytes()
    for tenth in range(10):
        cut = tmp_path / "cut.pt"
        cut.write_bytes(whole[: len(whole) * tenth // 10])
        refused(classify(TEST_IMAGES, "--limit", 1, "--model", cut), f"{cut} is not a ")


def test_models_of_another_contract(classify: Classify, artifacts: Path, tmp_path: Path) -> None:
    texts = read_torchscript_texts((artifacts / "nin.pt").read_bytes())
    other = json.loads(texts["contract"]) | {"kind": "classifier"}
    for key, text, reason in (
        ("contract", json.dumps(other), "it is a classifier that takes image float32"),
        ("contract", "{", "its metadata can't be read"),
        ("labels", json.dumps(LABELS[1:]), "its outputs are"),
        ("golden", "{}", "its metadata can't be read"),
        ("weights_sha256", "", "it carries no weights_sha256"),
    ):
        record, data = f"extra/{key}", text.encode()
        constant = partial(lambda data, _: data, data)
        changed = changed_copy(artifacts / "nin.pt", tmp_path / "other.pt", record, constant)
        refused(classify(TEST_IMAGES, "--limit", 1, "--model", changed), f"{changed}: ", reason)
    with ignore_deprecations():
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "foreign.pt")
    refused(
        classify(TEST_IMAGES, "--limit", 1, "--model", tmp_path / "foreign.pt"),
        "it carries no labels; export it with this project",
    )


@pytest.mark.parametrize("graph", GRAPHS)
def test_golden_vectors_catch_tampered_weights(
    classify: Classify, artifacts: Path, reference: Reference, tmp_path: Path, graph: str
) -> None:
    """Every layer's weights: one value of each made large."""
    idx = encode_idx(batch_for(Preprocess(CONTRACT), GRAPHS[graph], reference.pixels[:1]))
    model = artifacts / f"{graph}.pt"
    reader = torch._C.PyTorchFileReader(str(model))
    tensors = [r for r in reader.get_all_records() if r.startswith("constants/") and "pkl" not in r]
    assert len(tensors) > 10
    large = np.array([50], "<f4").tobytes()
    for record in tensors[:: max(1, len(tensors) // 6)]:
        changed = changed_copy(
            model, tmp_path / "tampered.pt", record, lambda data: large + data[4:]
        )
        options = ("-", "--model", changed)
        refused(classify(*options, stdin=idx), "golden vectors: ", "the file is damaged")
        assert classify(*options, "--no-replay", stdin=idx).code == 0


class Spoilt(torch.nn.Module):
    """An export that is wrong for one image alone: by a constant, or NaN."""

    def __init__(self, inner: torch.nn.Module, error: float) -> None:
        super().__init__()
        self.inner = inner
        self.error = error

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, probabilities = self.inner(pixels)
        if pixels.size(0) == 1:
            logits = logits + self.error
        return logits, probabilities


@pytest.mark.parametrize(("error", "off"), [(0.01, "0.01"), (float("nan"), "nan")])
def test_an_export_that_is_wrong_for_one_image_alone(
    classify: Classify, artifacts: Path, tmp_path: Path, error: float, off: str
) -> None:
    model = artifacts / "fashion_mnist.pt"
    texts = read_torchscript_texts(model.read_bytes())
    with ignore_deprecations():
        spoilt = torch.jit.script(Spoilt(torch.jit.load(model), error).eval())
        torch.jit.save(spoilt, tmp_path / "spoilt.pt", _extra_files=texts)
    options = (TEST_IMAGES, "--model", tmp_path / "spoilt.pt", "--limit")
    refused(classify(*options, 2), f"golden vectors: logits is off by {off}", "for single images")
    assert classify(*options, 2, "--no-replay").code == 0
    alone = classify(*options, 1, "--no-replay")
    if off == "nan":
        refused(alone, "the logits of image 0 of 1 hold nan, expected finite numbers")


def test_models_with_flipped_bytes_never_crash(
    classify: Classify, artifacts: Path, tmp_path: Path
) -> None:
    """In the archive's code, values and directory, where LibTorch must not trust what it reads."""
    whole = bytearray((artifacts / "fashion_mnist.pt").read_bytes())
    random = np.random.default_rng(0)
    with zipfile.ZipFile(artifacts / "fashion_mnist.pt") as archive:
        parts = [e for e in archive.infolist() if e.filename.endswith((".py", "data.pkl"))]
    assert len(parts) >= 2
    places = [*(len(whole) - random.integers(1, 4000, 6))]
    for part in parts:
        places += [*(part.header_offset + random.integers(0, part.file_size, 4))]
    for place in places:
        broken = bytearray(whole)
        broken[place] ^= 0xFF
        (tmp_path / "flipped.pt").write_bytes(broken)
        ended = classify(TEST_IMAGES, "--limit", 1, "--model", tmp_path / "flipped.pt")
        assert ended.code in (0, 2), ended
        assert ended.err.count("\n") == ended.code // 2


def test_the_adapter_says_what_to_do(
    artifacts: Path, model: TrainedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("nin.runtimes.cpp.CPP_TOOLS", tmp_path)
    with pytest.raises(InputError, match="no nin_classify in .*; build it by `make cpp`"):
        open_runtime("libtorch", GRAPHS["nin"], artifacts=artifacts, model=model)
    assert tmp_path != CPP_TOOLS
