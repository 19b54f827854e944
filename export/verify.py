"""The parity gate: holds every runtime against the trained network in float64.

python export/verify.py                                        # 1,000 images, all runtimes
python export/verify.py --images all --runtimes onnxruntime    # the 10,000

Exit code 1 if any runtime fails.
"""

import argparse
import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from nin.artifact import make_folder, read_manifest, write_atomically
from nin.cli import add_input_options, image_count, parser, run, short, table
from nin.contract import (
    DECODE_IMAGE,
    FASHION_MNIST_IMAGE,
    GOLDEN_IMAGES,
    GRAPHS,
    MODELS,
    Graph,
)
from nin.data import load
from nin.errors import CheckError, InputError
from nin.exporting import load_deployable
from nin.parity import HEADER, Row, check_parity, markdown, report, table_rows
from nin.paths import ARTIFACTS
from nin.reference import compute_reference
from nin.runtimes import RUNTIMES, Runtime, available_runtimes, open_runtime, open_served
from nin.runtimes.cpp import cpp_tools_are_built
from nin.runtimes.triton import SERVER_RUNTIMES
from nin.triton.server import find_tritonserver, serve_artifacts


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
        choices=(*RUNTIMES, *SERVER_RUNTIMES),
        default=(*available_runtimes(), *available_servers()),
        metavar="RUNTIME",
        help=f"which of {', '.join((*RUNTIMES, *SERVER_RUNTIMES))}; "
        "triton-* serve the artifacts by an embedded Triton",
    )
    options.add_argument(
        "--graph",
        choices=[*GRAPHS, FASHION_MNIST_IMAGE.name, "all"],
        default="all",
        help="the graph to check; fashion_mnist_image exists only in the server",
    )
    for protocol in dict.fromkeys(SERVER_RUNTIMES.values()):
        options.add_argument(
            f"--{protocol}-url",
            metavar="HOST:PORT",
            help=f"check the server that runs there over {protocol}, instead of embedded ones",
        )
    options.add_argument(
        "--report",
        type=Path,
        default=ARTIFACTS / "parity",
        metavar="FILE",
        help="writes FILE.json and FILE.md",
    )
    return options.parse_args()


def available_servers() -> tuple[str, ...]:
    """The names of the server's runtimes, where the embedded server can run."""
    try:
        find_tritonserver()
    except InputError:
        return ()
    return tuple(n for n in SERVER_RUNTIMES if n != "triton-cpp" or cpp_tools_are_built())


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
        if name not in SERVER_RUNTIMES
    ]
    make_folder(args.report.parent)  # now, not after minutes of work
    # A handful of images says little of float32's error: derive the budget on 32 at least.
    reference = compute_reference(checkpoint.network, pixels[: max(count, GOLDEN_IMAGES)])
    reference = reference.first(count)

    def check(name: str, graph: Graph, runtime: Runtime) -> Row:
        digest = checkpoint.sha256
        return check_parity(name, runtime, graph, reference, labels[:count], weights_sha256=digest)

    rows = [check(name, graph, runtime) for name, graph, runtime in runtimes]
    if set(args.runtimes) & set(SERVER_RUNTIMES):
        rows += check_servers(args, check)
    if not rows:
        raise InputError(f"nothing to check: none of the runtimes named runs {args.graph}")
    print(table(HEADER, table_rows(rows)))
    write_report(args, rows, checkpoint.sha256)
    failures = [f"{r.graph} in {r.runtime}: {text}" for r in rows for text in r.failures]
    if failures:
        raise CheckError("the gate is closed\n  " + "\n  ".join(failures))
    print("The gate is open: every runtime answers like the trained network.")


def check_servers(
    args: argparse.Namespace, check: Callable[[str, Graph, Runtime], Row]
) -> list[Row]:
    """One row for each model and protocol of the server."""
    models = [m for m in MODELS if m.graph != DECODE_IMAGE]  # fashion_mnist_image runs that
    models = [m for m in models if args.graph in (m.graph.name, "all")]
    pairs = [
        (name, model)
        for model in models
        for name in SERVER_RUNTIMES
        # the C++ client decodes files itself
        if name in args.runtimes and (name, model.graph) != ("triton-cpp", FASHION_MNIST_IMAGE)
    ]
    try:
        with servers(args) as (urls, weights_sha256):
            return [
                check(
                    f"{name} {model.backend}",
                    model.graph,
                    open_served(name, urls[name], model, weights_sha256),
                )
                for name, model in pairs
            ]
    except CheckError as error:
        failures = [f"the artifacts can't be served: {error}"]
        return [Row(name, model.graph.name, 0, {}, failures=failures) for name, model in pairs]


@contextmanager
def servers(args: argparse.Namespace) -> Iterator[tuple[dict[str, str], str | None]]:
    """Address by name of a running server, or of one started on the artifacts; their weights."""
    running = {name: getattr(args, f"{p}_url") for name, p in SERVER_RUNTIMES.items()}
    if any(running.values()):
        missing = [n for n in args.runtimes if n in SERVER_RUNTIMES and not running[n]]
        if missing:
            raise InputError(f"no address for {', '.join(missing)}; give it, or name --runtimes")
        yield running, None  # a running server can't be asked what its weights were
        return
    digests = {e.weights_sha256 for e in read_manifest(args.artifacts).values()}
    with serve_artifacts(args.artifacts) as server:
        urls = {name: getattr(server, protocol) for name, protocol in SERVER_RUNTIMES.items()}
        yield urls, ", ".join(sorted(digests))


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
