"""Measures every way to run a model's exports: in process, in C++ and served.

nin bench                                         # the built-in model; results in artifacts/bench
nin bench --quick                                 # a look
nin bench --rows 'onnxruntime*' 'triton-http/*'   # some rows, and eager

Export first, in every format that shall be measured. Everything is compared with eager PyTorch in
float32, in the same round; docs/speed.md explains rows and columns.
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
from nin.bench.rows import Opener, choose_rows, list_rows
from nin.commands.options import ARTIFACTS_HELP, add_model_options, artifacts_of
from nin.files import make_folder, write_atomically
from nin.gate.proof import REPORT
from nin.network.build import TrainedModel, load_model
from nin.reference.exact import compute_reference
from nin.samples import SampleSet, open_samples
from nin.terminal import image_count, positive, short

BATCHES = (1, 4, 16)
NAME, PAGE, DEMO = "bench", "report.html", "demo.png"

USUAL, QUICK = Length(rounds=5, seconds=1.5, images=1_000), Length(rounds=2, seconds=0.2, images=64)


def add_options(options: argparse.ArgumentParser) -> None:
    add_model_options(options)
    options.add_argument("--artifacts", type=Path, help=f"folder of the exports; {ARTIFACTS_HELP}")
    options.add_argument(
        "--output", type=Path, help=f"folder to write to; {NAME}/ in the exports' if not given"
    )
    options.add_argument(
        "--rows", nargs="+", default=["*"], metavar="ROW", help="names or patterns of rows"
    )
    options.add_argument("--rounds", type=positive, help=f"{USUAL.rounds} if not given")
    options.add_argument(
        "--images",
        type=image_count,
        default=USUAL.images,
        help="samples to compare the classes of, or `all`",
    )
    options.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK.seconds:g} s instead of {USUAL.seconds:g} for each measurement, "
        f"{QUICK.rounds} rounds if not given, {QUICK.images} samples at most",
    )


def execute(args: argparse.Namespace) -> None:
    load_before, _, _ = os.getloadavg()
    model = load_model(args.model, args.weights)
    contract, weights = model.contract, args.weights or model.contract.network.weights
    artifacts = artifacts_of(contract, args.artifacts)
    rows = choose_rows(list_rows(contract, weights, artifacts), args.rows)
    samples = open_samples(contract, args.data_dir)
    output = args.output or artifacts / NAME
    make_folder(output)  # now, not after minutes of work
    length = length_of(args, len(samples))
    judge = judge_of(model, samples, length.images)
    batches = [batch for batch in BATCHES if batch <= contract.triton.max_batch]
    pixels = samples.pixels(np.arange(max(batches)) % len(samples))  # there may be few
    with ExitStack() as stack:
        opener = Opener(contract, weights, artifacts, pixels, batches, stack)
        measured = measure_rows(rows, opener, judge, length)
    about = {
        "command": shlex.join(["nin", *sys.argv[1:]]),
        "model": contract.name,
        "weights_sha256": model.weights_sha256,
        **machine(),
        **asdict(length),
        "load_before": load_before,
        "load_after": os.getloadavg()[0],
    }
    write({"about": about, **measured}, artifacts, output)


def length_of(args: argparse.Namespace, samples: int) -> Length:
    length = QUICK if args.quick else USUAL
    most = min(samples, QUICK.images) if args.quick else samples
    return Length(args.rounds or length.rounds, length.seconds, min(args.images or samples, most))


def judge_of(model: TrainedModel, samples: SampleSet, count: int) -> Judge:
    reference = compute_reference(model, samples.pixels(range(count)))
    classes = reference.outputs["logits"].argmax(axis=1)
    true = None if samples.classes is None else samples.classes[:count]
    return Judge(reference.pixels, classes, true)


def write(data: Data, artifacts: Path, output: Path) -> None:
    """Writes every file, and prints the table."""
    text, image, demo = markdown(data), picture(data), artifacts / DEMO
    gate = read_gate(artifacts / f"{REPORT}.json")
    html = page(data, image, gate, demo.read_bytes() if demo.is_file() else None)
    files = {
        f"{NAME}.json": f"{json.dumps(data, indent=2)}\n".encode(),
        f"{NAME}.md": text.encode(),
        f"{NAME}.png": image,
        PAGE: html.encode(),
    }
    for name, content in files.items():
        write_atomically(output / name, content)
    print(f"{text}\nWritten: {', '.join(short(output / name) for name in files)}")
