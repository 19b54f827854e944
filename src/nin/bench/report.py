"""What was measured as a table, as a picture and as a page: a function for each."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl

from nin.gate.parity import HEADER as GATE_HEADER
from nin.gate.parity import Row as GateRow
from nin.gate.parity import failures_of
from nin.gate.parity import table_rows as gate_cells
from nin.terminal import spread, table

Data = dict[str, Any]  # bench.json

HEADER = (
    "row", "file", "MB", "precision", "instances x threads", "batch", "in flight", "images/s",
    "x eager", "p50 ms", "p95 ms", "peak MiB", "of it model", "accuracy", "agreement",
)  # fmt: skip

_STYLE = """
body { font: 14px sans-serif; margin: 2em auto; max-width: 100em; padding: 0 1em; }
table { border-collapse: collapse; }
td, th { border: 1px solid #ccc; padding: .25em .6em; text-align: right; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
tr:nth-child(even) { background: #f4f4f4; }
img { max-width: 100%; }
div { overflow-x: auto; }
"""


@dataclass(frozen=True)
class Summary:
    """A row at one batch size and concurrency, over the rounds."""

    row: Data
    batch: int
    concurrency: int
    images_per_s: list[float]  # of each round, as is the ratio
    ratios: list[float]  # to eager of the same batch size and round
    p50_ms: float  # medians
    p95_ms: float


def summarise(data: Data) -> list[Summary]:
    """In the order of the rows."""
    rows = {row["name"]: row for row in data["rows"]}
    eager = next(iter(rows))
    points = list(zip(*data["rounds"], strict=True))  # every round has the same ones
    bases = {rounds[0]["batch"]: rounds for rounds in points if rounds[0]["row"] == eager}
    summaries = [_summary(rows, rounds, bases[rounds[0]["batch"]]) for rounds in points]
    order = list(rows)
    return sorted(summaries, key=lambda s: (order.index(s.row["name"]), s.batch, s.concurrency))


def _summary(rows: dict[str, Data], rounds: Sequence[Data], bases: Sequence[Data]) -> Summary:
    """Args: bases: eager's of the same batch size."""
    rates, base_rates = ([point["images_per_s"] for point in side] for side in (rounds, bases))
    return Summary(
        row=rows[rounds[0]["row"]],
        batch=rounds[0]["batch"],
        concurrency=rounds[0]["concurrency"],
        images_per_s=rates,
        ratios=[rate / base for rate, base in zip(rates, base_rates, strict=True)],
        p50_ms=median(point["p50_ms"] for point in rounds),
        p95_ms=median(point["p95_ms"] for point in rounds),
    )


def cells(summary: Summary) -> tuple[str, ...]:
    """Texts under HEADER."""
    row = summary.row
    return (
        row["name"],
        row["file"],
        f"{row['file_bytes'] / 1e6:.1f}",
        row["precision"],
        row["sizes"],
        str(summary.batch),
        str(summary.concurrency),
        spread(summary.images_per_s, ".1f"),
        spread(summary.ratios, ".2f"),
        f"{summary.p50_ms:.2f}",
        f"{summary.p95_ms:.2f}",
        f"{row['peak_memory_mib']:.0f}",
        optional(row["model_memory_mib"], ".0f"),
        optional(row["accuracy"], ".4f"),
        optional(row["agreement"], ".4f"),
    )


def optional(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def facts(about: Data) -> str:
    """What the numbers depend on, in one line."""
    versions = ", ".join(f"{name} {v}" for name, v in about["versions"].items())
    return (
        f"`{about['command']}`: {about['model']}, {about['processor']}, {about['cores']} cores, "
        f"{about['instruction_set']}, {about['memory_gib']} GiB, {about['system']}, {versions}; "
        f"load average {about['load_before']:.2f} before, {about['load_after']:.2f} after; "
        f"{about['rounds']} rounds of {about['seconds']:g} s, {about['images']} samples judged"
    )


def markdown(data: Data) -> str:
    rows = [cells(summary) for summary in summarise(data)]
    return f"{facts(data['about'])}\n\n{table(HEADER, rows)}\n"


def picture(data: Data) -> bytes:
    """A PNG: images a second of every row; a dot is the median, its line the rounds' range."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    summaries = summarise(data)

    def label(summary: Summary) -> str:
        name: str = summary.row["name"]
        return f"{name}, {summary.concurrency} in flight" if summary.row["served"] else name

    labels = list(dict.fromkeys(map(label, summaries)))
    batches = sorted({s.batch for s in summaries})
    figure, axes = plt.subplots(figsize=(10, 2 + 0.32 * len(labels)), layout="constrained")
    for number, batch in enumerate(batches):
        own = [s for s in summaries if s.batch == batch]
        rates = [median(s.images_per_s) for s in own]
        ranges = [
            [rate - min(s.images_per_s) for rate, s in zip(rates, own, strict=True)],
            [max(s.images_per_s) - rate for rate, s in zip(rates, own, strict=True)],
        ]
        shift = 0.22 * (number - (len(batches) - 1) / 2)
        heights = [labels.index(label(s)) + shift for s in own]
        axes.errorbar(rates, heights, xerr=ranges, fmt="o", ms=4, label=f"batch of {batch}")
        axes.axvline(rates[0], color=f"C{number}", lw=0.8, ls=":")  # eager, the first row
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("images a second; dotted: eager")
    axes.grid(axis="both", alpha=0.3)
    axes.legend(loc="best")
    about = data["about"]
    axes.set_title(f"{about['model']}: {about['processor']}, {about['cores']} cores")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    plt.close(figure)
    return buffer.getvalue()


def page(data: Data, image: bytes, gate: Data | None, demo: bytes | None) -> str:
    """One HTML file that needs no other.

    Args:
        image: `picture`'s.
        gate: what `nin verify` reports.
        demo: the demo's picture, a PNG.
    """
    title = f"Benchmark of {data['about']['model']}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(facts(data['about']))}</p>",
        _image(image, "Images a second of every row"),
        _table(HEADER, [cells(summary) for summary in summarise(data)]),
    ]
    if gate:
        verdict = "open" if gate["passed"] else "closed"
        parts += [f"<h2>The gate: {verdict}</h2>", f"<p>{escape(str(gate['command']))}</p>"]
        rows = [_gate_row(row) for row in gate["rows"]]
        parts += [_table(GATE_HEADER, gate_cells(rows))]
        parts += [f"<p>{escape(failure)}</p>" for failure in failures_of(rows)]
    if demo:
        parts += ["<h2>The demo</h2>", _image(demo, "Samples with their predictions")]
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def read_gate(path: Path) -> Data | None:
    """The gate's report; None where there is none, or none of ours."""
    try:
        gate: Data = json.loads(path.read_bytes())
        gate_cells([_gate_row(row) for row in gate["rows"]])
        return gate if {"passed", "command"} <= gate.keys() else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _gate_row(row: Data) -> GateRow:
    return GateRow(**{name: value for name, value in row.items() if name != "passed"})


def _image(png: bytes, text: str) -> str:
    source = base64.b64encode(png).decode()
    return f'<p><img src="data:image/png;base64,{source}" alt="{escape(text)}"></p>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(tag: str, texts: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(t)}</{tag}>" for t in texts) + "</tr>"

    lines = [line("th", header), *(line("td", row) for row in rows)]
    return "<div><table>\n" + "\n".join(lines) + "\n</table></div>"
