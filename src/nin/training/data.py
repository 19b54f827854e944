"""Finds, verifies and reads Fashion-MNIST."""

import gzip
import hashlib
import os
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nin.errors import InputError
from nin.images import BROKEN_GZIP
from nin.paths import DATA

Split = Literal["train", "test"]

DEBIAN = Path("/usr/share/datasets/fashion-mnist")

_HOW_TO_GET = (
    "install Debian's package dataset-fashion-mnist, or fetch it with "
    "`python -c 'from nin.training.data import download; download()'`; both are found without "
    "--data-dir and FASHION_MNIST_DIR"
)

# SHA-256 of the decompressed content: the gzip files differ from one distributor to the next.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def load(split: Split, data_dir: Path | None = None) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The images (N, 28, 28) in [0, 255] and the labels (N,) in [0, 9] of one split.

    Args:
        data_dir: the only folder to look in; else the folder named by FASHION_MNIST_DIR; else
            the checkout's own, Debian's, and where `download` puts the files.

    Raises:
        InputError: a file isn't there, or its content isn't that of Fashion-MNIST.
    """
    prefix = "train" if split == "train" else "t10k"
    images = _read(f"{prefix}-images-idx3-ubyte", data_dir)
    labels = _read(f"{prefix}-labels-idx1-ubyte", data_dir)
    # The digest has vouched for the IDX headers: 16 bytes before images, 8 before labels.
    return (
        np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28),
        np.frombuffer(labels, np.uint8, offset=8),
    )


def download() -> None:
    """Fetches all four files from the internet, by torchvision; `load` finds them then."""
    from torchvision.datasets import FashionMNIST

    FashionMNIST(str(DATA), download=True)


def _folders(data_dir: Path | None) -> list[Path]:
    if data_dir is None and (variable := os.environ.get("FASHION_MNIST_DIR")):
        data_dir = Path(variable)
    if data_dir is not None:
        if not data_dir.is_dir():
            raise InputError(
                f"no data folder at {data_dir}; it should hold the IDX files; {_HOW_TO_GET}"
            )
        return [data_dir]
    return [DATA / "fashion-mnist", DEBIAN, DATA / "FashionMNIST" / "raw"]


def _read(name: str, data_dir: Path | None) -> bytes:
    folders = _folders(data_dir)
    found = (f / n for f in folders for n in (name, f"{name}.gz") if (f / n).is_file())
    path = next(found, None)
    if path is None:
        raise InputError(f"no {name}[.gz] in {', '.join(map(str, folders))}; {_HOW_TO_GET}")
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except BROKEN_GZIP as error:
        raise InputError(f"can't read {path}: {error}; fetch the file again") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256[name]:
        raise InputError(
            f"{path} isn't Fashion-MNIST's: its content has SHA-256 {digest}, "
            f"expected {SHA256[name]}; fetch the file again"
        )
    return content
