"""The training images: one uint8 tensor on the device, cut, mirrored and shifted there."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nin.training.devices import Process
from nin.training.recipes import Recipe

HELD_OUT = 5_000  # training images that no step sees: every decision is made on them
_SPLIT_SEED = 1  # fixed: a run from another's weights is judged honestly too

SIDE = 28

_ORDER, _CUT, DROPOUT = range(3)  # what a seed is mixed for


def split(count: int, held_out: int = HELD_OUT) -> tuple[Tensor, Tensor]:
    """Which of `count` images to train on and which to hold out, always the same ones."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(_SPLIT_SEED))
    return order[held_out:], order[:held_out]


class Batches:
    """All images in a new random order each epoch, batch by batch.

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
        self._epoch, self._order = -1, torch.empty(0)

    @property
    def per_epoch(self) -> int:
        """Whole batches only; each epoch leaves other images over."""
        return len(self.pixels) // self.recipe.batch_size

    def __call__(self, step: int, *, crop: int) -> tuple[Tensor, Tensor]:
        """This process's share of a batch: pixels (n, crop, crop) and labels (n,)."""
        recipe, size, mine = self.recipe, self.recipe.batch_size, self.process.share
        shift = recipe.shift if crop == SIDE else 0
        # Drawn for the whole batch: what an image gets doesn't depend on the number of processes.
        draw = self._generator(_CUT, step)
        room = SIDE + 2 * shift - crop + 1
        corner = torch.randint(room, (2, size), generator=draw, device=self.pixels.device)
        flip = torch.rand(size, generator=draw, device=self.pixels.device) < recipe.flip
        images = self._images(step)[mine]
        padded = F.pad(self.pixels[images], (shift, shift, shift, shift))
        pixels = window(padded, corner[:, mine], flip[mine], crop)
        if recipe.erase:
            erased, noise = rectangles(size, crop, recipe.erase, draw)
            pixels = torch.where(erased[mine], noise[mine], pixels)
        return pixels, self.labels[images]

    def _images(self, step: int) -> Tensor:
        """The numbers (batch size,) of the images in the batch of `step`."""
        epoch, batch = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            draw = self._generator(_ORDER, epoch)
            self._order = torch.randperm(len(self.pixels), generator=draw, device=draw.device)
            self._epoch = epoch
        return self._order[batch * self.recipe.batch_size :][: self.recipe.batch_size]

    def _generator(self, purpose: int, number: int) -> torch.Generator:
        return torch.Generator(self.pixels.device).manual_seed(mix(self.seed, purpose, number))


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


def rectangles(count: int, side: int, share: float, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random erasing (Zhong et al., 2017, https://arxiv.org/abs/1708.04896).

    Returns:
        Where images lose their pixels, (count, side, side) bool: for a `share` of them a rectangle,
        each of its sides a sixth to a half of the image's; and the noise to put there, uint8.
    """
    device = draw.device
    hit = torch.rand(count, generator=draw, device=device) < share
    sizes = torch.randint(side // 6, side // 2 + 1, (2, count), generator=draw, device=device)
    first = (torch.rand(2, count, generator=draw, device=device) * (side - sizes + 1)).long()
    at = torch.arange(side, device=device)
    inside = (at >= first[..., None]) & (at < (first + sizes)[..., None])  # (2, count, side)
    noise = torch.randint(
        256, (count, side, side), generator=draw, device=device, dtype=torch.uint8
    )
    return hit[:, None, None] & inside[0, :, :, None] & inside[1, :, None, :], noise
