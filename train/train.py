"""Trains the built-in model's network: the same as `nin train`.

python train/train.py --limit 2000 --epochs 4 --output runs/try
"""

from nin.commands import train
from nin.terminal import parser, run


def main() -> None:
    options = parser(train.__doc__)
    train.add_options(options)
    train.execute(options.parse_args())


if __name__ == "__main__":
    run(main)
