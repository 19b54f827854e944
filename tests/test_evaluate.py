"""What an evaluation says, against examples worked out by hand, and the script on real images."""

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from nin.checkpoint import save_checkpoint
from nin.contract import FASHION_MNIST, LABELS
from nin.evaluation import (
    Evaluation,
    draw_calibration,
    draw_confusion,
    draw_mistakes,
    evaluate,
    find_mistakes,
    log_softmax,
)
from nin.model import NiN
from nin.paths import WEIGHTS
from nin.runtimes import open_runtime
from tests.conftest import Script

EVALUATE = "train/evaluate.py"
PICTURES = ("confusion.png", "mistakes.png", "calibration.png")


def certain(classes: list[int], count: int = 3) -> NDArray[np.float64]:
    """Logits that predict these classes, each with a probability of all but 1."""
    return 100 * np.eye(count)[classes]


def test_confusion_has_a_row_for_each_true_class() -> None:
    evaluation = evaluate(certain([0, 0, 1, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 2], np.uint8))
    assert evaluation.confusion.tolist() == [[2, 1, 0], [1, 1, 0], [0, 1, 0]]
    assert evaluation.images == 6
    assert evaluation.accuracy == 3 / 6


def test_precision_recall_and_f1_by_hand() -> None:
    """Class 2 has an image and is never predicted, class 3 is predicted and has none."""
    predicted, true = [0, 0, 1, 0, 1, 1, 3], [0, 0, 0, 1, 1, 2, 0]
    evaluation = evaluate(certain(predicted, 5), np.array(true, np.uint8))
    np.testing.assert_allclose(evaluation.precision, [2 / 3, 1 / 3, 0, 0, 0])
    np.testing.assert_allclose(evaluation.recall, [2 / 4, 1 / 2, 0, 0, 0])
    np.testing.assert_allclose(evaluation.f1, [4 / 7, 2 / 5, 0, 0, 0])


def test_labels_of_eight_bits_do_not_overflow() -> None:
    """Class 9 of 30 is pair 9 * 30 + 9, more than 255."""
    confusion = evaluate(certain([9], 30), np.array([9], np.uint8)).confusion
    assert confusion[9, 9] == confusion.sum() == 1


def test_loss_is_the_mean_cross_entropy() -> None:
    probabilities = np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
    logits = np.log(probabilities) + np.array([[3], [-7]])  # a constant changes nothing
    expected = -(math.log(0.25) + math.log(0.7)) / 2
    assert evaluate(logits, np.array([1, 2])).loss == pytest.approx(expected, abs=1e-12)


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[1e4, 0, -1e4]], np.float32)
    assert evaluate(logits, np.array([1])).loss == pytest.approx(1e4)
    assert log_softmax(logits).tolist() == [[0, -1e4, -2e4]]


def test_calibration_error_by_hand() -> None:
    """Two images in (8/15, 9/15], one of them right, and three in (12/15, 13/15], all right."""
    top = np.array([0.55, 0.59, 0.81, 0.83, 0.85])
    logits = np.log(np.stack([top, 1 - top], axis=1))
    evaluation = evaluate(logits, np.array([0, 1, 0, 0, 0]))
    low, high = evaluation.bins
    assert (low.images, low.accuracy, high.images, high.accuracy) == (2, 0.5, 3, 1)
    assert (low.low, low.high) == (pytest.approx(8 / 15), pytest.approx(9 / 15))
    assert (low.probability, high.probability) == (pytest.approx(0.57), pytest.approx(0.83))
    expected = (2 * (0.57 - 0.5) + 3 * (1 - 0.83)) / 5
    assert evaluation.calibration_error == pytest.approx(expected)


def test_a_probability_of_one_is_in_the_last_bin() -> None:
    evaluation = evaluate(certain([0, 1]), np.array([0, 0]))
    assert [(b.high, b.images) for b in evaluation.bins] == [(1, 2)]
    assert evaluation.calibration_error == pytest.approx(0.5)


