"""The export scripts, run as a person runs them; the files, opened with tools that aren't ours."""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load_file, save_file

from nin.artifact.manifest import read_manifest
from nin.contract import Graph
from nin.errors import InputError
from nin.export.onnx_file import OPSETS, choose_opset, ir_version
from nin.export.operators import younger_operators
from nin.network.build import TrainedModel
from nin.network.classifier import Preprocess
from nin.network.torch_settings import ignore_deprecations
from nin.paths import NIN, ROOT
from nin.reference.exact import Reference, batch_for
from nin.releases import TRITON_RELEASES
from tests.conftest import Script
from tests.models import CONTRACT, GRAPHS, LABELS, MAX_BATCH

WEIGHTS = NIN / "weights.safetensors"

SCRIPTS = {"onnx": "export/to_onnx.py", "pt": "export/to_torchscript.py"}
NAMES = [
    "fashion_mnist.int8.onnx",
    "fashion_mnist.onnx",
    "fashion_mnist.pt",
    "nin.onnx",
    "nin.pt",
]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What is written


def test_writes_the_files_and_a_manifest(artifacts: Path, model: TrainedModel) -> None:
    assert files(artifacts) == sorted([*NAMES, "manifest.json"])
    manifest = read_manifest(artifacts)
    assert sorted(manifest) == NAMES
    for name, entry in manifest.items():
        graph, _, suffix = name.partition(".")
        assert entry.graph == graph
        assert entry.size == (artifacts / name).stat().st_size
        assert entry.weights_sha256 == model.weights_sha256
        assert entry.versions["torch"] == torch.__version__.partition("+")[0]
        of_onnx = suffix.endswith("onnx")
        expected = ("onnx", 18, 8) if of_onnx else ("torchscript", None, None)
        assert entry.precision == ("int8" if suffix.startswith("int8") else "float32")
        assert (entry.format, entry.opset, entry.ir_version) == expected


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_onnx_is_one_valid_self_contained_file(
    graph: Graph, artifacts: Path, tmp_path: Path
) -> None:
    path = shutil.copy(artifacts / f"{graph.name}.onnx", tmp_path)  # without its neighbours
    onnx.checker.check_model(path, full_check=True)
    model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert not any(t.external_data for t in model.graph.initializer)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = [(v.name, v.shape) for v in [*session.get_inputs(), *session.get_outputs()]]
    assert found == [(t.name, ["batch", *t.shape]) for t in (graph.input, *graph.outputs)]
    texts = session.get_modelmeta().custom_metadata_map
    assert json.loads(texts["labels"]) == list(LABELS)
    assert json.loads(texts["contract"]) == graph.describe()


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_onnx_agrees_with_the_specifications_own_interpreter(
    graph: Graph, artifacts: Path, reference: Reference
) -> None:
    """onnx.reference is slow, plain numpy: two images."""
    model = ReferenceEvaluator(str(artifacts / f"{graph.name}.onnx"))
    batch = batch_for(Preprocess(CONTRACT), graph, reference.pixels[:2])
    outputs = model.run(None, {graph.input.name: batch})
    for tensor, values in zip(graph.outputs, outputs, strict=True):
        error = np.abs(values - reference.outputs[tensor.name][:2]).max()
        assert error <= reference.budget[tensor.name]


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_torchscript_is_frozen_and_loads_with_plain_torch(graph: Graph, artifacts: Path) -> None:
    texts = dict.fromkeys(("contract", "labels", "golden"), "")
    with ignore_deprecations():
        module = torch.jit.load(artifacts / f"{graph.name}.pt", _extra_files=texts)
    assert list(module.parameters()) == []  # frozen: weights are constants
    assert [a.name for a in module.forward.schema.arguments] == ["self", graph.input.name]
    assert json.loads(texts["labels"]) == list(LABELS)
    assert json.loads(texts["contract"]) == graph.describe()
    assert json.loads(texts["golden"])["shape"][0] == (32 if graph.input.dtype == "uint8" else 14)
    assert "allow_tf32" not in module.code


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_torchscript_asks_for_float32_convolutions(graph: Graph, artifacts: Path) -> None:
    with ignore_deprecations():
        module = torch.jit.load(artifacts / f"{graph.name}.pt")
    convolutions = [n for n in module.inlined_graph.nodes() if n.kind() == "aten::_convolution"]
    assert len(convolutions) == 12
    for node in convolutions:
        assert list(node.inputs())[-1].toIValue() is False  # the last argument is allow_tf32


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_exporting_machine_is_inside(name: str, artifacts: Path) -> None:
    data = (artifacts / name).read_bytes()
    for trace in (str(ROOT), sys.prefix, str(Path.home()), "site-packages", ".py:", "cuda"):
        assert trace.encode() not in data
    if len(platform.node()) > 4:
        assert platform.node().encode() not in data
    if name.endswith(".pt"):
        assert not [n for n in zipfile.ZipFile(artifacts / name).namelist() if "debug" in n]


