"""Writes the inputs that the fuzzers start from: small, valid files of each kind.

python cpp_client/fuzz/make_corpus.py
"""

import base64
import gzip
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nin.contract import Files, Graph, Tensor
from nin.contract import Image as NetworkImage

CORPUS = Path(__file__).parent / "corpus"
SIDE = 12
ADAM7 = [
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
]


def main() -> None:
    for folder, files in (("idx", idx()), ("image", images()), ("metadata", metadata())):
        (CORPUS / folder).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (CORPUS / folder / name).write_bytes(content)


def idx() -> dict[str, bytes]:
    pixels = struct.pack(">4I", 0x803, 2, 28, 28) + bytes(i % 256 for i in range(2 * 784))
    floats = struct.pack(">5I", 0xD04, 1, 1, 8, 8) + struct.pack(">f", 0.5) * 64
    labels = struct.pack(">2I", 0x801, 10) + bytes(range(10))
    colours = struct.pack(">5I", 0x804, 1, 4, 5, 3) + bytes(range(60))
    numbers = struct.pack(">4I", 0xC01, 2, 7, 999)
    half = len(pixels) // 2
    return {
        "pixels": pixels,
        "pixels.gz": gzip.compress(pixels, mtime=0),
        "pixels_in_two_members.gz": gzip.compress(pixels[:half], mtime=0)
        + gzip.compress(pixels[half:], mtime=0),
        "floats.gz": gzip.compress(floats, mtime=0),
        "colours": colours,
        "labels": labels,
        "numbers": numbers,
        "labels.gz": gzip.compress(labels, mtime=0),
        "no_images": struct.pack(">4I", 0x803, 0, 28, 28),
    }


def images() -> dict[str, bytes]:
    y, x = np.mgrid[:SIDE, :SIDE]
    colours = np.stack([x * 20, y * 20, (x + y) * 10, x * y], axis=-1).astype(np.uint8)
    grey = Image.fromarray(colours[..., 2])
    rgb = Image.fromarray(colours[..., :3])
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "grey.png": saved(grey, exif=exif),
        "grey_28.png": saved(grey.resize((28, 28))),
        "1_bit.png": saved(grey.convert("1"), transparency=0),
        "grey_alpha.png": saved(Image.fromarray(colours[..., 2:])),
        "16_bits.png": saved(Image.fromarray(colours[..., 2].astype(np.uint16) * 257)),
        "rgb.png": saved(rgb, transparency=(0, 0, 0)),
        "rgba.png": saved(Image.fromarray(colours)),
        "palette.png": saved(rgb.quantize(16), transparency=bytes([0, 99])),
        "interlaced.png": interlaced(colours),
        "grey.jpg": saved(grey, "JPEG"),
        "rgb.jpg": saved(rgb, "JPEG", exif=exif, subsampling=2),
        "progressive.jpg": saved(rgb, "JPEG", progressive=True),
        "restarts.jpg": saved(rgb, "JPEG", restart_marker_blocks=1),
        "stray_bytes.jpg": saved(grey, "JPEG")[:-2] + b"stray\xff\xd9",  # libjpeg warns
        "cmyk.jpg": saved(rgb.convert("CMYK"), "JPEG"),
    }


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def interlaced(samples: np.ndarray[Any, Any]) -> bytes:
    """RGBA; Pillow writes no interlaced files."""
    rows = b"".join(
        b"\0" + row[x::dx].tobytes() for x, y, dx, dy in ADAM7 for row in samples[y::dy]
    )
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 6, 0, 0, 1)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def metadata() -> dict[str, bytes]:
    """One image of zeros; the texts in the order of metadata_keys, with zero bytes between."""
    labels = ["left", "right"]
    outputs = [Tensor(name, "float32", (len(labels),)) for name in ("logits", "probabilities")]
    pixels = Tensor("pixels", "uint8", (4, 5, 3))
    files = Files("rgb", "crop", 4, 5, 6, "bilinear")
    image = NetworkImage(3, 4, 5, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    graphs = (
        Graph("classifier", pixels, tuple(outputs), max_batch=64, files=files),
        Graph(
            "network", Tensor("image", "float32", (3, 4, 5)), tuple(outputs[:1]), 64, image=image
        ),
    )
    files_by_name = {}
    for graph in graphs:
        names = [tensor.name for tensor in graph.outputs]
        zeros = base64.b64encode(bytes(8 * len(labels))).decode()
        golden = {
            "inputs": base64.b64encode(bytes(60)).decode(),
            "shape": [1, *graph.input.shape],
            "outputs": dict.fromkeys(names, zeros),
            "budget": dict.fromkeys(names, 1e-5),
        }
        texts = json.dumps(graph.describe()), json.dumps(labels), json.dumps(golden), "0" * 64
        files_by_name[graph.name] = "\0".join(texts).encode()
    return files_by_name


if __name__ == "__main__":
    main()
