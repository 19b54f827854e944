"""PNG and JPEG files to the pixels that the classifier takes.

1. The format must be PNG or JPEG, and the size that the header declares at most MAX_PIXELS: a
   decompression bomb is refused before it is decoded.
2. The orientation that the EXIF tag gives is applied.
3. Transparent pixels are laid over black, the background of Fashion-MNIST.
4. Colour becomes grey by ITU-R 601 (0.299 R + 0.587 G + 0.114 B); of 16 bits the upper 8 are kept.
5. The longer edge becomes 28 pixels (antialiased, bicubic), the shorter one in proportion, centred
   on black, as the authors of Fashion-MNIST made theirs. 28x28 stays as it is, bit for bit.

Needs numpy and Pillow, which the official container doesn't have: see deploy/Dockerfile.
"""

import io
import warnings

import numpy as np
import triton_python_backend_utils as utils
from PIL import Image, ImageOps

SIZE = 28
MAX_PIXELS = 50_000_000  # a photograph has 12 to 48 million

# our own limit, below, raises before anything is decoded; Pillow's only warns
Image.MAX_IMAGE_PIXELS = None


class TritonPythonModel:
    def execute(self, requests):
        return [_respond(request) for request in requests]


def _respond(request):
    """A file that can't be decoded fails its own request, not the others of the batch."""
    files = utils.get_input_tensor_by_name(request, "encoded_image").as_numpy().reshape(-1)
    try:
        pixels = np.stack([_decode(data, index) for index, data in enumerate(files)])
    except ValueError as error:
        failure = utils.TritonError(str(error), utils.TritonError.INVALID_ARG)
        return utils.InferenceResponse(error=failure)
    return utils.InferenceResponse([utils.Tensor("pixels", pixels)])


def _decode(data, index):
    """One file's bytes to pixels (28, 28) uint8. Raises ValueError with what is wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata doesn't matter
            image = Image.open(io.BytesIO(data), formats=["PNG", "JPEG"])
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width}x{height} pixels, at most {MAX_PIXELS} are decoded")
            return _fit(_grey(ImageOps.exif_transpose(image)))
    except Exception as error:  # Pillow raises nearly anything on broken files
        reason = str(error) if isinstance(error, ValueError) else "not a whole PNG or JPEG file"
        raise ValueError(f"encoded_image {index} ({len(data)} bytes): {reason}") from error


def _grey(image):
    if image.mode.startswith("I"):  # 16 bits
        return Image.fromarray((np.asarray(image, np.uint32) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), colour)
    return image.convert("RGB").convert("L") if image.mode != "L" else image


def _fit(image):
    if image.size != (SIZE, SIZE):
        image = ImageOps.pad(image, (SIZE, SIZE), Image.Resampling.BICUBIC, color=0)
    return np.asarray(image, np.uint8)
