"""PNG and JPEG files to the pixels that a classifier takes: in Python, and as a model in Triton.

This file stands alone: publishing copies it into the model repository, where `TritonPythonModel`
serves it. It needs numpy and Pillow, which the official container doesn't have: deploy/Dockerfile.

1. The format must be PNG or JPEG. The size that the header declares is at most MAX_PIXELS, each
   edge at most MAX_EDGE, and what it is resized to is at most MAX_PIXELS and no edge of it 0: a
   decompression bomb is refused before it is decoded.
2. The data must be whole. Of a PNG the compressed samples must end rightly, with at least all rows
   and at most SURPLUS bytes more. A JPEG must be baseline, extended or progressive in Huffman's
   code, with all scans and restart markers, up to its end; where a scan's data end early, decoding
   them shows it, for what comes behind them then changes the pixels. Damage within a scan that
   doesn't is beyond what can be told: such a scan is what libjpeg makes of it.
3. Metadata are dropped unread, so that broken ones can't fail an image, but for the orientation of
   plain Exif: the first eXIf chunk of a PNG, the first Exif segment of a JPEG. Orientations in XMP
   or in text chunks don't count; Exif that is broken counts as none.
4. Transparent pixels are laid over black; of 16 bits the upper 8 are kept.
5. mode "grey": colour becomes grey by ITU-R 601 (0.299 R + 0.587 G + 0.114 B). "rgb": grey becomes
   equal parts of red, green and blue.
6. resize "stretch": to height x width. "pad": as large as fits there, centred on black, as
   PIL.ImageOps.pad. "crop": the shorter edge becomes `shorter_side`, then the centre is cut out, as
   torchvision's Resize and CenterCrop. What has the right size stays as it is, bit for bit.
7. filter "bicubic" or "bilinear", both antialiased: Pillow's.

The C++ library makes the same pixels and refusals; tests/test_cpp_images.py holds the two against
each other.
"""

import io
import json
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from functools import partial
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

MAX_PIXELS = 50_000_000  # a photograph has 12 to 48 million
MAX_EDGE = 65_535  # as JPEG's; a decoder needs memory for each row, however short

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
NOT_WHOLE = "not a whole PNG or JPEG file"

PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
PNG_CRITICAL = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
PALETTE = 3  # the colour type
ADAM7 = (  # the passes of an interlaced PNG: first column and row, steps
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
SURPLUS = 1 << 16  # bytes behind the samples, which some programs write; more may be a bomb
STEP = 1 << 16  # bytes that are inflated at once

FRAMES = (0xC0, 0xC1, 0xC2)  # of JPEG: baseline, extended, progressive; all by Huffman's code
OTHERS = (0xC4, 0xDB, 0xDD, 0xE0, 0xEE)  # that libjpeg reads: tables, intervals, colours
RESTARTS = bytes(range(0xD0, 0xD8))
MAX_SCANS = 500  # as TurboJPEG's: each one takes time
BEHIND = bytes.fromhex("fe5ac3a596693c0f")  # nothing like the zeros that libjpeg makes up
END_OF_SCAN = re.compile(rb"\xff[^\0\xff\xd0-\xd7]")
RESTART = re.compile(rb"\xff([\xd0-\xd7])")

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
            image, orientation, check_data = _open(data)
            upright = image.size[::-1] if orientation in SIDEWAYS else image.size
            resized = _resized(upright, (width, height), resize, shorter_side)
            _check_resized(image.size, resized, (width, height))
            check_data()
            coloured = _convert(_turn_upright(image, orientation), mode)
            pixels = np.asarray(coloured.resize(resized, FILTERS[filter]), np.uint8)
    except MemoryError:
        raise  # the file isn't to blame
    except Exception as error:  # Pillow raises nearly anything on broken files
        raise ValueError(str(error) if isinstance(error, ValueError) else NOT_WHOLE) from error
    for axis, length in enumerate((height, width)):
        pixels = _centre(pixels, axis, length, resize)
    return np.ascontiguousarray(pixels)


def _open(data: bytes) -> tuple[Image.Image, int, Callable[[], None]]:
    """An image whose header has been read, not its pixels; its orientation; what checks its data.

    The data are checked last: a bomb is refused by its size.
    """
    # not by Image.open, which has a limit of its own
    if data.startswith(PNG_MAGIC):
        file, exif, header, samples = _split_png(data)
        image: Image.Image = PngImageFile(io.BytesIO(file))
        check = partial(_check_samples, header, samples)
    elif data.startswith(JPEG_MAGIC):
        file, exif = _split_jpeg(data)
        image = JpegImageFile(io.BytesIO(file))
        check = partial(_check_scans, image, data)
    else:
        raise ValueError(NOT_WHOLE)
    _check_size(image.size)
    return image, _orientation(exif), check


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


def _split_png(data: bytes) -> tuple[bytes, bytes, bytes, list[bytes]]:
    """A file without its metadata, its Exif, b"" if there is none, its IHDR and its IDAT.

    Keeps what makes the pixels; as libpng, of IDAT the first row of chunks only.
    """
    chunks = _png_chunks(data)
    names = [name for name, _ in chunks]
    critical = {name for name in names if name[:1].isupper()}
    if names.count(b"IHDR") != 1 or names.count(b"PLTE") > 1 or not critical <= PNG_CRITICAL:
        raise ValueError(NOT_WHOLE)
    if names[0] != b"IHDR" or b"IDAT" not in names:
        raise ValueError(NOT_WHOLE)
    start = names.index(b"IDAT")
    header = chunks[0][1]
    colours = [(name, part) for name, part in chunks[:start] if name in (b"PLTE", b"tRNS")]
    samples = [part for _, part in takewhile(lambda chunk: chunk[0] == b"IDAT", chunks[start:])]
    _check_header(header, dict(colours).get(b"PLTE", b""))
    kept = [_chunk(b"IHDR", header)]
    kept += [_chunk(name, part[:256] if name == b"tRNS" else part) for name, part in colours]
    kept += [_chunk(b"IDAT", part) for part in samples]
    exif = next((part for name, part in chunks if name == b"eXIf"), b"")
    return b"".join([PNG_MAGIC, *kept, _chunk(b"IEND", b"")]), exif, header, samples


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Name and content of each chunk up to IEND; their checksums must be right."""
    chunks: list[tuple[bytes, bytes]] = []
    at = len(PNG_MAGIC)
    while not chunks or chunks[-1][0] != b"IEND":
        length, name = struct.unpack_from(">I4s", data, at)
        content = data[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, at + 8 + length)
        if not name.isalpha() or zlib.crc32(content, zlib.crc32(name)) != checksum:
            raise ValueError(NOT_WHOLE)
        chunks.append((name, content))
        at += 12 + length
    return chunks


def _chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(name))
    return struct.pack(">I4s", len(content), name) + content + struct.pack(">I", checksum)


def _check_header(header: bytes, palette: bytes) -> None:
    """Pillow checks neither; the bits of a sample it does."""
    if len(header) != 13:
        raise ValueError(NOT_WHOLE)
    colour, compression, filtering, interlacing = header[9:]
    whole = 3 <= len(palette) <= 768 and len(palette) % 3 == 0
    if compression or filtering or interlacing > 1 or (colour == PALETTE and not whole):
        raise ValueError(NOT_WHOLE)


def _check_samples(header: bytes, parts: list[bytes]) -> None:
    """What is compressed must be whole: Pillow leaves rows that are missing black."""
    least, size = _size_of_samples(header), 0
    inflater = zlib.decompressobj()
    for rest in (part[at : at + STEP] for part in parts for at in range(0, len(part), STEP)):
        rows = b""
        while rest or len(rows) == STEP:
            rows = inflater.decompress(rest, STEP)
            rest = inflater.unconsumed_tail
            size += len(rows)
            if size > least + SURPLUS or (inflater.eof and size < least):
                raise ValueError(NOT_WHOLE)
            if inflater.eof:
                return
    raise ValueError(NOT_WHOLE)


def _size_of_samples(header: bytes) -> int:
    """Bytes of all rows, each with that of its filter."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    size = 0
    for x, y, dx, dy in ADAM7 if interlaced else [(0, 0, 1, 1)]:
        columns, rows = len(range(x, width, dx)), len(range(y, height, dy))
        size += rows * (1 + (columns * depth * PNG_CHANNELS[colour] + 7) // 8) if columns else 0
    return size


def _split_jpeg(data: bytes, behind: bytes = b"") -> tuple[bytes, bytes]:
    """A file without its metadata, and its Exif; with `behind` at the end of all that is coded.

    Keeps what makes the pixels, up to the end of the image: libjpeg has nothing to skip.
    """
    kept, exif, frame, interval, scans, at = [data[:2]], b"", None, 0, 0, 2
    while True:
        marker, segment, at = _jpeg_segment(data, at)
        content = segment[4:]
        if marker == 0xD9:
            break
        if marker == 0xE1 and content.startswith(b"Exif\0\0") and not scans:
            exif = exif or content
        if _is_metadata(marker, content):
            continue
        kept.append(segment)
        if marker in FRAMES and frame is None:
            frame = _Frame(content, progressive=marker == 0xC2)
        elif marker == 0xDD:
            (interval,) = struct.unpack(">H", content)
        elif marker == 0xDA and frame is not None and scans < MAX_SCANS:
            scan, at = _jpeg_scan(data, at)
            _check_restarts(scan, frame.add(content), interval)
            kept += [RESTART.sub(behind + rb"\g<0>", scan), behind]
            scans += 1
        elif marker not in OTHERS:
            raise ValueError(NOT_WHOLE)
    if frame is None or not frame.is_whole():
        raise ValueError(NOT_WHOLE)
    return b"".join([*kept, data[at - 2 : at]]), exif[6:]


def _jpeg_segment(data: bytes, at: int) -> tuple[int, bytes, int]:
    """The marker at `at`, its segment, which begins with it, and where that ends."""
    start = re.compile(rb"\xff+").match(data, at)
    if start is None:
        raise ValueError(NOT_WHOLE)
    at = start.end() - 1  # more of them may fill up
    marker = data[at + 1]
    if marker == 0xD9:
        return marker, data[at : at + 2], at + 2
    (length,) = struct.unpack_from(">H", data, at + 2)
    end = at + 2 + max(length, 2)  # libjpeg forgives less than the length's own two bytes
    return marker, data[at:end], end


def _jpeg_scan(data: bytes, at: int) -> tuple[bytes, int]:
    """What is coded at `at`, without bytes that only fill up, and where it ends."""
    end = END_OF_SCAN.search(data, at)
    if end is None:
        raise ValueError(NOT_WHOLE)
    scan = re.sub(rb"\xff\xff+", b"\xff", data[at : end.start()])
    return scan.rstrip(b"\xff"), end.start()


def _check_restarts(scan: bytes, units: int, interval: int) -> None:
    expected = (units - 1) // interval if interval else 0
    found = b"".join(RESTART.findall(scan))
    if len(found) != expected or found != (RESTARTS * (expected // 8 + 1))[:expected]:
        raise ValueError(NOT_WHOLE)


class _Frame:
    """What a JPEG's frame declares, and what its scans have brought of it."""

    def __init__(self, content: bytes, *, progressive: bool) -> None:
        _, self._height, self._width, count = struct.unpack_from(">BHHB", content)
        components = [content[at : at + 3] for at in range(6, len(content), 3)]
        self._factors = {name: (both >> 4, both & 15) for name, both, _ in components}
        if len(self._factors) != count:
            raise ValueError(NOT_WHOLE)
        self._progressive = progressive
        # of each component's coefficients the lowest bit that is known
        self._bits: dict[int, list[int | None]] = {name: [None] * 64 for name in self._factors}

    def add(self, scan: bytes) -> int:
        """Adds a scan by its header; returns how many units between restarts it has to have."""
        *_, first, last, bits = scan
        names = scan[1:-3:2]
        if not self._progressive:
            first, last, bits = 0, 63, 0
        for name in names:
            for i in range(first, last + 1):
                known = self._bits[name][i]
                if bits >> 4 != (known or 0) or (known is not None and not bits):
                    raise ValueError(NOT_WHOLE)
                self._bits[name][i] = bits & 15
        return self._units(names)

    def is_whole(self) -> bool:
        return all(bit == 0 for bits in self._bits.values() for bit in bits)

    def _units(self, names: bytes) -> int:
        across, down = self._factors[names[0]] if len(names) == 1 else (1, 1)
        most_across, most_down = map(max, zip(*self._factors.values(), strict=True))
        columns = -(-self._width * across // (8 * most_across))
        rows = -(-self._height * down // (8 * most_down))
        return int(columns * rows)


def _check_scans(image: Image.Image, data: bytes) -> None:
    """Where a scan's data end early, what comes behind them changes the pixels.

    Pillow says nothing of it: libjpeg only warns.
    """
    file, _ = _split_jpeg(data, BEHIND)
    if ImageChops.difference(image, JpegImageFile(io.BytesIO(file))).getbbox() is not None:
        raise ValueError(NOT_WHOLE)


def _is_metadata(marker: int, content: bytes) -> bool:
    jfif = marker == 0xE0 and len(content) >= 14 and content.startswith(b"JFIF\0")
    adobe = marker == 0xEE and len(content) >= 12 and content.startswith(b"Adobe")
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
