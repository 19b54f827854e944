"""The parity gate: holds every runtime against the trained network in float64.

python export/verify.py                                        # 1,000 images, all runtimes
python export/verify.py --images all --runtimes onnxruntime    # the 10,000

Exit code 1 if any runtime fails.
"""

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path

from nin.artifact import make_folder, write_atomically
from nin.cli import add_input_options, image_count, parser, run, short, table
from nin.contract import GOLDEN_IMAGES, GRAPHS
from nin.data import load
from nin.errors import CheckError
from nin.exporting import load_deployable
from nin.parity import HEADER, Row, check_parity, markdown, report, table_rows
from nin.paths import ARTIFACTS
from nin.reference import compute_reference
from nin.runtimes import RUNTIMES, available_runtimes, open_runtime


def parse_args() -> argparse.Namespace:
    options = parser(__doc__)
    add_input_options(options)
    options.add_argument("--artifacts", type=Path, default=ARTIFACTS, help="folder of the exports")
    options.add_argument(
        "--images", type=image_count, default=1000, help="how many test images, or `all`"
    )
    options.add_argument(
        "--runtimes",
        nargs="+",
        choices=RUNTIMES,
        default=available_runtimes(),
        metavar="RUNTIME",
        help=f"which of {', '.join(RUNTIMES)}",
    )
    options.add_argument(
        "--graph", choices=[*GRAPHS, "all"], default="all", help="the graph to check"
    )
    options.add_argument(
        "--report",
        type=Path,
        default=ARTIFACTS / "parity",
        metavar="FILE",
        help="writes FILE.json and FILE.md",
    )
    return options.parse_args()


def main() -> None:
    args = parse_args()
    graphs = [g for g in GRAPHS.values() if args.graph in (g.name, "all")]
    checkpoint = load_deployable(args.weights)
    pixels, labels = load("test", args.data_dir)
    count = args.images or len(pixels)
    runtimes = [
        (name, graph, open_runtime(name, graph, artifacts=args.artifacts, weights=args.weights))
        for graph in graphs
        for name in args.runtimes
    ]
    make_folder(args.report.parent)  # now, not after minutes of work
    # A handful of images says little of float32's error: derive the budget on 32 at least.
    reference = compute_reference(checkpoint.network, pixels[: max(count, GOLDEN_IMAGES)])
    reference = reference.first(count)
    rows = [
        check_parity(
            name,
            runtime,
            graph,
            reference,
            labels[:count],
            weights_sha256=checkpoint.sha256,
        )
        for name, graph, runtime in runtimes
    ]
    print(table(HEADER, table_rows(rows)))
    write_report(args, rows, checkpoint.sha256)
    failures = [f"{r.graph} in {r.runtime}: {text}" for r in rows for text in r.failures]
    if failures:
        raise CheckError("the gate is closed\n  " + "\n  ".join(failures))
    print("The gate is open: every runtime answers like the trained network.")


def write_report(args: argparse.Namespace, rows: list[Row], weights_sha256: str) -> None:
    about = {
        "command": f"python export/verify.py --images {args.images or 'all'} "
        f"--runtimes {' '.join(args.runtimes)} --graph {args.graph}",
        "weights_sha256": weights_sha256,
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("nin", "torch", "onnx")},
    }
    data = report(rows, about)
    base = args.report.with_suffix("") if args.report.suffix in (".json", ".md") else args.report
    write_atomically(base.with_name(f"{base.name}.json"), json.dumps(data, indent=2).encode())
    page = markdown(rows, about)
    write_atomically(base.with_name(f"{base.name}.md"), page.encode())
    print(f"Report: {short(base)}.json, {short(base)}.md")


if __name__ == "__main__":
    run(main)
