"""PNG and JPEG files to the pixels that the classifier takes.

1. The format must be PNG or JPEG. The size that the header declares is at most MAX_PIXELS, each
   edge at most MAX_EDGE, and the longer edge less than 56 times the shorter one, which would vanish
   at 28 pixels: a decompression bomb is refused before it is decoded.
2. Metadata are dropped unread, so that broken ones can't fail an image, but for the orientation of
   plain Exif: the first eXIf chunk of a PNG, the first Exif segment of a JPEG. Orientations in XMP
   or in text chunks don't count; Exif that is broken counts as none.
3. Transparent pixels are laid over black, the background of Fashion-MNIST.
4. Colour becomes grey by ITU-R 601 (0.299 R + 0.587 G + 0.114 B); of 16 bits the upper 8 are kept.
5. The longer edge becomes 28 pixels (antialiased, bicubic), the shorter one in proportion, centred
   on black, as the authors of Fashion-MNIST made theirs. 28x28 stays as it is, bit for bit.

The C++ client (cpp_client/src) makes the same pixels and refusals; tests/test_cpp_images.py holds
the two against each other. Needs numpy and Pillow, which the official container doesn't have: see
deploy/Dockerfile.
"""

import io
import struct
import warnings
import zlib

import numpy as np
import triton_python_backend_utils as utils
from PIL import Image, ImageOps

SIZE = 28
MAX_PIXELS = 50_000_000  # a photograph has 12 to 48 million
MAX_EDGE = 65_535  # as JPEG's; a decoder needs memory for each row, however short

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
NOT_WHOLE = "not a whole PNG or JPEG file"

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
            warnings.simplefilter("ignore")  # what is only odd doesn't matter
            file, exif = _split(data)
            image = Image.open(io.BytesIO(file), formats=["PNG", "JPEG"])
            _check_size(*image.size)
            return _fit(_grey(_turn_upright(image, _orientation(exif))))
    except MemoryError:
        raise  # the file isn't to blame
    except Exception as error:  # Pillow raises nearly anything on broken files
        reason = str(error) if isinstance(error, ValueError) else NOT_WHOLE
        raise ValueError(f"encoded_image {index} ({len(data)} bytes): {reason}") from error


def _check_size(width, height):
    size, shorter, longer = f"{width}x{height} pixels", *sorted((width, height))
    if shorter < 1 or width * height > MAX_PIXELS:
        raise ValueError(f"{size}, at most {MAX_PIXELS} are decoded")
    if longer > MAX_EDGE:
        raise ValueError(f"{size}, an edge has at most {MAX_EDGE}")
    if longer >= 2 * SIZE * shorter:  # half a pixel is rounded to none
        raise ValueError(
            f"{size}, of which the shorter edge vanishes at {SIZE} pixels of the longer one"
        )


# --- metadata ---


def _split(data):
    """A file without its metadata, and its Exif: b"" if there is none."""
    if data.startswith(PNG_MAGIC):
        return _split_png(data)
    if data.startswith(JPEG_MAGIC):
        return _split_jpeg(data)
    raise ValueError(NOT_WHOLE)


def _split_png(data):
    """Keeps what makes the pixels; as libpng, of IDAT the first row of chunks only."""
    kept, exif, previous, seen = [PNG_MAGIC], None, None, set()
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
            if (name == b"IHDR") != (previous is None) or (name[:1].isupper() and not keep):
                raise ValueError(NOT_WHOLE)
        kept += [data[at:end]] if keep else []
        seen.add(name)
        previous, at = name, end
    return b"".join(kept), exif or b""


def _png_chunk(data, at):
    """Name, content and end of the chunk at `at`; its checksum must be right."""
    length, name = struct.unpack_from(">I4s", data, at)
    content = data[at + 8 : at + 8 + length]
    (checksum,) = struct.unpack_from(">I", data, at + 8 + length)
    if not name.isalpha() or zlib.crc32(content, zlib.crc32(name)) != checksum:
        raise ValueError(NOT_WHOLE)
    return name, content, at + 12 + length


def _split_jpeg(data):
    """Drops comments and application segments, but for those that libjpeg reads colours by."""
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


def _is_metadata(marker, segment):
    jfif = marker == 0xE0 and len(segment) >= 14 and segment.startswith(b"JFIF\0")
    adobe = marker == 0xEE and len(segment) >= 12 and segment.startswith(b"Adobe")
    return (0xE0 <= marker <= 0xEF or marker == 0xFE) and not jfif and not adobe


def _orientation(exif):
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


def _turn_upright(image, orientation):
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


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
