"""PNG and JPEG files to the pixels that a classifier takes: in Python, and as a model in Triton.

This file stands alone: publishing copies it into the model repository, where `TritonPythonModel`
serves it. It needs numpy and Pillow, which the official container doesn't have: deploy/Dockerfile.

1. The format must be PNG or JPEG. The size that the header declares is at most MAX_PIXELS, each
   edge at most MAX_EDGE, and what it is resized to is at most MAX_PIXELS and no edge of it 0: a
   decompression bomb is refused before it is decoded.
2. Metadata are dropped unread, so that broken ones can't fail an image, but for the orientation of
   plain Exif: the first eXIf chunk of a PNG, the first Exif segment of a JPEG. Orientations in XMP
   or in text chunks don't count; Exif that is broken counts as none.
3. Transparent pixels are laid over black; of 16 bits the upper 8 are kept.
4. mode "grey": colour becomes grey by ITU-R 601 (0.299 R + 0.587 G + 0.114 B). "rgb": grey becomes
   equal parts of red, green and blue.
5. resize "stretch": to height x width. "pad": as large as fits there, centred on black, as
   PIL.ImageOps.pad. "crop": the shorter edge becomes `shorter_side`, then the centre is cut out, as
   torchvision's Resize and CenterCrop. What has the right size stays as it is, bit for bit.
6. filter "bicubic" or "bilinear", both antialiased: Pillow's.

The C++ library makes the same pixels and refusals; tests/test_cpp_images.py holds the two against
each other.
"""

import io
import json
import struct
import warnings
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

MAX_PIXELS = 50_000_000  # a photograph has 12 to 48 million
MAX_EDGE = 65_535  # as JPEG's; a decoder needs memory for each row, however short

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
NOT_WHOLE = "not a whole PNG or JPEG file"

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

