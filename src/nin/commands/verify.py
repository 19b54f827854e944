"""The parity gate: holds every runtime against the trained network in float64.

nin verify                             # 1,000 samples, others every day, all runtimes
nin verify --images all                # all of them, for a release
nin verify --model models/resnet18
nin verify --releases 24.10 26.04      # in what these releases of Triton carry, installed for it

Exit code 1 if any runtime fails.
"""

import argparse
import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path

from nin.artifact.manifest import read_artifact, read_manifest
from nin.commands.options import ARTIFACTS_HELP, add_model_options, artifacts_of
from nin.contract import Contract, Graph, Model, load_contract
from nin.errors import CheckError, InputError
from nin.export.formats import ONNX
from nin.files import make_folder, write_atomically
from nin.gate.parity import (
    HEADER,
    Row,
    check_parity,
    failures_of,
    markdown,
    report,
    table_rows,
)
from nin.gate.proof import REPORT, manifest_faults, refused_files
from nin.gate.questions import (
    Plan,
    Questions,
    as_files,
    make_questions,
    quick_plan,
    seed_of_today,
    share_sizes,
)
from nin.gate.reduced import questions_of_file
from nin.gate.releases import check_releases
from nin.network.build import TrainedModel, load_model
from nin.releases import triton_release
from nin.runtimes import Runtime
from nin.runtimes.cpp import cpp_tools_are_built
from nin.runtimes.openvino import openvino_is_installed
from nin.runtimes.registry import (
    RUNTIMES,
    available_runtimes,
    open_runtime,
    open_served,
    suffixes_of,
)
from nin.runtimes.triton import SERVER_RUNTIMES
from nin.samples import SampleSet, open_samples
from nin.serve.server import find_tritonserver, serve_artifacts
from nin.terminal import image_count, natural, short, table


def add_options(options: argparse.ArgumentParser) -> None:
    add_model_options(options)
    options.add_argument("--artifacts", type=Path, help=f"folder of the exports; {ARTIFACTS_HELP}")
    options.add_argument(
        "--images", type=image_count, default=1000, help="how many samples, or `all`"
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
        metavar="RUNTIME",
        help=f"which of {', '.join((*RUNTIMES, *SERVER_RUNTIMES))}; triton-* serve the artifacts "
        "by an embedded Triton; all that can run here if not given",
    )
    options.add_argument(
        "--graph",
        default="all",
        help="the graph to check, by its name in model.toml; NAME_image exists only in the server",
    )
    for protocol in dict.fromkeys(SERVER_RUNTIMES.values()):
        options.add_argument(
            f"--{protocol}-url",
            metavar="HOST:PORT",
            help=f"check the server that runs there over {protocol}, instead of embedded ones",
        )
    options.add_argument(
        "--releases",
        nargs="+",
        metavar="YY.MM",
        help="check the onnxruntime and the torch of these releases of Triton instead, each "
        "installed in a folder of its own; there is no report",
    )
    options.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help=f"writes FILE.json and FILE.md; {REPORT} beside the artifacts if not given, where "
        "publishing looks for it",
    )


def available_servers() -> tuple[str, ...]:
    """The names of the server's runtimes, where the embedded server can run."""
    try:
        find_tritonserver()
    except InputError:
        return ()
    return tuple(n for n in SERVER_RUNTIMES if n != "triton-cpp" or cpp_tools_are_built())


def execute(args: argparse.Namespace) -> None:
    contract = load_contract(args.model)
    contract = replace(contract, openvino=openvino_is_installed() and not is_remote(args))
    args.artifacts = artifacts_of(contract, args.artifacts)
    samples = open_samples(contract, args.data_dir)
    if args.images is not None and args.images >= len(samples):
        args.images = None  # so that the report doesn't promise more than there are
    if args.releases:
        verify_releases(args, samples)
        return
    every = args.runtimes is None
    args.runtimes = args.runtimes or (*available_runtimes(), *available_servers())
    asked = plan_rows(args, contract, every=every)
    digests = judged_files(args, contract, asked)
    report_base = report_path(args)
    make_folder(report_base.parent)  # now, not after minutes of work
    model = load_model(args.model, args.weights)
    runtimes = [(row, open_row(args, row, model)) for row in asked if not row.model]
    questions = questions_of(args, model, samples)

    @cache
    def questions_for(graph: Graph, suffix: str | None) -> Questions:
        if graph == contract.ensemble.graph:
            return as_files(questions, model)
        return questions_of_file(questions, graph, suffix, args.artifacts, model)

    def check(row: Asked, runtime: Runtime | Row) -> Row:
        if isinstance(runtime, Row):
            return runtime
        assert row.plan is not None
        graph = contract.graphs.get(row.graph.name, row.graph)  # with the batches of the file
        asked_of_row = questions_for(graph, row.suffix)
        return check_parity(row.name, runtime, row.graph, asked_of_row, row.plan, row.suffix or "-")

    rows = [check(row, runtime) for row, runtime in runtimes]
    if served := [row for row in asked if row.model]:
        rows += check_servers(args, contract, served, check)
    print(table(HEADER, table_rows(rows)))
    if digests != judged_files(args, contract, asked):
        raise InputError(f"{args.artifacts} has changed meanwhile: run the gate again")
    files = {file_of(contract, row) for row in asked if row.suffix and not is_remote(args)}
    asked_files = digests_of(args.artifacts, files)
    write_report(args, rows, digests, asked_files, model.weights_sha256, report_base)
    require_open(rows)
    print("The gate is open: every runtime answers like the trained network.")


