"""What stands between exports and a model repository: the gate's word on these very files."""

import json
from pathlib import Path

from nin.artifact.golden import GOLDEN_IMAGES
from nin.artifact.manifest import read_manifest
from nin.contract import Contract
from nin.errors import CheckError
from nin.gate.parity import check_parity, failures_of
from nin.gate.questions import make_questions, quick_plan, seed_of_today
from nin.gate.reduced import questions_of_file
from nin.network.build import load_model
from nin.runtimes.registry import open_runtime, runtime_of
from nin.samples import open_samples
from nin.terminal import short

REPORT = "parity"  # .json, beside the artifacts


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
    exported = {(name, entries[name].sha256) for name in names if name in entries}
    path = artifacts / f"{REPORT}.json"
    passed, judged = _read_report(path)
    if not passed and exported & judged:
        raise CheckError(
            f"{short(path)} says that the gate is closed for these exports; see there why, export "
            "again, or publish them --unproven"
        )
    if len(exported) == len(names) and exported <= judged:
        return "gate"
    print(f"no report of these exports in {short(path)}, which `nin verify` writes;")
    print(
        f"the quick gate instead: {GOLDEN_IMAGES} samples by seed {seed_of_today()}, "
        "few batch sizes, no server, no C++",
        flush=True,
    )
    _pass_quick_gate(contract.folder, artifacts, weights=weights, data_dir=data_dir)
    return "quick gate"


def _read_report(path: Path) -> tuple[bool, set[tuple[str, str]]]:
    """Its verdict, and the files that it is about, each with its SHA-256."""
    try:
        data = json.loads(path.read_bytes())
        passed = data["passed"] is True
        if passed and data["images"] != "all" and data["images"] < GOLDEN_IMAGES:
            return False, set()  # fewer than the quick gate asks
        return passed, set(data["artifacts"].items())
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False, set()


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
            quick_plan(graph.max_batch),
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