# Options


def test_replaces_an_earlier_export(lenet_folder: Path, tmp_path: Path, script: Script) -> None:
    options = ("--model", lenet_folder, "--output", tmp_path)
    assert script(SCRIPTS["onnx"], *options).code == 0
    before = (tmp_path / "lenet.onnx").stat().st_ino
    ended = script(SCRIPTS["onnx"], *options, "--graph", "lenet", "--opset", 20)
    assert ended.code == 0
    assert "opset 20, IR 9, golden vectors replayed" in ended.out
    assert (tmp_path / "lenet.onnx").stat().st_ino != before
    assert read_manifest(tmp_path)["lenet.onnx"].opset == 20
    assert read_manifest(tmp_path)["small.onnx"].opset == 18
    assert files(tmp_path) == ["lenet.onnx", "manifest.json", "small.onnx"]


@pytest.mark.parametrize("kind", SCRIPTS)
def test_exports_are_the_same_to_the_byte_but_for_names(
    kind: str, lenet_folder: Path, tmp_path: Path, script: Script
) -> None:
    for name in "ab":
        options = ("--model", lenet_folder, "--output", tmp_path / name)
        assert script(SCRIPTS[kind], *options).code == 0
    for graph in ("lenet", "small"):
        ours, theirs = ((tmp_path / f / f"{graph}.{kind}").read_bytes() for f in "ab")
        assert len(ours) == pytest.approx(len(theirs), abs=256)
        if kind == "onnx":
            assert ours == theirs


def test_every_known_release_gets_an_opset_it_loads() -> None:
    for name, release in TRITON_RELEASES.items():
        opset = choose_opset(None, name)
        assert opset in OPSETS
        assert opset <= release.opset
        assert ir_version(opset) <= release.ir_version
        assert choose_opset(18, name) == 18
    assert choose_opset(None, None) == 18
    assert choose_opset(None, "24.10") == 21
    assert choose_opset(None, "25.12") == 23
    with pytest.raises(InputError, match="opset 23 is too new for Triton 24.10: .* 1.19.2 .* 21"):
        choose_opset(23, "24.10")


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_exports(
    opset: int, lenet_folder: Path, tmp_path: Path, script: Script
) -> None:
    options = ("--model", lenet_folder, "--graph", "small", "--output", tmp_path, "--opset", opset)
    ended = script(SCRIPTS["onnx"], *options)
    assert (ended.code, ended.err) == (0, "")
    assert f"opset {opset}" in ended.out


def test_torchscript_for_a_release_says_its_torch(
    lenet_folder: Path, tmp_path: Path, script: Script
) -> None:
    options = ("--model", lenet_folder, "--output", tmp_path, "--target-triton", "24.10")
    out = script(SCRIPTS["pt"], *options).out
    assert "small.pt: Triton 24.10 carries torch 2.5, which has all its operators" in out
    out = script(SCRIPTS["pt"], *options[:-1], "25.07").out
    assert "small.pt: which torch Triton 25.07 carries isn't known" in out
    ended = script("export/to_pt2.py", *options)
    assert (ended.code, ended.out) == (2, "")
    assert "--target-triton is for what Triton serves; pt2 isn't" in ended.err


def test_operators_that_an_older_torch_lacks_are_named(tmp_path: Path) -> None:
    code = "def forward(self, a):\n    return torch.mm(a, a, out_dtype=torch.float32)\n"
    with ignore_deprecations():
        module = torch.jit.ScriptModule()
        module.define(code)  # it is compiled, not run: a CPU can't
        module.save(str(tmp_path / "m.pt"))
    assert younger_operators(tmp_path / "m.pt", "2.5") == {"mm.dtype": "2.8"}
    assert younger_operators(tmp_path / "m.pt", "2.8") == {}
    assert younger_operators(tmp_path / "m.pt", "unknown") == {}


