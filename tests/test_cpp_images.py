"""The C++ client makes of an image file the same pixels as Python, and as the server's decoder.

Bit for bit: of JPEG as well, since both decode it by libjpeg-turbo.
"""

import io
import re
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from nin.contract import Files
from nin.decoder import decode as decode_as

Pixels = NDArray[np.uint8]
Decode = Callable[..., Pixels]
Dump = Callable[..., Pixels]

FITTED = Files("grey", "pad", 28, 28, 0, "bicubic")  # how Fashion-MNIST was made
RULES = (
    FITTED,
    Files("rgb", "crop", 20, 32, 25, "bilinear"),
    Files("rgb", "stretch", 9, 14, 0, "bicubic"),
)

SIZES = [
    *((1, 1), (28, 28), (27, 28), (28, 27), (29, 31), (56, 56), (55, 1), (1, 55), (7, 5)),
    *((8, 8), (13, 200), (500, 9), (9, 500), (101, 77), (341, 256)),
]
KINDS = {  # colour type: the bits that a sample may have
    0: (1, 2, 4, 8, 16),  # grey
    2: (8, 16),  # RGB
    3: (1, 2, 4, 8),  # palette
    4: (8, 16),  # grey and alpha
    6: (8, 16),  # RGB and alpha
}
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
ADAM7 = [  # of interlaced PNGs: first column and row, steps
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
]
REASONS = "truncated|damaged|not a PNG or JPEG file|expected a PNG or JPEG file"


@pytest.fixture(scope="module")
def decode() -> Decode:
    def call(file: bytes, rules: Files = FITTED) -> Pixels:
        return decode_as(file, **rules.describe())

    return call


def dump_command(cpp_build: Path, rules: Files, paths: Iterable[Path]) -> list[str]:
    fields = (rules.mode, rules.resize, rules.height, rules.width, rules.shorter_side, rules.filter)
    return [*map(str, (cpp_build / "tests" / "dump_pixels", *fields, *paths))]


@pytest.fixture
def dump(cpp_build: Path, tmp_path: Path) -> Dump:
    """The pixels (N, height, width[, 3]) that the C++ client makes of N files."""

    def call(files: Iterable[bytes], rules: Files = FITTED) -> Pixels:
        paths = []
        for i, file in enumerate(files):
            paths.append(tmp_path / str(i))
            paths[-1].write_bytes(file)
        ended = subprocess.run(dump_command(cpp_build, rules, paths), capture_output=True)
        assert ended.returncode == 0, ended.stderr.decode()
        shape = (rules.height, rules.width) + (3,) * (rules.mode == "rgb")
        return np.frombuffer(ended.stdout, np.uint8).reshape(-1, *shape)

    return call


def refusal(cpp_build: Path, path: Path, file: bytes, rules: Files = FITTED) -> str:
    path.write_bytes(file)
    ended = subprocess.run(dump_command(cpp_build, rules, [path]), capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: {path}: ")
    assert ended.stderr.count("\n") == 1
    return ended.stderr


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def noise_png(
    size: tuple[int, int],
    *,
    colour: int,
    depth: int,
    random: np.random.Generator,
    interlaced: bool = False,
    chunks: bytes = b"",
) -> bytes:
    """A PNG file of random samples, each row filtered at random: modes that Pillow can't write."""
    width, height = size
    rows = b""
    for x, y, dx, dy in ADAM7 if interlaced else [(0, 0, 1, 1)]:
        columns = len(range(x, width, dx))
        row_bytes = (columns * depth * CHANNELS[colour] + 7) // 8
        for _ in range(y, height if columns else 0, dy):
            rows += bytes([random.integers(5)]) + random.bytes(row_bytes)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    data = zlib.compress(rows, 1)
    half = len(data) // 2  # two IDAT, as large files have
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunks,
            chunk(b"IDAT", data[:half]),
            chunk(b"IDAT", data[half:]),
            chunk(b"IEND", b""),
        )
    )


def palette(random: np.random.Generator, colours: int) -> bytes:
    return chunk(b"PLTE", random.bytes(3 * colours))


def assert_equal(dump: Dump, decode: Decode, files: dict[str, bytes]) -> None:
    """By all rules."""
    for rules in RULES:
        for name, found, file in zip(
            files, dump(files.values(), rules), files.values(), strict=True
        ):
            right = decode(file, rules)
            np.testing.assert_array_equal(found, right, err_msg=f"{name}, {rules}")


def expected(image: Image.Image, rules: Files) -> Pixels:
    """An opaque image's pixels by Pillow and torchvision themselves."""
    image = image.convert("RGB")
    if rules.mode == "grey":
        image = image.convert("L")
    size = (rules.width, rules.height)
    if rules.resize == "crop":
        image = transforms.resize(image, rules.shorter_side, InterpolationMode(rules.filter))
        image = transforms.center_crop(image, (rules.height, rules.width))
    elif rules.resize == "pad":
        image = ImageOps.pad(image, size, Image.Resampling[rules.filter.upper()], color=0)
    else:
        image = image.resize(size, Image.Resampling[rules.filter.upper()])
    return np.asarray(image)


