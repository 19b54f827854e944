"""Files to pixels, against Pillow and torchvision; odd files are for tests/test_cpp_images.py."""

import ast
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from nin import decoder
from nin.contract import load_contract
from nin.decoder import decode
from nin.paths import NIN

Pixels = NDArray[np.uint8]

RULES: dict[str, Any] = {
    "mode": "rgb",
    "resize": "crop",
    "height": 48,
    "width": 64,
    "shorter_side": 72,
    "filter": "bilinear",
}


def png(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    random = np.random.default_rng(width * height)
    shape = (height, width) if mode == "L" else (height, width, 3)
    return Image.fromarray(random.integers(0, 256, shape, np.uint8))


def expected(image: Image.Image, rules: dict[str, Any]) -> Pixels:
    image = image.convert("RGB") if rules["mode"] == "rgb" else image.convert("L")
    size = rules["width"], rules["height"]
    method = Image.Resampling[rules["filter"].upper()]
    if rules["resize"] == "stretch":
        return np.asarray(image.resize(size, method))
    if rules["resize"] == "pad":
        return np.asarray(ImageOps.pad(image, size, method, color=0))
    filter_of = InterpolationMode(rules["filter"])
    steps = Compose([Resize(rules["shorter_side"], filter_of), CenterCrop(size[::-1])])
    return np.asarray(steps(image))


@pytest.mark.parametrize("filter_of", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("mode", ["grey", "rgb"])
def test_pixels_are_pillows_and_torchvisions(mode: str, resize: str, filter_of: str) -> None:
    """Bit for bit, of images in any proportion to sizes in any proportion."""
    random = np.random.default_rng(0)
    for _ in range(150):
        width, height = random.integers(8, 90, 2).tolist()
        rules: dict[str, Any] = {
            "mode": mode,
            "resize": resize,
            "height": int(random.integers(8, 60)),
            "width": int(random.integers(8, 60)),
            "shorter_side": int(random.integers(1, 60)) if resize == "crop" else 0,
            "filter": filter_of,
        }
        image = noise(width, height, str(random.choice(["L", "RGB"])))
        found = decode(png(image), **rules)
        np.testing.assert_array_equal(found, expected(image, rules), err_msg=f"{rules}")


@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
def test_an_image_of_the_right_size_stays_as_it_is(resize: str) -> None:
    image = noise(64, 48)
    rules = RULES | {"resize": resize, "shorter_side": 48}
    np.testing.assert_array_equal(decode(png(image), **rules), np.asarray(image))


def test_the_orientation_counts_before_the_size() -> None:
    image = noise(100, 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = image.transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(decode(png(image, exif=exif), **RULES), expected(turned, RULES))


def test_grey_and_transparent_images_as_rgb() -> None:
    grey = noise(64, 48, "L")
    rules = RULES | {"resize": "stretch"}
    repeated = np.asarray(grey)[..., None].repeat(3, axis=2)
    np.testing.assert_array_equal(decode(png(grey), **rules), repeated)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 256 + 99)
    np.testing.assert_array_equal(decode(png(deep), **rules), repeated)
    white = Image.new("L", grey.size, 255)
    over_black = Image.merge("RGBA", [white, white, white, grey])
    np.testing.assert_array_equal(decode(png(over_black), **rules), repeated)


def header_of(width: int, height: int) -> bytes:
    """A PNG file of which only the size is there."""
    data = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", data), (b"IDAT", b""), (b"IEND", b"")]
    chunks = (
        struct.pack(">I4s", len(text), name) + text + struct.pack(">I", zlib.crc32(name + text))
        for name, text in parts
    )
    return decoder.PNG_MAGIC + b"".join(chunks)


@pytest.mark.parametrize(
    ("data", "rules", "message"),
    [
        (b"GIF89a", {}, "not a whole PNG or JPEG file"),
        (png(noise(90, 90))[:200], {}, "not a whole PNG or JPEG file"),
        (header_of(60_000, 60_000), {}, "60000x60000 pixels, at most 50000000 are decoded"),
        (header_of(70_000, 10), {}, "70000x10 pixels, an edge has at most 65535"),
        (header_of(60_000, 2), {},
         "60000x2 pixels, which would become 2160000x72 pixels, at most 50000000"),
        (header_of(200, 1), {"resize": "pad"}, "200x1 pixels, of which an edge vanishes at 64x48"),
        (header_of(1, 97), {"resize": "pad"}, "1x97 pixels, of which an edge vanishes at 64x48"),
    ],
)  # fmt: skip
def test_what_is_refused(data: bytes, rules: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        decode(data, **(RULES | rules))


def test_the_rules_are_those_of_a_contract() -> None:
    files = load_contract(NIN).files
    assert decode(png(noise(100, 40)), **files.describe()).shape == (28, 28)


def test_it_stands_alone() -> None:
    """It is copied into model repositories, where there is no package."""
    tree = ast.parse(Path(decoder.__file__).read_text())
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {n.module or "nin" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    standard = {"collections", "functools", "io", "itertools", "json", "re", "struct", "typing"}
    standard |= {"warnings", "zlib"}
    assert {name.split(".")[0] for name in names} - standard == {
        "numpy",
        "PIL",
        "triton_python_backend_utils",
    }
