"""Evaluates the weights, or an export of them, on the samples, class by class.

nin evaluate                                      # the weights, on all samples
nin evaluate --weights runs/best/nin.safetensors
nin evaluate --runtime onnxruntime                # the export in artifacts/
"""

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nin.commands.options import ARTIFACTS_HELP, add_model_options, artifacts_of
from nin.contract import Graph
from nin.errors import CheckError, InputError
from nin.evaluation import (
    BINS,
    Evaluation,
    draw_calibration,
    draw_confusion,
    draw_mistakes,
    evaluate,
    find_mistakes,
    log_softmax,
)
from nin.files import make_folder, write_atomically
from nin.gate.parity import check_identity
from nin.network.build import TrainedModel, load_model
from nin.network.classifier import Preprocess
from nin.paths import ROOT
from nin.reference.exact import batch_for
from nin.runtimes import Runtime
from nin.runtimes.registry import RUNTIMES, open_runtime
from nin.samples import SampleSet, open_samples
from nin.terminal import image_count, short

# What an evaluation leaves in its folder; of many classes there is no picture of the confusion.
CONFUSION, MISTAKES, CALIBRATION = "confusion.png", "mistakes.png", "calibration.png"
NUMBERS = "evaluation.json"

SHOWN = 30  # the most confident mistakes


def add_options(options: argparse.ArgumentParser) -> None:
    add_model_options(options)
    options.add_argument("--artifacts", type=Path, help=f"folder of the exports; {ARTIFACTS_HELP}")
    options.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default="eager",
        help="eager runs the weights themselves, the others their export",
    )
    options.add_argument(
        "--graph", help="the graph to run, by its name in model.toml; the classifier if not given"
    )
    options.add_argument(
        "--images", type=image_count, default="all", help="how many samples, or `all`"
    )
    options.add_argument(
        "--output", type=Path, default=ROOT / "runs" / "evaluation", help="folder to write to"
    )


def execute(args: argparse.Namespace) -> None:
    model = load_model(args.model, args.weights)
    graph = find_graph(model, args.graph)
    runtime = open_proven(args, model, graph)
    samples = open_samples(model.contract, args.data_dir)
    if samples.classes is None:
        raise InputError(
            f"{short(args.model)}: the classes of its samples aren't known, expected labels beside "
            "IDX files, or image files in sub-folders 0, 1, ... by class"
        )
    make_folder(args.output)  # now, not after minutes of work
    count = min(args.images or len(samples), len(samples))
    logits = compute_logits(runtime, graph, model, samples, count)
    true, labels = samples.classes[:count], model.contract.labels
    evaluation = evaluate(logits, true, labels)
    title = f"{graph.name} in {args.runtime}, {count:,} samples"
    print_tables(evaluation, f"{title}, weights {model.weights_sha256[:12]}")
    probabilities = np.exp(log_softmax(logits))
    wrong = find_mistakes(probabilities, true)
    shown = wrong[:SHOWN]
    draw_mistakes(
        samples.pixels(shown),
        true[shown],
        probabilities[shown],
        labels,
        f"{title}: {len(shown)} of {len(wrong)} mistakes, the most confident first",
        args.output / MISTAKES,
    )
    names = [NUMBERS, *draw(evaluation, title, args.output), MISTAKES]
    numbers = {
        "graph": graph.name,
        "runtime": args.runtime,
        "weights_sha256": model.weights_sha256,
        **machine(),
        **evaluation.report(),
        "mistakes": describe(wrong, probabilities, evaluation, samples),
    }
    write_atomically(args.output / NUMBERS, f"{json.dumps(numbers, indent=2)}\n".encode())
    print(f"wrote {', '.join(short(args.output / name) for name in names)}")


def find_graph(model: TrainedModel, name: str | None) -> Graph:
    graphs = model.contract.graphs
    if name is None:
        return model.contract.classifier_graph
    if name not in graphs:
        raise InputError(f"no graph {name} in {model.contract.folder}; it has {', '.join(graphs)}")
    return graphs[name]


def open_proven(args: argparse.Namespace, model: TrainedModel, graph: Graph) -> Runtime:
    """The runtime, if what it runs is of this model."""
    artifacts = artifacts_of(model.contract, args.artifacts)
    runtime = open_runtime(args.runtime, graph, artifacts=artifacts, model=model)
    failures = check_identity(
        runtime, graph, labels=model.contract.labels, weights_sha256=model.weights_sha256
    )
    if failure := next(failures, None):
        raise InputError(f"{graph.name} in {artifacts} can't be evaluated: {failure}")
    return runtime


def compute_logits(
    runtime: Runtime, graph: Graph, model: TrainedModel, samples: SampleSet, count: int
) -> NDArray[np.float32]:
    """The runtime's logits (N, classes) for the first `count` samples, in the largest batches.

    Raises CheckError where one is no number.
    """
    preprocess, size = Preprocess(model.contract), graph.max_batch
    parts = []
    for start in tqdm(range(0, count, size), graph.name, disable=None, leave=False):
        pixels = samples.pixels(range(start, min(start + size, count)))
        parts.append(runtime(batch_for(preprocess, graph, pixels))["logits"])
    logits = np.concatenate(parts)
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(bad):
        raise CheckError(
            f"the logits of {len(bad)} of {count} samples aren't finite; "
            f"first {samples.names[bad[0]]}"
        )
    return logits


def print_tables(evaluation: Evaluation, title: str) -> None:
    print(
        f"{title}\n"
        f"accuracy {evaluation.accuracy:.4f}, loss {evaluation.loss:.4f}, "
        f"expected calibration error {evaluation.calibration_error:.4f} ({BINS} bins)\n\n"
        f"{evaluation.class_table()}\n\n"
        "Images by true class and predicted class:\n\n"
        f"{evaluation.confusion_table()}\n"
    )


def draw(evaluation: Evaluation, title: str, folder: Path) -> list[str]:
    """Writes the pictures, and gives their names."""
    error = f"expected calibration error {evaluation.calibration_error:.4f}"
    draw_calibration(evaluation, f"{title}\n{error}", folder / CALIBRATION)
    if evaluation.confusion is None:
        return [CALIBRATION]
    title = f"{title}, accuracy {evaluation.accuracy:.4f}"
    draw_confusion(evaluation.confusion, evaluation.labels, title, folder / CONFUSION)
    return [CONFUSION, CALIBRATION]


def describe(
    wrong: NDArray[np.intp],
    probabilities: NDArray[np.float64],
    evaluation: Evaluation,
    samples: SampleSet,
) -> list[dict[str, Any]]:
    """The mistakes as plain data: which sample, what it is taken for and is."""
    labels = evaluation.labels
    return [
        {
            "image": index,
            "name": samples.names[index],
            "predicted": labels[evaluation.predicted[index]],
            "probability": float(probabilities[index].max()),
            "true": labels[evaluation.true[index]],
        }
        for index in wrong.tolist()
    ]


def machine() -> dict[str, Any]:
    """Where it was evaluated."""
    return {
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("nin", "torch", "numpy")},
    }
