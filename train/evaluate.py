"""How good the weights, or an export of them, are on the test images, class by class.

python train/evaluate.py                                      # the weights, 10,000 images
python train/evaluate.py --weights runs/best/nin.safetensors
python train/evaluate.py --runtime onnxruntime                # the export in artifacts/
"""

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nin.artifact import make_folder, write_atomically
from nin.cli import add_input_options, image_count, parser, run, short
from nin.contract import FASHION_MNIST, GRAPHS, LABELS, Graph
from nin.data import load
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
from nin.exporting import load_deployable
from nin.parity import check_identity, run_all
from nin.paths import ARTIFACTS, ROOT
from nin.runtimes import RUNTIMES, Runtime, open_runtime

# What an evaluation leaves in its folder.
CONFUSION, MISTAKES, CALIBRATION = "confusion.png", "mistakes.png", "calibration.png"
NUMBERS = "evaluation.json"

SHOWN = 30  # the most confident mistakes


def parse_args() -> argparse.Namespace:
    options = parser(__doc__)
    add_input_options(options)
    options.add_argument("--artifacts", type=Path, default=ARTIFACTS, help="folder of the exports")
    options.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default="eager",
        help="eager runs the weights themselves, the others their export",
    )
    options.add_argument(
        "--graph", choices=GRAPHS, default=FASHION_MNIST.name, help="the graph to run"
    )
    options.add_argument(
        "--images", type=image_count, default="all", help="how many test images, or `all`"
    )
    options.add_argument(
        "--output", type=Path, default=ROOT / "runs" / "evaluation", help="folder to write to"
    )
    return options.parse_args()


def main() -> None:
    args = parse_args()
    runtime, weights_sha256 = open_proven(args)
    pixels, labels = (array[: args.images] for array in load("test", args.data_dir))
    make_folder(args.output)  # now, not after minutes of work
    logits = compute_logits(runtime, GRAPHS[args.graph], pixels)
    evaluation = evaluate(logits, labels)
    title = f"{args.graph} in {args.runtime}, {len(pixels):,} test images"
    print(
        f"{title}, weights {weights_sha256[:12]}\n"
        f"accuracy {evaluation.accuracy:.4f}, loss {evaluation.loss:.4f}, "
        f"expected calibration error {evaluation.calibration_error:.4f} ({BINS} bins)\n\n"
        f"{evaluation.class_table()}\n\n"
        "Images by true class (rows) and predicted class (columns):\n\n"
        f"{evaluation.confusion_table()}\n"
    )
    draw(evaluation, title, args.output)
    probabilities = np.exp(log_softmax(logits))
    wrong = find_mistakes(probabilities, labels)
    shown = wrong[:SHOWN]
    draw_mistakes(
        pixels[shown],
        labels[shown],
        probabilities[shown],
        f"{title}: {len(shown)} of {len(wrong)} mistakes, the most confident first",
        args.output / MISTAKES,
    )
    mistakes = describe(wrong, probabilities, labels)
    numbers = {**about(args, weights_sha256), **evaluation.report(), "mistakes": mistakes}
    write_atomically(args.output / NUMBERS, f"{json.dumps(numbers, indent=2)}\n".encode())
    names = (NUMBERS, CONFUSION, MISTAKES, CALIBRATION)
    print(f"wrote {', '.join(short(args.output / name) for name in names)}")


def open_proven(args: argparse.Namespace) -> tuple[Runtime, str]:
    """The runtime, if what it runs is of these weights, and their digest."""
    graph = GRAPHS[args.graph]
    digest = load_deployable(args.weights).sha256
    runtime = open_runtime(args.runtime, graph, artifacts=args.artifacts, weights=args.weights)
    if failures := list(check_identity(runtime, graph, digest)):
        raise InputError(f"{graph.name} in {args.artifacts} can't be evaluated: {failures[0]}")
    return runtime, digest


def compute_logits(
    runtime: Runtime, graph: Graph, pixels: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """The runtime's logits (N, 10) for pixels (N, 28, 28). CheckError where one is no number."""
    logits = run_all(runtime, graph, pixels, graph.name)["logits"]
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(bad):
        raise CheckError(
            f"the logits of {len(bad)} of {len(logits)} images aren't finite; first image {bad[0]}"
        )
    return logits


def draw(evaluation: Evaluation, title: str, folder: Path) -> None:
    accuracy = f"accuracy {evaluation.accuracy:.4f}"
    draw_confusion(evaluation.confusion, f"{title}, {accuracy}", folder / CONFUSION)
    error = f"expected calibration error {evaluation.calibration_error:.4f}"
    draw_calibration(evaluation, f"{title}\n{error}", folder / CALIBRATION)


def describe(
    wrong: NDArray[np.intp], probabilities: NDArray[np.float64], labels: NDArray[np.uint8]
) -> list[dict[str, Any]]:
    """The mistakes as plain data: the number of the test image, what it is taken for and is."""
    return [
        {
            "image": index,
            "predicted": LABELS[probabilities[index].argmax()],
            "probability": float(probabilities[index].max()),
            "true": LABELS[labels[index]],
        }
        for index in wrong.tolist()
    ]


def about(args: argparse.Namespace, weights_sha256: str) -> dict[str, Any]:
    """What was evaluated, and where."""
    return {
        "graph": args.graph,
        "runtime": args.runtime,
        "weights_sha256": weights_sha256,
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("nin", "torch", "numpy")},
    }


if __name__ == "__main__":
    run(main)
