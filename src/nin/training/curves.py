"""The picture of a run: loss and accuracies over the epochs, as the book draws them.

python -m nin.training.curves models/nin/log.jsonl "The shipped weights" curves.png
"""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nin.errors import InputError
from nin.evaluation import save_figure
from nin.terminal import parser, run

_LINES = {
    "train_loss": ("train loss", "-"),
    "train_accuracy": ("train accuracy", "--"),
    "validation_accuracy": ("validation accuracy", "-."),
}


def draw_curves(log: list[dict[str, Any]], title: str, path: Path) -> None:
    """Writes a PNG of the log's epochs; what wasn't measured has no line.

    Where the epochs begin anew another run went on, and a dotted line says so.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for key, (label, style) in _LINES.items():
        points = [(number, entry[key]) for number, entry in enumerate(log, 1) if key in entry]
        if points:
            last = points[-1][1]
            axes.plot(
                *zip(*points, strict=True), style, marker=".", label=f"{label}, last {last:.3f}"
            )
    for number, entry in enumerate(log[1:], 1):
        if entry["epoch"] == 1:
            axes.axvline(number + 0.5, color="gray", linestyle=":")
    top = 1.05 * max(1, *(entry["train_loss"] for entry in log))
    axes.set(xlabel="epoch", title=title, ylim=(0, top))
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("log", type=Path, help="log.jsonl of a run, or of several, one by one")
    options.add_argument("title", help="above the curves")
    options.add_argument("picture", type=Path, help="the PNG to write")
    args = options.parse_args()
    try:
        log = [json.loads(line) for line in args.log.read_text().splitlines()]
        draw_curves(log, args.title, args.picture)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{args.log} isn't the log of a run: {error!r}") from error


if __name__ == "__main__":
    run(main)