@pytest.mark.parametrize("path", [*SCRIPTS.values(), "export/verify.py", "scripts/demo.py"])
def test_help_shows_the_defaults(path: str, script: Script) -> None:
    ended = script(path, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert "nin " in ended.out or f"python {path}" in ended.out
    assert "(default: " in ended.out


# Bad input: one line, exit code 2, nothing left behind


def poison(path: Path) -> Path:
    tensors = load_file(WEIGHTS)
    tensors["2.0.weight"][0, 0, 0, 0] = float("nan")
    save_file(tensors, path)
    return path


def truncate(path: Path) -> Path:
    path.write_bytes(WEIGHTS.read_bytes()[:100_000])
    return path


def another(path: Path) -> Path:
    save_file({"fc.weight": torch.zeros(3)}, path)
    return path


@pytest.mark.parametrize("kind", SCRIPTS)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path, "no weights file at"),
        (truncate, "neither a whole safetensors file"),
        (another, "is of another network: it has no tensor 0.0.weight, but fc.weight"),
        (poison, "2.0.weight holds NaN"),
    ],
)
def test_refuses_bad_weights(
    kind: str, make: Callable[[Path], Path], message: str, tmp_path: Path, script: Script
) -> None:
    weights, output = make(tmp_path / "w.safetensors"), tmp_path / "out"
    ended = script(SCRIPTS[kind], "--weights", weights, "--output", output)
    assert ended.code == 2
    assert message in ended.err
    assert ended.err.count("\n") == 1
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--graph", "vgg"), "no graph vgg in"),
        (("--opset", "17"), "opset 17 is out of range; choose 18 to 25"),
        (("--opset", "26"), "opset 26 is out of range"),
        (("--opset", "0"), "opset 0 is out of range"),
        (("--opset", "x"), "invalid int value: 'x'"),
        (("--target-triton", "23.01"), "unknown Triton release 23.01; known are 24.04, "),
        (("--target-triton", "24.10", "--opset", "22"), "opset 22 is too new for Triton 24.10"),
        (("--data-dir", "/nowhere"), "/nowhere"),
        (("--data-dir", str(ROOT / "docs")), str(ROOT / "docs")),
        (("--model", "/nowhere"), "no model at /nowhere: there is no such folder"),
        (("--model", str(ROOT)), "it has no such file, expected a folder with a model.toml"),
    ],
)
def test_refuses_bad_options(
    options: tuple[str, ...], message: str, tmp_path: Path, script: Script
) -> None:
    output = tmp_path / "out"
    ended = script(SCRIPTS["onnx"], "--output", output, *options)
    assert ended.code == 2
    assert message in ended.err
    assert not output.exists()


@pytest.mark.parametrize("kind", SCRIPTS)
def test_refuses_a_folder_it_cannot_write_to(kind: str, tmp_path: Path, script: Script) -> None:
    (tmp_path / "file").write_text("mine")
    ended = script(SCRIPTS[kind], "--output", tmp_path / "file")
    assert ended.code == 2
    assert "can't write to the folder" in ended.err
    assert ended.err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("content", [b"mine", b"", b"PK\x03\x04 mine"])
@pytest.mark.parametrize("kind", SCRIPTS)
def test_overwrites_a_foreign_file_only_with_force(
    kind: str, content: bytes, lenet_folder: Path, tmp_path: Path, script: Script
) -> None:
    path = tmp_path / f"small.{kind}"
    path.write_bytes(content)
    ended = script(SCRIPTS[kind], "--model", lenet_folder, "--output", tmp_path)
    assert ended.code == 2
    assert f"{path.name} exists and isn't a whole export of this project" in ended.err
    assert files(tmp_path) == [path.name]  # the other graph isn't exported either
    assert path.read_bytes() == content
    options = ("--model", lenet_folder, "--graph", "small", "--force")
    assert script(SCRIPTS[kind], "--output", tmp_path, *options).code == 0
    assert read_manifest(tmp_path)[path.name].size == path.stat().st_size


@pytest.mark.parametrize("name", ["fashion_mnist.onnx", "manifest.json"])
@pytest.mark.parametrize("force", [(), ("--force",)])
def test_refuses_a_folder_in_the_place_of_a_file(
    name: str, force: tuple[str, ...], tmp_path: Path, script: Script
) -> None:
    (tmp_path / name).mkdir()
    ended = script(SCRIPTS["onnx"], "--output", tmp_path, *force)
    assert ended.code == 2
    assert f"{name} is a folder; move it away" in ended.err
    assert files(tmp_path) == [name]


