"""The gate on the real images, and that it closes: a gate that can't fail proves nothing."""

import argparse
import base64
import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from nin.artifact.golden import Golden
from nin.artifact.metadata import Metadata
from nin.commands.verify import Asked, judged_files, plan_rows
from nin.contract import Contract, Graph, Outputs
from nin.errors import CheckError
from nin.export.formats import FORMATS
from nin.gate.parity import Answers, Row, check_classes, check_parity
from nin.gate.questions import (
    Plan,
    Questions,
    make_questions,
    plan_batches,
    quick_plan,
    share_sizes,
)
from nin.network.build import TrainedModel
from nin.network.classifier import Preprocess
from nin.network.torch_settings import ignore_deprecations
from nin.network.weights import save_weights
from nin.reference.exact import Reference, compute_golden, compute_reference
from nin.runtimes import Runtime
from nin.runtimes.cpp import _run as run_tool
from nin.runtimes.eager import run_module
from nin.runtimes.registry import CUDA_RUNTIMES, available_runtimes, open_runtime
from nin.samples import open_samples
from nin.serve.server import PORTS, serve
from tests.conftest import Script, export_all, vouch
from tests.models import CLASSIFIER, CONTRACT, GRAPHS, LABELS, MAX_BATCH, NETWORK, make_resnet18

ALL_SIZES = range(1, MAX_BATCH + 1)
QUICK = quick_plan(MAX_BATCH)

VERIFY = "export/verify.py"


def test_every_artifact_in_every_runtime_passes(
    artifacts: Path, cpp_build: Path, embedded: None, tmp_path: Path, script: Script,
    few_sizes: None,
) -> None:  # fmt: skip
    """Of the built-in model, served too; with every batch size in the slow test below."""
    options = ("--artifacts", artifacts, "--images", 16, "--report", tmp_path / "report.json")
    ended = script(VERIFY, *options, "--seed", 1)
    assert (ended.code, ended.err) == (0, "")
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["passed"]
    assert len(data["rows"]) == 10 + 6 * 3 + 2
    for row in data["rows"]:
        int8 = row["format"] == ".int8.onnx"
        assert row["images"] == 16
        assert row["accuracy"] > 0.8
        assert (row["agreement"] is not None) == int8
        assert int8 or row["flips"] == 0
        for name, budget in row["budget"].items():
            errors = row["mean_error"][name], row["max_error"][name]
            assert 0 <= errors[0] <= errors[1] <= budget < (1 if int8 else 1e-3)
    for text in (ended.out, (tmp_path / "report.md").read_text()):
        for suffix in (".onnx", ".int8.onnx"):
            line = rf"^\| fashion_mnist +\| {suffix} +\| onnxruntime +\| pass "
            assert re.search(line, text, re.MULTILINE)


def test_a_running_server_can_be_checked(
    embedded: None, lenet: Contract, lenet_artifacts: Path, lenet_repository: Path,
    tmp_path: Path, script: Script,
) -> None:  # fmt: skip
    options = ("--model", lenet.folder, "--artifacts", lenet_artifacts, "--graph", lenet.name,
               "--report", tmp_path / "report")  # fmt: skip
    with serve(lenet_repository, ports=dict.fromkeys(PORTS, 0)) as server:
        ended = script(VERIFY, *options, "--runtimes", "triton-grpc", "--grpc-url", server.grpc)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.count("| pass ") == 2  # a model of each backend
    ended = script(VERIFY, *options, "--runtimes", "triton-http", "--grpc-url", server.grpc)
    assert ended.code == 2
    assert "no address for triton-http" in ended.err


def test_artifacts_that_can_not_be_served_close_the_gate(
    embedded: None, artifacts: Path, tmp_path: Path, script: Script
) -> None:
    """Off their golden vectors: the publisher refuses them, and that is the servers' row."""
    changed = Path(shutil.copytree(artifacts, tmp_path / "changed"))
    model = onnx.load(changed / "nin.onnx")
    golden = next(p for p in model.metadata_props if p.key == "golden")
    vectors = json.loads(golden.value)
    logits = np.frombuffer(base64.b64decode(vectors["outputs"]["logits"])) + 1
    vectors["outputs"]["logits"] = base64.b64encode(logits.tobytes()).decode()
    golden.value = json.dumps(vectors)
    vouch(changed, "nin.onnx", model.SerializeToString())
    options = ("--artifacts", changed, "--images", 4, "--report", tmp_path / "report")
    ended = script(VERIFY, *options, "--runtimes", "triton-http", "--graph", "nin")
    assert ended.code == 1
    assert "can't be served: nin_onnx is not published: golden vectors: logits is off" in ended.err