@pytest.mark.parametrize("filter_", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("mode", ["grey", "rgb"])
def test_the_pixels_are_those_of_pillow_and_torchvision(
    dump: Dump, mode: Any, resize: Any, filter_: Any
) -> None:
    """Both ways up, and where a crop is larger than the image in one direction or both."""
    random = np.random.default_rng(0)
    targets = ((28, 28, 28), (32, 20, 25), (17, 40, 21), (24, 24, 40), (30, 33, 12), (3, 12, 5))
    for height, width, shorter in targets:
        rules = Files(mode, resize, height, width, shorter * (resize == "crop"), filter_)
        sizes = [*random.integers(1, 90, (40, 2)).tolist(), (height, width), (width, height)]
        sizes += [(shorter, shorter), (2 * height, 2 * width), (2 * height, width)]
        images = [
            Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8))
            for size in sizes
            if max(size) < 6 * min(size)
        ]
        for image, found in zip(images, dump(map(saved, images), rules), strict=True):
            right = expected(image, rules)
            np.testing.assert_array_equal(found, right, err_msg=f"{image.size}, {rules}")


def test_a_photograph_for_a_network_of_imagenet(dump: Dump) -> None:
    rules = Files("rgb", "crop", 224, 224, 256, "bilinear")
    images = [waves(size) for size in ((300, 451), (451, 300), (100, 90), (1200, 1601))]
    for image, found in zip(images, dump(map(saved, images), rules), strict=True):
        np.testing.assert_array_equal(found, expected(image, rules))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    ("colour", "depth"), [(colour, depth) for colour, depths in KINDS.items() for depth in depths]
)
def test_png_of_every_kind_and_size(
    dump: Dump, decode: Decode, colour: int, depth: int, interlaced: bool
) -> None:
    random = np.random.default_rng(100 * colour + depth)
    files = {
        f"{size}": noise_png(
            size,
            colour=colour,
            depth=depth,
            random=random,
            interlaced=interlaced,
            chunks=palette(random, 2**depth) if colour == 3 else b"",
        )
        for size in SIZES
    }
    assert_equal(dump, decode, files)


def test_png_with_transparent_colours(dump: Dump, decode: Decode) -> None:
    random = np.random.default_rng(0)
    files = {}
    for depth in KINDS[0]:
        for key in (0, 1, 2, 3, 15, 0x55, 0xAA, 0xFF, 0x1234, 0xFFFF):
            files[f"grey {depth} {key}"] = noise_png(
                (40, 30),
                colour=0,
                depth=depth,
                random=random,
                chunks=chunk(b"tRNS", struct.pack(">H", key)),
            )
    for depth in KINDS[3]:
        for alphas in range(0, 2**depth + 1, max(1, 2**depth // 8)):
            files[f"palette {depth} {alphas}"] = noise_png(
                (40, 30),
                colour=3,
                depth=depth,
                random=random,
                # half of the indices lie beyond the palette
                chunks=palette(random, 2 ** (depth - 1)) + chunk(b"tRNS", random.bytes(alphas)),
            )
    assert_equal(dump, decode, files)


@pytest.mark.parametrize("depth", [8, 16])
def test_png_with_a_transparent_rgb_colour(dump: Dump, decode: Decode, depth: int) -> None:
    """One that occurs: with noise alone, it would not."""
    random = np.random.default_rng(depth)
    colours = random.integers(0, 256, (4, 3), np.uint8)
    samples = colours[random.integers(0, 4, (30, 40))].repeat(depth // 8, axis=2)
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    start = b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", 40, 30, depth, 2, 0, 0, 0)
    )
    end = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    keys = [*colours, [1, 2, 3]]
    files = {
        f"{key} {upper}": start
        + chunk(b"tRNS", b"".join(bytes([key[i] if upper else 0, key[i]]) for i in range(3)))
        + end
        for key in keys
        for upper in (False, True)
    }
    assert_equal(dump, decode, files)
    assert len({decode(file).tobytes() for file in files.values()}) == 5


def test_transparency_of_all_values(dump: Dump, decode: Decode) -> None:
    """Each of the 65,536 pairs of a value and an alpha, in images of 28x28: nothing is resized."""
    values, alphas = np.divmod(np.arange(84 * 784, dtype=np.uint32) % 65536, 256)
    pairs = np.stack([values, alphas], axis=-1).astype(np.uint8).reshape(84, 28, 28, 2)
    assert_equal(dump, decode, {f"{i}": saved(Image.fromarray(p)) for i, p in enumerate(pairs)})


def test_large_png(dump: Dump, decode: Decode) -> None:
    random = np.random.default_rng(0)
    files = {
        f"{size}": saved(Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)))
        for size in ((1000, 700), (3, 150), (1999, 2001))
    }
    assert_equal(dump, decode, files)


