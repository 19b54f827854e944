"""Classifies images by a Triton server: PNG and JPEG files, and IDX files of Fashion-MNIST.

python scripts/classify.py shirt.png bag.jpg
python scripts/classify.py data/fashion-mnist/t10k-images-idx3-ubyte.gz --limit 10 --top 3
python scripts/classify.py shirt.png --protocol grpc --url 127.0.0.1:8001 --json
"""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from nin.cli import natural, parser, positive, run, table
from nin.client import RETRIES, TIMEOUT_S, URLS, Client, Prediction, split
from nin.contract import FASHION_MNIST, FASHION_MNIST_IMAGE, LABELS
from nin.data import is_idx, parse_idx
from nin.errors import InputError, ServerError


class Classified(NamedTuple):
    image: str
    predictions: list[Prediction]


def main() -> None:
    args = parse_args()
    with Client(
        args.url,
        protocol=args.protocol,
        timeout_s=args.timeout,
        retries=args.retries,
        shared_memory=args.shared_memory,
    ) as client:
        found = [c for path in args.images for c in classify(client, path, args)]
    if args.json:
        print(json.dumps([c._asdict() | {"predictions": plain(c)} for c in found], indent=2))
        return
    header = ["image"]
    for k in range(1, args.top + 1):
        header += [f"{k}." if args.top > 1 else "prediction", "probability"]
    rows = [
        [c.image, *(cell for p in c.predictions for cell in (p.label, f"{p.probability:.3f}"))]
        for c in found
    ]
    print(table(header, rows))


def parse_args() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="PNG, JPEG, or IDX plain or gzipped"
    )
    options.add_argument(
        "--url", metavar="HOST:PORT", help=f"the server; {' or '.join(URLS.values())} if not given"
    )
    options.add_argument("--protocol", choices=URLS, default="http", help="how to talk to it")
    options.add_argument(
        "--model",
        help=f"{FASHION_MNIST_IMAGE.name} for files and {FASHION_MNIST.name} for IDX if not given",
    )
    options.add_argument(
        "--top", type=top, default=1, metavar="K", help=f"classes to show, 1 to {len(LABELS)}"
    )
    options.add_argument("--limit", type=positive, help="only so many images of every IDX file")
    options.add_argument("--json", action="store_true", help="JSON instead of a table")
    options.add_argument(
        "--timeout", type=seconds, default=TIMEOUT_S, help="seconds to wait for each answer"
    )
    options.add_argument(
        "--retries",
        type=natural,
        default=RETRIES,
        help="after a failed connection; errors are final",
    )
    options.add_argument(
        "--shared-memory", action="store_true", help="pass pixels so; a server on this machine only"
    )
    return options.parse_args()


def classify(client: Client, path: Path, args: argparse.Namespace) -> Iterator[Classified]:
    """Every image of a file with its predictions. Raises InputError where it can't be read."""
    if not path.is_file():
        raise InputError(f"no image file at {path}")
    data = path.read_bytes()
    try:
        if not is_idx(data):
            model = args.model or FASHION_MNIST_IMAGE.name
            predictions = client.classify_files([data], top=args.top, model=model)
            yield Classified(str(path), predictions[0])
            return
        pixels = parse_idx(data, str(path))[: args.limit]
        model = args.model or FASHION_MNIST.name
        index = 0
        for batch in tqdm(split(pixels), path.name, disable=None, leave=False):
            for predictions in client.classify(batch, top=args.top, model=model):
                yield Classified(f"{path}[{index}]", predictions)
                index += 1
    except ServerError as error:
        raise ServerError(f"{path}: {error}") from error


def plain(classified: Classified) -> list[dict[str, object]]:
    return [asdict(prediction) for prediction in classified.predictions]


def top(text: str) -> int:
    count = positive(text)
    if count > len(LABELS):
        raise argparse.ArgumentTypeError(f"{text} is more than the {len(LABELS)} classes")
    return count


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a time in seconds")
    return value


if __name__ == "__main__":
    run(main)
