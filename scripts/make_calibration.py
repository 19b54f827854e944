"""Chooses the training images that the built-in model's int8 is calibrated on.

python scripts/make_calibration.py    # needs all of Fashion-MNIST: see docs/training.md
"""

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nin.errors import InputError
from nin.files import make_folder, write_atomically
from nin.images import encode_idx
from nin.paths import DATA
from nin.terminal import natural, parser, positive, run, short
from nin.training.data import load


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=positive, default=256, help="how many, of all classes")
    options.add_argument("--seed", type=natural, default=0, help="chooses the images")
    options.add_argument("--data-dir", type=Path, help="folder of the training images")
    options.add_argument(
        "--output", type=Path, default=DATA / "fashion-mnist-calibration", help="folder to write to"
    )
    args = options.parse_args()
    pixels, classes = load("train", args.data_dir)
    if args.images > len(pixels):
        raise InputError(f"--images {args.images}: there are {len(pixels)} training images")
    indices = choose(classes, args.images, args.seed)
    make_folder(args.output)
    for name, array in (("images-idx3", pixels), ("labels-idx1", classes)):
        data = gzip.compress(encode_idx(array[indices]), mtime=0)
        write_atomically(args.output / f"train-{name}-ubyte.gz", data)
    print(f"{short(args.output)}: {len(indices)} training images, chosen by seed {args.seed}")


def choose(classes: NDArray[np.uint8], count: int, seed: int) -> NDArray[np.intp]:
    """Indices of as many images of every class, but for the rest that doesn't divide."""
    random = np.random.default_rng(seed)
    shuffled = [random.permutation(np.flatnonzero(classes == c)) for c in np.unique(classes)]
    in_turns: NDArray[np.intp] = np.stack(
        [s[: min(map(len, shuffled))] for s in shuffled], axis=1
    ).ravel()
    return in_turns[:count]


if __name__ == "__main__":
    run(main)