TIFF_ORDERS = {  # the version's bytes swapped is a known mistake of cameras
    b"II\x2a\x00": "<",
    b"II\x00\x2a": "<",
    b"MM\x00\x2a": ">",
    b"MM\x2a\x00": ">",
}
ORIENTATION = 0x0112
INTEGER_FORMATS = {3: "H2x", 4: "I"}  # by TIFF's type: of the four bytes of an entry's value
UPRIGHT = {  # what turns an image of this orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # the orientations that swap width and height

Size = tuple[int, int]  # width, height


def decode(
    data: bytes,
    *,
    mode: str,
    resize: str,
    height: int,
    width: int,
    shorter_side: int,
    filter: str,
) -> NDArray[np.uint8]:
    """One file's pixels: (height, width) for grey, (height, width, 3) for RGB.

    The rules are those of a contract's `files`: `decode(data, **contract.files.describe())`.

    Raises:
        ValueError: the file can't be decoded, or isn't by the limits above.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is only odd doesn't matter
            image, orientation = _open(data)
            upright = image.size[::-1] if orientation in SIDEWAYS else image.size
            resized = _resized(upright, (width, height), resize, shorter_side)
            _check_resized(image.size, resized, (width, height))
            coloured = _convert(_turn_upright(image, orientation), mode)
            pixels = np.asarray(coloured.resize(resized, FILTERS[filter]), np.uint8)
    except MemoryError:
        raise  # the file isn't to blame
    except Exception as error:  # Pillow raises nearly anything on broken files
        raise ValueError(str(error) if isinstance(error, ValueError) else NOT_WHOLE) from error
    for axis, length in enumerate((height, width)):
        pixels = _centre(pixels, axis, length, resize)
    return np.ascontiguousarray(pixels)


def _open(data: bytes) -> tuple[Image.Image, int]:
    """An image whose header has been read, not its pixels, and its orientation."""
    # not by Image.open, which has a limit of its own
    if data.startswith(PNG_MAGIC):
        file, exif = _split_png(data)
        image: Image.Image = PngImageFile(io.BytesIO(file))
    elif data.startswith(JPEG_MAGIC):
        file, exif = _split_jpeg(data)
        image = JpegImageFile(io.BytesIO(file))
    else:
        raise ValueError(NOT_WHOLE)
    _check_size(image.size)
    return image, _orientation(exif)


# --- sizes ---


def _check_size(size: Size) -> None:
    width, height = size
    if min(size) < 1 or width * height > MAX_PIXELS:
        raise ValueError(f"{_pixels(size)}, at most {MAX_PIXELS} are decoded")
    if max(size) > MAX_EDGE:
        raise ValueError(f"{_pixels(size)}, an edge has at most {MAX_EDGE}")


def _resized(size: Size, target: Size, resize: str, shorter_side: int) -> Size:
    """What an image of `size` is resized to, before it is centred in `target` or cut to it."""
    width, height = size
    if resize == "crop":  # torchvision's rounding
        longer = int(shorter_side * max(size) / min(size))
        return (shorter_side, longer) if width <= height else (longer, shorter_side)
    if resize == "pad" and width / height > target[0] / target[1]:  # Pillow's rounding
        return target[0], round(height / width * target[0])
    if resize == "pad":
        return round(width / height * target[1]), target[1]
    return target


def _check_resized(size: Size, resized: Size, target: Size) -> None:
    width, height = resized
    if min(resized) < 1:
        raise ValueError(f"{_pixels(size)}, of which an edge vanishes at {_by(target)}")
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{_pixels(size)}, which would become {_pixels(resized)}, at most {MAX_PIXELS}"
        )


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _pixels(size: Size) -> str:
    return f"{_by(size)} pixels"


def _centre(pixels: NDArray[np.uint8], axis: int, length: int, resize: str) -> NDArray[np.uint8]:
    """Cuts out the centre along an axis, or adds black on both sides, up to `length`."""
    missing = length - pixels.shape[axis]
    if missing > 0:
        # an odd one more comes where Pillow (pad) or torchvision (crop) puts it
        before = round(missing / 2) if resize == "pad" else missing // 2
        widths = [(0, 0)] * pixels.ndim
        widths[axis] = (before, missing - before)
        return np.pad(pixels, widths)
    start = round(-missing / 2)
    return pixels.take(range(start, start + length), axis)


# --- metadata ---


def _split_png(data: bytes) -> tuple[bytes, bytes]:
    """A file without its metadata, and its Exif, b"" if there is none.

    Keeps what makes the pixels; as libpng, of IDAT the first row of chunks only.
    """
    kept, exif, previous = [PNG_MAGIC], None, b""
    seen: set[bytes] = set()
    at = len(PNG_MAGIC)
    while previous != b"IEND":
        name, content, end = _png_chunk(data, at)
        if name == b"eXIf" and exif is None:
            exif = content
        if name in (b"PLTE", b"tRNS"):
            keep = b"IDAT" not in seen
        elif name == b"IDAT":
            keep = name not in seen or previous == name
        else:
            keep = name in (b"IHDR", b"IEND")
            if (name == b"IHDR") != (not previous) or (name[:1].isupper() and not keep):
                raise ValueError(NOT_WHOLE)
        kept += [data[at:end]] if keep else []
        seen.add(name)
        previous, at = name, end
    return b"".join(kept), exif or b""


def _png_chunk(data: bytes, at: int) -> tuple[bytes, bytes, int]:
    """Name, content and end of the chunk at `at`; its checksum must be right."""
    length, name = struct.unpack_from(">I4s", data, at)
    content = data[at + 8 : at + 8 + length]
    (checksum,) = struct.unpack_from(">I", data, at + 8 + length)
    if not name.isalpha() or zlib.crc32(content, zlib.crc32(name)) != checksum:
        raise ValueError(NOT_WHOLE)
    return name, content, at + 12 + length


def _split_jpeg(data: bytes) -> tuple[bytes, bytes]:
    """As _split_png: drops comments and application segments that libjpeg reads no colours by."""
    kept, exif, at = [data[:2]], None, 2
    while True:
        fill, marker, length = struct.unpack_from(">BBH", data, at)
        if fill != 0xFF:
            raise ValueError(NOT_WHOLE)
        if marker == 0xFF:  # more of them may fill up
            at += 1
            continue
        if marker == 0xDA or marker < 0xC0 or 0xD0 <= marker <= 0xD9:  # the scan, or no segment
            return b"".join([*kept, data[at:]]), exif or b""
        end = at + 2 + max(length, 2)  # libjpeg forgives less than the length's own two bytes
        segment = data[at + 4 : end]
        if marker == 0xE1 and segment.startswith(b"Exif\0\0") and exif is None:
            exif = segment[6:]
        if not _is_metadata(marker, segment):
            kept.append(data[at:end])
        at = end


def _is_metadata(marker: int, segment: bytes) -> bool:
    jfif = marker == 0xE0 and len(segment) >= 14 and segment.startswith(b"JFIF\0")
    adobe = marker == 0xEE and len(segment) >= 12 and segment.startswith(b"Adobe")
    return (0xE0 <= marker <= 0xEF or marker == 0xFE) and not jfif and not adobe


def _orientation(exif: bytes) -> int:
    """The number in the first orientation tag: 1 to 8 where it is right; 1 where none is whole."""
    order = TIFF_ORDERS.get(exif[:4])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * entries, 12):
            tag, kind, count, value = struct.unpack_from(order + "HHI4s", exif, entry)
            if tag == ORIENTATION:
                whole = count == 1 and kind in INTEGER_FORMATS
                return struct.unpack(order + INTEGER_FORMATS[kind], value)[0] if whole else 1
    except struct.error:  # it ends before
        pass
    return 1


# --- pixels ---


def _turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _convert(image: Image.Image, mode: str) -> Image.Image:
    """To 8 bits of grey ("L") or "RGB"."""
    if image.mode.startswith("I"):  # 16 bits of grey
        image = Image.fromarray((np.asarray(image, np.uint32) >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        black = Image.new("RGBA", image.size, "black")
        image = Image.alpha_composite(black, image.convert("RGBA"))
    if mode == "rgb":
        return image.convert("RGB")
    return image if image.mode == "L" else image.convert("RGB").convert("L")


# --- the model in Triton ---


class TritonPythonModel:
    """What Triton's python backend makes of every instance of the model, and calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Takes the rules from the `parameters` in config.pbtxt."""
        parameters = json.loads(args["model_config"])["parameters"]
        texts = {name: value["string_value"] for name, value in parameters.items()}
        numbers = {name: int(texts[name]) for name in ("height", "width", "shorter_side")}
        self._rules: dict[str, Any] = {
            **{name: texts[name] for name in ("mode", "resize", "filter")},
            **numbers,
        }

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        """A file that can't be decoded fails its own request, not the others of the batch."""
        import triton_python_backend_utils as utils  # type: ignore[import-not-found]

        files = utils.get_input_tensor_by_name(request, "encoded_image").as_numpy().reshape(-1)
        try:
            pixels = np.stack([self._decode(data, index) for index, data in enumerate(files)])
        except ValueError as error:
            failure = utils.TritonError(str(error), utils.TritonError.INVALID_ARG)
            return utils.InferenceResponse(error=failure)
        return utils.InferenceResponse([utils.Tensor("pixels", pixels)])

    def _decode(self, data: bytes, index: int) -> NDArray[np.uint8]:
        try:
            return decode(data, **self._rules)
        except ValueError as error:
            raise ValueError(f"encoded_image {index} ({len(data)} bytes): {error}") from error
