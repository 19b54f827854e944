"""Images as files: PNG, and IDX, in which datasets come as one array."""

import gzip
import io
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nin.errors import InputError

GZIP = b"\x1f\x8b"
BROKEN_GZIP = (OSError, EOFError, zlib.error)  # what gzip raises

# The third byte of an IDX file; two zeros come before it, the number of dimensions after it.
_IDX_TYPES = {
    0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64",
}  # fmt: skip


def encoded(files: Sequence[bytes]) -> NDArray[Any]:
    """The contents of PNG or JPEG files as a server takes them: (N, 1), one file to an element."""
    array = np.empty((len(files), 1), dtype=object)
    array[:, 0] = list(files)
    return array


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """One image, (height, width) or (height, width, 3), as a PNG file."""
    from PIL import Image  # only here, so that the client needs no Pillow

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def is_idx(data: bytes) -> bool:
    """Whether bytes are an IDX file of whatever kind, or gzip, in which no other image comes here.

    No PNG or JPEG file begins with a zero.
    """
    return data[:2] == GZIP or idx_kind(data) is not None


def parse_idx(data: bytes, name: str, item: tuple[int, ...]) -> NDArray[np.uint8]:
    """The items of an IDX file's bytes, plain or gzipped: uint8 (N, *item), N at least 1.

    Args:
        name: the file's, for errors.
        item: the shape of one image, or () for labels.

    Raises:
        InputError: they aren't one.
    """
    try:
        content = _unpack(data, item) if data[:2] == GZIP else data
    except BROKEN_GZIP as error:
        raise InputError(f"can't decompress {name}: {error}; fetch the file again") from error
    count = _idx_count(content, name, item)
    header, what = 4 * (2 + len(item)), "images" if item else "labels"
    items = np.frombuffer(content, np.uint8, offset=header)
    size = int(np.prod(item, dtype=int))
    if len(items) != count * size:
        raise InputError(
            f"{name} promises {count} {what}, {header + count * size} bytes; "
            f"it has {'more' if len(items) > count * size else f'{len(content)} bytes'}"
        )
    if count == 0:
        raise InputError(f"{name} holds no {what}")
    return items.reshape(count, *item)


def _unpack(data: bytes, item: tuple[int, ...]) -> bytes:
    """What the header promises, and a byte more: a small file may hold gigabytes."""
    header = 4 * (2 + len(item))
    with gzip.open(io.BytesIO(data)) as file:
        content = bytearray(file.read(header))
        _, shape = idx_kind(content) or ("", ())
        most = header + math.prod(shape) + 1
        # in parts: it may hold less than it promises too
        while shape[1:] == item and (part := file.read(min(most - len(content), 1 << 20))):
            content += part
    return bytes(content)


def _idx_count(content: bytes, name: str, item: tuple[int, ...]) -> int:
    """How many items an IDX file promises. Raises InputError where they aren't of that shape."""
    kind = idx_kind(content)
    dimensions = 1 + len(item)
    if kind is None:
        raise InputError(
            f"{name} isn't an IDX file: it starts with {content[:4].hex(' ') or 'nothing'}, "
            f"expected 00 00 08 {dimensions:02x} (uint8, {dimensions} dimensions)"
        )
    dtype, shape = kind
    if dtype != "uint8" or len(shape) != dimensions or shape[1:] != item:
        likely = " (labels?)" if len(shape) == 1 else ""
        what = "images" if item else "labels"
        expected = ", ".join(["count", *map(str, item)])
        raise InputError(
            f"{name} is an IDX file of {dtype} {shape}{likely}, expected {what}, uint8 ({expected})"
        )
    return shape[0]


def idx_kind(data: bytes | bytearray) -> tuple[str, tuple[int, ...]] | None:
    """The dtype and the shape that an IDX file promises; None if it isn't one."""
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _IDX_TYPES or data[3] == 0:
        return None
    header = data[4 : 4 + 4 * data[3]]
    shape = np.frombuffer(header.ljust(4 * data[3], b"\0"), ">u4")  # zeros where it is cut off
    return _IDX_TYPES[data[2]], tuple(shape.tolist())


def encode_idx(array: NDArray[np.uint8] | NDArray[np.float32]) -> bytes:
    """An IDX file of an array of any shape."""
    kind, dtype = (0x08, ">u1") if array.dtype == np.uint8 else (0x0D, ">f4")
    header = bytes([0, 0, kind, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(dtype).tobytes()