@pytest.mark.slow
def test_all_ten_thousand_images_pass(artifacts: Path, tmp_path: Path, script: Script) -> None:
    options = ("--artifacts", artifacts, "--images", "all", "--report", tmp_path / "report")
    assert script(VERIFY, *options).code == 0  # served too
    for row in json.loads((tmp_path / "report.json").read_text())["rows"]:
        assert row["images"] == 10_000
        assert row["accuracy"] == pytest.approx(0.9461, abs=2e-4)


@pytest.mark.slow
def test_resnet18_passes_at_its_full_size(
    embedded: None, cpp_build: Path, tmp_path: Path, script: Script
) -> None:
    """In every runtime, the server and C++; tests/test_demo.py has it smaller."""
    make_resnet18(tmp_path / "model")
    export_all(tmp_path / "model", tmp_path / "artifacts")
    options = ("--model", tmp_path / "model", "--artifacts", tmp_path / "artifacts")
    ended = script(VERIFY, *options)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.count("| pass ") == 8 + 4 * 3 + 2


@pytest.mark.gpu
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
@pytest.mark.parametrize("name", CUDA_RUNTIMES)
def test_cuda_passes(
    name: str, graph: Graph, artifacts: Path, model: TrainedModel, gate: "Gate"
) -> None:
    runtime = open_runtime(name, graph, artifacts=artifacts, model=model)
    assert gate(runtime, graph).failures == []


@pytest.fixture
def few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the script that aren't about batch sizes: seconds instead of half a minute."""

    def few(max_batch: int) -> Plan:
        return Plan(tuple({1, min(3, max_batch)}), turns=1)

    monkeypatch.setattr("nin.commands.verify.share_sizes", lambda n, largest: [few(largest)] * n)
    monkeypatch.setattr("nin.commands.verify.quick_plan", few)
    monkeypatch.setattr("nin.gate.parity._AT_ONCE", range(1, 4))


# Negative controls: each breaks one thing, and the gate has to name the reason

Gate = Callable[[Runtime, Graph], Row]


@pytest.fixture(scope="session")
def golden(model: TrainedModel, pixels: NDArray[np.uint8]) -> dict[str, Golden]:
    """Two images for each graph."""
    return {name: compute_golden(model, graph, pixels[:2]) for name, graph in GRAPHS.items()}


@pytest.fixture
def gate(
    reference: Reference, labels: NDArray[np.uint8], model: TrainedModel, golden: dict[str, Golden],
    monkeypatch: pytest.MonkeyPatch,
) -> Gate:  # fmt: skip
    """All rules on 16 images and small batches: less than a second per control."""
    monkeypatch.setattr("nin.gate.parity._AT_ONCE", range(1, 4))
    questions = Questions(
        reference=reference.first(16),
        names=tuple(f"sample {i}" for i in range(16)),
        samples=16,
        classes=labels[:16].astype(np.int64),
        labels=LABELS,
        golden=golden,
        weights_sha256=model.weights_sha256,
        seed=0,
        preprocess=Preprocess(CONTRACT),
        int8=CONTRACT.int8,
    )
    plan = Plan((1, 2, 3), turns=2)
    return lambda runtime, graph: check_parity("broken", runtime, graph, questions, plan)


@pytest.fixture
def export(golden: dict[str, Golden], model: TrainedModel) -> Callable[..., Runtime]:
    """Exports a module for real, in either format, and loads it in its runtime."""

    def run(kind: str, module: torch.nn.Module, graph: Graph, **changed: str) -> Runtime:
        vectors = golden[graph.name]
        metadata = Metadata(graph.describe(), LABELS, vectors, model.weights_sha256, {})
        texts = {**metadata.to_texts(), **changed}
        example = torch.tensor(vectors.batch(graph))
        fmt = FORMATS[f".{kind}"]
        return fmt.open(fmt.write(fmt.compile(module, example, graph), texts), graph)

    return run


def change_one_weight(module: torch.nn.Module) -> None:
    """Its sign; the weight is the largest of the third block's 3x3 convolution."""
    convolutions = (m for m in module.modules() if isinstance(m, torch.nn.Conv2d))
    weight = next(c.weight for c in convolutions if c.weight.shape == (384, 256, 3, 3))
    weight.view(-1)[weight.abs().argmax()] *= -1


def swap_two_channels(module: Any) -> None:
    conv = next(m for m in module.modules() if getattr(m, "out_channels", 0) == 256)
    for parameter in (conv.weight, conv.bias):
        parameter[[3, 7]] = parameter[[7, 3]]


def rotate_outputs(module: Any) -> None:
    conv = [m for m in module.modules() if getattr(m, "out_channels", 0) == len(LABELS)][-1]
    conv.weight.copy_(conv.weight.roll(1, 0))
    conv.bias.copy_(conv.bias.roll(1, 0))


