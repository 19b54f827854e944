"""The gate in another Python's packages, here those of this environment, and what it refuses."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nin.contract import Contract
from nin.errors import CheckError, InputError
from nin.gate.parity import check_parity
from nin.gate.questions import Questions, make_questions, quick_plan
from nin.gate.releases import ReleaseRuntime, check_releases, install, requirements_of
from nin.network.build import TrainedModel
from nin.releases import TritonRelease, triton_release
from nin.samples import open_samples
from tests.conftest import Script, vouch

HERE = Path(sys.executable)


@pytest.fixture(scope="module")
def questions(lenet_model: TrainedModel) -> Questions:
    samples = open_samples(lenet_model.contract, None)
    return make_questions(lenet_model, samples, count=len(samples), seed=0)


@pytest.mark.parametrize("suffix", [".onnx", ".pt"])
def test_the_gate_is_open_for_an_export_in_another_process(
    lenet: Contract, lenet_artifacts: Path, questions: Questions, suffix: str
) -> None:
    for graph in lenet.graphs.values():
        runtime = ReleaseRuntime(HERE, lenet_artifacts / f"{graph.name}{suffix}", graph)
        row = check_parity("other", runtime, graph, questions, quick_plan(graph.max_batch))
        runtime.close()
        assert row.failures == []
        assert row.asked > 0


@pytest.mark.parametrize("suffix", [".onnx", ".pt"])
def test_what_fails_there_is_told(lenet: Contract, lenet_artifacts: Path, suffix: str) -> None:
    """And the next call is answered."""
    graph = lenet.classifier_graph
    runtime = ReleaseRuntime(HERE, lenet_artifacts / f"small{suffix}", graph)
    with pytest.raises(CheckError, match="pixels|dimension|shape|size"):
        runtime(np.zeros((1, 3, 3, 3, 3), np.uint8))
    assert runtime(np.zeros((2, *graph.input.shape), np.uint8))["logits"].shape[0] == 2
    runtime.close()


def test_a_release_that_can_not_load_an_export_closes_the_gate(
    lenet_model: TrainedModel,
    lenet_artifacts: Path,
    questions: Questions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its Python has neither package here."""
    bare = HERE.resolve()  # without this environment's packages
    monkeypatch.setattr("nin.gate.releases.install", lambda *_: bare)
    rows = check_releases(["24.10"], lenet_model, lenet_artifacts, questions)
    assert [row.runtime for row in rows] == ["24.10: onnxruntime 1.19.2"] * 2 + [
        "24.10: torch 2.5"
    ] * 2
    assert all(row.failures[0].startswith("it can't be loaded: ") for row in rows)


def test_an_export_that_was_changed_is_refused(
    lenet: Contract, lenet_artifacts: Path, tmp_path: Path
) -> None:
    for name in ("small.onnx", "manifest.json"):
        (tmp_path / name).write_bytes((lenet_artifacts / name).read_bytes())
    vouch(tmp_path, "small.onnx", (lenet_artifacts / "small.onnx").read_bytes())
    with (tmp_path / "small.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="has SHA-256"):
        ReleaseRuntime(HERE, tmp_path / "small.onnx", lenet.classifier_graph)


def test_an_environment_is_made_once(tmp_path: Path) -> None:
    release = triton_release("24.10")
    complete = tmp_path / "24.10" / "complete"
    complete.parent.mkdir()
    complete.write_text("\n".join(requirements_of(release)))
    assert install("24.10", release, tmp_path) == tmp_path / "24.10" / "bin" / "python"


def test_packages_that_do_not_exist_are_named(tmp_path: Path) -> None:
    preview = replace(triton_release("25.08"), torch="unknown")
    assert isinstance(preview, TritonRelease)
    with pytest.raises(InputError, match="can't install what Triton 25.08 carries: .*nvalid"):
        install("25.08", preview, tmp_path)
    assert not (tmp_path / "25.08" / "complete").exists()


def test_an_unknown_release_is_a_mistake(script: Script) -> None:
    ended = script("export/verify.py", "--releases", "24.10", "99.99")
    assert ended.code == 2
    assert "unknown Triton release 99.99" in ended.err
