"""What the gate asks: which images, in which batches, and the answers that are right."""

from dataclasses import dataclass
from datetime import date

import numpy as np
from numpy.typing import NDArray

from nin.checkpoint import Checkpoint
from nin.contract import BATCH_SIZES, GOLDEN_IMAGES, MAX_BATCH
from nin.reference import Reference, compute_reference
from nin.synthetic import synthetic_images

Batch = NDArray[np.intp]  # indices of images

# An export may be wrong for a single one of them: each is asked.
ALL_SIZES = tuple(range(1, MAX_BATCH + 1))


@dataclass(frozen=True)
class Questions:
    """Images, test images first, with all that a runtime's answers are held against."""

    reference: Reference
    names: tuple[str, ...]  # of the images
    labels: NDArray[np.uint8]  # of the test images
    golden: Reference  # what every export has to carry
    weights_sha256: str
    seed: int


@dataclass(frozen=True)
class Plan:
    """The batch sizes that one runtime is asked, and how often it is asked every image."""

    sizes: tuple[int, ...]
    turns: int


# Where not every size has to be asked.
QUICK = Plan(BATCH_SIZES, turns=1)


def seed_of_today() -> int:
    """Another one every day, so that no export can know the images."""
    return int(f"{date.today():%Y%m%d}")


def make_questions(
    checkpoint: Checkpoint,
    pixels: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    *,
    count: int,
    seed: int,
) -> Questions:
    """`count` of the test images, chosen by `seed`, and the synthetic ones."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(pixels))[:count])
    synthetic = synthetic_images(pixels[chosen], seed)
    images = np.concatenate([pixels[chosen], np.stack(list(synthetic.values()))])
    return Questions(
        reference=compute_reference(checkpoint.network, images),
        names=(*(f"test image {i}" for i in chosen), *(f"image `{name}`" for name in synthetic)),
        labels=labels[chosen],
        golden=compute_reference(checkpoint.network, pixels[:GOLDEN_IMAGES]),
        weights_sha256=checkpoint.sha256,
        seed=seed,
    )


def share_sizes(sharing: int) -> list[Plan]:
    """Divides the batch sizes among so many runtimes of one file.

    A batch costs as much as its images do, so each size is asked of one of them only; each is asked
    for a lone image, and every image of all of them.
    """
    turns = 2 if sharing == 1 else 1
    shares = (ALL_SIZES[first::sharing] for first in range(sharing))
    return [Plan(tuple(sorted({1, *sizes})), turns) for sizes in shares]


def plan_batches(count: int, plan: Plan, seed: int) -> list[Batch]:
    """Batches of every size of the plan, and more of the largest until all images had their turns.

    Every turn is in another order, so that images meet others. The first is asked twice over.
    """
    random = np.random.default_rng(seed)
    sizes = list(plan.sizes)
    missing = count * plan.turns - sum(sizes)
    sizes += [max(sizes)] * max(0, -(-missing // max(sizes)))
    turns = -(-sum(sizes) // count)
    order = np.concatenate([random.permutation(count) for _ in range(turns)])
    batches = np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])
    return [batches[0], *batches]