def round_to_bfloat16(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        parameter.copy_(parameter.bfloat16().float())


def drop_the_division(module: Any) -> None:
    module.stem.weight.mul_(255)


def forget_a_bias(module: Any) -> None:
    convolution: Any = next(m for m in module.modules() if isinstance(m, torch.nn.Conv2d))
    convolution.bias.zero_()


CORRUPTIONS = [
    (change_one_weight, GRAPHS, "budget: logits of"),
    (swap_two_channels, GRAPHS, "budget: logits of 16 of 16 images"),
    (rotate_outputs, GRAPHS, "classes: "),
    (round_to_bfloat16, GRAPHS, "budget: logits of 16 of 16 images"),
    (forget_a_bias, GRAPHS, "budget: logits of 16 of 16 images"),
    (drop_the_division, ["fashion_mnist"], "budget: logits of 16 of 16 images"),
]


@pytest.mark.parametrize("kind", ["onnx", "pt"])
@pytest.mark.parametrize(
    ("corrupt", "graph", "reason"),
    [(corrupt, graph, reason) for corrupt, graphs, reason in CORRUPTIONS for graph in graphs],
)
def test_closes_on_a_corrupted_export(
    kind: str, corrupt: Callable[[torch.nn.Module], None], graph: str, reason: str,
    model: TrainedModel, export: Callable[..., Runtime], gate: Gate,
) -> None:  # fmt: skip
    module = deepcopy(model.module(GRAPHS[graph]))
    with torch.no_grad():
        corrupt(module)
    row = gate(export(kind, module, GRAPHS[graph]), GRAPHS[graph])
    assert not row.passed
    assert any(failure.startswith(reason) for failure in row.failures), row.failures


@pytest.mark.parametrize("kind", ["onnx", "pt"])
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_opens_for_the_same_export_uncorrupted(
    kind: str, graph: Graph, model: TrainedModel, export: Callable[..., Runtime], gate: Gate
) -> None:
    """Without this the controls above could be failing for another reason."""
    assert gate(export(kind, model.module(graph), graph), graph).failures == []


@pytest.mark.parametrize("kind", ["onnx", "pt"])
def test_closes_on_rotated_labels(
    kind: str, model: TrainedModel, export: Callable[..., Runtime], gate: Gate
) -> None:
    labels = json.dumps([*LABELS[1:], LABELS[0]])
    row = gate(export(kind, model.network, NETWORK, labels=labels), NETWORK)
    assert row.failures[0].startswith("labels: class 0 is 'Trouser', expected 'T-shirt/top'")


def test_closes_on_other_weights_and_another_contract(
    model: TrainedModel, export: Callable[..., Runtime], gate: Gate
) -> None:
    contract = json.dumps({**NETWORK.describe(), "max_batch": 1})
    changed = {"weights_sha256": "0" * 64, "contract": contract}
    row = gate(export("onnx", model.network, NETWORK, **changed), NETWORK)
    assert row.failures[0].startswith("contract: it carries")
    assert row.failures[1].startswith("weights: it was exported from 000000000000")


class Wrapped:
    """A right runtime whose answers something spoils on the way."""

    labels = LABELS
    golden = None

    def __init__(self, model: TrainedModel, graph: Graph, spoil: Any, before: Any = None):
        self.contract = graph.signature()
        self.weights_sha256 = model.weights_sha256
        self._module = model.module(graph)
        self._graph, self._spoil, self._before = graph, spoil, before

    def __call__(self, batch: NDArray[Any]) -> Outputs:
        if self._before:
            batch = self._before(batch)
        return self._spoil(run_module(self._module, self._graph, batch, "cpu"))


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_closes_on_a_network_left_in_training_mode(
    model: TrainedModel, graph: Graph, gate: Gate
) -> None:
    """Its dropout is on."""
    runtime = Wrapped(model, graph, spoil=lambda outputs: outputs)
    runtime._module = deepcopy(model.module(graph)).train()
    failures = gate(runtime, graph).failures
    assert failures[0].startswith("budget: logits of 16 of 16 images off")
    assert any("gives another logits in a batch of" in failure for failure in failures)


def only(change: Callable[[NDArray[Any]], Any]) -> Callable[[Outputs], Outputs]:
    return lambda outputs: {**outputs, "logits": change(outputs["logits"])}


def with_nan(logits: NDArray[Any]) -> NDArray[Any]:
    logits[-1, 3] = np.nan
    return logits


def leaking(logits: NDArray[Any]) -> NDArray[Any]:
    """What one image says reaches the others of its batch."""
    return logits + 1e-3 * (logits.mean(0, keepdims=True) - logits)


def only_small(outputs: Outputs) -> Outputs:
    if len(outputs["logits"]) > 2:
        raise RuntimeError("Expected batch 2")
    return outputs


def zero_for(*sizes: int) -> Callable[[Outputs], Outputs]:
    return only(lambda logits: logits * np.float32(len(logits) not in sizes))


def zero_at_first(calls: int = 2) -> Callable[[Outputs], Outputs]:
    """A runtime that needs a warm-up."""
    counter = iter(range(1000))
    return only(lambda logits: logits * np.float32(next(counter) >= calls))


SPOILS: list[tuple[Any, str]] = [
    (zero_for(1), "budget: logits of 1 of 16 images off by up to "),
    (zero_for(2), "budget: logits of 2 of 16 images off by up to "),
    (zero_for(1), "batches: sample "),
    (zero_at_first(), "batches: sample "),
    (only(with_nan), "budget: logits of "),
    (only(leaking), "batches: sample "),
    (only(lambda a: a.astype(np.float64)), "outputs: batch of 1 gives [('logits', 'float64'"),
    (only(lambda a: a.astype(np.float16)), "outputs: batch of 1 gives [('logits', 'float16'"),
    (only(lambda a: a[:, :9]), "outputs: batch of 1 gives"),
    (only(lambda a: a[:1]), "outputs: batch of 2 gives"),
    (only(lambda a: a[::-1]), "budget: logits of "),
    (only(lambda a: np.tile(a[:1], (len(a), 1))), "classes: "),
    (only(lambda a: a - 1e-3), "budget: logits of 16 of 16"),
    (lambda outputs: {"output_0": outputs["logits"]}, "outputs: batch of 1 gives [('output_0'"),
    (lambda outputs: {}, "outputs: batch of 1 gives []"),
    (lambda outputs: {**outputs, "more": outputs["logits"]}, "outputs: batch of 1 gives"),
    (only_small, "outputs: batch of 3 can't be run: Expected batch 2"),
]


@pytest.mark.parametrize(("spoil", "reason"), SPOILS)
def test_closes_on_spoilt_outputs(spoil: Any, reason: str, model: TrainedModel, gate: Gate) -> None:
    failures = gate(Wrapped(model, NETWORK, spoil), NETWORK).failures
    assert any(failure.startswith(reason) for failure in failures), failures


PROBABILITIES: list[tuple[Any, str]] = [
    (lambda o: {**o, "probabilities": o["logits"]}, "budget: probabilities"),
    (lambda o: dict(reversed(o.items())), "outputs: batch of 1 gives [('probabilities'"),
    # as far as a power of 1.0001 moves a probability at most, however sure the network is
    (
        lambda o: {**o, "probabilities": o["probabilities"] - np.float32(3.6e-5)},
        "budget: probabilities",
    ),
    (lambda o: {**o, "probabilities": np.roll(o["probabilities"], 1, 1)}, "classes: "),
]


@pytest.mark.parametrize(("spoil", "reason"), PROBABILITIES)
def test_closes_on_spoilt_probabilities(
    spoil: Any, reason: str, model: TrainedModel, gate: Gate
) -> None:
    failures = gate(Wrapped(model, CLASSIFIER, spoil), CLASSIFIER).failures
    assert any(failure.startswith(reason) for failure in failures), failures


@pytest.mark.parametrize(
    "before",
    [
        lambda pixels: np.ascontiguousarray(pixels.transpose(0, 2, 1)),
        lambda pixels: 255 - pixels,
        lambda pixels: np.ascontiguousarray(pixels[:, :, ::-1]),
        lambda pixels: pixels // 2 * 2,
    ],
    ids=["transposed", "inverted", "mirrored", "7 bits"],
)
def test_closes_on_spoilt_pixels(before: Any, model: TrainedModel, gate: Gate) -> None:
    runtime = Wrapped(model, CLASSIFIER, lambda outputs: outputs, before)
    failures = gate(runtime, CLASSIFIER).failures
    assert any(failure.startswith("budget: logits") for failure in failures)


def test_a_flip_is_allowed_only_where_the_reference_is_undecided() -> None:
    """An image between two classes, by hand: its flip is listed, and nothing else allowed."""
    exact = np.zeros((2, 10))
    exact[:, 4], exact[0, 6], exact[1, 6] = 1.0, 1.0 - 1e-6, 0.9
    found = exact.astype(np.float32)
    found[:, 6] = 1.01
    budget = {"logits": 1e-5}
    row = Row("x", "nin", 2, budget)
    reference = Reference(np.zeros((2, 28, 28), np.uint8), {"logits": exact}, budget)
    questions = Questions(
        reference, ("tie", "clear"), 2, None, LABELS, {}, "", 0, Preprocess(CONTRACT), CONTRACT.int8
    )
    answers = Answers.of([np.arange(2)], [{"logits": found}])
    failures = list(check_classes(answers, questions, row))
    assert failures == ["classes: 1 images changed class; first clear"]
    assert (row.flips, row.near_ties) == (2, ["tie"])


def test_the_budget_is_derived_from_float32_alone(
    model: TrainedModel, reference: Reference
) -> None:
    """Larger weights, larger activations, larger budget: it is no magic number."""
    network: Any = deepcopy(model.network)
    with torch.no_grad():
        network[7][4].weight.mul_(100)
        network[7][4].bias.mul_(100)
    larger = compute_reference(replace(model, network=network), reference.pixels)
    assert 30 < larger.budget["logits"] / reference.budget["logits"] < 300


# What is asked


class Remembering:
    """A runtime without a network: it knows the right answers, which something spoils."""

    labels = LABELS
    golden: Golden | None = None

    def __init__(self, reference: Reference, spoil: Any = lambda batch, outputs: outputs) -> None:
        self.weights_sha256 = None
        self.contract = CLASSIFIER.signature()
        self._rows = {image.tobytes(): row for row, image in enumerate(reference.pixels)}
        self._outputs, self._spoil = reference.outputs, spoil

    def __call__(self, batch: NDArray[Any]) -> Outputs:
        rows = [self._rows[image.tobytes()] for image in batch]
        outputs = {n: values[rows].astype(np.float32) for n, values in self._outputs.items()}
        return self._spoil(batch, outputs)


@pytest.fixture(scope="session")
def questions(model: TrainedModel) -> Questions:
    """As the command makes them."""
    return make_questions(model, open_samples(CONTRACT), count=16, seed=1)


def judge(
    runtime: Runtime, questions: Questions, *plans: Plan, graph: Graph = CLASSIFIER
) -> list[str]:
    """The failures of all rows of one file."""
    rows = (check_parity("x", runtime, graph, questions, plan) for plan in plans)
    return [failure for row in rows for failure in row.failures]


def test_right_answers_pass_every_plan(questions: Questions) -> None:
    plans = (QUICK, *share_sizes(1, MAX_BATCH), *share_sizes(5, MAX_BATCH))
    assert judge(Remembering(questions.reference), questions, *plans) == []


@pytest.mark.parametrize("sharing", [1, 2, 4, 5, 6])
@pytest.mark.parametrize("size", ALL_SIZES)
def test_closes_on_a_batch_size_that_is_wrong(
    questions: Questions, size: int, sharing: int
) -> None:
    """Whichever of the runtimes that share a file is asked for it."""

    def spoil(batch: NDArray[Any], outputs: Outputs) -> Outputs:
        return {**outputs, "logits": outputs["logits"] + np.float32(len(batch) == size)}

    plans = share_sizes(sharing, MAX_BATCH)
    failures = judge(Remembering(questions.reference, spoil), questions, *plans)
    assert any(f" in a batch of {size}, allowed is " in failure for failure in failures)


@pytest.mark.parametrize("sharing", [1, 4, 5, 6])
def test_every_image_is_asked_in_two_places(sharing: int) -> None:
    """By the runtimes of one file together; and in another company."""
    batches = [
        b for plan in share_sizes(sharing, MAX_BATCH) for b in plan_batches(303, plan, seed=1)
    ]
    assert {len(batch) for batch in batches} == set(ALL_SIZES)
    assert np.bincount(np.concatenate(batches), minlength=303).min() >= 2


def asked_rows(artifacts: Path, *runtimes: str) -> tuple[argparse.Namespace, list[Asked]]:
    urls = {"http_url": None, "grpc_url": None}
    args = argparse.Namespace(runtimes=runtimes, graph="all", artifacts=artifacts, **urls)
    return args, plan_rows(args, CONTRACT, every=False)


def test_libtorch_shares_no_sizes_of_torchscript(artifacts: Path) -> None:
    """It cuts a batch before the file gets it."""
    servers = ("triton-http", "triton-grpc", "triton-cpp")
    for names in (("torchscript", "libtorch"), ("libtorch", "torchscript", *servers)):
        args, rows = asked_rows(artifacts, *names)
        whole = [row for row in rows if row.file == "nin.pt" and row.runtime != "libtorch"]
        whole += [row for row in rows if row.model and row.model.name == "nin_torchscript"]
        assert {size for row in whole if row.plan for size in row.plan.sizes} == {*ALL_SIZES}
        assert "nin.pt" in judged_files(args, CONTRACT, rows)
    args, rows = asked_rows(artifacts, "libtorch")
    assert "nin.pt" not in judged_files(args, CONTRACT, rows)


class Lists(torch.nn.Module):
    """Answers rightly, but in a list."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [self.module(image)]


def scripted(module: torch.nn.Module, path: Path) -> bytes:
    """A TorchScript file with the texts of another."""
    buffer = io.BytesIO()
    texts = FORMATS[".pt"].read_texts(path.read_bytes())
    with ignore_deprecations():
        torch.jit.save(torch.jit.script(module), buffer, _extra_files=texts)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda network: Lists(network).eval(), "a list as output, expected a tensor or a tuple"),
        (lambda network: Lists(network).train(), "it was saved in training mode"),
    ],
)
def test_closes_on_a_file_that_other_runtimes_refuse(
    spoil: Any, reason: str, lenet_model: TrainedModel, lenet_artifacts: Path, tmp_path: Path,
    script: Script,
) -> None:  # fmt: skip
    """With a report, so that publishing knows."""
    folder = Path(shutil.copytree(lenet_artifacts, tmp_path / "a"))
    spoilt = scripted(spoil(deepcopy(lenet_model.network)), folder / "lenet.pt")
    vouch(folder, "lenet.pt", spoilt)
    options = ("--model", lenet_model.contract.folder, "--artifacts", folder, "--graph", "lenet")
    ended = script(VERIFY, *options, "--runtimes", "torchscript")
    assert (ended.code, reason in ended.err) == (1, True)
    assert len(json.loads((folder / "parity.json").read_text())["refused"]) == 1


def test_closes_on_a_model_that_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says comes before the results."""
    tool = tmp_path / "nin_classify"
    tool.write_text("#!/bin/sh\necho hello\necho '[]'\n")
    tool.chmod(0o755)
    monkeypatch.setattr("nin.runtimes.cpp.CPP_TOOLS", tmp_path)
    with pytest.raises(CheckError, match=r"nin_classify printed no JSON but 'hello"):
        run_tool(["nin_classify"], NETWORK, np.zeros((1, 1, 224, 224), np.float32))


def spoilt_where(
    wrong: Callable[[NDArray[Any]], NDArray[np.bool_]], by: float = 1e-3
) -> Callable[[NDArray[Any], Outputs], Outputs]:
    """Logits that are off for the images that `wrong` chooses by their pixels."""

    def spoil(batch: NDArray[Any], outputs: Outputs) -> Outputs:
        off = np.where(wrong(batch.astype(float)), by, 0).astype(np.float32)
        return {**outputs, "logits": outputs["logits"] + off[:, None]}

    return spoil


@pytest.mark.parametrize(
    ("wrong", "image"),
    [
        (lambda p: p.max((1, 2)) == 0, "image `all 0`"),
        (lambda p: p.min((1, 2)) == 255, "image `all 255`"),
        (lambda p: p.mean((1, 2)) > 200, "image `"),
        (lambda p: p.std((1, 2)) == 0, "image `all "),
        (lambda p: (p[:, -1, -1] == 255) & (p.mean((1, 2)) < 1), "image `bottom right corner"),
        (lambda p: (p[:, 0, 5] == 255) & (p.mean((1, 2)) < 10), "image `top edge alone on 0"),
        (lambda p: np.abs(np.diff(p, axis=2)).min((1, 2)) == 255, "image `"),
        (lambda p: (p.max((1, 2)) > 15) & (p.max((1, 2)) < 64), "image `"),
        (lambda p: (p.max((1, 2)) == 102) & (p.std((1, 2)) > 0), "image `sample 0 dimmed to 40 %"),
        (lambda p: (p.min((1, 2)) == 204) & (p.std((1, 2)) > 10), "image `sample 0 in light grey"),
    ],
)
@pytest.mark.parametrize("by", [1e-3, np.nan])
def test_closes_on_inputs_unlike_the_test_set(
    questions: Questions, wrong: Any, image: str, by: float
) -> None:
    runtime = Remembering(questions.reference, spoilt_where(wrong, by))
    failures = judge(runtime, questions, QUICK)
    assert failures[0].startswith("budget: logits of ")
    assert f"; first {image}" in failures[0]


@pytest.mark.parametrize("place", [(0, 0), (0, 27), (27, 0), (27, 27), (0, 9), (13, 27)])
def test_closes_on_a_pixel_that_is_ignored(
    questions: Questions, model: TrainedModel, place: tuple[int, int]
) -> None:
    def ignore(pixels: NDArray[Any]) -> NDArray[Any]:
        pixels = pixels.copy()
        pixels[:, *place] = 0
        return pixels

    runtime = Wrapped(model, CLASSIFIER, lambda outputs: outputs, ignore)
    failures = judge(runtime, questions, Plan((1, 32), turns=1))
    assert any(f.startswith("budget: logits of ") for f in failures)


def test_closes_on_images_that_only_the_network_alone_is_sent(
    questions: Questions, model: TrainedModel
) -> None:
    """The classifier's resizing smooths what it is given; an application may send sharper ones."""

    def blind(image: NDArray[Any]) -> NDArray[Any]:
        sharp = np.abs(np.diff(image, axis=3)).max((1, 2, 3)) > 0.5
        return image * ~sharp[:, None, None, None]

    runtime = Wrapped(model, NETWORK, lambda outputs: outputs, blind)
    failures = judge(runtime, questions, Plan((1, 16), turns=1), graph=NETWORK)
    assert "`, not resized" in failures[0]
    assert failures[0].startswith("budget: logits of ")


@pytest.mark.parametrize("alike", [np.all, np.any])
def test_closes_on_images_that_come_twice_in_a_batch(questions: Questions, alike: Any) -> None:
    def spoil(batch: NDArray[Any], outputs: Outputs) -> Outputs:
        wrong = len(batch) > 1 and alike((batch[:1] == batch[1:]).all((1, 2)))
        return {**outputs, "logits": outputs["logits"] + np.float32(wrong)}

    failures = judge(Remembering(questions.reference, spoil), questions, QUICK)
    assert any(failure.startswith("budget: logits of ") for failure in failures)


def edited(golden: Golden, **changed: Any) -> Golden:
    """As what is read from a file: a copy."""
    return replace(Golden.from_json(golden.to_json()), **changed)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda g: {"budget": dict.fromkeys(g.budget, 1e9)}, "they allow logits to be off by"),
        (lambda g: {"budget": {**g.budget, "logits": 3 * g.budget["logits"]}}, "they allow logits"),
        (lambda g: {"budget": {**g.budget, "logits": np.nan}}, "they allow logits to be off by"),
        (lambda g: {"budget": {**g.budget, "logits": -1.0}}, "they allow logits to be off by"),
        (lambda g: {"budget": {}}, "of ['logits', 'probabilities']"),
        (lambda g: {"outputs": {n: v + 1e-6 for n, v in g.outputs.items()}}, "logits is off by"),
        (lambda g: {"outputs": {"logits": g.outputs["logits"]}}, "of ['logits'], expected"),
        (lambda g: {"outputs": {n: v[:4] for n, v in g.outputs.items()}}, "logits is (4, 10)"),
        (lambda g: {"inputs": g.inputs[::-1]}, "not those of the first 32 samples"),
        (lambda g: {"inputs": g.inputs[:1]}, "not those of the first 32 samples"),
    ],
)  # fmt: skip
def test_closes_on_edited_golden_vectors(questions: Questions, edit: Any, reason: str) -> None:
    golden = questions.golden[CLASSIFIER.name]
    runtime = Remembering(questions.reference)
    runtime.contract = CLASSIFIER.describe()
    runtime.golden = edited(golden)
    assert judge(runtime, questions, QUICK) == []
    runtime.golden = edited(golden, **edit(golden))
    failures = judge(runtime, questions, QUICK)
    assert failures[0].startswith(f"golden vectors: {reason}")


