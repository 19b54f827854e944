"""What the gate asks: which images, in which batches, and the answers that are right."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nin.artifact.golden import GOLDEN_IMAGES, Golden, normalise
from nin.contract import Graph, Int8
from nin.decoder import decode
from nin.gate.synthetic import sharp_images, synthetic_images
from nin.images import encode_png
from nin.network.build import TrainedModel
from nin.network.classifier import Preprocess
from nin.reference.exact import (
    Reference,
    batch_for,
    compute_golden,
    compute_network_reference,
    compute_reference,
)
from nin.samples import SampleSet

Batch = NDArray[np.intp]  # indices of images

_FEW_SIZES = (1, 2, 3, 7, 16)
_FEW = 4  # images, of a batch that has some twice


@dataclass(frozen=True)
class Sharp:
    """Images for the network alone that no resizing has smoothed, and what is right for them."""

    images: NDArray[np.float32]  # (M, C, H, W)
    names: tuple[str, ...]
    logits: NDArray[np.float64]
    budget: float


@dataclass(frozen=True)
class Questions:
    """Images, samples first, with all that a runtime's answers are held against."""

    reference: Reference
    names: tuple[str, ...]  # of the images
    samples: int
    classes: NDArray[np.int64] | None  # of the samples, where they are known
    labels: tuple[str, ...]  # of the model
    golden: dict[str, Golden]  # by graph, what every export has to carry
    weights_sha256: str
    seed: int
    preprocess: Preprocess
    int8: Int8  # what quantising may cost
    pictures: NDArray[np.uint8] | None = None  # the files' pixels before they are decoded
    sharp: Sharp | None = None  # more images, for the network alone
    unresized: NDArray[np.float32] | None = None  # of `sharp`, once they are among the images
    # of int8 the network's own answers; `reference` is the quantised graph's then
    exact: Reference | None = None
    mean_budget: float = 0.0  # of int8, for the logits
    faults: tuple[str, ...] = ()  # of the file, whichever runtime is asked

    def of(self, graph: Graph) -> "Questions":
        """Those for `graph`: the network is asked the sharp images too, after the others."""
        if graph.image is None or self.sharp is None:
            return self
        reference, sharp = self.reference, self.sharp
        logits = np.concatenate([reference.outputs["logits"], sharp.logits])
        budget = {"logits": max(reference.budget["logits"], sharp.budget)}
        return replace(
            self,
            reference=replace(reference, outputs={"logits": logits}, budget=budget),
            names=(*self.names, *sharp.names),
            sharp=None,
            unresized=sharp.images,
        )

    @property
    def count(self) -> int:
        """Of the images."""
        return len(self.names)

    def batch(self, graph: Graph, indices: Batch) -> NDArray[Any]:
        """These images in the form that `graph` takes."""
        images = self.reference.pixels if self.pictures is None else self.pictures
        resized = indices < len(images)
        if resized.all():
            return batch_for(self.preprocess, graph, images[indices])
        assert self.unresized is not None
        batch = np.empty((len(indices), *graph.input.shape), np.float32)
        batch[~resized] = self.unresized[indices[~resized] - len(images)]
        if resized.any():
            batch[resized] = batch_for(self.preprocess, graph, images[indices[resized]])
        return batch


@dataclass(frozen=True)
class Plan:
    """The batch sizes that one runtime is asked, and how often it is asked every image."""

    sizes: tuple[int, ...]
    turns: int


def quick_plan(max_batch: int) -> Plan:
    """Where not every size has to be asked."""
    sizes = {size for size in _FEW_SIZES if size <= max_batch}
    return Plan(tuple(sorted({*sizes, max_batch})), turns=1)


def seed_of_today() -> int:
    """Another one every day, so that no export can know the images."""
    return int(f"{date.today():%Y%m%d}")


def make_questions(model: TrainedModel, samples: SampleSet, *, count: int, seed: int) -> Questions:
    """`count` of the samples, chosen by `seed`, and the synthetic ones."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(samples))[:count])
    pixels = samples.pixels(chosen)
    synthetic = synthetic_images(pixels, seed)
    images = np.concatenate([pixels, np.stack(list(synthetic.values()))])
    first = samples.pixels(range(min(len(samples), GOLDEN_IMAGES)))
    return Questions(
        reference=compute_reference(model, images),
        names=(*(f"sample {i}" for i in chosen), *(f"image `{name}`" for name in synthetic)),
        samples=len(chosen),
        classes=None if samples.classes is None else samples.classes[chosen],
        labels=model.contract.labels,
        golden={
            name: compute_golden(model, graph, first)
            for name, graph in model.contract.graphs.items()
        },
        weights_sha256=model.weights_sha256,
        seed=seed,
        preprocess=Preprocess(model.contract),
        int8=model.contract.int8,
        sharp=_sharp_images(model, seed),
    )


def _sharp_images(model: TrainedModel, seed: int) -> Sharp | None:
    """Images at the network's own size; None where the classifier doesn't resize its own."""
    image, pixels = model.contract.image, model.contract.pixels
    size = (image.height, image.width)
    if (pixels.height, pixels.width) == size:
        return None
    sharp = sharp_images((*size, image.channels), seed)
    images = normalise(np.stack(list(sharp.values())).transpose(0, 3, 1, 2), image)
    outputs, budget = compute_network_reference(model, images)
    names = tuple(f"image `{name}`, not resized" for name in sharp)
    return Sharp(images, names, outputs["logits"], budget["logits"])


def as_files(questions: Questions, model: TrainedModel) -> Questions:
    """The same images as PNG files: what is right for them is what the decoded pixels give.

    Decoding may crop, so those aren't always the pixels that were encoded.
    """
    files = model.contract.files.describe()
    pictures = questions.reference.pixels
    decoded = np.stack([decode(encode_png(picture), **files) for picture in pictures])
    if np.array_equal(decoded, pictures):
        return questions
    reference = compute_reference(model, decoded)
    return replace(questions, reference=reference, pictures=pictures)


def share_sizes(sharing: int, max_batch: int) -> list[Plan]:
    """Divides the batch sizes, 1 to `max_batch`, among so many runtimes of one file.

    An export may be wrong for a single size, so each is asked; a batch costs as much as its images
    do, so each is asked of one of them only. Each is asked for a lone image, and every image of all
    of them.
    """
    turns = 2 if sharing == 1 else 1
    all_sizes: Sequence[int] = range(1, max_batch + 1)
    shares = (all_sizes[first::sharing] for first in range(sharing))
    return [Plan(tuple(sorted({1, *sizes})), turns) for sizes in shares]


def plan_batches(count: int, plan: Plan, seed: int) -> list[Batch]:
    """Batches of every size of the plan, and more of the largest until all images had their turns.

    Every turn is in another order, so that images meet others. The first is asked twice over, and
    once beside itself, and once in a batch of nothing else.
    """
    random = np.random.default_rng(seed)
    sizes = list(plan.sizes)
    missing = count * plan.turns - sum(sizes)
    sizes += [max(sizes)] * max(0, -(-missing // max(sizes)))
    turns = -(-sum(sizes) // count)
    order = np.concatenate([random.permutation(count) for _ in range(turns)])
    batches = np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])
    few = order[: min(_FEW, max(sizes))]
    equal = [np.append(few[:-1], few[0]), np.full_like(few, few[0])] if len(few) > 1 else []
    return [batches[0], *batches, *equal]
