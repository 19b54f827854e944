"""Trains the built-in model's network, as the book does or better.

nin train                                                         # recipe best, to runs/best
nin train --recipe book                                           # as the book, to runs/book
nin train --limit 2000 --epochs 4 --output runs/try               # a quick try
torchrun --nproc-per-node 2 train/train.py --output runs/two      # on two devices

Ctrl-C or SIGTERM writes a checkpoint and stops; the same command with --resume goes on.
"""

import argparse
import dataclasses
import hashlib
import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nin.errors import InputError
from nin.files import locked, make_folder, write_atomically
from nin.network.torch_settings import without_tf32
from nin.network.weights import load_weights, save_weights
from nin.paths import ROOT
from nin.terminal import natural, positive, short
from nin.training import data
from nin.training.batch_norm import folded
from nin.training.batches import HELD_OUT, Batches, split
from nin.training.curves import draw_curves
from nin.training.devices import (
    Process,
    add_device_options,
    find_device,
    find_precision,
    process_group,
    processor_name,
)
from nin.training.network import NiN
from nin.training.recipes import RECIPES, Recipe
from nin.training.trainer import CHECKPOINT, LOG, Settings, Trainer, predict

# What a run leaves in its folder, besides the trainer's checkpoint and log.
WEIGHTS, ABOUT, CURVES = "nin.safetensors", "nin.json", "curves.png"
RESULTS = (WEIGHTS, ABOUT, LOG, CURVES)


def add_options(options: argparse.ArgumentParser) -> None:
    options.add_argument("--recipe", choices=RECIPES, default="best", help="how to train")
    options.add_argument("--epochs", type=positive, help="instead of the recipe's")
    options.add_argument(
        "--batch-size",
        type=positive,
        help="images to a step, of all processes together, instead of the recipe's",
    )
    options.add_argument("--lr", type=rate, help="peak learning rate, instead of the recipe's")
    options.add_argument("--dropout", type=share, help="instead of the recipe's")
    options.add_argument(
        "--crop-until",
        type=share,
        help="share of the steps that train on small crops, instead of the recipe's",
    )
    options.add_argument("--seed", type=seed, default=0, help="of weights, order, augmentation")
    add_device_options(options)
    options.add_argument(
        "--data-dir", type=Path, help="folder with the IDX files, if not one of the usual places"
    )
    options.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help="at most N images each to train, judge and test on",
    )
    options.add_argument(
        "--all", action="store_true", help=f"train on the {HELD_OUT:,} held-out images too"
    )
    options.add_argument(
        "--init",
        type=Path,
        metavar="WEIGHTS",
        help="start from these finished weights; mind the --lr",
    )
    options.add_argument(
        "--output",
        type=Path,
        help="folder for weights, checkpoint, log and curves; runs/RECIPE if not given",
    )
    there = options.add_mutually_exclusive_group()
    there.add_argument("--resume", action="store_true", help="go on with the run in --output")
    there.add_argument("--force", action="store_true", help="replace the run in --output")
    options.add_argument(
        "--time-limit", type=rate, metavar="MINUTES", help="write a checkpoint and stop then"
    )


def seed(text: str) -> int:
    value = natural(text)
    if value >= 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not below {2**32}: generators take 32 bits")
    return value