def test_the_seed_chooses_the_images(
    model: TrainedModel, pixels: NDArray[np.uint8], labels: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """So that no export passes which knows the first images by heart."""
    monkeypatch.setattr(
        "nin.gate.questions.compute_reference", lambda model, images: Reference(images, {}, {})
    )
    monkeypatch.setattr("nin.gate.questions.compute_golden", lambda model, graph, images: None)
    monkeypatch.setattr("nin.gate.questions._sharp_images", lambda model, seed: None)
    samples = open_samples(CONTRACT)

    def ask(count: int, seed: int) -> Questions:
        return make_questions(model, samples, count=count, seed=seed)

    first, again, other = ask(256, 20260101), ask(256, 20260101), ask(256, 20260102)
    assert first.names == again.names != other.names
    assert len(set(first.names[:256]) & {f"sample {i}" for i in range(1000)}) < 60
    index = int(first.names[0].split()[-1])
    np.testing.assert_array_equal(first.reference.pixels[0], pixels[index])
    assert first.classes is not None
    assert first.classes[0] == labels[index]
    everything = ask(len(pixels), 1)
    np.testing.assert_array_equal(everything.reference.pixels[: len(pixels)], pixels)
    assert len(np.unique(everything.reference.pixels[len(pixels) :], axis=0)) == 55


# The script


def test_exit_code_1_and_the_reason_when_closed(
    artifacts: Path, tmp_path: Path, script: Script, model: TrainedModel, few_sizes: None
) -> None:
    """Weights that were trained on while their old exports still lie there."""
    network: Any = deepcopy(model.network)
    with torch.no_grad():
        network[0][0].weight.mul_(1.01)
    save_weights(tmp_path / "w.safetensors", network, recipe="", metrics={})
    options = ("--artifacts", artifacts, "--weights", tmp_path / "w.safetensors", "--graph", "nin")
    ended = script(
        VERIFY, *options, "--images", 8, "--runtimes", "onnxruntime", "--report", tmp_path / "r"
    )
    assert ended.code == 1
    assert "error: the gate is closed" in ended.err
    assert "nin.onnx in onnxruntime: weights: it was exported from" in ended.err
    assert not json.loads((tmp_path / "r.json").read_text())["passed"]
    assert "FAIL" in (tmp_path / "r.md").read_text()


def test_the_report_says_what_was_judged_and_asked(
    lenet: Contract, lenet_artifacts: Path, tmp_path: Path, script: Script
) -> None:
    """Beside the artifacts, where publishing looks for it."""
    folder = Path(shutil.copytree(lenet_artifacts, tmp_path / "a"))
    options = ("--model", lenet.folder, "--artifacts", folder, "--images", 4, "--seed", 7)
    ended = script(VERIFY, *options, "--runtimes", "eager", "onnxruntime", "--graph", "lenet")
    assert (ended.code, ended.err) == (0, "")
    assert "4 of 16 samples, chosen by --seed 7" in ended.out
    data = json.loads((folder / "parity.json").read_text())
    digest = hashlib.sha256((folder / "lenet.onnx").read_bytes()).hexdigest()
    assert (data["artifacts"], data["refused"]) == ({"lenet.onnx": digest}, {})
    assert (data["images"], data["seed"]) == (4, 7)
    assert "--seed 7 " in data["command"]
    sizes = lenet.network_graph.max_batch
    assert data["rows"][1]["sizes"] == [*range(1, sizes + 1)]
    assert data["rows"][1]["asked"] >= sizes * (sizes + 1) / 2
    assert (
        "4 samples by seed 7, and synthetic ones; files judged: lenet.onnx "
        in (folder / "parity.md").read_text()
    )


def test_the_report_does_not_promise_more_samples_than_there_are(
    lenet: Contract, lenet_artifacts: Path, tmp_path: Path, script: Script
) -> None:
    options = ("--model", lenet.folder, "--artifacts", lenet_artifacts, "--images", 1000)
    ended = script(VERIFY, *options, "--runtimes", "eager", "--report", tmp_path / "r")
    assert (ended.code, ended.err) == (0, "")
    assert "16 of 16 samples" in ended.out
    assert json.loads((tmp_path / "r.json").read_text())["images"] == "all"


@pytest.mark.parametrize(
    ("count", "runtimes"),
    [
        (1, ("eager", "onnxruntime")),
        pytest.param(1, available_runtimes(), marks=pytest.mark.slow),
        pytest.param(33, available_runtimes(), marks=pytest.mark.slow),
    ],
)
def test_a_few_images_do_not_raise_a_false_alarm(
    count: int, runtimes: tuple[str, ...], artifacts: Path, tmp_path: Path, script: Script,
    few_sizes: None,
) -> None:  # fmt: skip
    options = ("--artifacts", artifacts, "--images", count, "--report", tmp_path / "r")
    assert script(VERIFY, *options, "--runtimes", *runtimes).code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--images", "0"), "0 is not a whole number from 1 on, nor `all`"),
        (("--images", "-5"), "-5 is not a whole number from 1 on"),
        (("--images", "some"), "some is not a whole number from 1 on"),
        (("--seed", "-1"), "-1 is not a whole number from 0 on"),
        (("--runtimes", "tflite"), "invalid choice: 'tflite'"),
        (("--graph", "vgg"), "no graph vgg in"),
        (("--data-dir", "/nowhere"), "/nowhere"),
        (("--artifacts", "/nowhere"), "no manifest.json in /nowhere; export first"),
        (("--weights", "/nowhere"), "no weights file at /nowhere"),
    ],
)
def test_refuses_bad_options(
    options: tuple[str, ...], message: str, artifacts: Path, script: Script
) -> None:
    ended = script(VERIFY, "--artifacts", artifacts, *options)
    assert ended.code == 2
    assert message in ended.err
    assert "Traceback" not in ended.err


def test_refuses_an_artifact_that_differs_from_the_manifest(
    artifacts: Path, tmp_path: Path, script: Script
) -> None:
    folder = Path(shutil.copytree(artifacts, tmp_path / "a"))
    with (folder / "nin.pt").open("ab") as file:
        file.write(b"\0")
    ended = script(VERIFY, "--artifacts", folder, "--images", 4, "--report", tmp_path / "r")
    assert ended.code == 2
    assert "nin.pt has SHA-256" in ended.err
    assert not (tmp_path / "r.json").exists()