def verify_releases(args: argparse.Namespace, samples: SampleSet) -> None:
    """The same rules in what releases of Triton carry, with only a few batch sizes."""
    for name in args.releases:
        triton_release(name)  # unknown ones end it now
    model = load_model(args.model, args.weights)
    questions = questions_of(args, model, samples)
    rows = check_releases(args.releases, model, args.artifacts, questions)
    print(table(HEADER, table_rows(rows)))
    require_open(rows)
    print("Every release answers like the trained network.")


def questions_of(args: argparse.Namespace, model: TrainedModel, samples: SampleSet) -> Questions:
    count = args.images or len(samples)
    print(f"{count} of {len(samples)} samples, chosen by --seed {args.seed}", flush=True)
    return make_questions(model, samples, count=count, seed=args.seed)


def require_open(rows: list[Row]) -> None:
    """Raises CheckError with what failed in them."""
    if failures := failures_of(rows):
        raise CheckError("the gate is closed\n  " + "\n  ".join(failures))


@dataclass(frozen=True)
class Asked:
    """One row to be: a graph in a runtime, the file that it runs, and what it will be asked."""

    runtime: str
    graph: Graph
    model: Model | None = None  # where a server runs it
    suffix: str | None = None  # of the file that it runs; eager runs none
    plan: Plan | None = None  # set once it is known which rows share a file

    @property
    def name(self) -> str:
        return f"{self.runtime} {self.model.backend}" if self.model else self.runtime

    @property
    def runs_whole_batches(self) -> bool:
        """Whether the file gets each batch as it is asked, so that its size proves something.

        Eager runs no file, and LibTorch cuts what it gives TorchScript into smaller batches.
        """
        return self.suffix is not None and (self.runtime, self.suffix) != ("libtorch", ".pt")

    @property
    def file(self) -> str | None:
        """What a row of this process runs."""
        return f"{self.graph.name}{self.suffix}" if self.suffix and not self.model else None


def open_row(args: argparse.Namespace, row: Asked, model: TrainedModel) -> Runtime | Row:
    """The runtime; or a row that failed, where it can't load the file.

    Raises InputError where the file isn't there, or the runtime isn't.
    """
    if row.file:
        read_artifact(args.artifacts, row.file)
    try:
        if row.file and (faults := manifest_faults(args.artifacts, row.file)):
            return failed(row, *faults)
        return open_runtime(
            row.runtime, row.graph, row.suffix, artifacts=args.artifacts, model=model
        )
    except (InputError, CheckError) as error:
        if row.runtime not in available_runtimes():
            raise
        return failed(row, f"it can't be loaded: {error}")


def failed(row: Asked, *reasons: str) -> Row:
    return Row(row.name, row.graph.name, 0, {}, failures=[*reasons], format=row.suffix or "-")


def plan_rows(args: argparse.Namespace, contract: Contract, *, every: bool) -> list[Asked]:
    """All rows in order; those that run the same file on the same device share the batch sizes.

    Args:
        every: nobody has named the runtimes; openvino is left out then for what it won't serve.

    Raises InputError where there is none.
    """
    graphs = [*contract.graphs, contract.ensemble.graph.name]
    if args.graph not in (*graphs, "all"):
        raise InputError(f"no graph {args.graph} in {args.model}; it has {', '.join(graphs)}")
    rows = [
        Asked(name, graph, suffix=suffix)
        for graph in contract.graphs.values()
        if args.graph in (graph.name, "all")
        for name in args.runtimes
        if name not in SERVER_RUNTIMES
        for suffix in suffixes_to_check(name, graph, contract, args.artifacts)
        if not (every and name == "openvino" and suffix == ONNX.suffix)
    ]
    rows += [
        Asked(name, model.graph, model, model.format or ONNX.suffix)
        for model in contract.models
        for name in SERVER_RUNTIMES
        if name in args.runtimes
        and args.graph in (model.graph.name, "all")
        and model != contract.decoder  # the ensemble runs that
        and (name, model) != ("triton-cpp", contract.ensemble)  # it decodes files itself
    ]
    if not rows:
        raise InputError(f"nothing to check: none of the runtimes named runs {args.graph}")
    kinds = [
        (row.graph.max_batch, sharing_of(args, contract, row)) if row.runs_whole_batches else None
        for row in rows
    ]
    plans = {kind: iter(share_sizes(kinds.count(kind), kind[0])) for kind in kinds if kind}
    return [
        replace(row, plan=next(plans[kind]) if kind else quick_plan(row.graph.max_batch))
        for row, kind in zip(rows, kinds, strict=True)
    ]


