"""Classifies images by a Triton server: PNG and JPEG files, and IDX files of whole datasets.

nin classify shirt.png bag.jpg
nin classify data/fashion-mnist/t10k-images-idx3-ubyte.gz --limit 10 --top 3
nin classify cat.jpg --model imagenet --protocol grpc --url 127.0.0.1:8001 --json
"""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from nin.client import RETRIES, TIMEOUT_S, URLS, Client, Prediction
from nin.contract import CONTRACT_FILE, load_contract
from nin.errors import InputError, ServerError
from nin.images import is_idx, parse_idx
from nin.terminal import natural, positive, table

# So many images of an IDX file at a time, so that the progress bar moves.
_IMAGES = 256


class Classified(NamedTuple):
    image: str
    predictions: list[Prediction]

    def describe(self) -> dict[str, object]:
        return {"image": self.image, "predictions": [asdict(p) for p in self.predictions]}


def add_options(options: argparse.ArgumentParser) -> None:
    options.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="PNG, JPEG, or IDX plain or gzipped"
    )
    options.add_argument(
        "--url", metavar="HOST:PORT", help=f"the server; {' or '.join(URLS.values())} if not given"
    )
    options.add_argument("--protocol", choices=URLS, default="http", help="how to talk to it")
    options.add_argument(
        "--model",
        help="a served classifier's name, or its model folder; the server's only one if not given",
    )
    options.add_argument("--top", type=positive, default=1, metavar="K", help="classes to show")
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


def execute(args: argparse.Namespace) -> None:
    model = served_name(args.model)
    with Client(
        args.url,
        protocol=args.protocol,
        timeout_s=args.timeout,
        retries=args.retries,
        shared_memory=args.shared_memory,
    ) as client:
        classified = [
            image
            for path in args.images
            for image in classify(client, path, model=model, top=args.top, limit=args.limit)
        ]
    if args.json:
        print(json.dumps([image.describe() for image in classified], indent=2))
    else:
        print_table(classified, args.top)


def served_name(model: str | None) -> str | None:
    """The name by which a model is served, of itself or of its folder."""
    if model is None or ("/" not in model and not Path(model, CONTRACT_FILE).is_file()):
        return model
    return load_contract(Path(model)).name


def classify(
    client: Client, path: Path, *, model: str | None, top: int, limit: int | None
) -> Iterator[Classified]:
    """Every image of a file with its predictions. Raises InputError where it can't be read."""
    if not path.is_file():
        raise InputError(f"no image file at {path}")
    data = path.read_bytes()
    try:
        if not is_idx(data):
            (predictions,) = client.classify_files([data], top=top, model=model)
            yield Classified(str(path), predictions)
            return
        pixels = parse_idx(data, str(path), client.pixels(model).shape)[:limit]
        starts = range(0, len(pixels), _IMAGES)
        for start in tqdm(starts, path.name, disable=None, leave=False):
            images = pixels[start : start + _IMAGES]
            for index, predictions in enumerate(client.classify(images, top=top, model=model)):
                yield Classified(f"{path}[{start + index}]", predictions)
    except ServerError as error:
        raise ServerError(f"{path}: {error}") from error


def print_table(classified: list[Classified], top: int) -> None:
    header = ["image"]
    for k in range(1, top + 1):
        header += [f"{k}." if top > 1 else "prediction", "probability"]
    rows = [
        [image, *(cell for p in predictions for cell in (p.label, f"{p.probability:.3f}"))]
        for image, predictions in classified
    ]
    print(table(header, rows))


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a time in seconds")
    return value
