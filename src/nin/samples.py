"""A model's samples: real images, with their classes where those are known. No torch."""

import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nin.contract import CONTRACT_FILE, Contract, Files, Samples
from nin.errors import InputError
from nin.images import BROKEN_GZIP, idx_kind, parse_idx

Pixels = NDArray[np.uint8]

# Of several pairs of IDX files in a folder, the test images come before the training images.
_PREFERRED = ("t10k-", "train-")
_IMAGES, _LABELS = "images-idx?-ubyte", "labels-idx1-ubyte"

LEAST_SAMPLES = 4  # fewer would prove next to nothing
LEAST_CALIBRATION = 32
_MOST_CALIBRATION = 512  # more change nothing but the time
_AT_A_TIME = 1024  # samples in memory

_EXPECTED = {
    "idx": "IDX files of images and their labels",
    "folder": "PNG or JPEG files, in sub-folders 0, 1, ... by class where that is known",
}

_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")  # how PNG and JPEG files begin


@dataclass(frozen=True)
class SampleSet:
    """Images in a fixed order, decoded when they are asked for."""

    names: Sequence[str]  # file names within the folder, for people to find an image by
    classes: NDArray[np.int64] | None  # (N,), where they are known
    read: Callable[[NDArray[np.intp]], Pixels]  # indices to pixels

    def __len__(self) -> int:
        return len(self.names)

    def pixels(self, indices: Sequence[int] | NDArray[np.integer]) -> Pixels:
        """What the classifier takes of these images: (n, h, w) grey, (n, h, w, 3) RGB.

        Raises InputError where a file can't be decoded.
        """
        return self.read(np.asarray(indices, np.intp))


def open_samples(contract: Contract, data_dir: Path | None = None) -> SampleSet:
    """Finds a model's samples.

    Args:
        data_dir: where they lie, if not where the contract says.

    Raises:
        InputError: there are none, or they aren't images for this model.
    """
    source = replace(contract.samples, path=data_dir or contract.samples.path)
    samples = _open(source, contract)
    if len(samples) < LEAST_SAMPLES:
        raise InputError(
            f"{source.path} holds {len(samples)} samples, expected {LEAST_SAMPLES} or more: "
            f"{_EXPECTED[source.kind]}"
        )
    return samples


def open_calibration(contract: Contract, samples: SampleSet) -> Pixels:
    """The images that activations are measured on, as the classifier's pixels: 512 at most.

    Args:
        samples: the model's; what it is proven on must not have shaped it.

    Raises:
        InputError: there are none, too few, images of another shape, or some of the samples.
    """
    if contract.calibration is None:
        raise InputError(
            f"{contract.folder / CONTRACT_FILE} has no [calibration], which int8 needs: the kind "
            f"and path of {LEAST_CALIBRATION} or more training images, as in [samples]"
        )
    path = contract.calibration.path
    images = _open(contract.calibration, contract)
    if len(images) < LEAST_CALIBRATION:
        raise InputError(
            f"{path} holds {len(images)} images, expected {LEAST_CALIBRATION} or more training "
            "images to calibrate int8"
        )
    pixels = images.pixels(range(min(len(images), _MOST_CALIBRATION)))
    known = {image.tobytes(): name for image, name in zip(pixels, images.names, strict=False)}
    starts = range(0, len(samples), _AT_A_TIME)
    for start in tqdm(starts, "comparing with the samples", disable=None, leave=False):
        indices = range(start, min(start + _AT_A_TIME, len(samples)))
        for index, image in zip(indices, samples.pixels(indices), strict=True):
            if (name := known.get(image.tobytes())) is not None:
                raise InputError(
                    f"{path}: {name} is the sample {samples.names[index]}; calibrate on training "
                    "images, never on those that the gate judges by"
                )
    return pixels


def _open(source: Samples, contract: Contract) -> SampleSet:
    if not source.path.is_dir():
        there = "a file" if source.path.exists() else "nothing"
        raise InputError(
            f"no folder of images at {source.path}: {there} is there, "
            f"expected {_EXPECTED[source.kind]}"
        )
    return (_open_idx if source.kind == "idx" else _open_folder)(source.path, contract)


# --- IDX files ---


def _open_idx(folder: Path, contract: Contract) -> SampleSet:
    path = _find_images(folder)
    if path is None:
        return SampleSet((), None, lambda indices: np.empty(0, np.uint8))
    images = parse_idx(path.read_bytes(), str(path), contract.classifier_graph.input.shape)
    classes = _read_labels(_labels_of(path), len(images), contract)
    names = tuple(f"{path.name}[{index}]" for index in range(len(images)))
    return SampleSet(names, classes, lambda indices: images[indices])


