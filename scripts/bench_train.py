"""The book's training loop against ours: examples per second, and the share of the peak.

python scripts/bench_train.py                               # minutes on a CPU
python scripts/bench_train.py --device cuda --steps 100     # a GPU's steps are short: time many

The book (Dive into Deep Learning) times the step alone, once its batch is loaded; the wall clock
counts the loading too. Our step makes its own batch, so both clocks tell the same of it. The loops
take turns in each round. The pictures are the test images, repeated until they are as many as
there are to train on: speed doesn't depend on what they show.
"""

import argparse
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import Compose, Resize, ToTensor
from tqdm import tqdm

from nin.errors import InputError
from nin.files import make_folder, write_atomically
from nin.terminal import natural, parser, positive, run, short, table
from nin.training.batches import SIDE, Batches
from nin.training.data import load
from nin.training.devices import (
    Process,
    add_device_options,
    find_device,
    find_precision,
    processor_name,
)
from nin.training.network import SCALE, NiN
from nin.training.recipes import BEST, BOOK, Recipe
from nin.training.trainer import Settings, Trainer

IMAGES = 60_000  # of the training split; a step of ours draws from the order of all
AHEAD = 2  # batches that each worker of a DataLoader makes in advance, by default
PRODUCTS = 10  # the fastest of so many is the peak
TENSOR_FLOAT = "TensorFloat-32"  # what cuDNN's convolutions take float32 for
NO_ROOM = ("out of memory", "allocate memory", "DataLoader worker")  # in torch's RuntimeErrors

BOOKS_LOOP = "the book's"
WHOLE, CROPS = "ours, the best recipe", f"ours, the best recipe, {BEST.crop}x{BEST.crop} crops"


class Rates(NamedTuple):
    """Examples per second of one turn."""

    by_book: float
    by_wall: float


# A round: each loop's turn, by the loop's name.
Round = dict[str, Rates]


@dataclass(frozen=True)
class Loop:
    """One row of the tables."""

    name: str
    batch_size: int
    side: int  # of its images, in pixels of 28
    precision: str  # of its products, one of the peaks'
    turn: Callable[[int], Rates]  # a warm-up, then so many steps


def main() -> None:
    args = parse_args()
    device = find_device(args.device)
    if args.output:
        if args.output.is_dir():
            raise InputError(f"{short(args.output)} is a folder; give the name of a file")
        make_folder(args.output.parent)  # found out now, not after the measurement
    try:
        loops = make_loops(args, device)
        peaks = measure_peaks({"float32"} | {loop.precision for loop in loops}, device, args.matmul)
        rounds = measure(loops, args.rounds, args.steps)
    except RuntimeError as error:
        if not any(sign in str(error) for sign in NO_ROOM):
            raise
        raise InputError(
            f"no room ({str(error).splitlines()[0]}); choose a smaller --batch-size, or fewer "
            "--workers"
        ) from error
    page = describe(loops, rounds, peaks, args, device)
    print(page)
    if args.output:
        write_atomically(args.output, f"{page}\n".encode())
        print(f"Written: {short(args.output)}")


def parse_args() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument(
        "--rounds", type=positive, default=3, help="of which the medians are reported"
    )
    options.add_argument("--steps", type=positive, default=4, help="timed in each turn of a loop")
    options.add_argument("--batch-size", type=positive, help="instead of the recipes'")
    options.add_argument(
        "--workers",
        type=natural,
        default=min(4, os.cpu_count() or 1),
        help="processes that load the book's batches; the book's are 4",
    )
    add_device_options(options)
    options.add_argument(
        "--matmul",
        type=positive,
        metavar="N",
        help="side of the matrices whose product is the peak; 2048 on a CPU, 8192 on a GPU",
    )
    options.add_argument("--output", type=Path, metavar="FILE", help="also write the Markdown here")
    args = options.parse_args()
    if (args.batch_size or 0) > IMAGES:
        options.error(f"a batch of {args.batch_size} is larger than the {IMAGES} images")
    return args


# The loops


def make_loops(args: argparse.Namespace, device: torch.device) -> list[Loop]:
    images = pictures()
    precision = args.precision = find_precision(args.precision, device)
    args.matmul = args.matmul or (8192 if device.type == "cuda" else 2048)
    batch_size = args.batch_size or BOOK.batch_size
    book = BookLoop(Pictures(*images), batch_size, args.workers, device)
    loops = [Loop(BOOKS_LOOP, batch_size, SIDE, products("float32", device), book.turn)]
    on_device = (images[0].to(device), images[1].to(device))
    for name, recipe in (
        ("ours, the book's recipe", BOOK),
        (WHOLE, replace(BEST, crop_until=0.0)),
        (CROPS, replace(BEST, crop_until=1.0)),
    ):
        endless = replace(
            recipe,
            batch_size=args.batch_size or recipe.batch_size,
            epochs=max(recipe.epochs, args.rounds * (args.steps + 1)),  # whatever the batch size
        )
        trainer = make_trainer(endless, on_device, precision, compiled=args.compile)
        side = recipe.crop if recipe.crop_until else SIDE
        turn = partial(take_turn, trainer)
        loops.append(Loop(name, endless.batch_size, side, products(precision, device), turn))
    return loops


