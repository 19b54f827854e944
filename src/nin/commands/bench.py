"""Measures every way to run a model's exports: in process, in C++ and served.

nin bench                                         # the built-in model; results in artifacts/bench
nin bench --quick                                 # a look in a minute or two
nin bench --rows 'onnxruntime*' 'triton-http/*'   # some rows, and eager

Export first, in every format that shall be measured. Everything is compared with eager PyTorch in
float32, in the same round.
"""

import argparse
import json
import os
import shlex
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np

from nin.bench.measuring import Judge, Length, machine, measure_rows
from nin.bench.report import Data, markdown, page, picture, read_gate
from nin.bench.rows import Opener, Row, choose_rows, list_rows
from nin.commands.options import ARTIFACTS_HELP, add_model_options, artifacts_of
from nin.errors import InputError
from nin.files import make_folder, write_atomically
from nin.gate.proof import REPORT
from nin.gate.reference import compute_reference
from nin.network.build import TrainedModel, load_model
from nin.samples import SampleSet, open_samples
from nin.serve.server import find_tritonserver
from nin.terminal import image_count, positive, short

BATCHES = (1, 4, 16)
NAME = "bench"  # of the folder, and of the files but for the page
PAGE = "report.html"
DEMO = "demo.png"

LENGTH, IMAGES = Length(rounds=5, seconds=1.5), 1_000
QUICK, QUICK_IMAGES = Length(rounds=2, seconds=0.2), 64


def add_options(options: argparse.ArgumentParser) -> None:
    add_model_options(options)
    options.add_argument("--artifacts", type=Path, help=f"folder of the exports; {ARTIFACTS_HELP}")
    options.add_argument(
        "--output", type=Path, help=f"folder to write to; {NAME}/ in the exports' if not given"
    )
    options.add_argument(
        "--rows", nargs="+", default=["*"], metavar="ROW", help="names or patterns of rows"
    )
    options.add_argument(
        "--rounds", type=positive, help=f"medians are reported of; {LENGTH.rounds} if not given"
    )
    options.add_argument(
        "--images", type=image_count, default=IMAGES, metavar="N",
        help="samples to compare the classes of, or `all`",
    )  # fmt: skip
    options.add_argument(
        "--quick", action="store_true",
        help=f"{QUICK.rounds} rounds of {QUICK.seconds:g} s instead of {LENGTH.seconds:g} s, and "
        f"{QUICK_IMAGES} samples at most",
    )  # fmt: skip


def execute(args: argparse.Namespace) -> None:
    load_before, _, _ = os.getloadavg()
    model = load_model(args.model, args.weights)
    args.artifacts = artifacts_of(model.contract, args.artifacts)
    args.weights = args.weights or model.contract.network.weights
    rows = chosen_rows(args, model)
    samples = open_samples(model.contract, args.data_dir)
    output = args.output or args.artifacts / NAME
    make_folder(output)  # now, not after minutes of work
    length, images = length_of(args, len(samples))
    judge = judge_of(model, samples, images)
    about = {
        "command": shlex.join(["nin", *sys.argv[1:]]),
        "model": model.contract.name,
        "weights_sha256": model.weights_sha256,
        **machine(),
        **asdict(length),
        "images": images,
        "load_before": load_before,
    }
    measured = measure_all(args, model, rows, samples, judge, length)
    about["load_after"] = os.getloadavg()[0]
    write({"about": about, **measured}, args.artifacts, output)


def chosen_rows(args: argparse.Namespace, model: TrainedModel) -> list[Row]:
    server = True
    try:
        find_tritonserver()
    except InputError as error:
        server = False
        print(f"served rows are left out: {error}", file=sys.stderr)
    rows = list_rows(model.contract, args.weights, args.artifacts, server=server)
    return choose_rows(rows, args.rows)


def length_of(args: argparse.Namespace, samples: int) -> tuple[Length, int]:
    """How long is measured, and how many samples are judged."""
    length, most = (QUICK, QUICK_IMAGES) if args.quick else (LENGTH, samples)
    rounds = args.rounds or length.rounds
    return Length(rounds, length.seconds), min(args.images or samples, most, samples)


def judge_of(model: TrainedModel, samples: SampleSet, count: int) -> Judge:
    reference = compute_reference(model, samples.pixels(range(count)))
    classes = reference.outputs["logits"].argmax(axis=1)
    true = None if samples.classes is None else samples.classes[:count]
    return Judge(reference.pixels, classes, true)


def measure_all(
    args: argparse.Namespace, model: TrainedModel, rows: list[Row], samples: SampleSet,
    judge: Judge, length: Length,
) -> Data:  # fmt: skip
    batches = [batch for batch in BATCHES if batch <= model.contract.triton.max_batch]
    indices = np.arange(max(batches)) % len(samples)  # there may be few
    with ExitStack() as stack:
        opener = Opener(
            model.contract, args.weights, args.artifacts, samples.pixels(indices), batches, stack
        )
        return measure_rows(rows, opener, judge, length)


def write(data: Data, artifacts: Path, output: Path) -> None:
    """Prints the table, and writes every file."""
    text, image = markdown(data), picture(data)
    demo = artifacts / DEMO
    html = page(
        data,
        image,
        read_gate(artifacts / f"{REPORT}.json"),
        demo.read_bytes() if demo.is_file() else None,
    )
    files = {
        f"{NAME}.json": f"{json.dumps(data, indent=2)}\n".encode(),
        f"{NAME}.md": text.encode(),
        f"{NAME}.png": image,
        PAGE: html.encode(),
    }
    for name, content in files.items():
        write_atomically(output / name, content)
    print(f"{text}\nWritten: {', '.join(short(output / name) for name in files)}")
