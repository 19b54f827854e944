"""The training images: one uint8 tensor on the device, cut, turned and shifted there."""

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


class Batches:
    """Batches by number: whatever is random in one follows from the seed and its number.

    With `prune`, an epoch trains on the fifth of the images whose losses were the highest when
    they were last seen, and on a random half of the others with twice their weight: on average
    the sum that is minimised stays the same, for 60 % of the time. After InfoBatch (Qin et al.,
    2024, https://arxiv.org/abs/2303.04947).

    Each process of a data-parallel run takes every `world`-th image of a batch, from `rank` on.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        batch_size: int,
        seed: int,
        *,
        prune: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """`pixels` (N, 28, 28) uint8 and `labels` (N,) int64 lie on one device."""
        self.pixels, self.labels = pixels, labels
        self.batch_size, self.seed, self.prune = batch_size, seed, prune
        self.mine = slice(rank, None, world)  # of a batch
        # of each image when it was last seen: until now, and until the epoch began
        self.losses = torch.full((len(pixels),), torch.inf, device=pixels.device)
        self._losses_before = self.losses
        self._epoch = -1  # whose order this is:
        self._order = self._weights = torch.empty(0)

    @property
    def images_per_epoch(self) -> int:
        count = len(self.pixels)
        hard = count // 5
        return hard + (count - hard) // 2 if self.prune else count

    @property
    def per_epoch(self) -> int:
        """Whole batches only; each epoch leaves other images over."""
        return self.images_per_epoch // self.batch_size

    def __call__(self, step: int, *, crop: int, augment: bool) -> tuple[Tensor, Tensor, Tensor]:
        """This process's share of the batch of `step`.

        Returns:
            Pixels (n, crop, crop), labels (n,), and weights (n,) that add up to 1 over the
            whole batch.
        """
        everyone = self._images(step)
        pad = _SHIFT if augment and crop == SIDE else 0
        # Drawn for the whole batch: what an image gets doesn't depend on the number of processes.
        draw = generator(self.seed + 1, step)
        room = SIDE + 2 * pad - crop + 1
        corner = torch.randint(room, (2, self.batch_size), generator=draw)
        flip = torch.rand(self.batch_size, generator=draw) < (0.5 if augment else 0.0)
        weights = self._weights[everyone] / self._weights[everyone].sum()
        device = self.pixels.device
        images, corner, flip, weights = (
            t[..., self.mine].to(device) for t in (everyone, corner, flip, weights)
        )
        pixels = torch.nn.functional.pad(self.pixels[images], (pad, pad, pad, pad))
        return window(pixels, corner, flip, crop), self.labels[images], weights

    def note(self, step: int, losses: Tensor) -> None:
        """Remembers the losses (batch_size,) of all images of the batch of `step`."""
        self.losses[self._images(step).to(self.losses.device)] = losses

    def state_dict(self) -> dict[str, Tensor]:
        return {"losses": self.losses, "losses_before": self._losses_before}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.losses, self._losses_before = state["losses"], state["losses_before"]
        self._epoch = -1

    def _images(self, step: int) -> Tensor:
        """The numbers (batch_size,) of the images in the batch of `step`."""
        epoch, batch = divmod(step, self.per_epoch)
        if batch == 0:
            self._losses_before = self.losses.clone()
        if epoch != self._epoch:
            self._epoch = epoch
            self._draw(generator(self.seed, epoch))
        return self._order[batch * self.batch_size :][: self.batch_size]

    def _draw(self, draw: torch.Generator) -> None:
        """The order of an epoch's images, and all images' weights."""
        count = len(self.pixels)
        self._order = torch.randperm(count, generator=draw)
        self._weights = torch.ones(count)
        if self.prune:
            hard = torch.zeros(count, dtype=torch.bool)
            hard[self._losses_before.topk(count // 5).indices.cpu()] = True
            self._weights[~hard] = 2
            others = self._order[~hard[self._order]]
            kept = torch.cat([hard.nonzero()[:, 0], others[: len(others) // 2]])
            self._order = kept[torch.randperm(len(kept), generator=draw)]


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
