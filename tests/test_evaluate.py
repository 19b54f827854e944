"""What an evaluation says, against examples worked out by hand, and the command on real images."""

import io
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from nin.evaluation import (
    Evaluation,
    draw_calibration,
    draw_confusion,
    draw_mistakes,
    evaluate,
    find_mistakes,
    log_softmax,
)
from nin.network.build import TrainedModel, load_model
from nin.network.weights import save_weights
from nin.runtimes.registry import open_runtime
from nin.samples import open_samples
from nin.training.network import NiN
from tests.conftest import Script
from tests.models import LABELS, ODD_LABELS, make_lenet

EVALUATE = "train/evaluate.py"
PICTURES = ("confusion.png", "mistakes.png", "calibration.png")


def names(count: int) -> tuple[str, ...]:
    return tuple(f"class {index}" for index in range(count))


def certain(classes: list[int], count: int = 3) -> NDArray[np.float64]:
    """Logits that predict these classes, each with a probability of all but 1."""
    return 100 * np.eye(count)[classes]


def test_confusion_has_a_row_for_each_true_class() -> None:
    evaluation = evaluate(certain([0, 0, 1, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 2]), names(3))
    assert evaluation.confusion is not None
    assert evaluation.confusion.tolist() == [[2, 1, 0], [1, 1, 0], [0, 1, 0]]
    assert evaluation.images == 6
    assert evaluation.accuracy == 3 / 6


def test_precision_recall_and_f1_by_hand() -> None:
    """Class 2 has an image and is never predicted, class 3 is predicted and has none."""
    predicted, true = [0, 0, 1, 0, 1, 1, 3], [0, 0, 0, 1, 1, 2, 0]
    evaluation = evaluate(certain(predicted, 5), np.array(true), names(5))
    np.testing.assert_allclose(evaluation.precision, [2 / 3, 1 / 3, 0, 0, 0])
    np.testing.assert_allclose(evaluation.recall, [2 / 4, 1 / 2, 0, 0, 0])
    np.testing.assert_allclose(evaluation.f1, [4 / 7, 2 / 5, 0, 0, 0])


def test_many_classes_have_no_matrix() -> None:
    """100,000 of them would need 80 GB; what is worst is listed instead."""
    count = 1000
    true = np.repeat(np.arange(count), 2)
    predicted = true.copy()
    predicted[[0, 1, 10]] = [7, 7, 999]  # both of class 0, one of class 5
    evaluation = evaluate(certain(predicted.tolist(), count), true, names(count))
    assert evaluation.confusion is None
    assert evaluation.accuracy == 1 - 3 / 2000
    assert "confusion" not in evaluation.report()
    assert len(evaluation.report()["classes"]) == count
    assert [line.split("|")[1:4] for line in evaluation.confusion_table().splitlines()[2:]] == [
        [" class 0 ", " class 7   ", "      2 "],
        [" class 5 ", " class 999 ", "      1 "],
    ]
    rows = [line.split("|")[1].strip() for line in evaluation.class_table().splitlines()[2:]]
    assert len(rows) == 30
    assert rows[:4] == ["class 0", "class 5", "class 7", "class 999"]


def test_loss_is_the_mean_cross_entropy() -> None:
    probabilities = np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
    logits = np.log(probabilities) + np.array([[3], [-7]])  # a constant changes nothing
    expected = -(math.log(0.25) + math.log(0.7)) / 2
    assert evaluate(logits, np.array([1, 2]), names(3)).loss == pytest.approx(expected, abs=1e-12)


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[1e4, 0, -1e4]], np.float32)
    assert evaluate(logits, np.array([1]), names(3)).loss == pytest.approx(1e4)
    assert log_softmax(logits).tolist() == [[0, -1e4, -2e4]]