def test_mistakes_come_with_the_most_confident_first() -> None:
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    assert find_mistakes(probabilities, np.array([1, 0, 0, 0])).tolist() == [2, 3, 0]


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    """A thousand of each class, as in the real test images; every tenth is taken for the next."""
    labels = np.repeat(np.arange(10), 1000)
    return evaluate(
        certain(np.where(np.arange(10_000) % 10, labels, (labels + 1) % 10), 10), labels
    )


def test_tables_fit_on_a_terminal(evaluation: Evaluation) -> None:
    lines = evaluation.confusion_table().splitlines()
    assert max(map(len, lines)) <= 80
    header = "| true        | T-s | Tro | Pul | Dre | Coa | San | Shi | Sne | Bag | Ank |"
    assert lines[0] == header
    assert lines[3].split()[1:8] == ["Trouser", "|", "0", "|", "900", "|", "100"]
    lines = evaluation.class_table().splitlines()
    assert lines[3].split()[1::2] == ["Trouser", "0.900", "0.900", "0.900", "1000"]


def read_png(path: Path) -> NDArray[np.uint8]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    return np.array(Image.open(io.BytesIO(data)).convert("L"))


def test_pictures_show_what_they_are_given(
    evaluation: Evaluation, pixels: NDArray[np.uint8], labels: NDArray[np.uint8], tmp_path: Path
) -> None:
    draw_confusion(evaluation.confusion, "title", tmp_path / "confusion.png")
    draw_calibration(evaluation, "title", tmp_path / "calibration.png")
    for name in ("confusion.png", "calibration.png"):
        assert (read_png(tmp_path / name) < 128).mean() > 0.02
    sheets = []
    for count in (0, 1, 8):
        few, path = slice(count), tmp_path / f"{count}.png"
        draw_mistakes(pixels[few], labels[few], np.full((count, 10), 0.1), "title", path)
        sheets.append(read_png(path))
    assert sheets[0].shape[0] < sheets[1].shape[0] < sheets[2].shape[0]  # a row for each six
    ink = [int((sheet < 250).sum()) for sheet in sheets]
    # a picture of 28x28 is drawn some 150 points wide, and a boot covers a third of that
    assert ink[1] - ink[0] > 5_000
    assert ink[2] - ink[0] > 8 * 5_000
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".png"] * 5  # nothing temporary


