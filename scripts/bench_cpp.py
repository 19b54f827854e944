"""C++ by LibTorch against Python: throughput, latency, start, memory, and what LibTorch offers.

python scripts/bench_cpp.py                # ten minutes; results in artifacts/bench
python scripts/bench_cpp.py --rounds 1     # a quick look

Every measurement is a process of its own; those compared follow one another in each round.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import matplotlib as mpl
import torch
from tqdm import tqdm

from nin.contract import load_contract
from nin.errors import CheckError, InputError
from nin.export.artifact import read_artifact
from nin.files import atomic_path, make_folder, write_atomically
from nin.paths import ARTIFACTS, CPP_TOOLS, DATA, NIN, ROOT
from nin.terminal import parser, positive, processor, run, short, table

BATCHES = (1, 16, 64)
IMAGES = DATA / "fashion-mnist" / "t10k-images-idx3-ubyte.gz"
MODEL = f"{load_contract(NIN).name}.pt"

CPP, TORCHSCRIPT, EAGER = "C++ LibTorch", "torchscript", "eager"
SIDES = {CPP: CPP, TORCHSCRIPT: "Python TorchScript", EAGER: "Python eager"}
# The settings of bench_python.py, to see what LibTorch offers.
TRIED = (
    TORCHSCRIPT,
    "optimize_for_inference",
    "the same, no profiling",
    "the same, one thread",
    "channels-last",
    "bf16",
)

# What is measured of a process, by name.
Measured = dict[str, float]
# One of TRIED or SIDES, and a batch size; 0 is the start: from nothing to one image's answer.
Point = tuple[str, int]


def main() -> None:
    args = parse_args()
    if not (CPP_TOOLS / "nin_classify").is_file():
        raise InputError(f"no nin_classify in {short(CPP_TOOLS)}; build it by `make cpp`")
    read_artifact(args.artifacts, MODEL)  # what is measured is a whole export
    make_folder(args.output)
    rounds = measure(args)
    model = args.artifacts / MODEL
    growth = classify(model, "--benchmark", "--batch-size", 1, "--repetitions", args.growth)
    page = describe(rounds, growth, args)
    data = {"rounds": [[[*p, m] for p, m in r.items()] for r in rounds], "growth": growth}
    write_atomically(args.output / "cpp.json", f"{json.dumps(data, indent=2)}\n".encode())
    write_atomically(args.output / "cpp.md", page.encode())
    draw(rounds, args.output / "cpp.png")
    print(page)
    print(f"Written: {', '.join(short(args.output / f'cpp.{s}') for s in ('md', 'png', 'json'))}")


def parse_args() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument(
        "--rounds", type=positive, default=5, help="of which the medians are reported"
    )
    options.add_argument("--calls", type=positive, default=300, help="timed images of each side")
    options.add_argument(
        "--growth", type=positive, default=10_000, help="calls to look for a growing heap in"
    )
    options.add_argument(
        "--batches", type=positive, nargs="+", default=BATCHES, help="images in one call"
    )
    options.add_argument(
        "--artifacts", type=Path, default=ARTIFACTS, help="folder with the exports to run"
    )
    options.add_argument(
        "--output", type=Path, default=ARTIFACTS / "bench", help="folder to write to"
    )
    return options.parse_args()


def measure(args: argparse.Namespace) -> list[dict[Point, Measured]]:
    names = [*SIDES, *(name for name in TRIED if name not in SIDES)]
    plan = [(name, 0) for name in SIDES] + [(n, b) for b in args.batches for n in names]
    rounds: list[dict[Point, Measured]] = [{} for _ in range(args.rounds)]
    with tqdm(total=args.rounds * len(plan), disable=None, leave=False) as bar:
        for found in rounds:
            for point in plan:
                bar.set_description("{}, batch {}".format(*point))
                name, batch = point
                found[point] = measure_one(name, batch, args.calls, args.artifacts / MODEL)
                bar.update()
    return rounds


def measure_one(name: str, batch: int, images: int, model: Path) -> Measured:
    calls = max(5, images // batch) if batch else 0
    start = time.perf_counter()
    if name == CPP:
        several = ("--benchmark", "--batch-size", batch, "--repetitions", calls)
        measured = classify(model, "--no-replay", *(several if batch else ("--limit", 1)))
    else:
        script = ROOT / "scripts" / "bench_python.py"
        python = (sys.executable, "-W", "ignore", script)
        measured = output_of(*python, name, max(batch, 1), calls, model)
    if not batch:
        return {"start_s": time.perf_counter() - start}
    return measured | {"images_per_s": batch * 1000 / measured["median_ms"]}


def classify(model: Path, *options: object) -> Measured:
    command = (CPP_TOOLS / "nin_classify", IMAGES, "--model", model, "--format", "json")
    return output_of(*command, *options)


def output_of(*command: object) -> Measured:
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True)  # noqa: S603
    if ended.returncode:
        raise CheckError(f"{Path(str(command[0])).name} failed: {ended.stderr.strip()}")
    found = json.loads(ended.stdout)
    return found if isinstance(found, dict) else {}  # of the start, only the time counts


# The report


def batches(rounds: Sequence[dict[Point, Measured]]) -> list[int]:
    return [batch for name, batch in rounds[0] if name == CPP and batch]


def middle(rounds: Sequence[dict[Point, Measured]], point: Point, name: str) -> float:
    return median(found[point][name] for found in rounds)


def ratio(rounds: Sequence[dict[Point, Measured]], one: Point, other: Point, name: str) -> str:
    """The median of the rounds' own ratios, with the smallest and the largest."""
    ratios = [found[one][name] / found[other][name] for found in rounds]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def describe(
    rounds: Sequence[dict[Point, Measured]], growth: Measured, args: argparse.Namespace
) -> str:
    command = f"python scripts/bench_cpp.py --rounds {args.rounds} --calls {args.calls}"
    return "\n\n".join(
        (
            f"`{command} --growth {args.growth}`, {processor()}, {torch.get_num_threads()} "
            f"threads, torch {torch.__version__}; medians of {len(rounds)} rounds.",
            speed_table(rounds),
            start_table(rounds),
            f"After {growth['repetitions']:.0f} more calls the C++ process had "
            f"{growth['heap_growth_kib']:+.1f} KiB more of its heap in use.",
            tried_table(rounds),
        )
    )