def suffixes_to_check(
    name: str, graph: Graph, contract: Contract, artifacts: Path
) -> list[str | None]:
    """Of the files that a runtime loads: those that are published, and what else was exported."""
    suffixes = suffixes_of(name)
    if not suffixes:
        return [None]
    listed = read_manifest(artifacts)
    published = {(model.graph.name, model.format) for model in contract.published}
    return [
        suffix
        for suffix in suffixes
        if (graph.name, suffix) in published or f"{graph.name}{suffix}" in listed
    ]


def sharing_of(args: argparse.Namespace, contract: Contract, row: Asked) -> object:
    """What rows have in common that run the same file by the same library on the same device."""
    openvino = "openvino" in (row.runtime, row.model and row.model.backend)
    other_file = is_remote(args) and row.model
    return file_of(contract, row), openvino, row.runtime.endswith("-cuda"), other_file


def file_of(contract: Contract, row: Asked) -> str:
    """The export behind a row; a server that runs already may serve another one of that name."""
    name = contract.name if row.model == contract.ensemble else row.graph.name
    return f"{name}{row.suffix}"


def judged_files(
    args: argparse.Namespace, contract: Contract, asked: list[Asked]
) -> dict[str, str]:
    """The SHA-256 of files that are judged whole: with their golden vectors, and every size."""
    sizes: dict[str, set[int]] = {}
    for row in asked:
        if row.plan and row.runs_whole_batches and not (row.model and is_remote(args)):
            sizes.setdefault(file_of(contract, row), set()).update(row.plan.sizes)
    whole = {
        row.file  # a server shows no golden vectors
        for row in asked
        if row.file and sizes.get(row.file, set()) >= set(range(1, row.graph.max_batch + 1))
    }
    return digests_of(args.artifacts, whole)


def digests_of(artifacts: Path, files: set[str]) -> dict[str, str]:
    """The SHA-256 of those of the files that the manifest lists."""
    entries = read_manifest(artifacts) if files else {}
    return {file: entries[file].sha256 for file in sorted(files) if file in entries}


def is_remote(args: argparse.Namespace) -> bool:
    """Whether the server is one that runs already."""
    return any(getattr(args, f"{protocol}_url") for protocol in SERVER_RUNTIMES.values())


def check_servers(
    args: argparse.Namespace,
    contract: Contract,
    asked: list[Asked],
    check: Callable[[Asked, Runtime | Row], Row],
) -> list[Row]:
    """One row for each model and protocol of the server."""
    try:
        with servers(args, contract) as (urls, weights_sha256):
            return [check(row, open_served_row(row, urls, weights_sha256)) for row in asked]
    except CheckError as error:
        return [failed(row, f"the artifacts can't be served: {error}") for row in asked]


def open_served_row(row: Asked, urls: dict[str, str], weights_sha256: str | None) -> Runtime | Row:
    assert row.model is not None
    try:
        return open_served(row.runtime, urls[row.runtime], row.model, weights_sha256)
    except CheckError as error:
        return failed(row, f"it can't be asked: {error}")


@contextmanager
def servers(
    args: argparse.Namespace, contract: Contract
) -> Iterator[tuple[dict[str, str], str | None]]:
    """Address by name of a running server, or of one started on the artifacts; their weights."""
    running = {name: getattr(args, f"{p}_url") for name, p in SERVER_RUNTIMES.items()}
    if is_remote(args):
        missing = [n for n in args.runtimes if n in SERVER_RUNTIMES and not running[n]]
        if missing:
            raise InputError(f"no address for {', '.join(missing)}; give it, or name --runtimes")
        yield running, None  # a running server can't be asked what its weights were
        return
    entries = read_manifest(args.artifacts).values()
    digests = {entry.weights_sha256 for entry in entries if entry.graph in contract.graphs}
    with serve_artifacts(contract, args.artifacts) as server:
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
    asked: dict[str, str],
    weights_sha256: str,
    base: Path,
) -> None:
    """Args: artifacts: those that were judged whole, of all that were asked."""
    about = {
        "command": f"nin verify --model {short(args.model)} --images {args.images or 'all'} "
        f"--seed {args.seed} --runtimes {' '.join(args.runtimes)} --graph {args.graph}",
        "artifacts": artifacts,
        "images": args.images or "all",
        "seed": args.seed,
        "runtimes": args.runtimes,
        "weights_sha256": weights_sha256,
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("nin", "torch", "onnx")},
    }
    path = base.with_name(f"{base.name}.json")
    data = report(rows, about)
    listed = {entry.sha256 for entry in read_manifest(args.artifacts).values()}
    data["refused"] = refused_files(path, data, asked, listed)
    write_atomically(path, json.dumps(data, indent=2).encode())
    page = markdown(rows, about)
    write_atomically(base.with_name(f"{base.name}.md"), page.encode())
    print(f"Report: {short(base)}.json, {short(base)}.md")