def rate(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0 and up to 1e9")
    return value


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to below 1")
    return value


def execute(args: argparse.Namespace) -> None:
    deadline = time.monotonic() + 60 * (args.time_limit or float("inf"))
    recipe = choose_recipe(args)
    device = find_device(args.device)
    torch.backends.cudnn.deterministic = True  # the same seed, the same weights
    images, held_out = training_data(args, device)
    test = limited(*to_tensors("test", args.data_dir, device), args.limit)
    with process_group(device) as process:
        batches = Batches(*images, recipe, args.seed, process)
        check_batches(batches, process)
        network, start = first_weights(args, recipe)
        settings = Settings(
            recipe=recipe,
            seed=args.seed,
            images=len(images[0]),
            held_out=0 if held_out is None else len(held_out[0]),
            start=start,
            device=device.type,
            precision=find_precision(args.precision, device),
            compiled=args.compile,
        )
        with output_folder(args, recipe, process) as folder:
            trainer = Trainer(network, batches, settings, process=process, folder=folder)
            if args.resume:
                trainer.resume()
            with signals() as received, trainer.accelerated():
                if trainer.train(held_out, lambda: bool(received) or time.monotonic() > deadline):
                    finish(trainer, test, process)
                else:
                    say_stopped(trainer, process)
                    if received:
                        raise SystemExit(128 + received[0])


def choose_recipe(args: argparse.Namespace) -> Recipe:
    """The recipe with what the options change of it."""
    names = {field.name for field in dataclasses.fields(Recipe)} & vars(args).keys()
    changes = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return dataclasses.replace(RECIPES[args.recipe], **changes)


def training_data(
    args: argparse.Namespace, device: torch.device
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None]:
    """Pixels and labels to train on, and those held out, if any."""
    pixels, labels = to_tensors("train", args.data_dir, device)
    if args.all:
        return limited(pixels, labels, args.limit), None
    train, held_out = (part.to(device) for part in split(len(pixels)))
    return (
        limited(pixels[train], labels[train], args.limit),
        limited(pixels[held_out], labels[held_out], args.limit),
    )


def to_tensors(
    name: Literal["train", "test"], data_dir: Path | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    pixels, labels = data.load(name, data_dir)
    return torch.tensor(pixels, device=device), torch.tensor(labels, device=device).long()


def limited(pixels: Tensor, labels: Tensor, limit: int | None) -> tuple[Tensor, Tensor]:
    return pixels[:limit], labels[:limit]


def check_batches(batches: Batches, process: Process) -> None:
    size = batches.recipe.batch_size
    if batches.per_epoch == 0:
        raise InputError(
            f"a batch of {size} is larger than the {len(batches.pixels)} "
            "images to train on; choose a smaller --batch-size or a larger --limit"
        )
    if size % process.world:
        raise InputError(
            f"a batch of {size} can't be shared by {process.world} processes; "
            "choose a multiple of their number as --batch-size"
        )


@contextmanager
def output_folder(args: argparse.Namespace, recipe: Recipe, process: Process) -> Iterator[Path]:
    """Made, and this run's alone; refuses to touch another run's files unless told to."""
    folder = args.output or ROOT / "runs" / recipe.name
    files = [folder / name for name in (CHECKPOINT, *RESULTS)]
    found = [file for file in files if file.exists()]
    if found and not (args.resume or args.force):
        go_on = "go on with it by --resume, " if files[0] in found else ""
        raise InputError(
            f"{short(folder)} holds {found[0].name} of a run; {go_on}replace it by --force, "
            "or choose another --output"
        )
    if args.force and args.init and args.init.resolve() in [file.resolve() for file in files]:
        raise InputError(
            f"{short(args.init)} is of the run that --force replaces; choose another --output"
        )
    process.wait()  # all have looked before the first one writes
    if not process.leads:
        yield folder
        return
    make_folder(folder)
    with locked(folder, wait=False):
        if args.force:
            for file in files:
                file.unlink(missing_ok=True)
        yield folder


def first_weights(args: argparse.Namespace, recipe: Recipe) -> tuple[NiN, str]:
    """The network to start from, and the digest of the weights file it comes from, if any."""
    torch.manual_seed(args.seed)
    network = NiN(dropout=recipe.dropout).initialise(recipe.initialisation)
    if args.init is None:
        return network, ""
    for line in load_weights(network, args.init):
        print(line, file=sys.stderr)
    if not args.all and knows_held_out(args.init):
        raise InputError(
            f"{short(args.init)} was trained on the held-out images too, so they can't judge what "
            "comes of it; add --all"
        )
    return network, hashlib.sha256(args.init.read_bytes()).hexdigest()


def knows_held_out(weights: Path) -> bool:
    """Whether the weights are of a run with --all; a file in another form doesn't say."""
    try:
        with safe_open(weights, framework="pt") as file:
            return bool(json.loads(file.metadata()["recipe"])["held_out"] == 0)
    except (SafetensorError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them; a second SIGINT interrupts at once."""
    received: list[int] = []

    def receive(number: int, _: object) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say_stopped(trainer: Trainer, process: Process) -> None:
    if process.leads:
        print(
            f"stopped after step {trainer.state.step} of {trainer.steps}; the checkpoint is "
            f"{short(trainer.folder / CHECKPOINT)}; the same command with --resume goes on"
        )


def finish(trainer: Trainer, test: tuple[Tensor, Tensor], process: Process) -> None:
    """The test images, seen for the first time; the files; the book's closing lines."""
    if not process.leads:
        return
    settings, log = trainer.settings, trainer.state.log
    network = folded(trainer.network)
    with without_tf32():  # as train/evaluate.py
        logits = predict(network, test[0], title="test images")
    accuracy = float((logits.argmax(1) == test[1]).float().mean())
    seconds = sum(entry["train_seconds"] for entry in log)
    device = processor_name(trainer.device)
    metrics = {
        "test_accuracy": accuracy,
        "test_loss": float(F.cross_entropy(logits, test[1])),
        "test_images": len(test[1]),
        **{key: log[-1][key] for key in log[-1] if key.endswith(("loss", "accuracy"))},
        "train_images": settings.images,
        "train_seconds": seconds,
        "device": device,
        "torch": torch.__version__,
    }
    recipe = settings.flat()
    weights = trainer.folder / WEIGHTS
    save_weights(weights, network.cpu(), recipe=json.dumps(recipe), metrics=metrics)
    about = json.dumps({"recipe": recipe, "metrics": metrics}, indent=2)
    write_atomically(trainer.folder / ABOUT, f"{about}\n".encode())
    title = f"NiN on Fashion-MNIST, recipe {settings.recipe.name}, test accuracy {accuracy:.4f}"
    draw_curves(log, title, trainer.folder / CURVES)
    examples = trainer.steps * settings.recipe.batch_size
    print(
        f"loss {log[-1]['train_loss']:.3f}, train acc {log[-1]['train_accuracy']:.3f}, "
        f"test acc {accuracy:.4f} on {len(test[1]):,} images\n"
        f"{examples / seconds:.1f} examples/sec on {device}\n"
        f"wrote {', '.join(short(trainer.folder / name) for name in RESULTS)}"
    )