@pytest.fixture(scope="module")
def logits(artifacts: Path, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(200, 10), asked of a runtime in other batches than the script's."""
    runtime = open_runtime("onnxruntime", FASHION_MNIST, artifacts=artifacts, weights=WEIGHTS)
    return np.concatenate([runtime(part)["logits"] for part in np.split(pixels[:200], 10)])


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime"])
def test_says_what_the_runtime_answers(
    runtime: str,
    artifacts: Path,
    tmp_path: Path,
    script: Script,
    logits: NDArray[np.float32],
    labels: NDArray[np.uint8],
) -> None:
    options = ("--images", 200, "--runtime", runtime, "--artifacts", artifacts)
    ended = script(EVALUATE, *options, "--output", tmp_path)
    assert (ended.code, ended.err) == (0, "")
    right = logits.argmax(axis=1) == labels[:200]
    numbers = json.loads((tmp_path / "evaluation.json").read_text())
    assert (numbers["runtime"], numbers["graph"]) == (runtime, "fashion_mnist")
    assert numbers["images"] == 200
    assert numbers["accuracy"] == right.mean() > 0.9
    assert sorted(m["image"] for m in numbers["mistakes"]) == np.flatnonzero(~right).tolist()
    check_mistakes(numbers["mistakes"], logits, labels)
    assert [c["label"] for c in numbers["classes"]] == list(LABELS)
    assert [c["images"] for c in numbers["classes"]] == np.bincount(labels[:200]).tolist()
    assert np.trace(numbers["confusion"]) == right.sum()
    assert f"accuracy {right.mean():.4f}, loss {numbers['loss']:.4f}, expected cal" in ended.out
    row = ("Shirt", *(f"{numbers['classes'][6][key]:.3f}" for key in ("precision", "recall")))
    assert re.search(rf"^\| {' +[|] +'.join(row)} \|", ended.out, re.MULTILINE)
    for name in PICTURES:
        read_png(tmp_path / name)
    assert len(list(tmp_path.iterdir())) == 4  # nothing temporary


def check_mistakes(
    mistakes: list[dict[str, Any]], logits: NDArray[np.float32], labels: NDArray[np.uint8]
) -> None:
    probabilities = np.exp(log_softmax(logits))
    for mistake in mistakes:
        p = probabilities[mistake["image"]]
        assert mistake["predicted"] == LABELS[p.argmax()]
        assert mistake["true"] == LABELS[labels[mistake["image"]]]
        assert mistake["probability"] == pytest.approx(p.max(), abs=1e-5)
    found = [m["probability"] for m in mistakes]
    assert found == sorted(found, reverse=True)


def test_the_network_of_the_book_without_a_mistake(tmp_path: Path, script: Script) -> None:
    ended = script(EVALUATE, "--graph", "nin", "--images", 1, "--output", tmp_path / "new")
    assert (ended.code, ended.err) == (0, "")
    assert "nin in eager, 1 test images" in ended.out
    assert "accuracy 1.0000" in ended.out
    assert json.loads((tmp_path / "new" / "evaluation.json").read_text())["mistakes"] == []
    read_png(tmp_path / "new" / "mistakes.png")


def test_bad_input_ends_in_one_line(tmp_path: Path, script: Script) -> None:
    (tmp_path / "file").write_text("mine")
    for options, reason in [
        (("--weights", tmp_path / "no.safetensors"), "no weights file at "),
        (("--runtime", "onnxruntime", "--artifacts", tmp_path), "no manifest.json in "),
        (("--data-dir", tmp_path / "no"), "no data folder at "),
        (("--output", tmp_path / "file"), "can't write to the folder "),
    ]:
        ended = script(EVALUATE, "--images", 1, "--output", tmp_path / "new", *options)
        assert (ended.code, ended.out) == (2, "")
        assert ended.err.startswith(f"error: {reason}")
        assert ended.err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--runtime", "tensorrt", "invalid choice: 'tensorrt'"),
        ("--graph", "lenet", "invalid choice: 'lenet'"),
        ("--images", "0", "0 is not 1 to 10000, nor `all`"),
    ],
)
def test_refuses_options_that_are_none(
    option: str, value: str, reason: str, script: Script
) -> None:
    ended = script(EVALUATE, option, value)
    assert ended.code == 2
    assert reason in ended.err


def test_refuses_exports_of_other_weights(artifacts: Path, tmp_path: Path, script: Script) -> None:
    weights = tmp_path / "other.safetensors"
    save_checkpoint(weights, NiN(), recipe="", metrics={})
    options = ("--weights", weights, "--artifacts", artifacts, "--output", tmp_path)
    ended = script(EVALUATE, "--runtime", "onnxruntime", *options)
    assert ended.code == 2
    assert "can't be evaluated: weights: it was exported from" in ended.err
    assert list(tmp_path.iterdir()) == [weights]


def test_logits_that_are_no_numbers_are_no_result(tmp_path: Path, script: Script) -> None:
    """Every weight is finite, as a checkpoint's must be, but not their products."""
    network = NiN()
    for parameter in network.parameters():
        parameter.data.fill_(1e38)
    weights = tmp_path / "huge.safetensors"
    save_checkpoint(weights, network, recipe="", metrics={})
    ended = script(EVALUATE, "--weights", weights, "--images", 2, "--output", tmp_path)
    assert ended.code == 1
    assert "the logits of 2 of 2 images aren't finite; first image 0" in ended.err
    assert list(tmp_path.iterdir()) == [weights]
