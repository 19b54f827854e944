"""`nin_classify` on models of other shapes and labels than the built-in one's."""

import base64
import csv
import io
import json
import re
import subprocess
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as Picture
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from nin.contract import Files, Graph, Image, Tensor
from nin.network.torch_settings import ignore_deprecations

Array = NDArray[Any]

LABELS = ['T-shirt, or "top"', "a/b|c", "短靴", "emoji 👟"]
LOGITS, PROBABILITIES = (
    Tensor(name, "float32", (len(LABELS),)) for name in ("logits", "probabilities")
)
RGB = Graph(
    "arrows",
    Tensor("pixels", "uint8", (10, 14, 3)),
    (LOGITS, PROBABILITIES),
    max_batch=5,
    files=Files("rgb", "crop", 10, 14, 12, "bilinear"),
)
NETWORK = Graph(
    "arrows_network",
    Tensor("image", "float32", (3, 6, 4)),
    (LOGITS,),
    max_batch=64,
    image=Image(3, 6, 4, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
)


class Linear(nn.Module):
    """Of pixels or images whatever their shape is."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(int(np.prod(graph.input.shape)), graph.classes)
        self.probable = len(graph.outputs) > 1

    def forward(self, items: torch.Tensor) -> Any:
        scale = 255 if self.probable else 1
        logits = self.linear(items.flatten(1).to(torch.float32) / scale)
        return (logits, logits.softmax(1)) if self.probable else logits


def network_input(inputs: Array) -> Array:
    """Normalised, step by step in float32."""
    assert NETWORK.image is not None
    mean, std = (
        np.array(values, np.float32)[:, None, None]
        for values in (NETWORK.image.mean, NETWORK.image.std)
    )
    return cast(Array, (inputs.astype(np.float32) / np.float32(255) - mean) / std)


def answers(graph: Graph, items: Array) -> dict[str, Array]:
    with torch.inference_mode():
        outputs = Linear(graph)(torch.tensor(items))
    values = outputs if isinstance(outputs, tuple) else (outputs,)
    return {t.name: v.numpy() for t, v in zip(graph.outputs, values, strict=True)}


def base64_of(array: Array) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def export(graph: Graph, path: Path, *, labels: list[str] = LABELS, shift: int = 0) -> Path:
    """`shift`: how far the golden inputs are from those that gave the outputs."""
    inputs = np.random.default_rng(0).integers(0, 200, (3, *graph.input.shape), np.uint8)
    right = answers(graph, inputs if graph.files else network_input(inputs))
    golden = {
        "inputs": base64_of(inputs + np.uint8(shift)),
        "shape": inputs.shape,
        "outputs": {name: base64_of(values.astype("<f8")) for name, values in right.items()},
        "budget": dict.fromkeys(right, 1e-5),
    }
    texts = {
        "contract": json.dumps(graph.describe()),
        "labels": json.dumps(labels, ensure_ascii=False),
        "golden": json.dumps(golden),
        "weights_sha256": "0" * 64,
    }
    with ignore_deprecations():
        traced = torch.jit.trace(
            Linear(graph).eval(),
            torch.zeros(2, *graph.input.shape, dtype=torch.uint8).to(
                torch.uint8 if graph.files else torch.float32
            ),
        )
        torch.jit.save(traced, path, _extra_files=texts)
    return path


@pytest.fixture
def rgb(tmp_path: Path) -> Path:
    return export(RGB, tmp_path / "rgb.pt")


def classify(cpp_build: Path, *options: object, stdin: bytes = b"") -> tuple[int, bytes, str]:
    command = [str(cpp_build / "tools" / "nin_classify"), *map(str, options)]
    ended = subprocess.run(command, input=stdin, capture_output=True)
    return ended.returncode, ended.stdout, ended.stderr.decode()


def idx(array: Array) -> bytes:
    kind, dtype = (0x08, ">u1") if array.dtype == np.uint8 else (0x0D, ">f4")
    header = np.array([kind * 256 + array.ndim, *array.shape], ">u4").tobytes()
    return header + array.astype(dtype).tobytes()


@pytest.mark.parametrize("graph", [RGB, NETWORK], ids=lambda graph: graph.name)
def test_an_idx_file_of_the_models_shape(cpp_build: Path, tmp_path: Path, graph: Graph) -> None:
    model = export(graph, tmp_path / "model.pt")
    items = np.random.default_rng(1).integers(0, 256, (7, *graph.input.shape), np.uint8)
    sent = items if graph.files else network_input(items)
    code, out, err = classify(cpp_build, "-", "--model", model, "--format", "f32", stdin=idx(sent))
    assert (code, err) == (0, "")
    logits = np.frombuffer(out, "<f4").reshape(-1, len(LABELS))
    np.testing.assert_allclose(logits, answers(graph, sent)["logits"], rtol=0, atol=1e-5)


def test_image_files_are_decoded_as_the_model_says(
    cpp_build: Path, rgb: Path, tmp_path: Path
) -> None:
    samples = np.random.default_rng(1).integers(0, 256, (40, 31, 3), np.uint8)
    Picture.fromarray(samples).save(tmp_path / "a.png")
    code, out, err = classify(cpp_build, tmp_path / "a.png", "--model", rgb, "--format", "f32")
    assert (code, err) == (0, "")
    resized = transforms.resize(Picture.fromarray(samples), 12, InterpolationMode.BILINEAR)
    pixels = np.asarray(transforms.center_crop(resized, (10, 14)))
    right = answers(RGB, pixels[None])["logits"][0]
    np.testing.assert_allclose(np.frombuffer(out, "<f4"), right, rtol=0, atol=1e-5)


def test_labels_may_be_any_text(cpp_build: Path, rgb: Path) -> None:
    stdin = idx(np.zeros((1, 10, 14, 3), np.uint8))
    outs = {
        kind: classify(cpp_build, "-", "--model", rgb, "--top", 4, "--format", kind, stdin=stdin)[
            1
        ].decode()
        for kind in ("json", "csv", "table")
    }
    (image,) = json.loads(outs["json"])
    assert sorted(p["label"] for p in image["predictions"]) == sorted(LABELS)
    rows = list(csv.DictReader(io.StringIO(outs["csv"])))
    assert [row["label"] for row in rows] == [p["label"] for p in image["predictions"]]
    best = image["predictions"][0]["label"].replace("|", r"\|")
    header, rule, row = outs["table"].splitlines()
    assert f"| {best} " in row
    assert len(header) == len(rule)


def test_tables_are_straight_whatever_the_labels_are(cpp_build: Path, tmp_path: Path) -> None:
    """Chinese takes two columns of a terminal."""
    model = export(RGB, tmp_path / "model.pt", labels=["短靴子", "b", "c", "d"])
    items = np.random.default_rng(2).integers(0, 256, (40, 10, 14, 3), np.uint8)
    _, out, _ = classify(cpp_build, "-", "--model", model, stdin=idx(items))
    lines = out.decode().splitlines()
    wide = [line for line in lines if "短靴子" in line]
    assert 0 < len(wide) < len(lines) - 2
    assert {len(line) + 3 * ("短靴子" in line) for line in lines} == {len(lines[0])}


def test_many_labels(cpp_build: Path, tmp_path: Path) -> None:
    count = 5_000
    graph = Graph(
        "many",
        Tensor("pixels", "uint8", (2, 2)),
        tuple(Tensor(t.name, "float32", (count,)) for t in RGB.outputs),
        max_batch=64,
        files=Files("grey", "stretch", 2, 2, 0, "bicubic"),
    )
    labels = [f"class {i}" for i in range(count)]
    model = export(graph, tmp_path / "many.pt", labels=labels)
    pixels = np.array([[[1, 2], [3, 4]]], np.uint8)
    options = ("-", "--model", model, "--format", "json")
    code, out, err = classify(cpp_build, *options, stdin=idx(pixels))
    assert (code, err) == (0, "")
    index = int(answers(graph, pixels)["logits"].argmax())
    assert json.loads(out)[0]["predictions"][0]["label"] == labels[index]


@pytest.mark.parametrize("graph", [RGB, NETWORK], ids=lambda graph: graph.name)
def test_golden_vectors_are_replayed_in_the_models_own_form(
    cpp_build: Path, tmp_path: Path, graph: Graph
) -> None:
    model = export(graph, tmp_path / "shifted.pt", shift=1)
    stdin = idx(np.zeros((1, *graph.input.shape), np.uint8 if graph.files else np.float32))
    code, _, err = classify(cpp_build, "-", "--model", model, stdin=stdin)
    assert code == 2
    assert re.search(r"golden vectors: logits is off by .* in a batch, allowed is 1e-05", err)
    assert classify(cpp_build, "-", "--model", model, "--no-replay", stdin=stdin)[0] == 0


@pytest.mark.parametrize(
    ("options", "shape", "reason"),
    [
        (("--batch-size", 6), (1, 10, 14, 3), "--batch-size 6: the model takes 1 to 5"),
        (("--top", 5), (1, 10, 14, 3), "--top 5: there are 4 classes"),
        ((), (1, 14, 10, 3), r"\[2052, 1, 14, 10, 3\], expected \[2052, count, 10, 14, 3\]"),
        ((), (1, 10, 14), r"its header is \[2051, 1, 10, 14\], expected \[2052, count"),
        (("--benchmark",), (4, 10, 14, 3), "a batch of 5 needs as many images, 4 given"),
    ],
)
def test_the_models_own_limits(
    cpp_build: Path, rgb: Path, options: tuple[object, ...], shape: tuple[int, ...], reason: str
) -> None:
    stdin = idx(np.zeros(shape, np.uint8))
    code, out, err = classify(cpp_build, "-", "--model", rgb, *options, stdin=stdin)
    assert (code, out) == (2, b"")
    assert re.search(reason, err), err


def test_labels_above_255(cpp_build: Path, rgb: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").write_bytes(np.array([0x0C01, 2, 999, 999], ">u4").tobytes())
    stdin = idx(np.zeros((2, 10, 14, 3), np.uint8))
    options = ("-", "--model", rgb, "--labels", tmp_path / "labels")
    code, out, _ = classify(cpp_build, *options, stdin=stdin)
    assert code == 0
    assert b"accuracy 0.0000, 0 of 2 images" in out
