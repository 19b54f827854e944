"""How good predictions are: numbers, tables and pictures of them.

With C classes, all arrays and matrices are in the order of the model's labels.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure  # not pyplot: it needs no screen, nor to be closed
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from nin.files import atomic_path
from nin.terminal import table

BINS = 15

# Of more classes than these nobody reads a matrix, and one of 100,000 needs 80 GB.
MATRIX_CLASSES = 20

# How many of the classes and of the confusions the tables show where there are more.
_ROWS = 30

_COLUMNS = 6  # of pictures in the sheet of mistakes
_LABEL_WIDTH = 24  # of longer labels the pictures show the beginning


@dataclass(frozen=True)
class Bin:
    """The images whose top probability lies in (low, high]."""

    low: float
    high: float
    images: int
    probability: float  # mean of the top ones
    accuracy: float


@dataclass(frozen=True)
class Evaluation:
    """Predictions held against the true classes; a ratio without a denominator is 0."""

    labels: tuple[str, ...]  # of the C classes
    true: NDArray[np.int64]  # (N,), the class of each image
    predicted: NDArray[np.int64]  # (N,)
    loss: float  # cross-entropy, mean of the images, natural logarithm
    bins: tuple[Bin, ...]  # those that hold an image

    @property
    def images(self) -> int:
        return len(self.true)

    @property
    def accuracy(self) -> float:
        return float((self.true == self.predicted).mean())

    @property
    def precision(self) -> NDArray[np.float64]:
        """(C,): of the images predicted as a class, the share that is of it."""
        return _ratio(self._right, self._count(self.predicted))

    @property
    def recall(self) -> NDArray[np.float64]:
        """(C,): of the images of a class, the share predicted as it."""
        return _ratio(self._right, self._count(self.true))

    @property
    def f1(self) -> NDArray[np.float64]:
        """(C,): the harmonic mean of precision and recall."""
        return _ratio(2 * self._right, self._count(self.predicted) + self._count(self.true))

    @property
    def confusion(self) -> NDArray[np.int64] | None:
        """(C, C), images by true (row) and predicted class (column), where C is small."""
        classes = len(self.labels)
        if classes > MATRIX_CLASSES:
            return None
        pairs = self.true * classes + self.predicted
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    @property
    def calibration_error(self) -> float:
        """Expected calibration error (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

        BINS bins of equal width over the top probability; the distance of a bin's accuracy from
        its mean probability, averaged over the bins with their numbers of images as weights.
        """
        distances = [b.images * abs(b.accuracy - b.probability) for b in self.bins]
        return sum(distances) / self.images

    def report(self) -> dict[str, Any]:
        """The numbers as plain data."""
        matrix = self.confusion
        return {
            "images": self.images,
            "accuracy": self.accuracy,
            "loss": self.loss,
            "expected_calibration_error": self.calibration_error,
            "classes": [
                {"label": label, "precision": p, "recall": r, "f1": f, "images": n}
                for label, p, r, f, n in self._by_class()
            ],
            **({} if matrix is None else {"confusion": matrix.tolist()}),
            "calibration": [asdict(b) for b in self.bins],
        }

    def class_table(self) -> str:
        """A row for each class, or for those with the lowest F1 where there are many."""
        classes = self._by_class()
        if len(classes) > _ROWS:
            classes = sorted((c for c in classes if c[4]), key=lambda c: c[3])[:_ROWS]
        rows = [(c, f"{p:.3f}", f"{r:.3f}", f"{f1:.3f}", str(n)) for c, p, r, f1, n in classes]
        return table(("class", "precision", "recall", "F1", "images"), rows)

    def confusion_table(self) -> str:
        """Rows true, columns predicted, three letters a name; of many classes the worst pairs."""
        if self.confusion is None:
            return self._worst_pairs()
        rows = [
            (label, *map(str, row))
            for label, row in zip(self.labels, self.confusion.tolist(), strict=True)
        ]
        return table(("true", *(label[:3] for label in self.labels)), rows)

    def _worst_pairs(self) -> str:
        wrong = self.true != self.predicted
        pairs = zip(self.true[wrong].tolist(), self.predicted[wrong].tolist(), strict=True)
        worst = Counter(pairs).most_common(_ROWS)
        rows = [(self.labels[t], self.labels[p], str(count)) for (t, p), count in worst]
        return table(("true", "predicted", "images"), rows)

    @property
    def _right(self) -> NDArray[np.int64]:
        return self._count(self.true[self.true == self.predicted])

    def _count(self, classes: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(classes, minlength=len(self.labels))

    def _by_class(self) -> list[tuple[str, float, float, float, int]]:
        columns = (self.precision, self.recall, self.f1, self._count(self.true))
        return list(zip(self.labels, *(c.tolist() for c in columns), strict=True))


def evaluate(
    logits: NDArray[np.floating[Any]], true: NDArray[np.int64], labels: Sequence[str]
) -> Evaluation:
    """Holds logits (N, C) against the true classes (N,), in float64."""
    log_probabilities = log_softmax(logits)
    right = log_probabilities[np.arange(len(true)), true]
    return Evaluation(
        labels=tuple(labels),
        true=true,
        predicted=logits.argmax(axis=1),
        loss=-float(right.mean()),
        bins=tuple(_fill_bins(np.exp(log_probabilities), true)),
    )


def log_softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """The logarithms of the probabilities, (N, C), float64 whatever the logits are."""
    exact = logits.astype(np.float64)
    exact -= exact.max(axis=1, keepdims=True)  # so that nothing overflows
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    return exact


def find_mistakes(probabilities: NDArray[np.float64], true: NDArray[np.int64]) -> NDArray[np.intp]:
    """Indices of the images classified wrongly, the most confident mistake first.

    Args:
        probabilities: (N, C).
        true: (N,), the classes.
    """
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != true)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")]


def draw_confusion(
    confusion: NDArray[np.int64], labels: Sequence[str], title: str, path: Path
) -> None:
    """Writes a PNG of the (C, C) matrix: numbers of images on the shares of their true class."""
    shares = _ratio(confusion, confusion.sum(axis=1, keepdims=True))
    figure = Figure(figsize=(8.5, 7.5), layout="constrained")
    axes = figure.subplots()
    # the square root, so that a few mistakes are seen beside hundreds of right answers
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    for (row, column), count in np.ndenumerate(confusion):
        color = "white" if shares[row, column] > 0.4 else "black" if count else "darkgray"
        axes.text(column, row, str(count), ha="center", va="center", color=color)
    ticks = range(len(labels))
    turned: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    names = [_shown(label) for label in labels]
    axes.set_xticks(ticks, names, parse_math=False, **turned)  # a label may hold dollars
    axes.set_yticks(ticks, names, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    bar = figure.colorbar(image, shrink=0.8, label="share of the true class")
    bar.set_ticks([0, 0.01, 0.05, 0.1, 0.25, 0.5, 1], minor=False)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    save_figure(figure, path)


def draw_mistakes(
    pixels: NDArray[np.uint8],
    true: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    labels: Sequence[str],
    title: str,
    path: Path,
) -> None:
    """Writes a PNG with every image under its prediction; with a title only where there is none.

    Args:
        pixels: (N, h, w[, 3]).
        true: (N,), the classes.
        probabilities: (N, C).
        labels: of the C classes.
    """
    rows = -(-len(pixels) // _COLUMNS)
    figure = Figure(figsize=(1.8 * _COLUMNS, 2.2 * rows + 0.6))
    figure.set_layout_engine("constrained", h_pad=0.08)
    figure.suptitle(title)
    pictures = figure.subplots(rows, _COLUMNS, squeeze=False).ravel() if rows else ()
    for axes in pictures:  # the last row may be longer than what is left
        axes.axis("off")
    for axes, image, index, p in zip(pictures, pixels, true, probabilities, strict=False):
        axes.imshow(image, cmap="gray_r", vmin=0, vmax=255)  # the colours are of grey images
        lines = f"{_shown(labels[p.argmax()])} {p.max():.1%}\nis {_shown(labels[index])}"
        axes.set_title(lines, fontsize=10, parse_math=False)
    save_figure(figure, path)


def _shown(label: str) -> str:
    return label if len(label) <= _LABEL_WIDTH else f"{label[: _LABEL_WIDTH - 3]}..."


def draw_calibration(evaluation: Evaluation, title: str, path: Path) -> None:
    """Writes a PNG of the reliability diagram: accuracy over probability, and images per bin."""
    figure = Figure(figsize=(6, 6.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    bins = evaluation.bins
    _draw_bars(upper, bins, [b.accuracy for b in bins], label="accuracy in the bin")
    upper.plot([0, 1], [0, 1], "k--", label="perfectly calibrated")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title=title)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    _draw_bars(lower, bins, [b.images for b in bins])
    lower.set(xlabel="top probability", ylabel="images", yscale="log")
    lower.set_ylim(bottom=0.7)  # so that a single image has a bar
    save_figure(figure, path)


def _draw_bars(axes: Axes, bins: tuple[Bin, ...], heights: list[Any], label: str = "") -> None:
    lows, widths = [b.low for b in bins], [b.high - b.low for b in bins]
    axes.bar(lows, heights, widths, align="edge", color="tab:blue", ec="white", label=label)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)


def _fill_bins(probabilities: NDArray[np.float64], true: NDArray[np.int64]) -> Iterator[Bin]:
    top = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == true
    edges = np.linspace(0, 1, BINS + 1)
    numbers = np.digitize(top, edges[1:-1], right=True)
    for number in np.unique(numbers).tolist():
        inside = numbers == number
        yield Bin(
            low=float(edges[number]),
            high=float(edges[number + 1]),
            images=int(inside.sum()),
            probability=float(top[inside].mean()),
            accuracy=float(right[inside].mean()),
        )


def _ratio(numerator: NDArray[np.int64], denominator: NDArray[np.int64]) -> NDArray[np.float64]:
    """0 where the denominator is."""
    zeros = np.zeros(numerator.shape)
    return np.divide(numerator, denominator, out=zeros, where=denominator > 0)


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a PNG."""
    with atomic_path(path) as temporary, warnings.catch_warnings():
        # in a script that the font lacks; the tables and the JSON have it
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(temporary, dpi=120, format="png")
