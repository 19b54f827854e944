"""Image files as the server's input `encoded_image`."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def encoded(files: Sequence[bytes]) -> NDArray[Any]:
    """The contents of PNG or JPEG files: (N, 1), one file to an element."""
    array = np.empty((len(files), 1), dtype=object)
    array[:, 0] = list(files)
    return array


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """One image, (height, width) or (height, width, channels), as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
