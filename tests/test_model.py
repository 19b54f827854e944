import subprocess
import sys

import torch
from torch import nn

from nin.paths import NIN as FOLDER
from nin.training.network import NiN, layer_table


def test_is_the_network_of_the_book() -> None:
    rows = layer_table(NiN().eval())
    assert [row[:2] for row in rows] == [
        ("NiN block", "(1, 96, 54, 54)"),
        ("MaxPool2d", "(1, 96, 26, 26)"),
        ("NiN block", "(1, 256, 26, 26)"),
        ("MaxPool2d", "(1, 256, 12, 12)"),
        ("NiN block", "(1, 384, 12, 12)"),
        ("MaxPool2d", "(1, 384, 5, 5)"),
        ("Dropout", "(1, 384, 5, 5)"),
        ("NiN block", "(1, 10, 5, 5)"),
        ("AdaptiveAvgPool2d", "(1, 10, 1, 1)"),
        ("Flatten", "(1, 10)"),
        ("total", ""),
    ]
    assert rows[-1][2] == "1,992,166"


def test_initialises_xavier_uniform_with_zero_biases() -> None:
    torch.manual_seed(0)
    network = NiN().initialise()
    for conv in (m for m in network.modules() if isinstance(m, nn.Conv2d)):
        receptive = conv.kernel_size[0] * conv.kernel_size[1]
        bound = (6 / (receptive * (conv.in_channels + conv.out_channels))) ** 0.5
        largest = conv.weight.abs().max().item()
        assert 0.9 * bound < largest <= bound
        assert conv.bias is not None
        assert not conv.bias.any()


def test_prints_the_layer_table() -> None:
    command = [sys.executable, str(FOLDER / "network.py")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "| NiN block         | (1, 96, 54, 54)  |     30,336 |" in shown.stdout
    assert "1,992,166" in shown.stdout
    assert shown.stderr == ""