def test_png_of_random_sizes(dump: Dump, decode: Decode) -> None:
    random = np.random.default_rng(0)
    files = {}
    for i in range(300):
        short = random.integers(1, 90)
        size = (short, random.integers(1, 55 * short)) if i % 2 else random.integers(3, 120, 2)
        pixels = random.integers(0, 256, size, np.uint8)
        if i % 3 == 0:  # black and white overshoot most
            pixels = (pixels & 128) // 128 * 255
        files[f"{size}"] = saved(Image.fromarray(pixels))
    assert_equal(dump, decode, files)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "I;16"])
def test_real_images(dump: Dump, decode: Decode, pixels: Pixels, mode: str) -> None:
    images = [Image.fromarray(image) for image in pixels[:20]]
    if mode == "I;16":
        images = [Image.fromarray(image.astype(np.uint16) * 257) for image in pixels[:20]]
    files = {
        f"{i} {side}": saved(
            (image if mode == "I;16" else image.convert(mode)).resize((side, side))
        )
        for i, image in enumerate(images)
        for side in (28, 100)
    }
    assert_equal(dump, decode, files)
    if mode == "L":
        np.testing.assert_array_equal(dump(list(files.values())[::2]), pixels[:20])


def exif(orientation: int, order: str = ">", kind: int = 3, count: int = 1) -> bytes:
    """EXIF metadata by hand, in both byte orders: Pillow writes one only."""
    number = struct.pack(f"{order}{'H' if kind == 3 else 'I'}", orientation).ljust(4, b"\0")
    return b"".join(
        (
            b"MM" if order == ">" else b"II",
            struct.pack(f"{order}HI", 42, 8),
            struct.pack(f"{order}HHHI", 1, ExifTags.Base.Orientation, kind, count),
            number,
            struct.pack(f"{order}I", 0),
        )
    )


@pytest.mark.parametrize("kind", [3, 4])
@pytest.mark.parametrize("order", ["<", ">"])
def test_png_of_every_orientation(
    dump: Dump, decode: Decode, pixels: Pixels, order: str, kind: int
) -> None:
    image = Image.fromarray(pixels[0][:, 3:20])
    files = {str(i): saved(image, exif=exif(i, order, kind)) for i in range(10)}
    assert_equal(dump, decode, files)
    assert len({decode(file).tobytes() for file in files.values()}) == 8


def test_jpeg_of_every_orientation(dump: Dump, decode: Decode) -> None:
    image = waves((41, 60))
    files = {str(i): saved(image, "JPEG", exif=b"Exif\0\0" + exif(i)) for i in range(1, 9)}
    assert_equal(dump, decode, files)
    assert len({decode(file).tobytes() for file in files.values()}) == 8


def tagged(tag: int, kind: int, count: int, value: bytes, order: str = ">") -> bytes:
    """Exif of one entry, as odd as it may be."""
    head = {">": b"MM\0*", "<": b"II*\0"}[order] + struct.pack(order + "I", 8)
    return head + struct.pack(order + "HHHI", 1, tag, kind, count) + value + bytes(4)


TURNED = exif(6)
TURNED_LITTLE = exif(6, "<")
XMP = (
    b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF><rdf:Description "
    b"tiff:Orientation='6'/><tiff:Orientation>6</tiff:Orientation></rdf:RDF></x:xmpmeta>"
)
RAW_PROFILE = b"\nexif\n%8d\n" % (len(TURNED) + 6) + (b"Exif\0\0" + TURNED).hex().encode() + b"\n"
# of an image turned by 90 degrees: whether the orientation counts
ODD_EXIF = {
    "big-endian": (TURNED, True),
    "little-endian": (TURNED_LITTLE, True),
    "long": (exif(6, kind=4), True),
    "swapped version": (b"MM*\0" + TURNED[4:], True),
    "bytes behind": (TURNED + bytes(99), True),
    "more entries than there are": (TURNED[:8] + b"\0\x09" + TURNED[10:], True),
    "the first of two": (TURNED[:8] + b"\0\2" + TURNED[10:22] + exif(3)[10:22] + bytes(4), True),
    "no next directory": (TURNED[:22], True),
    "cut in the entry": (TURNED[:21], False),
    "cut in the value": (TURNED[:20], False),
    "cut in the header": (TURNED[:7], False),
    "empty": (b"", False),
    "zeros": (bytes(40), False),
    "text": (b"not a TIFF header at all", False),
    "BigTIFF": (b"MM\0+" + TURNED[4:], False),
    "doubled header": (b"Exif\0\0" + TURNED, False),
    "doubled header of a PNG": (b"Exif\0\0Exif\0\0" + TURNED, False),
    "a directory outside": (TURNED[:4] + b"\xff\xff\xff\xff" + TURNED[8:], False),
    "a directory at the end": (TURNED[:4] + struct.pack(">I", len(TURNED)) + TURNED[8:], False),
    "no entries": (TURNED[:8] + b"\0\0" + TURNED[10:], False),
    "orientation 0": (exif(0), False),
    "orientation 9": (exif(9), False),
    "orientation 65535": (exif(65535), False),
    "long of 65536 + 6": (exif(65536 + 6, kind=4), False),
    "no numbers": (exif(6, count=0), False),
    "two numbers": (tagged(0x0112, 3, 2, b"\0\6\0\6"), False),
    "three numbers elsewhere": (tagged(0x0112, 3, 3, b"\0\0\0\x1a") + b"\0\6" * 3, False),
    **{
        f"type {kind}": (tagged(0x0112, kind, 1, b"\0\6\0\6"), False)
        for kind in (0, 1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 65535)
    },
    "another tag": (tagged(0x0113, 3, 1, b"\0\6\0\0"), False),
}


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def app1(content: bytes) -> bytes:
    return segment(0xE1, b"Exif\0\0" + content)


