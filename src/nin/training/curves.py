"""The picture of a run: loss and accuracies over the epochs, as the book draws them."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nin.evaluation import save_figure

_LINES = {
    "train_loss": ("train loss", "-"),
    "train_accuracy": ("train accuracy", "--"),
    "validation_accuracy": ("validation accuracy", "-."),
}


def draw_curves(log: list[dict[str, Any]], title: str, path: Path) -> None:
    """Writes a PNG of the log's epochs; what wasn't measured has no line."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for key, (label, style) in _LINES.items():
        points = [(entry["epoch"], entry[key]) for entry in log if key in entry]
        if points:
            last = points[-1][1]
            axes.plot(
                *zip(*points, strict=True), style, marker=".", label=f"{label}, last {last:.3f}"
            )
    top = 1.05 * max(1, *(entry["train_loss"] for entry in log))
    axes.set(xlabel="epoch", title=title, ylim=(0, top))
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)
