"""How to train: the book's way and ours, every number with its reason."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """What decides the weights, besides the data, the seed and the device."""

    name: str
    optimizer: Literal["sgd", "muon"]
    lr: float  # the peak; of Muon's matrices, or of everything for SGD
    epochs: int
    batch_size: int  # images to a step, over all processes
    initialisation: Literal["xavier", "kaiming"]
    dropout: float
    label_smoothing: float
    augment: bool  # flips and shifts
    prune: bool  # leave out half of the images that are easy by now, in each epoch
    decay: bool  # a linear warm-up, then linearly down to 0; else the rate is constant
    crop: int  # side of the random crops, in pixels of 28, while progress is below crop_until
    crop_until: float  # share of the steps; whole images from then on


# Section 8.3 of Dive into Deep Learning, as its code trains.
BOOK = Recipe(
    name="book",
    optimizer="sgd",
    lr=0.1,
    epochs=10,
    batch_size=128,
    initialisation="xavier",
    dropout=0.5,
    label_smoothing=0.0,
    augment=False,
    prune=False,
    decay=False,
    crop=28,
    crop_until=0.0,
)

# Measured against its neighbours in docs/training.md.
BEST = Recipe(
    name="best",
    optimizer="muon",  # 150 steps bring it to where AdamW is after several times as many
    lr=0.02,  # 0.06 was worse
    epochs=14,  # of 60 % of the images
    batch_size=64,
    initialisation="kaiming",
    dropout=0.5,
    label_smoothing=0.05,
    augment=True,
    prune=True,
    decay=True,
    crop=20,  # at the same scale, for well under half the time: the pooling takes any size
    crop_until=0.75,
)

RECIPES = {recipe.name: recipe for recipe in (BOOK, BEST)}

WARM_UP = 0.05  # of the steps


def lr_factor(recipe: Recipe, progress: float) -> float:
    """The share of the peak learning rate at `progress` in [0, 1)."""
    if not recipe.decay:
        return 1.0
    if progress < WARM_UP:
        return progress / WARM_UP
    return (1 - progress) / (1 - WARM_UP)
