"""What the two export scripts share: from weights to a file that was proven before it is there."""

import argparse
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from nin.artifact import (
    MANIFEST,
    Entry,
    Metadata,
    atomic_path,
    locked,
    make_folder,
    read_manifest,
    write_manifest,
)
from nin.checkpoint import Checkpoint, load_checkpoint
from nin.cli import add_input_options, short
from nin.contract import GOLDEN_IMAGES, GRAPHS, LABELS, Graph
from nin.data import load
from nin.errors import CheckError, InputError
from nin.paths import ARTIFACTS
from nin.reference import Reference, Run, compute_reference, graph_input, replay
from nin.runtimes.eager import graph_module


@dataclass(frozen=True)
class Format:
    """How to write one file format, and how to read back what was written."""

    name: str
    suffix: str
    export: Callable[[nn.Module, torch.Tensor, Graph, dict[str, str]], bytes]
    read_texts: Callable[[bytes], dict[str, str]]
    open: Callable[[bytes, Graph], Run]
    versions: dict[str, str]
    opset: int | None = None
    ir_version: int | None = None


def add_export_options(parser: argparse.ArgumentParser) -> None:
    add_input_options(parser)
    parser.add_argument(
        "--graph", choices=[*GRAPHS, "all"], default="all", help="the graph to export"
    )
    parser.add_argument("--output", type=Path, default=ARTIFACTS, help="folder to write to")
    parser.add_argument(
        "--force", action="store_true", help="overwrite files that aren't exports of this project"
    )


def run_export(args: argparse.Namespace, fmt: Format) -> None:
    """Exports the graphs that `add_export_options` asks for, and lists them in the manifest.

    Raises:
        InputError: weights, data or output can't be used, or a foreign file is in the way.
        CheckError: an export doesn't reproduce the golden vectors; it isn't published.
    """
    graphs = list(GRAPHS.values()) if args.graph == "all" else [GRAPHS[args.graph]]
    checkpoint = load_deployable(args.weights)
    pixels, _ = load("test", args.data_dir)
    make_folder(args.output)
    golden = compute_reference(checkpoint.network, pixels[:GOLDEN_IMAGES])
    with locked(args.output):
        entries = _listed(args.output, force=args.force)
        paths = {graph: args.output / f"{graph.name}{fmt.suffix}" for graph in graphs}
        for path in paths.values():  # all of them before the first is replaced
            _refuse_foreign(path, fmt, force=args.force)
        for graph, path in paths.items():
            entries[path.name] = _export(path, graph, fmt, checkpoint, golden)
            # Until this is written, loaders refuse the new file: its digest isn't listed yet.
            write_manifest(args.output, entries)


def load_deployable(weights: Path) -> Checkpoint:
    """A checkpoint whose classes are the contract's. Raises InputError if they aren't."""
    checkpoint = load_checkpoint(weights)
    classes = checkpoint.network.arguments["num_classes"]
    if classes != len(LABELS):
        raise InputError(
            f"{weights} has {classes} classes, the contract {len(LABELS)}; "
            "to deploy other classes, change LABELS in src/nin/contract.py"
        )
    return checkpoint


def _export(
    path: Path, graph: Graph, fmt: Format, checkpoint: Checkpoint, golden: Reference
) -> Entry:
    start = time.perf_counter()
    metadata = Metadata(graph.describe(), LABELS, golden, checkpoint.sha256, fmt.versions)
    texts = metadata.to_texts(graph)
    example = torch.tensor(graph_input(graph, golden.pixels[:2]))
    data = fmt.export(graph_module(checkpoint.network, graph), example, graph, texts)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
        _prove(temporary, graph, fmt, texts)
    opset = f", opset {fmt.opset}, IR {fmt.ir_version}" if fmt.opset else ""
    print(
        f"{short(path)}: {len(data) / 1e6:.1f} MB{opset}, golden vectors replayed, "
        f"{time.perf_counter() - start:.1f} s"
    )
    return Entry(
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        graph=graph.name,
        format=fmt.name,
        opset=fmt.opset,
        ir_version=fmt.ir_version,
        weights_sha256=checkpoint.sha256,
        versions=fmt.versions,
    )


def _prove(path: Path, graph: Graph, fmt: Format, texts: dict[str, str]) -> None:
    """Loads what was written and replays the golden vectors that it carries itself."""
    data = path.read_bytes()
    carried = fmt.read_texts(data)
    if carried != texts:
        missing = sorted(texts.keys() - carried.keys())
        raise CheckError(
            f"{graph.name}{fmt.suffix} doesn't carry its metadata: {missing or 'changed'}"
        )
    try:
        replay(fmt.open(data, graph), graph, Reference.from_json(carried["golden"]))
    except CheckError as error:
        raise CheckError(f"{graph.name}{fmt.suffix} is not published: {error}") from error


def _listed(folder: Path, *, force: bool) -> dict[str, Entry]:
    """What the folder's manifest lists, if it has one; a foreign one is dropped with force."""
    path = folder / MANIFEST
    if path.is_dir():
        raise InputError(f"{path} is a folder; move it away, or choose another --output")
    if not path.exists():
        return {}
    try:
        return read_manifest(folder)
    except InputError:
        if not force:
            raise
        return {}


def _refuse_foreign(path: Path, fmt: Format, *, force: bool) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder; move it away, or choose another --output")
    if path.exists() and not force and not _is_export(path, fmt):
        raise InputError(
            f"{path} exists and isn't a whole export of this project; "
            "use --force to overwrite it, or choose another --output"
        )


def _is_export(path: Path, fmt: Format) -> bool:
    try:
        Metadata.from_texts(fmt.read_texts(path.read_bytes()))
    except InputError:
        return False
    return True