# what may stand in a JPEG before its tables: whether the image is to be turned
ODD_SEGMENTS = {
    **{name: (app1(content), turned) for name, (content, turned) in ODD_EXIF.items()},
    "XMP": (segment(0xE1, XMP), False),
    "XMP and upright Exif": (segment(0xE1, XMP) + app1(exif(1)), False),
    "Exif behind XMP": (segment(0xE1, XMP) + app1(TURNED), True),
    "two Exif, the first turns": (app1(TURNED) + app1(exif(1)), True),
    "two Exif, the second turns": (app1(exif(1)) + app1(TURNED), False),
    "Exif in two parts": (app1(TURNED[:15]) + app1(TURNED[15:]), False),
    "a damaged Exif first": (app1(b"") + app1(TURNED), False),
    "Exif of another marker": (segment(0xE2, b"Exif\0\0" + TURNED), False),
    "Exif with one zero": (segment(0xE1, b"Exif\0" + TURNED), False),
    "Exif in lower case": (segment(0xE1, b"exif\0\0" + TURNED), False),
    "fill bytes": (b"\xff\xff\xff" + app1(TURNED), True),
    "a comment before": (segment(0xFE, b"a comment") + app1(TURNED), True),
    "an empty APP1": (segment(0xE1, b"") + app1(TURNED), True),
    "a length of 0": (b"\xff\xe5\0\0" + app1(TURNED), True),
    "a length of 1": (b"\xff\xe5\0\1" + app1(TURNED), True),
    "a short JFIF": (segment(0xE0, b"JFIF\0"), False),
    "a short Adobe": (segment(0xEE, b"Adobe"), False),
    "a short Adobe with Exif": (segment(0xEE, b"Adobe\0") + app1(TURNED), True),
    "a broken MPF": (segment(0xE2, b"MPF\0" + bytes(8)), False),
    "MPF with a directory outside": (segment(0xE2, b"MPF\0MM\0*\xff\xff\xff\xff"), False),
    "MPF without a count": (segment(0xE2, b"MPF\0" + TURNED), False),
    "a broken Photoshop": (segment(0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed\0\0"), False),
    "a broken profile": (segment(0xE2, b"ICC_PROFILE\0"), False),
    "FlashPix": (segment(0xE2, b"FPXR\0"), False),
    "zeros in every APP": (b"".join(segment(0xE0 + i, bytes(3)) for i in range(16)), False),
}

# the same of a PNG: chunks before IDAT and behind it
ODD_CHUNKS = {
    **{
        name: (chunk(b"eXIf", content), b"", turned) for name, (content, turned) in ODD_EXIF.items()
    },
    "behind the samples": (b"", chunk(b"eXIf", TURNED), True),
    "two, the first turns": (chunk(b"eXIf", TURNED) + chunk(b"eXIf", exif(1)), b"", True),
    "two, the second turns": (chunk(b"eXIf", exif(1)) + chunk(b"eXIf", TURNED), b"", False),
    "one before, one behind": (chunk(b"eXIf", TURNED), chunk(b"eXIf", exif(3)), True),
    "many": (chunk(b"eXIf", TURNED) + chunk(b"eXIf", exif(1)) * 1100, b"", True),
    "a large one": (chunk(b"eXIf", TURNED + bytes(9_000_000)), b"", True),
    "XMP": (chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP[29:]), b"", False),
    "XMP behind": (b"", chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP[29:]), False),
    "XMP and Exif": (
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP[29:]), chunk(b"eXIf", TURNED), True
    ),
    **{
        f"raw profile {kind.decode()} in {name.decode()}": (chunk(name, content), b"", False)
        for kind in (b"exif", b"APP1")
        for name, content in (
            (b"tEXt", b"Raw profile type " + kind + b"\0" + RAW_PROFILE),
            (b"zTXt", b"Raw profile type " + kind + b"\0\0" + zlib.compress(RAW_PROFILE)),
            (b"iTXt", b"Raw profile type " + kind + b"\0\0\0\0\0" + RAW_PROFILE),
            (b"zTXt", b"Raw profile type " + kind + b"\0\0" + b"not deflated"),
        )
    },
    **{
        f"{'empty' if not content else 'broken'} {name.decode()}{where}": (
            *((found, b"") if not where else (b"", found)), False
        )
        for name in (
            *(b"cHRM", b"gAMA", b"iCCP", b"sBIT", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"tEXt"),
            *(b"zTXt", b"iTXt", b"bKGD", b"hIST", b"pHYs", b"sPLT", b"eXIf", b"tIME", b"acTL"),
            *(b"fcTL", b"fdAT", b"oFFs", b"pCAL", b"sCAL", b"vpAg", b"neWs", b"caNv", b"orNT"),
        )
        for content in (b"", b"\1\xff\0")
        for where in ("", " behind")
        for found in (chunk(name, content),)
    },
    "a text that is a bomb": (chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8))), b"", False),
    "a profile that is a bomb": (
        chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8))), b"", False
    ),
    "an animation": (
        chunk(b"acTL", struct.pack(">II", 2, 0))
        + chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 9, 9, 0, 0, 1, 1, 0, 0)),
        chunk(b"fcTL", struct.pack(">IIIIIHHBB", 1, 99, 9, 0, 0, 1, 1, 0, 0))
        + chunk(b"fdAT", bytes(9)),
        False,
    ),
}  # fmt: skip


