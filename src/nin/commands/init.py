"""Writes a model folder to edit, with what can be found out by building the network.

nin init models/vgg11 --from torchvision.models:vgg11
nin init models/cats --from cats.py:make --arguments 'num_classes = 12' --weights cats.pt
nin init models/digits --from mypackage.net:Net --labels digits.txt --samples photographs

The network's code is imported and run. It must take a batch of images alone, float32
(N, channels, height, width), and return a tensor of logits (N, classes).
"""

import argparse
import shlex
from pathlib import Path

from nin.errors import InputError
from nin.network.starter import Source, Started, start_folder
from nin.terminal import positive


def add_options(options: argparse.ArgumentParser) -> None:
    options.add_argument("folder", type=Path, metavar="FOLDER", help="a new or empty one")
    options.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="MODULE:NAME",
        help="the network's class or a function that makes it; FILE.py:NAME is copied",
    )
    options.add_argument(
        "--arguments", default="", metavar="TOML", help="for it, as in 'num_classes = 10'"
    )
    options.add_argument(
        "--weights", type=Path, help="safetensors, or a state dict (.pt, .pth); is copied"
    )
    options.add_argument("--labels", type=Path, help="the names of the classes, one a line")
    options.add_argument(
        "--samples",
        type=Path,
        help="folder of real images: PNG or JPEG, in folders 0, 1, ... by class where it is known, "
        "or IDX files; some are drawn if not given",
    )
    options.add_argument(
        "--size", type=size, metavar="HEIGHTxWIDTH", help="of its images; tried out if not given"
    )


def execute(args: argparse.Namespace) -> None:
    for name in ("weights", "labels"):
        path = getattr(args, name)
        if path is not None and not path.is_file():
            raise InputError(f"no file at {path}, which --{name} names")
    source = Source(args.source, args.arguments, args.weights, args.labels, args.samples, args.size)
    print_started(args.folder, start_folder(args.folder, source))


def print_started(folder: Path, started: Started) -> None:
    network = started.network
    print(
        f"The network takes {network.channels}x{network.height}x{network.width} (channels x "
        f"height x width) and has {network.classes} classes."
    )
    print("".join(f"{note}\n" for note in started.notes), end="")
    print(f"{folder} holds {', '.join(started.files)}.")
    if started.checks:
        print("\nPlease check:\n" + "\n".join(f"  {check}" for check in started.checks))
    if started.weights_command:
        print(f"\nThe weights are still missing; this writes them:\n  {started.weights_command}")
    print(f"\nNext:\n  nin export onnx --model {shlex.quote(str(folder))}")


def size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return positive(height), positive(width or height)
