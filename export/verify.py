"""The parity gate: holds every runtime against the trained network in float64.

python export/verify.py                    # 1,000 images, others every day, all runtimes
python export/verify.py --images all       # all 10,000, for a release

Exit code 1 if any runtime fails.
"""

import argparse
import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from nin.artifact import make_folder, read_manifest, write_atomically
from nin.cli import add_input_options, image_count, natural, parser, run, short, table
from nin.contract import (
    DECODE_IMAGE,
    FASHION_MNIST,
    FASHION_MNIST_IMAGE,
    GRAPHS,
    MODELS,
    Graph,
    Model,
)
from nin.data import load
from nin.errors import CheckError, InputError
from nin.exporting import load_deployable
from nin.parity import HEADER, Row, check_parity, markdown, report, table_rows
from nin.paths import ARTIFACTS
from nin.proof import REPORT
from nin.questions import QUICK, Plan, make_questions, seed_of_today, share_sizes
from nin.runtimes import (
    RUNTIMES,
    Runtime,
    artifact_of,
    available_runtimes,
    open_runtime,
    open_served,
)
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
        "--seed",
        type=natural,
        default=seed_of_today(),
        help="chooses the images; today's date, so that no export can know them",
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
        metavar="FILE",
        help=f"writes FILE.json and FILE.md; {REPORT} beside the artifacts if not given, where "
        "publishing looks for it",
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
    asked = plan_rows(args)
    if not asked:
        raise InputError(f"nothing to check: none of the runtimes named runs {args.graph}")
    checkpoint = load_deployable(args.weights)
    pixels, labels = load("test", args.data_dir)
    digests = judged_files(args, asked)
    runtimes = [
        (row, open_runtime(row.runtime, row.graph, artifacts=args.artifacts, weights=args.weights))
        for row in asked
        if not row.model
    ]
    report_base = report_path(args)
    make_folder(report_base.parent)  # now, not after minutes of work
    count = args.images or len(pixels)
    print(f"{count} of {len(pixels)} test images, chosen by --seed {args.seed}")
    questions = make_questions(checkpoint, pixels, labels, count=count, seed=args.seed)

    def check(row: Asked, runtime: Runtime) -> Row:
        return check_parity(row.name, runtime, row.graph, questions, row.plan)

    rows = [check(row, runtime) for row, runtime in runtimes]
    if served := [row for row in asked if row.model]:
        rows += check_servers(args, served, check)
    print(table(HEADER, table_rows(rows)))
    if digests != judged_files(args, asked):
        raise InputError(f"{args.artifacts} has changed meanwhile: run the gate again")
    write_report(args, rows, digests, checkpoint.sha256, report_base)
    failures = [f"{r.graph} in {r.runtime}: {text}" for r in rows for text in r.failures]
    if failures:
        raise CheckError("the gate is closed\n  " + "\n  ".join(failures))
    print("The gate is open: every runtime answers like the trained network.")


@dataclass(frozen=True)
class Asked:
    """One row to be: a graph in a runtime, the file that it runs, and what it will be asked."""

    runtime: str
    graph: Graph
    model: Model | None = None  # where a server runs it
    file: str | None = None  # None: eager runs none
    plan: Plan = QUICK

    @property
    def name(self) -> str:
        return f"{self.runtime} {self.model.backend}" if self.model else self.runtime


def plan_rows(args: argparse.Namespace) -> list[Asked]:
    """All rows in order; those that run the same file on the same device share the batch sizes."""
    rows = [
        Asked(name, graph, file=artifact_of(name, graph))
        for graph in GRAPHS.values()
        for name in args.runtimes
        if name not in SERVER_RUNTIMES and args.graph in (graph.name, "all")
    ]
    rows += [
        Asked(name, model.graph, model, served_file(model))
        for model in MODELS
        for name in SERVER_RUNTIMES
        if name in args.runtimes
        and args.graph in (model.graph.name, "all")
        and model.graph != DECODE_IMAGE  # fashion_mnist_image runs that
        # the C++ client decodes files itself
        and (name, model.graph) != ("triton-cpp", FASHION_MNIST_IMAGE)
    ]
    # a server that runs already may serve another file of that name
    kinds = [
        (row.file, row.runtime.endswith("-cuda"), is_remote(args) and row.model) for row in rows
    ]
    plans = {kind: iter(share_sizes(kinds.count(kind))) for kind in kinds}
    # eager is asked less: it is what was trained, nothing that is deployed
    return [
        replace(row, plan=next(plans[kind])) if row.file else row
        for row, kind in zip(rows, kinds, strict=True)
    ]