def test_calibration_error_by_hand() -> None:
    """Two images in (8/15, 9/15], one of them right, and three in (12/15, 13/15], all right."""
    top = np.array([0.55, 0.59, 0.81, 0.83, 0.85])
    logits = np.log(np.stack([top, 1 - top], axis=1))
    evaluation = evaluate(logits, np.array([0, 1, 0, 0, 0]), names(2))
    low, high = evaluation.bins
    assert (low.images, low.accuracy, high.images, high.accuracy) == (2, 0.5, 3, 1)
    assert [low.low, low.high] == pytest.approx([8 / 15, 9 / 15])
    assert [low.probability, high.probability] == pytest.approx([0.57, 0.83])
    expected = (2 * (0.57 - 0.5) + 3 * (1 - 0.83)) / 5
    assert evaluation.calibration_error == pytest.approx(expected)


def test_a_probability_of_one_is_in_the_last_bin() -> None:
    evaluation = evaluate(certain([0, 1]), np.array([0, 0]), names(3))
    assert [(b.high, b.images) for b in evaluation.bins] == [(1, 2)]
    assert evaluation.calibration_error == pytest.approx(0.5)


def test_mistakes_come_with_the_most_confident_first() -> None:
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    assert find_mistakes(probabilities, np.array([1, 0, 0, 0])).tolist() == [2, 3, 0]


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    """A thousand of each class, as in the real test images; every tenth is taken for the next."""
    labels = np.repeat(np.arange(10), 1000)
    predicted = np.where(np.arange(10_000) % 10, labels, (labels + 1) % 10)
    return evaluate(certain(predicted.tolist(), 10), labels, LABELS)


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
    assert evaluation.confusion is not None
    draw_confusion(evaluation.confusion, LABELS, "title", tmp_path / "confusion.png")
    draw_calibration(evaluation, "title", tmp_path / "calibration.png")
    for name in ("confusion.png", "calibration.png"):
        assert (read_png(tmp_path / name) < 128).mean() > 0.02
    sheets = []
    for count in (0, 1, 8):
        few, path = slice(count), tmp_path / f"{count}.png"
        true, probabilities = labels[few].astype(np.int64), np.full((count, 10), 0.1)
        draw_mistakes(pixels[few], true, probabilities, LABELS, "title", path)
        sheets.append(read_png(path))
    assert sheets[0].shape[0] < sheets[1].shape[0] < sheets[2].shape[0]  # a row for each six
    ink = [int((sheet < 250).sum()) for sheet in sheets]
    # a picture of 28x28 is drawn some 150 points wide, and a boot covers a third of that
    assert ink[1] - ink[0] > 5_000
    assert ink[2] - ink[0] > 8 * 5_000
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".png"] * 5  # nothing temporary


def test_pictures_take_any_label_and_colours(tmp_path: Path) -> None:
    """Mathematics that is none, a script that the font lacks, a long one; RGB, and not square."""
    labels = ("$a^$", "毛衣", "x" * 500, "{}\\")
    draw_confusion(np.eye(4, dtype=np.int64), labels, "title", tmp_path / "confusion.png")
    red = np.zeros((4, 20, 40, 3), np.uint8)
    red[..., 0] = 255
    draw_mistakes(red, np.arange(4), np.full((4, 4), 0.25), labels, "title", tmp_path / "m.png")
    picture = np.array(Image.open(tmp_path / "m.png").convert("RGB"))
    shown = (picture == (255, 0, 0)).all(axis=2)
    rows, columns = shown.any(axis=1).sum(), shown.any(axis=0).sum()
    assert columns > 6 * rows  # four of them beside each other, each twice as wide as high