def with_chunks(png: bytes, before: bytes, behind: bytes) -> bytes:
    start, end = png.index(b"IDAT") - 4, png.index(b"IEND") - 4
    return png[:start] + before + png[start:end] + behind + png[end:]


def assert_turned(
    dump: Dump, decode: Decode, plain: bytes, odd: dict[str, tuple[bytes, bool]]
) -> None:
    """Each file has the pixels of `plain`, turned where it says so, in both languages."""
    upright = decode(plain)
    turned = np.rot90(upright, -1)
    assert (turned != upright).any()
    for found, (name, (file, turns)) in zip(
        dump(file for file, _ in odd.values()), odd.items(), strict=True
    ):
        np.testing.assert_array_equal(found, turned if turns else upright, err_msg=name)
        np.testing.assert_array_equal(decode(file), found, err_msg=name)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_metadata_of_a_jpeg(dump: Dump, decode: Decode, mode: str) -> None:
    """Grey that is 28x28 and symmetric blocks: turning comes after decoding, bit for bit."""
    plain = saved(waves((28, 28)).convert(mode), "JPEG", subsampling=0)
    start = plain.index(b"\xff\xdb")  # behind JFIF and Adobe
    odd = {
        name: (plain[:start] + segments + plain[start:], turns)
        for name, (segments, turns) in ODD_SEGMENTS.items()
    }
    first = {name: (plain[:2] + file[start:], turns) for name, (file, turns) in odd.items()}
    assert_turned(dump, decode, plain, odd)
    if mode == "L":  # without JFIF it means the same
        assert_turned(dump, decode, plain, first)


def test_metadata_of_a_png(dump: Dump, decode: Decode) -> None:
    plain = saved(waves((28, 28)).convert("L"))
    odd = {
        name: (with_chunks(plain, before, behind), turns)
        for name, (before, behind, turns) in ODD_CHUNKS.items()
    }
    odd["Exif behind the end"] = (plain + chunk(b"eXIf", TURNED), False)
    assert_turned(dump, decode, plain, odd)


def test_a_jpeg_of_several_pictures(dump: Dump, decode: Decode) -> None:
    """Phones write them: the first counts, turned by its own Exif."""
    image = waves((28, 28))

    def several(**options: Any) -> bytes:
        second = [image.rotate(180)]
        return saved(image, "MPO", save_all=True, append_images=second, subsampling=0, **options)

    assert b"MPF\0" in several()
    assert_turned(dump, decode, several(), {"MPO": (several(exif=b"Exif\0\0" + exif(6)), True)})