def speed_table(rounds: Sequence[dict[Point, Measured]]) -> str:
    header = ("batch", "runtime", "images/s", "C++ against it", "p50 ms", "p95 ms", "peak MiB")
    rows = []
    for batch in batches(rounds):
        for name, shown in SIDES.items():
            point = name, batch
            numbers = [middle(rounds, point, n) for n in ("median_ms", "p95_ms", "peak_memory_mib")]
            rows.append(
                (
                    str(batch), shown, f"{middle(rounds, point, 'images_per_s'):.1f}",
                    ratio(rounds, (CPP, batch), point, "images_per_s"),
                    f"{numbers[0]:.2f}", f"{numbers[1]:.2f}", f"{numbers[2]:.0f}",
                )
            )  # fmt: skip
    return table(header, rows)


def start_table(rounds: Sequence[dict[Point, Measured]]) -> str:
    header = ("from start to the end of one image, trusting the file", "seconds", "of C++'s")
    rows = [
        (
            shown,
            f"{middle(rounds, (name, 0), 'start_s'):.2f}",
            ratio(rounds, (name, 0), (CPP, 0), "start_s"),
        )
        for name, shown in SIDES.items()
    ]
    return table(header, rows)


def tried_table(rounds: Sequence[dict[Point, Measured]]) -> str:
    header = [
        "in Python",
        "first call, ms",
        *(f"batch {b}" for b in batches(rounds)),
        "error of logits",
    ]
    rows = []
    for name in TRIED:
        found = rounds[0][name, batches(rounds)[0]]
        rates = [
            ratio(rounds, (name, b), (TORCHSCRIPT, b), "images_per_s") if name != TORCHSCRIPT
            else f"{middle(rounds, (name, b), 'images_per_s'):.1f} images/s"
            for b in batches(rounds)
        ]  # fmt: skip
        verdict = "" if found["logit_error"] <= found["budget"] else ", beyond the budget"
        first = f"{middle(rounds, (name, batches(rounds)[0]), 'first_ms'):.0f}"
        rows.append((name, first, *rates, f"{found['logit_error']:.1e}{verdict}"))
    return table(header, rows)


def draw(rounds: Sequence[dict[Point, Measured]], path: Path) -> None:
    """Throughput by batch size, and the start; a dot is a round, a bar the median."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.5), width_ratios=[3, 1], layout="constrained"
    )
    figure.suptitle(f"The classifier in process: {processor()}, {torch.get_num_threads()} threads")
    for i, (name, shown) in enumerate(SIDES.items()):
        colour = f"C{i}"
        for j, batch in enumerate(batches(rounds)):
            values = [found[name, batch]["images_per_s"] for found in rounds]
            label = shown if j == 0 else None
            left.bar(j + i * 0.27, median(values), 0.25, color=colour, alpha=0.6, label=label)
            left.scatter([j + i * 0.27] * len(values), values, s=10, color=colour)
        starts = [found[name, 0]["start_s"] for found in rounds]
        right.bar(i, median(starts), 0.8, color=colour, alpha=0.6)
        right.scatter([i] * len(starts), starts, s=10, color=colour)
    left.set_xticks(
        [j + 0.27 for j in range(len(batches(rounds)))], [f"batch {b}" for b in batches(rounds)]
    )
    left.set_ylabel("images per second")
    left.set_ylim(top=left.get_ylim()[1] * 1.25)  # room for the legend
    left.legend(loc="upper right", ncols=len(SIDES))
    right.set_xticks(range(len(SIDES)), [s.replace(" ", "\n") for s in SIDES.values()])
    right.set_ylabel("seconds from start to one answer")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    run(main)
