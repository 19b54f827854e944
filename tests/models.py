"""Model folders that the tests make: networks, preprocessing and labels unlike the built-in's."""

import re
import shutil
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import nn

from nin.contract import load_contract
from nin.paths import NIN, ROOT

# The built-in model, for tests that need it before they run.
CONTRACT = load_contract(NIN)
NETWORK, CLASSIFIER = CONTRACT.network_graph, CONTRACT.classifier_graph
GRAPHS = CONTRACT.graphs
LABELS = CONTRACT.labels
MAX_BATCH = CONTRACT.triton.max_batch

RESNET18 = ROOT / "models" / "resnet18"


def make_resnet18(folder: Path) -> None:
    """models/resnet18 with weights by a fixed seed and drawn photographs, at its full size."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model.toml", "labels.txt"):
        shutil.copy(RESNET18 / name, folder / name)
    draw_samples(folder / "samples", sizes=((300, 260), (256, 400), (500, 333), (224, 224)))
    network = settled(torchvision.models.resnet18(), (8, 3, 96, 96))
    torch.save(network.state_dict(), folder / "weights.pth")


def make_small_resnet18(folder: Path) -> None:
    """The same at 48x64 pixels and with batches of four at most: it is quick, and not square."""
    make_resnet18(folder)
    path = folder / "model.toml"
    text = path.read_text()
    for old, new in (
        (r"height = 224", "height = 48"),
        (r"width = 224", "width = 64"),
        (r"shorter_side = 256", "shorter_side = 72"),
        (r"max_batch = 16", "max_batch = 4"),
        (r"preferred_batch = 8", "preferred_batch = 4"),
    ):
        text = re.sub(old, new, text)
    path.write_text(text)


def settled(network: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Weights by a fixed seed, and batch norms that have seen a few batches of this shape."""
    random = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            parameter.data.normal_(0, (2 / fan_in) ** 0.5, generator=random)
        elif name.endswith("weight"):
            parameter.data.uniform_(0.5, 1.5, generator=random)
        else:
            parameter.data.uniform_(-0.1, 0.1, generator=random)
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(shape, generator=random))
    return network.eval()


def draw_samples(
    folder: Path, sizes: tuple[tuple[int, int], ...], *, mode: str = "RGB", seed: int = 0
) -> None:
    """Pictures of coloured shapes on noise: JPEG and PNG, of these (width, height) in turns."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for index in range(8):
        width, height = sizes[index % len(sizes)]
        noise = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
        picture = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(picture)
        for _ in range(6):
            x, y = random.integers(0, (width, height)).tolist()
            colour = tuple(random.integers(0, 256, 3).tolist())
            draw.ellipse((x, y, x + width // 3, y + height // 4), fill=colour)
        suffix = ("png", "jpg")[index % 2]
        picture.convert(mode).save(folder / f"sample {index}.{suffix}")


_LENET = '''
import torch
from torch import nn


class LeNet(nn.Module):
    """Grey images, linear layers, and operators that the built-in network hasn't."""

    def __init__(self, classes):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2), nn.GELU(), nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5), nn.BatchNorm2d(16), nn.Hardswish(), nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(nn.LazyLinear(48), nn.Dropout(0.5), nn.Linear(48, classes))

    def forward(self, x):
        x = torch.flatten(self.features(x), 1)
        return self.head(nn.functional.layer_norm(x, x.shape[1:]))


def make(classes):
    network = LeNet(classes)
    network.eval()(torch.zeros(1, 1, 32, 20))
    return network
'''

# Texts that a label may be.
ODD_LABELS = ("a, b", 'say "no"', "and/or", "C:\\dir: x", "毛衣", "Ärmel", "it's", "{}")


def make_lenet(folder: Path, labels: tuple[str, ...] = ODD_LABELS) -> None:
    """A small grey network of our own, 32x20, whose pixels are 16x20: resized along one side."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.py").write_text(_LENET)
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    (folder / "model.toml").write_text(
        f"""
name = "small"
[network]
name = "lenet"
build = "net.py:make"
arguments = {{ classes = {len(labels)} }}
[image]
channels = 1
height = 32
width = 20
mean = [0.3]
std = [0.5]
[pixels]
height = 16
width = 20
resize = "bilinear"
[samples]
path = "samples"
[triton]
max_batch = 5
"""
    )
    samples = folder / "samples"
    for index in range(2):  # by class
        draw_samples(samples / str(index), ((40, 30), (20, 16)), mode="L", seed=index)
    namespace: dict[str, object] = {}
    exec(_LENET, namespace)  # noqa: S102
    network = namespace["make"](len(labels))  # type: ignore[operator]
    settled(network, (8, 1, 32, 20))
    save_file(network.state_dict(), folder / "weights.safetensors")