def test_both_refuse_what_only_looks_like_metadata(
    cpp_build: Path, decode: Decode, tmp_path: Path
) -> None:
    """A wrong checksum, a critical chunk that nobody knows, a segment beyond the end."""
    png, jpeg = saved(waves((28, 28))), saved(waves((28, 28)), "JPEG")
    wrong = chunk(b"tEXt", b"a\0b")[:-1] + b"!"
    files = [
        with_chunks(png, wrong, b""),
        with_chunks(png, b"", wrong),
        with_chunks(png, chunk(b"eXIf", TURNED)[:-1] + b"!", b""),
        with_chunks(png, chunk(b"ABCD", b""), b""),
        with_chunks(png, chunk(b"a1cd", b""), b""),
        with_chunks(png, struct.pack(">I", 2**31) + b"tEXt", b""),
        with_chunks(png, png[8:33], b""),  # a second IHDR
        png[:8] + chunk(b"tEXt", b"a\0b") + png[8:],
        jpeg[:2] + b"junk" + jpeg[2:],
        jpeg[:2] + b"\xff\xe1\xff\xff" + jpeg[2:],
    ]
    for file in files:
        with pytest.raises(ValueError, match="not a whole PNG or JPEG file"):
            decode(file)
        refusal(cpp_build, tmp_path / "odd", file)


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((1000, 17), "1000x17 pixels, of which an edge vanishes at 28x28"),
        ((1, 2000), "1x2000 pixels, of which an edge vanishes"),
        ((56, 1), "56x1 pixels, of which an edge vanishes"),
        ((7, 392), "7x392 pixels, of which an edge vanishes"),
        ((65_535, 700), "vanishes"),
        ((65_536, 100), "65536x100 pixels, an edge has at most 65535"),
        ((700, 70_000), "700x70000 pixels, an edge has at most 65535"),
        ((1, 50_000_000), "1x50000000 pixels, an edge has at most 65535"),
        ((50_000_000, 1), "50000000x1 pixels, an edge has at most 65535"),
        ((50_000, 1001), "50000x1001 pixels, at most 50000000 are decoded"),
        ((1, 2**31 - 1), "1x2147483647 pixels, at most 50000000 are decoded"),
    ],
)
def test_both_refuse_a_size_before_they_decode(
    cpp_build: Path, decode: Decode, tmp_path: Path, size: tuple[int, int], reason: str
) -> None:
    """By the header alone: there are no samples behind it."""
    header = struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", b""), chunk(b"IEND", b""))
    file = b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    with pytest.raises(ValueError, match=re.escape(reason)):
        decode(file)
    assert reason in refusal(cpp_build, tmp_path / "odd", file)


