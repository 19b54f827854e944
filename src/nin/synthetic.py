"""Images unlike Fashion-MNIST's, on which an export must be right all the same."""

import numpy as np
from numpy.typing import NDArray

from nin.contract import FASHION_MNIST

Image = NDArray[np.uint8]

_SHAPE = FASHION_MNIST.input.shape
_LEVELS = (0, 1, 64, 127, 192, 210, 230, 254, 255)
_PARTS: dict[str, tuple[int | slice, int | slice]] = {
    "top left corner": np.s_[0, 0],
    "top right corner": np.s_[0, -1],
    "bottom left corner": np.s_[-1, 0],
    "bottom right corner": np.s_[-1, -1],
    "top edge": np.s_[0, :],
    "bottom edge": np.s_[-1, :],
    "left edge": np.s_[:, 0],
    "right edge": np.s_[:, -1],
}


def synthetic_images(samples: NDArray[np.uint8], seed: int) -> dict[str, Image]:
    """Images by what they show.

    Args:
        samples: (N, 28, 28), real images; the first few are inverted and shifted.
        seed: of the noise.
    """
    images = {f"all {level}": np.full(_SHAPE, level, np.uint8) for level in _LEVELS}
    for where, part in _PARTS.items():
        for ground in (0, 255):
            image = np.full(_SHAPE, ground, np.uint8)
            image[part] = 255 - ground
            images[f"{where} alone on {ground}"] = image
    return {**images, **_patterns(), **_noise(seed), **_changed(samples[:4])}


def _patterns() -> dict[str, Image]:
    """Gradients, checkerboards and stripes."""
    rows, columns = np.indices(_SHAPE)
    ramp = np.linspace(0, 255, _SHAPE[1]).astype(np.uint8)
    right = np.broadcast_to(ramp, _SHAPE)
    patterns = {
        "gradient to the right": right,
        "gradient to the left": right[:, ::-1],
        "gradient downwards": right.T,
        "gradient upwards": right.T[::-1],
        "every value of a byte": np.arange(right.size).reshape(_SHAPE) % 256,
        "checkerboard": (rows + columns) % 2 * 255,
        "inverted checkerboard": (rows + columns + 1) % 2 * 255,
        "rows": rows % 2 * 255,
        "columns": columns % 2 * 255,
    }
    return {name: np.ascontiguousarray(image, np.uint8) for name, image in patterns.items()}


def _noise(seed: int) -> dict[str, Image]:
    random = np.random.default_rng(seed)

    def noise(low: int, high: int) -> Image:
        return random.integers(low, high, _SHAPE, np.uint8, endpoint=True)

    return {
        "noise": noise(0, 255),
        "more noise": noise(0, 255),
        "black and white noise": noise(0, 1) * np.uint8(255),
        "dark noise": noise(0, 15),
        "bright noise": noise(240, 255),
    }


def _changed(samples: NDArray[np.uint8]) -> dict[str, Image]:
    """Real images inverted, and shifted out of the picture in each direction."""
    images = {f"inverted sample {i}": 255 - image for i, image in enumerate(samples)}
    for axis, name in ((0, "downwards"), (1, "to the right")):
        for distance in (-9, 9):
            shifted = np.roll(samples[0], distance, axis)
            gap = slice(0, distance) if distance > 0 else slice(distance, None)
            np.moveaxis(shifted, axis, 0)[gap] = 0
            images[f"sample 0 shifted {name} by {distance}"] = shifted
    return images