def test_refuses_a_foreign_onnx_model(tmp_path: Path, script: Script) -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy")
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y]))
    onnx.save(model, tmp_path / "nin.onnx")
    assert script(SCRIPTS["onnx"], "--output", tmp_path).code == 2
    assert onnx.load(tmp_path / "nin.onnx") == model


def test_a_foreign_manifest_is_kept_without_force(
    lenet_folder: Path, tmp_path: Path, script: Script
) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "my web app"}')
    options = ("--model", lenet_folder, "--output", tmp_path, "--graph", "lenet")
    ended = script(SCRIPTS["onnx"], *options)
    assert ended.code == 2
    assert "isn't a manifest of this project" in ended.err
    assert files(tmp_path) == ["manifest.json"]
    assert script(SCRIPTS["onnx"], *options, "--force").code == 0
    assert sorted(read_manifest(tmp_path)) == ["lenet.onnx"]


@pytest.mark.parametrize("kind", SCRIPTS)
def test_an_export_that_fails_its_golden_vectors_is_not_published(
    kind: str, lenet_folder: Path, tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exported module is broken after the reference was computed."""
    make = TrainedModel.module

    def broken(model: TrainedModel, graph: Graph) -> torch.nn.Module:
        module = deepcopy(make(model, graph))
        with torch.no_grad():
            next(module.parameters()).mul_(1.001)
        return module

    monkeypatch.setattr(TrainedModel, "module", broken)
    ended = script(SCRIPTS[kind], "--model", lenet_folder, "--output", tmp_path)
    assert ended.code == 1
    assert "is not published: golden vectors: logits is off by" in ended.err
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("kind", "number"), list(zip(SCRIPTS, (signal.SIGINT, signal.SIGTERM), strict=True))
)
def test_an_interrupt_leaves_no_partial_file(
    kind: str, number: int, resnet18: Path, tmp_path: Path
) -> None:
    """The signal comes while the temporary file is there: the worst moment."""
    command = [sys.executable, str(ROOT / SCRIPTS[kind]), "--output", str(tmp_path)]
    command += ["--model", str(resnet18)]  # large files, small images
    # a background shell ignores SIGINT and would hand that down
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    while not list(tmp_path.glob(".*.tmp")):
        assert process.poll() is None
        time.sleep(0.001)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert not list(tmp_path.glob(".*.tmp"))
    complete = [name for name in files(tmp_path) if name != "manifest.json"]
    assert complete in ([], [f"resnet18.{kind}"])


def test_largest_batch_runs_in_plain_onnxruntime(
    artifacts: Path, pixels: NDArray[np.uint8]
) -> None:
    session = onnxruntime.InferenceSession(
        artifacts / "fashion_mnist.onnx", providers=["CPUExecutionProvider"]
    )
    for size in (1, 5, MAX_BATCH, 100):
        logits, probabilities = session.run(None, {"pixels": pixels[:size]})
        assert logits.shape == probabilities.shape == (size, 10)
        np.testing.assert_allclose(probabilities.sum(1), 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "condition", "message"),
    [
        ("onnx", "x.sum().item() > 1e9", "lenet can't be exported to ONNX: Could not guard"),
        ("pt", "torch.jit.is_tracing()", "lenet can't be traced for TorchScript: "),
        (
            "pt",
            "(x := torch.from_numpy(x.numpy() * 1)) is None",
            "lenet can't be traced for TorchScript: Converting a tensor to a NumPy array might",
        ),
    ],
)
def test_a_network_that_can_not_be_exported_says_why(
    kind: str, condition: str, message: str, lenet_folder: Path, tmp_path: Path, script: Script
) -> None:
    folder = Path(shutil.copytree(lenet_folder, tmp_path / "model"))
    code = (folder / "net.py").read_text()
    signature = "    def forward(self, x):\n"
    branching = f"{signature}        if {condition}:\n            return x.numpy()\n"
    (folder / "net.py").write_text(code.replace(signature, branching))
    ended = script(SCRIPTS[kind], "--model", folder, "--output", tmp_path / "out")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert message in ended.err
    assert files(tmp_path / "out") == []
