"""Finds, verifies and reads Fashion-MNIST."""

import gzip
import hashlib
import os
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nin.errors import InputError
from nin.paths import DATA

Split = Literal["train", "test"]

DEBIAN = Path("/usr/share/datasets/fashion-mnist")

_HOW_TO_GET = (
    "install Debian's package dataset-fashion-mnist, or fetch it with "
    "`python -c 'from nin.data import download; download()'`; both are found without --data-dir "
    "and FASHION_MNIST_DIR"
)

# The third byte of an IDX file; two zeros come before it, the number of dimensions after it.
_IDX_TYPES = {
    0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64",
}  # fmt: skip
_GZIP = b"\x1f\x8b"
_BROKEN_GZIP = (OSError, EOFError, zlib.error)  # what gzip raises

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


def is_idx(data: bytes) -> bool:
    """Whether bytes are an IDX file of whatever kind, or gzip, in which no other image comes here.

    No PNG or JPEG file begins with a zero.
    """
    return data[:2] == _GZIP or _idx_kind(data) is not None


def parse_idx(data: bytes, name: str) -> NDArray[np.uint8]:
    """The images (N, 28, 28) of any IDX file's bytes, plain or gzipped; `name` is for errors.

    Raises InputError if they aren't one.
    """
    try:
        content = gzip.decompress(data) if data[:2] == _GZIP else data
    except _BROKEN_GZIP as error:
        raise InputError(f"can't decompress {name}: {error}") from error
    kind = _idx_kind(content)
    if kind is None:
        raise InputError(
            f"{name} isn't an IDX file: it starts with {content[:4].hex(' ') or 'nothing'}, "
            "expected 00 00 08 03 (uint8, 3 dimensions)"
        )
    dtype, shape = kind
    if dtype != "uint8" or len(shape) != 3 or shape[1:] != (28, 28):
        labels = " (labels?)" if len(shape) == 1 else ""
        raise InputError(
            f"{name} is an IDX file of {dtype} {shape}{labels}, expected images, "
            "uint8 (count, 28, 28)"
        )
    if len(content) != 16 + shape[0] * 784:
        raise InputError(
            f"{name} promises {shape[0]} images, {16 + shape[0] * 784} bytes; "
            f"it has {len(content)} bytes"
        )
    if shape[0] == 0:
        raise InputError(f"{name} holds no images")
    return np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28)


def _idx_kind(data: bytes) -> tuple[str, tuple[int, ...]] | None:
    """The dtype and the shape that an IDX file promises; None if it isn't one."""
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _IDX_TYPES or data[3] == 0:
        return None
    header = data[4 : 4 + 4 * data[3]]
    shape = np.frombuffer(header.ljust(4 * data[3], b"\0"), ">u4")  # zeros where it is cut off
    return _IDX_TYPES[data[2]], tuple(shape.tolist())


def encode_idx(images: NDArray[np.uint8] | NDArray[np.float32]) -> bytes:
    """An IDX file of pixels (N, 28, 28), or of the network's images (N, 1, 224, 224)."""
    kind, dtype = (0x08, ">u1") if images.dtype == np.uint8 else (0x0D, ">f4")
    header = bytes([0, 0, kind, images.ndim]) + np.array(images.shape, ">u4").tobytes()
    return header + images.astype(dtype).tobytes()


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
    except _BROKEN_GZIP as error:
        raise InputError(f"can't read {path}: {error}; fetch the file again") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256[name]:
        raise InputError(
            f"{path} isn't Fashion-MNIST's: its content has SHA-256 {digest}, "
            f"expected {SHA256[name]}; fetch the file again"
        )
    return content
