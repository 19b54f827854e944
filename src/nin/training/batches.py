"""The training images: one uint8 tensor on the device, cut, mirrored and shifted there."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nin.training.devices import Process
from nin.training.recipes import Recipe

HELD_OUT = 5_000  # training images that no step sees: every decision is made on them
_SPLIT_SEED = 1  # fixed, and the shipped weights': runs from those are judged honestly too

SIDE = 28

_ORDER, _CUT, DROPOUT = range(3)  # what a seed is mixed for


def split(count: int, held_out: int = HELD_OUT) -> tuple[Tensor, Tensor]:
    """Which of `count` images to train on and which to hold out, always the same ones."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(_SPLIT_SEED))
    return order[held_out:], order[:held_out]


class Batches:
    """An epoch's images in random order, batch by batch.

    With the recipe's `prune`, an epoch trains on the fifth of the images whose losses were the
    highest when they were last seen, and on a random half of the others with twice their weight:
    on average the same sum is minimised, in 60 % of the time. After InfoBatch (Qin et al., 2024,
    https://arxiv.org/abs/2303.04947).

    What is random follows from the seed and the number of the epoch or step. Processes that train
    together all draw the same; each takes every n-th image of a batch.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        recipe: Recipe,
        seed: int,
        process: Process = Process(),  # noqa: B008 (it can't change)
    ) -> None:
        """`pixels` (N, 28, 28) uint8 and `labels` (N,) int64 lie on one device."""
        self.pixels, self.labels = pixels, labels
        self.recipe, self.seed = recipe, seed
        self.process = process
        # of each image when it was last seen
        self.losses = torch.full((len(pixels),), torch.inf, device=pixels.device)
        # of the epoch under way: image numbers, and all images' weights, which add up to 1 over
        # a batch on average
        self.order = self.weights = torch.empty(0)

    @property
    def images_per_epoch(self) -> int:
        count = len(self.pixels)
        return count // 5 + (count - count // 5) // 2 if self.recipe.prune else count

    @property
    def per_epoch(self) -> int:
        """Whole batches only; each epoch leaves other images over."""
        return self.images_per_epoch // self.recipe.batch_size

    def begin(self, epoch: int) -> None:
        """Draws an epoch's images and their order."""
        count, device = len(self.pixels), self.pixels.device
        draw = torch.Generator(device).manual_seed(mix(self.seed, _ORDER, epoch))
        self.order = torch.randperm(count, generator=draw, device=device)
        self.weights = torch.ones(count, device=device)
        if self.recipe.prune:
            hard = self.losses.argsort(descending=True, stable=True)[: count // 5]
            self.weights[:] = 2
            self.weights[hard] = 1
            others = self.order[self.weights[self.order] == 2]
            kept = torch.cat([hard, others[: len(others) // 2]])
            self.order = kept[torch.randperm(len(kept), generator=draw, device=device)]
        self.weights *= len(self.order) / count / self.recipe.batch_size

    def __call__(self, step: int, *, crop: int) -> tuple[Tensor, Tensor, Tensor]:
        """This process's share of the batch of `step`, which lies in the epoch under way.

        Returns:
            Pixels (n, crop, crop), labels (n,) and weights (n,).
        """
        recipe, device = self.recipe, self.pixels.device
        shift = recipe.shift if crop == SIDE else 0
        # Drawn for the whole batch: what an image gets doesn't depend on the number of processes.
        draw = torch.Generator(device).manual_seed(mix(self.seed, _CUT, step))
        room = SIDE + 2 * shift - crop + 1
        corner = torch.randint(room, (2, recipe.batch_size), generator=draw, device=device)
        flip = torch.rand(recipe.batch_size, generator=draw, device=device) < recipe.flip
        mine = self.process.share
        images = self._images(step)[mine]
        padded = F.pad(self.pixels[images], (shift, shift, shift, shift))
        pixels = window(padded, corner[:, mine], flip[mine], crop)
        return pixels, self.labels[images], self.weights[images]

    def note(self, step: int, losses: Tensor) -> None:
        """Remembers the losses (batch size,) of all images in the batch of `step`."""
        self.losses[self._images(step)] = losses

    def state_dict(self) -> dict[str, Tensor]:
        return {"losses": self.losses, "order": self.order, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        device = self.pixels.device
        self.losses, self.order, self.weights = (
            state[name].to(device) for name in ("losses", "order", "weights")
        )

    def _images(self, step: int) -> Tensor:
        """The numbers (batch size,) of the images in the batch of `step`."""
        start = step % self.per_epoch * self.recipe.batch_size
        return self.order[start : start + self.recipe.batch_size]


def mix(*numbers: int) -> int:
    """One seed of 32 bits out of several numbers: torch's generators on CPUs take no more."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def window(pixels: Tensor, corner: Tensor, flip: Tensor, side: int) -> Tensor:
    """Cuts a square out of each image and mirrors some.

    Args:
        pixels: (N, H, W).
        corner: (2, N), the top rows and left columns.
        flip: (N,) bool.
    """
    steps = torch.arange(side, device=pixels.device)
    rows = corner[0, :, None] + steps  # (N, side)
    columns = corner[1, :, None] + torch.where(flip[:, None], steps.flip(0), steps)
    images = torch.arange(len(pixels), device=pixels.device)
    return pixels[images[:, None, None], rows[:, :, None], columns[:, None, :]]