def pictures() -> tuple[Tensor, Tensor]:
    """As many pixels (N, 28, 28) uint8 and labels (N,) int64 as there are to train on."""
    pixels, labels = map(torch.tensor, load("test"))
    times = IMAGES // len(pixels)
    return pixels.repeat(times, 1, 1), labels.repeat(times).long()


class Pictures(Dataset[tuple[Tensor, int]]):
    """What torchvision's FashionMNIST does for the book: each picture resized when asked for."""

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        self.pixels, self.labels = pixels, labels
        side = SIDE * SCALE
        self.transform = Compose([Resize((side, side)), ToTensor()])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        picture = Image.fromarray(self.pixels[number].numpy())
        return self.transform(picture), int(self.labels[number])


class BookLoop:
    """The training loop of the book: float32, plain SGD, batches made by other processes."""

    def __init__(
        self, images: Pictures, batch_size: int, workers: int, device: torch.device
    ) -> None:
        torch.manual_seed(0)
        self.images, self.batch_size, self.workers = images, batch_size, workers
        self.device = device
        self.network = NiN().initialise().to(device).train()
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=BOOK.lr)

    def turn(self, steps: int) -> Rates:
        """Starts the workers and uses up what they made before the first step; then times."""
        warm_up = max(1, AHEAD * self.workers)
        with warnings.catch_warnings():
            # the number of workers is the caller's choice
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            # they always have a next batch to make, as in the midst of an epoch
            batches = iter(self.loader(warm_up + steps + AHEAD * self.workers))
        for images, labels in islice(batches, warm_up):
            self.step(images, labels)
        in_steps, began = 0.0, time.perf_counter()
        for images, labels in islice(batches, steps):
            loaded = time.perf_counter()
            self.step(images, labels)
            in_steps += time.perf_counter() - loaded
        seconds = time.perf_counter() - began
        del batches  # ends the workers: they would disturb the other loops
        return Rates(steps * self.batch_size / in_steps, steps * self.batch_size / seconds)

    def loader(self, batches: int) -> DataLoader[tuple[Tensor, int]]:
        """So many shuffled batches, from one epoch to the next."""
        sampler = RandomSampler(self.images, num_samples=batches * self.batch_size)
        return DataLoader(self.images, self.batch_size, sampler=sampler, num_workers=self.workers)

    def step(self, images: Tensor, labels: Tensor) -> float:
        """The book reads the loss and the right answers after each step, so a GPU has ended it."""
        self.optimizer.zero_grad()
        images, labels = images.to(self.device), labels.to(self.device)
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        with torch.no_grad():
            right = (logits.argmax(dim=1) == labels).sum()
            return float(loss * len(labels)) + float(right)


def make_trainer(
    recipe: Recipe, images: tuple[Tensor, Tensor], precision: str, *, compiled: bool
) -> Trainer:
    torch.manual_seed(0)
    settings = Settings(
        recipe=recipe,
        seed=0,
        images=len(images[0]),
        held_out=0,
        start="",
        device=images[0].device.type,
        precision=precision,
        compiled=compiled,
    )
    return Trainer(
        NiN(dropout=recipe.dropout).initialise(recipe.initialisation),
        Batches(*images, recipe, settings.seed),
        settings,
        process=Process(),
        folder=Path(),  # steps write nothing
    )


def take_turn(trainer: Trainer, steps: int) -> Rates:
    with trainer.accelerated():
        trainer.step()
        synchronise(trainer.device)
        began = time.perf_counter()
        for _ in range(steps):
            trainer.step()
        synchronise(trainer.device)
    rate = steps * trainer.settings.recipe.batch_size / (time.perf_counter() - began)
    return Rates(rate, rate)


def measure(loops: Sequence[Loop], rounds: int, steps: int) -> list[Round]:
    measured: list[Round] = [{} for _ in range(rounds)]
    with tqdm(total=rounds * len(loops), disable=None, leave=False) as bar:
        for found in measured:
            for loop in loops:
                bar.set_description(loop.name)
                found[loop.name] = loop.turn(steps)
                bar.update()
    return measured


