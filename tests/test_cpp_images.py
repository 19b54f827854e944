"""The C++ client makes of an image file the same pixels as the server's model decode_image.

Bit for bit: of JPEG as well, since both decode it by libjpeg-turbo.
"""

import importlib.util
import io
import re
import struct
import subprocess
import sys
import types
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile

from nin.paths import MODEL_REPOSITORY

Pixels = NDArray[np.uint8]
Decode = Callable[[bytes], Pixels]

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
    """The server's conversion, without a server."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        name = "triton_python_backend_utils"
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        path = MODEL_REPOSITORY / "decode_image" / "1" / "model.py"
        spec = importlib.util.spec_from_file_location("decode_image_model", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)

    def call(file: bytes) -> Pixels:
        found: Pixels = module._decode(file, 0)
        return found

    return call


@pytest.fixture
def dump(cpp_build: Path, tmp_path: Path) -> Callable[[Iterable[bytes]], Pixels]:
    """The pixels (N, 28, 28) that the C++ client makes of N files."""

    def call(files: Iterable[bytes]) -> Pixels:
        paths = []
        for i, file in enumerate(files):
            paths.append(tmp_path / str(i))
            paths[-1].write_bytes(file)
        ended = subprocess.run([cpp_build / "tests" / "dump_pixels", *paths], capture_output=True)
        assert ended.returncode == 0, ended.stderr.decode()
        return np.frombuffer(ended.stdout, np.uint8).reshape(-1, 28, 28)

    return call


def refusal(cpp_build: Path, path: Path, file: bytes) -> str:
    path.write_bytes(file)
    ended = subprocess.run(
        [cpp_build / "tests" / "dump_pixels", path], capture_output=True, text=True
    )
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


def assert_equal(dump: Callable[..., Pixels], decode: Decode, files: dict[str, bytes]) -> None:
    for name, found, file in zip(files, dump(files.values()), files.values(), strict=True):
        np.testing.assert_array_equal(found, decode(file), err_msg=name)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    ("colour", "depth"), [(colour, depth) for colour, depths in KINDS.items() for depth in depths]
)
def test_png_of_every_kind_and_size(
    dump: Callable[..., Pixels], decode: Decode, colour: int, depth: int, interlaced: bool
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


def test_png_with_transparent_colours(dump: Callable[..., Pixels], decode: Decode) -> None:
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
def test_png_with_a_transparent_rgb_colour(
    dump: Callable[..., Pixels], decode: Decode, depth: int
) -> None:
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


def test_transparency_of_all_values(dump: Callable[..., Pixels], decode: Decode) -> None:
    """Each of the 65,536 pairs of a value and an alpha, in images of 28x28: nothing is resized."""
    values, alphas = np.divmod(np.arange(84 * 784, dtype=np.uint32) % 65536, 256)
    pairs = np.stack([values, alphas], axis=-1).astype(np.uint8).reshape(84, 28, 28, 2)
    assert_equal(dump, decode, {f"{i}": saved(Image.fromarray(p)) for i, p in enumerate(pairs)})


def test_large_png(dump: Callable[..., Pixels], decode: Decode) -> None:
    random = np.random.default_rng(0)
    files = {
        f"{size}": saved(Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)))
        for size in ((1000, 700), (3, 150), (1999, 2001))
    }
    assert_equal(dump, decode, files)


def test_png_of_random_sizes(dump: Callable[..., Pixels], decode: Decode) -> None:
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
def test_real_images(
    dump: Callable[..., Pixels], decode: Decode, pixels: Pixels, mode: str
) -> None:
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
    dump: Callable[..., Pixels], decode: Decode, pixels: Pixels, order: str, kind: int
) -> None:
    image = Image.fromarray(pixels[0][:, 3:20])
    files = {str(i): saved(image, exif=exif(i, order, kind)) for i in range(10)}
    assert_equal(dump, decode, files)
    assert len({decode(file).tobytes() for file in files.values()}) == 8


def test_jpeg_of_every_orientation(dump: Callable[..., Pixels], decode: Decode) -> None:
    image = waves((41, 60))
    files = {str(i): saved(image, "JPEG", exif=b"Exif\0\0" + exif(i)) for i in range(1, 9)}
    assert_equal(dump, decode, files)
    assert len({decode(file).tobytes() for file in files.values()}) == 8


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
    dump: Callable[..., Pixels],
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
        with pytest.raises(ValueError, match="encoded_image 0"):
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
