"""The contract's values are promises to clients: changing one has to be meant."""

import os

import nin  # noqa: F401
from nin.cli import table
from nin.contract import BATCH_SIZES, FASHION_MNIST, GRAPHS, LABELS, MAX_BATCH, NIN


def test_the_contract_is_what_was_promised() -> None:
    assert list(GRAPHS) == ["nin", "fashion_mnist"]
    assert NIN.describe() == {
        "graph": "nin",
        "input": {"name": "image", "dtype": "float32", "shape": ["batch", 1, 224, 224]},
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}],
        "max_batch": 64,
    }
    assert FASHION_MNIST.describe() == {
        "graph": "fashion_mnist",
        "input": {"name": "pixels", "dtype": "uint8", "shape": ["batch", 28, 28]},
        "outputs": [
            {"name": "logits", "dtype": "float32", "shape": ["batch", 10]},
            {"name": "probabilities", "dtype": "float32", "shape": ["batch", 10]},
        ],
        "max_batch": 64,
    }
    assert ", ".join(LABELS) == (
        "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot"
    )
    assert BATCH_SIZES == (1, 2, 3, 7, 16, MAX_BATCH)


def test_onnxruntimes_telemetry_is_off() -> None:
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_a_table_is_markdown_and_aligned() -> None:
    assert table(("a", "number"), [("x", "1"), ("long", "22")]).splitlines() == [
        "| a    | number |",
        "|------|-------:|",
        "| x    |      1 |",
        "| long |     22 |",
    ]
