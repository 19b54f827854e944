"""What stands between exports and a model repository: the gate's word on these very files."""

import json
import math
from pathlib import Path
from typing import Any, TypedDict

from nin.artifact.golden import GOLDEN_IMAGES
from nin.artifact.manifest import read_artifact, read_manifest
from nin.artifact.metadata import Metadata
from nin.contract import Contract
from nin.errors import CheckError
from nin.export.formats import format_of
from nin.gate.parity import check_parity, failures_of
from nin.gate.questions import Plan, make_questions, seed_of_today
from nin.gate.reduced import questions_of_file
from nin.network.build import load_model
from nin.runtimes.registry import open_runtime, runtime_of
from nin.samples import open_samples
from nin.terminal import short

REPORT = "parity"  # .json, beside the artifacts


class Refusal(TypedDict):
    """What the run asked that found a file wrong."""

    images: int | str  # or "all"
    runtimes: list[str]


def prove(
    contract: Contract, artifacts: Path, *, weights: Path | None, data_dir: Path | None
) -> str:
    """How the exports are proven: by the gate's report of these very files, or by a quick gate now.

    Raises:
        InputError: an export, the weights or the images can't be used.
        CheckError: the gate is closed.
    """
    entries = read_manifest(artifacts)
    names = {f"{model.graph.name}{model.format}" for model in contract.published}
    exported = {name: entries[name].sha256 for name in sorted(names) if name in entries}
    path = artifacts / f"{REPORT}.json"
    judged, refused = _read_report(path)
    for name, digest in exported.items():
        if digest in refused:
            raise CheckError(
                f"the gate is closed for {name}: so said `nin verify --images "
                f"{refused[digest]['images']} --runtimes {' '.join(refused[digest]['runtimes'])}`; "
                "ask it again to see why, export again, or publish --unproven"
            )
    for name in exported:
        if faults := manifest_faults(artifacts, name):
            raise CheckError(f"nothing is published: {name}: {faults[0]}")
    if len(exported) == len(names) and exported.items() <= judged:
        return "gate"
    print(f"no report of these exports in {short(path)}, which `nin verify` writes;")
    print(
        f"the quick gate instead: {GOLDEN_IMAGES} samples by seed {seed_of_today()}, "
        "no server, no C++",
        flush=True,
    )
    _pass_quick_gate(contract.folder, artifacts, weights=weights, data_dir=data_dir)
    return "quick gate"


def refused_files(
    path: Path, report: dict[str, Any], asked: dict[str, str], listed: set[str]
) -> dict[str, Refusal]:
    """By SHA-256, the files that the gate is closed for, whichever run said so.

    A run that asks less than the one that closed it doesn't open it again.

    Args:
        path: of the report so far.
        report: of this run, as the next one reads it.
        asked: the files that this run asked, with their SHA-256.
        listed: the SHA-256 of all exports that are there.
    """
    _, before = _read_report(path)
    cleared = set(report["artifacts"].values()) if report["passed"] else set()
    standing = {
        digest: refusal
        for digest, refusal in before.items()
        if digest in listed and not (digest in cleared and _asks_as_much(report, refusal))
    }
    if report["passed"]:
        return standing
    refusal = Refusal(images=report["images"], runtimes=report["runtimes"])
    return standing | dict.fromkeys(asked.values(), refusal)


def _asks_as_much(report: dict[str, Any], refusal: Refusal) -> bool:
    enough = _number(report["images"]) >= _number(refusal["images"])
    return enough and set(report["runtimes"]) >= set(refusal["runtimes"])


def _number(images: int | str) -> float:
    return math.inf if images == "all" else float(images)


def _read_report(path: Path) -> tuple[set[tuple[str, str]], dict[str, Refusal]]:
    """The files that it lets through, each with its SHA-256, and those that it refuses."""
    try:
        data = json.loads(path.read_bytes())
        refused = {
            digest: Refusal(images=r["images"], runtimes=list(r["runtimes"]))
            for digest, r in data["refused"].items()
        }
        # of fewer images than the quick gate asks it proves nothing
        passed = data["passed"] is True and _number(data["images"]) >= GOLDEN_IMAGES
        return set(data["artifacts"].items()) if passed else set(), refused
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set(), {}


def manifest_faults(artifacts: Path, name: str) -> list[str]:
    """What the manifest says of a file otherwise than the file itself.

    Raises InputError where the file isn't there, or isn't an export.
    """
    data = read_artifact(artifacts, name)
    fmt = format_of(name)
    entry = read_manifest(artifacts)[name]
    carried = Metadata.from_texts(fmt.read_texts(data))
    expected = {
        "graph": name.removesuffix(fmt.suffix),
        "format": fmt.name,
        "precision": fmt.precision,
        "size": len(data),
        "weights_sha256": carried.weights_sha256,
        "versions": carried.versions,
    }
    return [
        f"manifest: its {key} is {getattr(entry, key)!r}, the file's {value!r}; export again"
        for key, value in expected.items()
        if getattr(entry, key) != value
    ]


def _pass_quick_gate(
    folder: Path, artifacts: Path, *, weights: Path | None, data_dir: Path | None
) -> None:
    """Raises CheckError with the reasons where the gate is closed."""
    model = load_model(folder, weights)
    files = dict.fromkeys((m.graph, m.format) for m in model.contract.published if m.format)
    runtimes = []
    for graph, suffix in files:
        name = runtime_of(suffix)
        runtime = open_runtime(name, graph, suffix, artifacts=artifacts, model=model)
        runtimes.append((name, graph, suffix, runtime))
    questions = make_questions(
        model,
        open_samples(model.contract, data_dir),
        count=GOLDEN_IMAGES,
        seed=seed_of_today(),
    )
    rows = [
        check_parity(
            name,
            runtime,
            graph,
            questions_of_file(questions, graph, suffix, artifacts, model),
            Plan(tuple(range(1, graph.max_batch + 1)), turns=1),
            suffix,
        )
        for name, graph, suffix, runtime in runtimes
    ]
    if failures := failures_of(rows):
        raise CheckError(
            "nothing is published, the gate is closed\n  "
            + "\n  ".join(failures)
            + "\nexport again, or give the --weights of these exports; --unproven overrules"
        )
