"""From a model folder to files that were proven before they are there."""

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from nin.artifact.golden import GOLDEN_IMAGES, LEAST_IMAGES, Golden, replay
from nin.artifact.manifest import MANIFEST, Entry, read_manifest, write_manifest
from nin.artifact.metadata import Metadata
from nin.contract import Graph
from nin.errors import CheckError, InputError
from nin.export.formats import Format
from nin.files import atomic_path, locked, make_folder
from nin.network.build import TrainedModel
from nin.network.classifier import Preprocess
from nin.reference.exact import batch_for, compute_golden
from nin.reference.quantised import quantised_golden
from nin.samples import Pixels, open_calibration, open_samples
from nin.terminal import short


def export_model(
    model: TrainedModel,
    fmt: Format,
    output: Path,
    *,
    graphs: Iterable[str],
    data_dir: Path | None = None,
    force: bool = False,
) -> None:
    """Writes the graphs of these names in one format, and lists them in the folder's manifest.

    Args:
        data_dir: where the samples lie, if not where the contract says.
        force: overwrite files that aren't exports of this project.

    Raises:
        InputError: samples or output can't be used, a foreign file is in the way, or torch can't
            export the network.
        CheckError: an export doesn't reproduce the golden vectors; it isn't published.
    """
    samples = open_samples(model.contract, data_dir)
    if len(samples) < LEAST_IMAGES:
        raise InputError(
            f"{data_dir or model.contract.samples.path} holds {len(samples)} samples, expected "
            f"{LEAST_IMAGES} or more: an export carries them to prove itself"
        )
    first = samples.pixels(range(min(len(samples), GOLDEN_IMAGES)))
    calibration = open_calibration(model.contract, samples) if fmt.unfused else None
    make_folder(output)
    with locked(output):
        entries = _listed(output, force=force)
        paths = {model.contract.graphs[name]: output / f"{name}{fmt.suffix}" for name in graphs}
        for path in paths.values():
            _refuse_foreign(path, fmt, force=force)
        # all of them before the first is written
        exports = {
            path: _build(model, graph, fmt, compute_golden(model, graph, first), calibration)
            for graph, path in paths.items()
        }
        for path, export in exports.items():
            entries[path.name] = _write(path, fmt, export, model)
            # Until this is written, loaders refuse the new file: its digest isn't listed yet.
            write_manifest(output, entries)


@dataclass(frozen=True)
class _Export:
    """A file to be."""

    graph: Graph
    data: bytes
    texts: dict[str, str]
    versions: dict[str, str]
    seconds: float


def _build(
    model: TrainedModel, graph: Graph, fmt: Format, golden: Golden, calibration: Pixels | None
) -> _Export:
    start = time.perf_counter()
    module = model.module(graph)
    example = torch.tensor(golden.batch(graph)[:1]).repeat_interleave(2, dim=0)
    if fmt.unfused:
        assert calibration is not None
        images = torch.tensor(batch_for(Preprocess(model.contract), graph, calibration))
        program = fmt.compile(module, example, graph, images)
        golden = quantised_golden(fmt.unfused(fmt.write(program, {}), graph), graph, golden)
    else:
        program = fmt.compile(module, example, graph)
    versions = fmt.versions()
    labels = model.contract.labels
    texts = Metadata(graph.describe(), labels, golden, model.weights_sha256, versions).to_texts()
    data = fmt.write(program, texts)
    return _Export(graph, data, texts, versions, time.perf_counter() - start)


def _write(path: Path, fmt: Format, export: _Export, model: TrainedModel) -> Entry:
    start = time.perf_counter()
    with atomic_path(path) as temporary:
        temporary.write_bytes(export.data)
        _prove(temporary, export.graph, fmt, export.texts)
    opset = f", opset {fmt.opset}, IR {fmt.ir_version}" if fmt.opset else ""
    seconds = export.seconds + time.perf_counter() - start
    print(
        f"{short(path)}: {len(export.data) / 1e6:.1f} MB{opset}, golden vectors replayed, "
        f"{seconds:.1f} s",
        flush=True,
    )
    return Entry(
        sha256=hashlib.sha256(export.data).hexdigest(),
        size=len(export.data),
        graph=export.graph.name,
        format=fmt.name,
        precision=fmt.precision,
        opset=fmt.opset,
        ir_version=fmt.ir_version,
        weights_sha256=model.weights_sha256,
        versions=export.versions,
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
        replay(fmt.open(data, graph), graph, Golden.from_json(carried["golden"]))
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
