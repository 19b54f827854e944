"""The training images: one uint8 tensor on the device, cut, turned and shifted there."""

from dataclasses import dataclass

import torch
from torch import Tensor

HELD_OUT = 5_000  # training images that no step sees: every decision is made on them
_SPLIT_SEED = 0  # fixed: the split is the same for every --seed

SIDE = 28
_SHIFT = 2  # pixels by which whole images move, at most


def split(count: int, held_out: int = HELD_OUT) -> tuple[Tensor, Tensor]:
    """Which of `count` images to train on and which to hold out, always the same ones."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(_SPLIT_SEED))
    return order[held_out:], order[:held_out]


@dataclass(frozen=True)
class Batches:
    """Batches by number, so that any step can be made again: nothing is drawn in between.

    `pixels` (N, 28, 28) uint8 and `labels` (N,) int64 lie on one device. Each process of a
    data-parallel run takes every `world`-th image of a batch, from `rank` on.
    """

    pixels: Tensor
    labels: Tensor
    batch_size: int
    seed: int
    rank: int = 0
    world: int = 1

    @property
    def per_epoch(self) -> int:
        """Whole batches only; each epoch leaves other images over."""
        return len(self.pixels) // self.batch_size

    def __call__(self, step: int, *, crop: int, augment: bool) -> tuple[Tensor, Tensor]:
        """This process's share of the batch of `step`: pixels (n, crop, crop) and labels (n,)."""
        epoch, batch = divmod(step, self.per_epoch)
        order = torch.randperm(len(self.pixels), generator=generator(self.seed, epoch))
        chosen = order[batch * self.batch_size :][: self.batch_size]
        pad = _SHIFT if augment and crop == SIDE else 0
        # Drawn for the whole batch: what an image gets doesn't depend on the number of processes.
        draw = generator(self.seed + 1, step)
        room = SIDE + 2 * pad - crop + 1
        corner = torch.randint(room, (2, self.batch_size), generator=draw)
        flip = torch.rand(self.batch_size, generator=draw) < (0.5 if augment else 0.0)
        mine = slice(self.rank, None, self.world)
        device = self.pixels.device
        chosen, corner, flip = (t[..., mine].to(device) for t in (chosen, corner, flip))
        pixels = torch.nn.functional.pad(self.pixels[chosen], (pad, pad, pad, pad))
        return window(pixels, corner, flip, crop), self.labels[chosen]


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


def generator(seed: int, number: int) -> torch.Generator:
    """A generator of its own for each epoch or step."""
    return torch.Generator().manual_seed((seed << 32) + number)