@pytest.fixture(scope="module")
def logits(artifacts: Path, model: TrainedModel, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(200, 10), asked of a runtime in other batches than the command's."""
    graph = model.contract.classifier_graph
    runtime = open_runtime("onnxruntime", graph, artifacts=artifacts, model=model)
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
    assert "nin in eager, 1 samples" in ended.out
    assert "accuracy 1.0000" in ended.out
    assert json.loads((tmp_path / "new" / "evaluation.json").read_text())["mistakes"] == []
    read_png(tmp_path / "new" / "mistakes.png")


def test_bad_input_ends_in_one_line(tmp_path: Path, script: Script) -> None:
    (tmp_path / "file").write_text("mine")
    for options, reason in [
        (("--weights", tmp_path / "no.safetensors"), "no weights file at "),
        (("--runtime", "onnxruntime", "--artifacts", tmp_path), "no manifest.json in "),
        (("--data-dir", tmp_path / "no"), "no folder of samples at "),
        (("--model", tmp_path / "no"), "no model at "),
        (("--graph", "lenet"), "no graph lenet in "),
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
        ("--images", "0", "nor `all`"),
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
    save_weights(weights, NiN(), recipe="", metrics={})
    options = ("--weights", weights, "--artifacts", artifacts, "--output", tmp_path)
    ended = script(EVALUATE, "--runtime", "onnxruntime", *options)
    assert ended.code == 2
    assert "can't be evaluated: weights: it was exported from" in ended.err
    assert list(tmp_path.iterdir()) == [weights]


def test_logits_that_are_no_numbers_are_no_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    def broken(*_: object) -> dict[str, NDArray[np.float32]]:
        return {"logits": np.full((2, 10), np.nan, np.float32)}

    monkeypatch.setattr("nin.runtimes.eager.EagerRuntime.__call__", broken)
    ended = script(EVALUATE, "--images", 2, "--output", tmp_path)
    assert ended.code == 1
    assert "the logits of 2 of 2 samples aren't finite; first t10k-images-idx3" in ended.err
    assert not list(tmp_path.iterdir())


def test_weights_whose_products_are_no_numbers(tmp_path: Path, script: Script) -> None:
    """Every weight is finite, but not their products."""
    network = NiN()
    for parameter in network.parameters():
        parameter.data.fill_(1e38)
    weights = tmp_path / "huge.safetensors"
    save_weights(weights, network, recipe="", metrics={})
    ended = script(EVALUATE, "--weights", weights, "--images", 2, "--output", tmp_path)
    assert ended.code == 2
    assert "gives NaN or infinity for an image of noise; check the weights" in ended.err
    assert list(tmp_path.iterdir()) == [weights]


def test_evaluates_any_model_with_known_classes(tmp_path: Path, script: Script) -> None:
    """Grey, not square, image files in folders by class; labels with commas and in Chinese."""
    make_lenet(tmp_path / "lenet")
    options = ("--model", tmp_path / "lenet", "--output", tmp_path / "new")
    ended = script(EVALUATE, *options)
    assert (ended.code, ended.err) == (0, "")
    numbers = json.loads((tmp_path / "new" / "evaluation.json").read_text())
    model = load_model(tmp_path / "lenet")
    samples = open_samples(model.contract)
    pixels = torch.tensor(samples.pixels(range(len(samples))))
    with torch.inference_mode():
        logits = model.module(model.contract.classifier_graph)(pixels)[0].numpy()
    right = logits.argmax(axis=1) == samples.classes
    assert numbers["images"] == len(samples) == 16
    assert numbers["accuracy"] == right.mean()
    wrong = sorted(mistake["name"] for mistake in numbers["mistakes"])
    assert wrong == sorted(samples.names[index] for index in np.flatnonzero(~right).tolist())
    assert [row["label"] for row in numbers["classes"]] == list(ODD_LABELS)


def test_classes_have_to_be_known(tmp_path: Path, script: Script) -> None:
    make_lenet(tmp_path / "lenet")
    folder = tmp_path / "lenet" / "samples"
    for path in (folder / "0").iterdir():
        path.rename(folder / path.name)
    shutil.rmtree(folder / "0")
    shutil.rmtree(folder / "1")
    ended = script(EVALUATE, "--model", tmp_path / "lenet", "--output", tmp_path / "new")
    assert ended.code == 2
    assert "the classes of its samples aren't known, expected labels beside IDX" in ended.err
    assert not (tmp_path / "new").exists()


def test_refuses_exports_of_another_model(artifacts: Path, tmp_path: Path, script: Script) -> None:
    make_lenet(tmp_path / "lenet")
    options = ("--model", tmp_path / "lenet", "--artifacts", artifacts, "--output", tmp_path / "x")
    ended = script(EVALUATE, "--runtime", "onnxruntime", *options)
    assert ended.code == 2
    assert "small.onnx" in ended.err