def judged_files(args: argparse.Namespace, asked: list[Asked]) -> dict[str, str]:
    """The SHA-256 of files that are judged whole: a server shows no golden vectors."""
    files = {row.file for row in asked if row.file and not row.model}
    entries = read_manifest(args.artifacts) if files else {}
    return {file: entries[file].sha256 for file in sorted(files) if file in entries}


def is_remote(args: argparse.Namespace) -> bool:
    """Whether the server is one that runs already."""
    return any(getattr(args, f"{protocol}_url") for protocol in SERVER_RUNTIMES.values())


def served_file(model: Model) -> str:
    """The artifact behind a model of the server; the ensemble's is the classifier's."""
    return f"{model.graph.name}{model.format}" if model.format else f"{FASHION_MNIST.name}.onnx"


def check_servers(
    args: argparse.Namespace, asked: list[Asked], check: Callable[[Asked, Runtime], Row]
) -> list[Row]:
    """One row for each model and protocol of the server."""
    try:
        with servers(args) as (urls, weights_sha256):
            return [
                check(row, open_served(row.runtime, urls[row.runtime], row.model, weights_sha256))
                for row in asked
                if row.model
            ]
    except CheckError as error:
        failures = [f"the artifacts can't be served: {error}"]
        return [Row(row.name, row.graph.name, 0, {}, failures=failures) for row in asked]


@contextmanager
def servers(args: argparse.Namespace) -> Iterator[tuple[dict[str, str], str | None]]:
    """Address by name of a running server, or of one started on the artifacts; their weights."""
    running = {name: getattr(args, f"{p}_url") for name, p in SERVER_RUNTIMES.items()}
    if is_remote(args):
        missing = [n for n in args.runtimes if n in SERVER_RUNTIMES and not running[n]]
        if missing:
            raise InputError(f"no address for {', '.join(missing)}; give it, or name --runtimes")
        yield running, None  # a running server can't be asked what its weights were
        return
    digests = {e.weights_sha256 for e in read_manifest(args.artifacts).values()}
    with serve_artifacts(args.artifacts) as server:
        urls = {name: getattr(server, protocol) for name, protocol in SERVER_RUNTIMES.items()}
        yield urls, ", ".join(sorted(digests))


def report_path(args: argparse.Namespace) -> Path:
    """Where the report goes, without a suffix."""
    path: Path = args.report or args.artifacts / REPORT
    return path.with_suffix("") if path.suffix in (".json", ".md") else path


def write_report(
    args: argparse.Namespace,
    rows: list[Row],
    artifacts: dict[str, str],
    weights_sha256: str,
    base: Path,
) -> None:
    about = {
        "command": f"python export/verify.py --images {args.images or 'all'} "
        f"--seed {args.seed} --runtimes {' '.join(args.runtimes)} --graph {args.graph}",
        "artifacts": artifacts,
        "images": args.images or "all",
        "seed": args.seed,
        "weights_sha256": weights_sha256,
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("nin", "torch", "onnx")},
    }
    data = report(rows, about)
    write_atomically(base.with_name(f"{base.name}.json"), json.dumps(data, indent=2).encode())
    page = markdown(rows, about)
    write_atomically(base.with_name(f"{base.name}.md"), page.encode())
    print(f"Report: {short(base)}.json, {short(base)}.md")


if __name__ == "__main__":
    run(main)