def synchronise(device: torch.device) -> None:
    """A GPU runs behind Python; its work has ended when the clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# The peak, and what a step needs of it


def products(precision: str, device: torch.device) -> str:
    """What convolutions of that dtype multiply in."""
    tensor_float = device.type == "cuda" and precision == "float32"
    return TENSOR_FLOAT if tensor_float else precision


def measure_peaks(names: set[str], device: torch.device, side: int) -> dict[str, float]:
    """FLOP/s of a product of square matrices, by precision."""
    return {name: measure_peak(name, device, side) for name in sorted(names)}


def measure_peak(name: str, device: torch.device, side: int) -> float:
    dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
    one, other = torch.randn(2, side, side, device=device).to(dtype)
    seconds = []
    with float32_products("tf32" if name == TENSOR_FLOAT else "ieee"):
        for _ in range(PRODUCTS):
            synchronise(device)
            began = time.perf_counter()
            one @ other
            synchronise(device)
            seconds.append(time.perf_counter() - began)
    return 2 * side**3 / min(seconds)


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """How CUDA multiplies float32 matrices, as long as the context lasts."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def flops_per_image(side: int, *, backward: bool = True) -> int:
    """What one image of side x side pixels costs, counted on shapes alone.

    Multiply-adds of the convolutions, two each, and backwards those that the weights need.
    """
    with torch.device("meta"):
        network = NiN()
        image = torch.empty(1, 1, side * SCALE, side * SCALE)
    with FlopCounterMode(display=False) as counter:
        logits = network(image)
        if backward:
            logits.sum().backward()
    return int(counter.get_total_flops())


# The report


def describe(
    loops: Sequence[Loop],
    rounds: Sequence[Round],
    peaks: dict[str, float],
    args: argparse.Namespace,
    device: torch.device,
) -> str:
    told = ", ".join(f"{name} {peak / 1e9:,.0f}" for name, peak in peaks.items())
    return "\n\n".join(
        (
            f"`{command(args, device)}`, {processor_name(device)}, "
            f"torch {torch.__version__}; medians of {len(rounds)} rounds (smallest to largest), "
            "ratios formed within each.",
            speed_table(loops, rounds),
            f"A whole run of the best recipe, {BEST.crop_until:.0%} of it on crops: "
            f"{spread([whole_run(found) for found in rounds], 2)} times the book's examples/s.",
            f"The peak, GFLOP/s in a product of {args.matmul}x{args.matmul} matrices: {told}. "
            "Of it the steps use, by the wall clock and by what convolutions cost as they are "
            "defined (the folded stem and Winograd's way save some of it):",
            share_table(loops, rounds, peaks),
        )
    )


def command(args: argparse.Namespace, device: torch.device) -> str:
    """What to type for the same measurement again."""
    options = [f"--{name} {getattr(args, name)}" for name in ("rounds", "steps", "workers")]
    options += [f"--device {device}", f"--precision {args.precision}", f"--matmul {args.matmul}"]
    options += [f"--batch-size {args.batch_size}"] if args.batch_size else []
    options += ["--compile"] if args.compile else []
    return f"python scripts/bench_train.py {' '.join(options)}"


def speed_table(loops: Sequence[Loop], rounds: Sequence[Round]) -> str:
    header = (
        "training loop",
        "batch",
        "examples/s as the book times it",
        "times the book's",
        "examples/s by the wall clock",
        "times the book's",
    )
    rows = []
    for loop in loops:
        cells = [loop.name, str(loop.batch_size)]
        for clock in Rates._fields:
            rates = [getattr(found[loop.name], clock) for found in rounds]
            book = [getattr(found[BOOKS_LOOP], clock) for found in rounds]
            ratios = [ours / theirs for ours, theirs in zip(rates, book, strict=True)]
            cells += [spread(rates, 1), spread(ratios, 2)]
        rows.append(cells)
    return table(header, rows)


def whole_run(found: Round) -> float:
    """How many times the book's examples/s by the wall clock, crops and whole images together."""
    seconds = BEST.crop_until / found[CROPS].by_wall + (1 - BEST.crop_until) / found[WHOLE].by_wall
    return 1 / seconds / found[BOOKS_LOOP].by_wall


def spread(values: Sequence[float], digits: int) -> str:
    """The median, with the smallest and the largest."""
    low, high = min(values), max(values)
    return f"{median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def share_table(loops: Sequence[Loop], rounds: Sequence[Round], peaks: dict[str, float]) -> str:
    header = ("training loop", "GFLOP per example", "precision", "GFLOP/s", "share of the peak")
    rows = []
    for loop in loops:
        flops = flops_per_image(loop.side)
        used = flops * median(found[loop.name].by_wall for found in rounds)
        share = used / peaks[loop.precision]
        numbers = f"{flops / 1e9:.2f}", loop.precision, f"{used / 1e9:,.0f}", f"{share:.3f}"
        rows.append((loop.name, *numbers))
    return table(header, rows)


if __name__ == "__main__":
    run(main)
