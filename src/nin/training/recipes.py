"""How to train: the book's way and ours."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """What decides the weights, besides the data, the seed and the device."""

    name: str
    optimizer: Literal["sgd", "muon"]
    lr: float  # the peak; of Muon's matrices, or of everything for SGD
    momentum: float
    weight_decay: float  # of Muon's matrices, or of everything for SGD
    warm_up: float  # share of the steps in which the rate rises to its peak
    decay: bool  # then linearly down to 0; else the rate stays
    epochs: int
    batch_size: int  # images to a step, over all processes
    initialisation: Literal["xavier", "kaiming"]
    dropout: float
    label_smoothing: float
    batch_norm: bool  # while training; folded into the convolutions at the end
    crop: int  # side of the random crops, in pixels of 28, while progress is below crop_until
    crop_until: float  # share of the steps; whole images from then on
    shift: int  # pixels by which whole images move, at most
    flip: float  # share of the images that are mirrored
    erase: float  # share of the images of which a rectangle becomes noise


# Network in Network in Dive into Deep Learning, as its `train_ch6` trains; biases start at 0 here.
BOOK = Recipe(
    name="book",
    optimizer="sgd",
    lr=0.1,
    momentum=0.0,
    weight_decay=0.0,
    warm_up=0.0,
    decay=False,
    epochs=10,
    batch_size=128,
    initialisation="xavier",
    dropout=0.5,
    label_smoothing=0.0,
    batch_norm=False,
    crop=28,
    crop_until=0.0,
    shift=0,
    flip=0.0,
    erase=0.0,
)

# docs/training.md has what was measured.
BEST = Recipe(
    name="best",
    optimizer="muon",  # after 150 steps far ahead of AdamW
    lr=0.03,  # 0.02 for batches of 64, where 0.06 was worse, and more for larger ones
    momentum=0.9,
    weight_decay=0.05,  # normalised weights would only grow without, and steps turn them less
    warm_up=0.05,
    decay=True,
    epochs=8,  # what two cores do in two hours
    batch_size=128,  # 26 % more images a second than with 64: Muon costs the same for each step
    initialisation="kaiming",  # made for ReLU: Xavier's signal fades on the way up
    dropout=0.5,
    label_smoothing=0.05,
    batch_norm=True,
    crop=20,  # at the same scale, for about half the time: the pooling takes any size
    crop_until=0.625,  # five epochs; three of whole images end it
    shift=2,
    flip=0.5,
    erase=0.25,
)

RECIPES = {recipe.name: recipe for recipe in (BOOK, BEST)}


def lr_factor(recipe: Recipe, progress: float) -> float:
    """The share of the peak learning rate at `progress`, between 0 and 1."""
    if progress < recipe.warm_up:
        return progress / recipe.warm_up
    return (1 - progress) / (1 - recipe.warm_up) if recipe.decay else 1.0