def idx_size(folder: Path) -> tuple[int, int] | None:
    """Height and width of the images in a folder's IDX file; None where there is no such file."""
    path = _find_images(folder)
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            is_gzip = path.suffix == ".gz"
            content = gzip.GzipFile(fileobj=file) if is_gzip else file
            kind = idx_kind(content.read(4 * 5))  # the longest header of images
    except BROKEN_GZIP as error:
        raise InputError(f"can't read {path}: {error}; fetch the file again") from error
    if kind is None or len(kind[1]) < 3:
        raise InputError(f"{path} isn't an IDX file of images")
    return kind[1][1], kind[1][2]


def _find_images(folder: Path) -> Path | None:
    """The file of the images; of a plain and a compressed one the plain."""
    paths = sorted([*folder.glob(f"*{_IMAGES}"), *folder.glob(f"*{_IMAGES}.gz")])
    by_prefix = {path.name.rpartition("images-idx")[0]: path for path in reversed(paths)}
    for prefix in _PREFERRED:
        if prefix in by_prefix:
            return by_prefix[prefix]
    if len(by_prefix) > 1:
        names = ", ".join(path.name for path in sorted(by_prefix.values()))
        raise InputError(f"{folder} has several files of images, {names}; keep the test images")
    return next(iter(by_prefix.values()), None)


def _labels_of(images: Path) -> Path | None:
    prefix = images.name.rpartition("images-idx")[0]
    paths = (images.with_name(f"{prefix}{_LABELS}{suffix}") for suffix in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def _read_labels(path: Path | None, count: int, contract: Contract) -> NDArray[np.int64] | None:
    if path is None:
        return None
    labels = parse_idx(path.read_bytes(), str(path), ())
    if len(labels) != count:
        raise InputError(
            f"{path} has {len(labels)} labels, the images beside it are {count}; "
            "every image needs its label"
        )
    _check_class(int(labels.max()), str(path), contract)
    return labels.astype(np.int64)


# --- files in folders ---


def _open_folder(folder: Path, contract: Contract) -> SampleSet:
    by_class = {_class_of(path, contract): _image_files(path) for path in _folders(folder)}
    loose = _image_files(folder, allow_folders=True)
    if by_class and loose:
        raise InputError(
            f"{loose[0]} lies beside folders of classes; move it into its class's folder"
        )
    columns = [[(path, index) for path in by_class[index]] for index in sorted(by_class)]
    rows = zip_longest(*columns)  # the first few are of many classes
    paths_and_classes = [pair for pair in chain.from_iterable(rows) if pair]
    paths = loose or [path for path, _ in paths_and_classes]
    classes = np.array([index for _, index in paths_and_classes], np.int64) if by_class else None
    names = tuple(str(path.relative_to(folder)) for path in paths)
    files, shape = contract.files, contract.classifier_graph.input.shape

    def read(indices: NDArray[np.intp]) -> Pixels:
        pixels = np.empty((len(indices), *shape), np.uint8)
        for at, index in enumerate(indices):
            pixels[at] = _decode(paths[index], files)
        return pixels

    return SampleSet(names, classes, read)


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _folders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()]


def _image_files(folder: Path, *, allow_folders: bool = False) -> list[Path]:
    """The files in a folder, images all of them. Raises InputError naming one that isn't."""
    paths = [path for path in _visible(folder) if not (allow_folders and path.is_dir())]
    for path in paths:
        if path.is_dir():
            raise InputError(f"{path} is a folder within a class's; expected image files there")
        with path.open("rb") as file:
            if not file.read(len(_MAGIC[0])).startswith(_MAGIC):
                raise InputError(f"{path} is no PNG or JPEG file; move it out of the samples")
    return paths


def _class_of(folder: Path, contract: Contract) -> int:
    name = folder.name
    if not (name.isascii() and name.isdecimal() and len(name) <= 9):
        raise InputError(
            f"{folder} isn't named for a class; expected 0 to {len(contract.labels) - 1}, the "
            "number of its line in the labels file, counted from 0"
        )
    if name != str(int(name)):
        raise InputError(f"{folder} should be named {int(name)}, without zeros before it")
    _check_class(int(name), str(folder), contract)
    return int(name)


def _check_class(index: int, where: str, contract: Contract) -> None:
    if index >= len(contract.labels):
        raise InputError(
            f"{where}: class {index} is unknown, {contract.name} has the "
            f"{len(contract.labels)} classes 0 to {len(contract.labels) - 1}"
        )


def _decode(path: Path, files: Files) -> Pixels:
    from nin.decoder import decode  # only here: it needs Pillow

    try:
        return decode(path.read_bytes(), **files.describe())
    except ValueError as error:
        raise InputError(f"{path} can't be decoded: {error}") from error