def test_both_refuse_what_would_become_too_large(
    cpp_build: Path, decode: Decode, tmp_path: Path
) -> None:
    """By the header alone, which both look at once the image would be upright."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20, 60_000, 8, 0, 0, 0, 0))
    rules = Files("rgb", "crop", 224, 224, 256, "bilinear")
    for metadata, size in ((b"", "256x768000"), (chunk(b"eXIf", TURNED), "768000x256")):
        file = b"\x89PNG\r\n\x1a\n" + header + metadata + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
        message = f"20x60000 pixels, which would become {size} pixels, at most 50000000"
        with pytest.raises(ValueError, match=message):
            decode(file, rules)
        assert message in refusal(cpp_build, tmp_path / "long", file, rules)


def test_a_flat_image_that_does_not_vanish(dump: Dump, decode: Decode) -> None:
    sizes = ((55, 1), (1, 55), (7, 391), (1000, 18), (18, 1007))
    random = np.random.default_rng(0)
    images = {f"{size}": Image.fromarray(random.integers(0, 256, size, np.uint8)) for size in sizes}
    assert_equal(dump, decode, {name: saved(image) for name, image in images.items()})
    jpegs = {name: saved(image, "JPEG") for name, image in images.items()}
    assert_equal(dump, decode, jpegs)


def waves(size: tuple[int, int]) -> Image.Image:
    y, x = np.mgrid[: size[0], : size[1]] / 20
    phases = [x * a + y * b for a, b in ((1, 0.3), (0.4, 1.1), (0.7, 0.8))]
    return Image.fromarray((127.5 + 127 * np.sin(np.stack(phases, axis=-1))).astype(np.uint8))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("L", {}),
        ("RGB", {"subsampling": "4:4:4"}),
        ("RGB", {"subsampling": "4:2:2"}),
        ("RGB", {"subsampling": "4:2:0"}),
        ("RGB", {"keep_rgb": True}),
        ("CMYK", {"subsampling": "4:2:0"}),
    ],
)
def test_jpeg_of_every_kind_and_size(
    dump: Dump,
    decode: Decode,
    mode: str,
    options: dict[str, Any],
    progressive: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 1 << 20)  # else Pillow can't write progressive noise
    random = np.random.default_rng(0)
    files = {}
    for size in [size for size in SIZES if max(size) < 55 * min(size)]:
        noise = Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8))
        for name, image in (("waves", waves(size)), ("noise", noise)):
            for quality in (5, 60, 95):
                files[f"{name} {size} {quality}"] = saved(
                    image.convert(mode),
                    "JPEG",
                    quality=quality,
                    progressive=progressive,
                    **options,
                )
    assert_equal(dump, decode, files)


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "L"), ("PNG", "RGBA"), ("JPEG", "RGB")])
def test_both_refuse_what_is_cut_short(
    cpp_build: Path, decode: Decode, tmp_path: Path, pixels: Pixels, kind: str, mode: str
) -> None:
    file = saved(Image.fromarray(pixels[0]).resize((80, 80)).convert(mode), kind)
    for tenth in range(10):
        cut = file[: len(file) * tenth // 10]
        with pytest.raises(ValueError, match="not a whole PNG or JPEG file"):
            decode(cut)
        assert re.search(REASONS, refusal(cpp_build, tmp_path / "cut", cut))


def test_both_refuse_a_damaged_png(
    cpp_build: Path, decode: Decode, tmp_path: Path, pixels: Pixels
) -> None:
    """Of the image's data, Pillow finds out only by what they decompress to: here they don't."""
    file = saved(Image.fromarray(pixels[0]))
    for at in (0, 5, 13, 18, 24, 30, file.index(b"IDAT") + 4):
        broken = file[:at] + bytes([file[at] ^ 0xFF]) + file[at + 1 :]
        with pytest.raises(ValueError, match="not a whole PNG or JPEG file"):
            decode(broken)
        refusal(cpp_build, tmp_path / "broken", broken)


def png_of(
    header: tuple[int, ...] = (9, 9, 8, 0, 0, 0, 0),
    *,
    data: bytes = zlib.compress(bytes(90)),
    chunks: bytes = b"",
    more: bytes = b"",
) -> bytes:
    """A PNG by hand; of the header what comes behind width and height is one byte each."""
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", *header) + more), chunks]
    parts += [chunk(b"IDAT", data[:-2]), chunk(b"IDAT", data[-2:]), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def compressed(size: int) -> bytes:
    return zlib.compress(bytes(size))


COLOURS = (9, 9, 8, 3, 0, 0, 0)  # the header of an image with a palette
BROKEN_PNGS = {
    "half of the rows": png_of(data=compressed(40)),
    "one byte less": png_of(data=compressed(89)),
    "no data": png_of(data=compressed(0)),
    "half of the rows, interlaced": png_of((9, 9, 8, 0, 0, 0, 1), data=compressed(50)),
    "half of the rows, 1 bit": png_of((9, 9, 1, 0, 0, 0, 0), data=compressed(12)),
    "no checksum": png_of(data=compressed(90)[:-4]),
    "half of the checksum": png_of(data=compressed(90)[:-2]),
    "a wrong checksum": png_of(data=compressed(90)[:-2] + b"no"),
    "a bomb behind": png_of(data=compressed(10**7)),
    "compression 1": png_of((9, 9, 8, 0, 1, 0, 0)),
    "filter method 64": png_of((9, 9, 8, 0, 0, 64, 0)),
    "interlace method 2": png_of((9, 9, 8, 0, 0, 0, 2)),
    "a long header": png_of(more=b"\0"),
    "no palette": png_of(COLOURS),
    "an empty palette": png_of(COLOURS, chunks=chunk(b"PLTE", b"")),
    "a palette of 4 bytes": png_of(COLOURS, chunks=chunk(b"PLTE", bytes(4))),
    "257 colours": png_of(COLOURS, chunks=chunk(b"PLTE", bytes(771))),
    "two palettes": png_of(COLOURS, chunks=2 * chunk(b"PLTE", bytes(6))),
}
ODD_PNGS = {
    "rows behind": png_of(data=compressed(1000)),
    "bytes behind the data": png_of(data=compressed(90) + b"junk"),
    "300 alphas": png_of(
        COLOURS, chunks=chunk(b"PLTE", b"abcdef") + chunk(b"tRNS", bytes(range(99)) + bytes(201))
    ),
    "indices beyond the palette": png_of(COLOURS, chunks=chunk(b"PLTE", b"abc")),
    "a palette of grey": png_of(chunks=chunk(b"PLTE", b"abcd")),
}


def assert_refused(cpp_build: Path, decode: Decode, path: Path, files: dict[str, bytes]) -> None:
    for name, file in files.items():
        with pytest.raises(ValueError, match="not a whole PNG or JPEG file"):
            raise AssertionError(f"{name}: {decode(file).shape}")
        assert re.search("damaged|truncated", refusal(cpp_build, path, file)), name


def test_both_refuse_a_png_of_which_a_part_is_missing(
    cpp_build: Path, decode: Decode, tmp_path: Path
) -> None:
    assert decode(png_of()).shape == (28, 28)
    assert_refused(cpp_build, decode, tmp_path / "broken", BROKEN_PNGS)


def test_odd_pngs_that_are_whole(dump: Dump, decode: Decode) -> None:
    assert_equal(dump, decode, ODD_PNGS)


def scans(jpeg: bytes) -> list[int]:
    """Where the scans begin, and the end."""
    return [found.start() for found in re.finditer(rb"\xff[\xda\xd9]", jpeg)]


def without(jpeg: bytes, start: int, end: int) -> bytes:
    return jpeg[:start] + jpeg[end:]


def shortened(jpeg: bytes, scan: int, size: int) -> bytes:
    """Without `size` bytes at the end of what a scan holds, of which tables follow or the end."""
    end = min(found.start() for found in re.finditer(rb"\xff[\xc4\xda\xd9]", jpeg)
              if found.start() > scans(jpeg)[scan])  # fmt: skip
    return without(jpeg, end - size, end)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_both_refuse_a_jpeg_of_which_a_part_is_missing(
    cpp_build: Path, decode: Decode, tmp_path: Path, mode: str
) -> None:
    """The end of the file is there, so that Pillow and libjpeg make an image of it."""
    image = waves((60, 80)).convert(mode)
    plain = saved(image, "JPEG", subsampling=2)
    restarts = saved(image, "JPEG", subsampling=2, restart_marker_blocks=2)
    progressive = saved(image, "JPEG", subsampling=2, progressive=True)
    first = restarts.index(b"\xff\xd1")
    starts = scans(progressive)
    files = {
        **{f"{n} bytes": shortened(plain, 0, n) for n in (3, 20, 200)},
        "no data": plain[: scans(plain)[0] + 8 + 2 * len(image.getbands())] + b"\xff\xd9",
        "no end": plain[:-2],
        "an interval": without(restarts, first, restarts.index(b"\xff\xd2")),
        "a restart marker": without(restarts, first, first + 2),
        "wrong restart markers": restarts.replace(b"\xff\xd2", b"\xff\xd3"),
        "bytes before a restart marker": without(restarts, first - 4, first),
        "restart markers that are not due": plain[:-2] + b"\xff\xd0" + plain[-2:],
        **{f"scan {n}": without(progressive, *starts[n : n + 2]) for n in range(len(starts) - 1)},
        **{f"scans from {n}": progressive[:n] + b"\xff\xd9" for n in starts[1:-1]},
        **{f"bytes of scan {n}": shortened(progressive, n, 5) for n in range(len(starts) - 1)},
    }
    assert_refused(cpp_build, decode, tmp_path / "broken", files)


def test_both_refuse_jpegs_of_other_kinds(cpp_build: Path, decode: Decode, tmp_path: Path) -> None:
    """Lossless, arithmetic code: not every libjpeg reads them, nor tells whether they are whole."""
    plain = saved(waves((28, 28)), "JPEG")
    files = {hex(n): plain.replace(b"\xff\xc0", bytes([255, n])) for n in (0xC3, 0xC9, 0xCA, 0xC5)}
    start, frame = scans(plain)[0], plain.index(b"\xff\xc0")
    scan, end = plain[start:-2], plain[-2:]
    files |= {
        "two frames": plain[:start] + plain[frame : frame + 19] + scan + end,
        "a scan twice": plain[:start] + scan + scan + end,
        "no frame": plain[:frame] + scan + end,
    }
    assert_refused(cpp_build, decode, tmp_path / "broken", files)


def test_odd_jpegs_that_are_whole(dump: Dump, decode: Decode) -> None:
    """What libjpeg warns of, and Pillow doesn't say."""
    plain = saved(waves((28, 28)), "JPEG")
    start, rest, end = plain[:2], plain[2:-2], plain[-2:]
    adobe = segment(0xEE, b"Adobe\0d\0\0\0\0\7")
    files = {
        "JFIF 2.1": plain.replace(b"JFIF\0\1", b"JFIF\0\2"),
        "an Adobe of no known colours": start + adobe + rest + end,
        "stray bytes before the end": start + rest + b"stray" + end,
        "fill bytes before the end": start + rest + b"\xff\xff\xff" + end,
        "bytes behind the end": plain + b"\xff\xd8\xff",
    }
    assert_equal(dump, decode, files)
    assert len({decode(file).tobytes() for file in files.values()}) == 1


def test_both_refuse_a_bomb(cpp_build: Path, decode: Decode, tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 50_000, 1001, 1, 0, 0, 0, 0)
    magic = b"\x89PNG\r\n\x1a\n"
    rest = chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    file = magic + rest
    message = "50000x1001 pixels, at most 50000000 are decoded"
    with pytest.raises(ValueError, match=message):
        decode(file)
    assert message in refusal(cpp_build, tmp_path / "bomb", file)
    hidden = magic + chunk(b"gAMA", bytes(4)) + rest  # libpng would read on
    assert "doesn't begin with IHDR" in refusal(cpp_build, tmp_path / "bomb", hidden)
