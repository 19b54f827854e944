"""`.pt2` packages, exported, read back and run by Python; test_cpp_pt2.py runs them in C++."""

import io
import json
import pickletools
import re
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nin.artifact import instruction_sets
from nin.artifact.golden import Golden, replay
from nin.artifact.instruction_sets import best_instruction_set, check_instruction_set
from nin.artifact.metadata import Metadata
from nin.artifact.pt2_package import read_package, read_pt2_texts
from nin.errors import CheckError, InputError
from nin.export import pt2_file
from nin.export.pt2_file import Pt2Program, compile_pt2, unfused_pt2, write_pt2
from nin.network.build import TrainedModel
from nin.paths import ROOT
from nin.runtimes.pt2 import Pt2Runtime
from tests.packages import compile_graph, package, samples_of, with_text

KINDS = ("lenet.pt2", "small.int8.pt2")  # the network in float32, the classifier in int8


def golden_of(data: bytes) -> Golden:
    return Metadata.from_texts(read_pt2_texts(data)).golden


def twenty(batch: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([batch, batch[::-1]])[:20]


# What a package computes, and what it carries


@pytest.mark.parametrize("name", KINDS)
def test_any_number_of_images(name: str, lenet_model: TrainedModel, pt2_packages: Path) -> None:
    """Float32 within the budget of the float64 reference, int8 as its own unfused graph."""
    data = (pt2_packages / name).read_bytes()
    graph = lenet_model.contract.graphs[name.partition(".")[0]]
    golden = golden_of(data)
    batch = twenty(golden.batch(graph))
    right = {k: np.concatenate([v, v[::-1]])[:20] for k, v in golden.outputs.items()}
    runtime = Pt2Runtime(data, graph)
    whole = runtime(batch)
    for count in range(1, 21):
        for key, values in runtime(batch[:count]).items():
            assert values.dtype == np.float32
            assert np.abs(values - right[key][:count]).max() <= golden.budget[key]
            np.testing.assert_allclose(values, whole[key][:count], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_texts_are_carried(name: str, lenet_model: TrainedModel, pt2_packages: Path) -> None:
    data = (pt2_packages / name).read_bytes()
    graph = lenet_model.contract.graphs[name.partition(".")[0]]
    found = read_package(data)
    assert found.batch_sizes == (1, 4)  # its largest batch is 5
    assert found.instruction_set == best_instruction_set().name
    metadata = Metadata.from_texts(found.texts)
    assert metadata.contract == graph.describe()
    assert metadata.labels == lenet_model.contract.labels
    assert metadata.weights_sha256 == lenet_model.weights_sha256
    runtime = Pt2Runtime(data, graph)
    assert runtime.contract == metadata.contract
    assert runtime.labels == metadata.labels
    replay(runtime, graph, metadata.golden)


@pytest.mark.parametrize("name", KINDS)
def test_nothing_of_the_exporting_machine_is_inside(name: str, pt2_packages: Path) -> None:
    data = (pt2_packages / name).read_bytes()
    for trace in (str(ROOT), sys.prefix, str(Path.home()), "site-packages", "torchinductor_"):
        assert trace.encode() not in data


def test_nothing_needs_more_than_weights_only_to_load(pt2_packages: Path) -> None:
    reader = torch._C.PyTorchFileReader(str(pt2_packages / "small.int8.pt2"))
    pickles = []
    for name in reader.get_all_records():
        record = reader.get_record(name)
        if name.endswith(".json") and name.startswith("data/"):
            assert b'"use_pickle": true' not in record
        if record[:2] == b"PK":  # an archive of torch.save
            torch.load(io.BytesIO(record), weights_only=True)
            pickles.append(name)
        elif record[:1] == b"\x80" and not name.startswith("data/weights/"):
            pytest.fail(f"{name} is a pickle: {next(pickletools.genops(record))}")
    assert pickles == ["data/sample_inputs/model.pt"]


def test_the_same_program_gives_the_same_bytes(
    lenet_model: TrainedModel, pt2_packages: Path
) -> None:
    """But for the compiler's work, which takes too long to be done twice here."""
    data = (pt2_packages / "small.int8.pt2").read_bytes()
    program = read_program(data)
    texts = read_pt2_texts(data)
    assert write_pt2(program, texts) == write_pt2(program, texts)


def test_int8_is_smaller_and_not_float32(lenet_model: TrainedModel, pt2_packages: Path) -> None:
    data = (pt2_packages / "small.int8.pt2").read_bytes()
    graph = lenet_model.contract.classifier_graph
    pixels = samples_of(lenet_model)
    unfused = unfused_pt2(data, graph)[0](pixels)["logits"]
    with torch.inference_mode():
        exact = lenet_model.module(graph)(torch.tensor(pixels))[0].numpy()
    assert 1e-3 < np.abs(unfused - exact).max() < 0.2 * np.abs(exact).max()
    assert (unfused.argmax(1) == exact.argmax(1)).mean() > 0.8


def test_golden_vectors_close_on_a_batch_of_any_size(
    lenet_model: TrainedModel, pt2_packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault of torch 2.14: frozen, quantised, any batch, one channel in channels-last."""
    export = pt2_file._export

    def any_size(module: nn.Module, example: Tensor, graph: Any, **options: bool) -> Any:
        return export(module, example, graph, **{**options, "dynamic": True})

    monkeypatch.setattr(pt2_file, "_export", any_size)
    monkeypatch.setattr(pt2_file, "BATCH_SIZES", (4,))
    graph = lenet_model.contract.classifier_graph
    faulty = compile_graph(lenet_model, graph, int8=True)
    right = read_program((pt2_packages / "small.int8.pt2").read_bytes()).libraries[1]
    data = package(lenet_model, graph, replace(faulty, libraries={1: right, **faulty.libraries}))
    with pytest.raises(CheckError, match="golden vectors: logits is off by"):
        replay(Pt2Runtime(data, graph), graph, golden_of(data))


def read_program(data: bytes) -> Pt2Program:
    """What `write_pt2` was given."""
    reader = torch._C.PyTorchFileReader(io.BytesIO(data))
    libraries: dict[int, dict[str, bytes]] = {}
    for name in reader.get_all_records():
        if name.startswith("data/aotinductor/"):
            file = name.rpartition("/")[2]
            entry, _, end = file.partition(".")
            size = int(entry.removeprefix("batch_"))
            libraries.setdefault(size, {})[f".{end}"] = reader.get_record(name)
    quantised = None
    if any(name.startswith("models/") for name in reader.get_all_records()):
        pt2_file.import_quantizer()  # registers the operators
        quantised = torch.export.load(io.BytesIO(pt2_file._without_machine_code(data)))
    return Pt2Program(read_package(data).instruction_set, libraries, quantised)


def faults_of(data: bytes, model: TrainedModel) -> list[str]:
    graph = model.contract.classifier_graph
    example = torch.tensor(samples_of(model)[:2])
    return pt2_file.weight_faults(data, model.module(graph), example, graph)


def test_weights_are_those_of_the_network(lenet_model: TrainedModel, pt2_packages: Path) -> None:
    """With its batch norm folded; a package of another network, or of changed weights, isn't."""
    data = (pt2_packages / "small.int8.pt2").read_bytes()
    assert faults_of(data, lenet_model) == []
    network: Any = deepcopy(lenet_model.network)
    network.features[0].bias.data[0] += 0.1
    network.features[3].weight.data[2] *= 1.02
    [bias, weight] = faults_of(data, replace(lenet_model, network=network))
    assert bias == "weights: the bias of conv2d is another than the network's"
    assert re.match(r"weights: conv2d_1 is off by 1\.\d+ steps of its channel, .* a wrong", weight)


def test_small_weights_keep_their_steps(lenet_model: TrainedModel) -> None:
    """torchao's least step is 2**-12: below it, whole channels became zeros."""
    network: Any = deepcopy(lenet_model.network)
    network.features[0].weight.data *= 1e-3
    model = replace(lenet_model, network=network)
    graph = model.contract.classifier_graph
    pixels = torch.tensor(samples_of(model))
    quantised = pt2_file._quantise(model.module(graph), pixels[:2], graph, pixels)
    [first, *_] = pt2_file._layers(quantised.module())
    assert first.weight.codes is not None
    assert np.abs(first.weight.codes).max(axis=(1, 2, 3)).tolist() == [64] * 6


# Bad input


def test_a_foreign_instruction_set_is_refused_before_code_is_loaded(
    lenet_model: TrainedModel, pt2_packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (pt2_packages / "lenet.pt2").read_bytes()
    graph = lenet_model.contract.network_graph
    monkeypatch.delattr(torch._C._aoti, "AOTIModelPackageLoader")
    with pytest.raises(InputError, match="machine code for 'avx9000', known are avx512_vnni, "):
        Pt2Runtime(with_text(data, "instruction_set", "avx9000"), graph)


def test_an_older_cpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    best = best_instruction_set()
    check_instruction_set(best.name)
    have = dict.fromkeys(instruction_sets._AVX2, True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: have)
    assert best_instruction_set().name == "avx2"
    with pytest.raises(InputError, match="for avx512, but this CPU has no avx512_f, .*avx512_vl;"):
        check_instruction_set("avx512")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"sse2": True})
    with pytest.raises(InputError, match="CPU has no AVX2, .* export to ONNX or TorchScript"):
        best_instruction_set()


@pytest.mark.parametrize(
    ("key", "text"),
    [("batch_sizes", "[4, 16]"), ("batch_sizes", "{"), ("batch_sizes", "[1, -4]")],
)
def test_batch_sizes_that_can_not_be(key: str, text: str, pt2_packages: Path) -> None:
    data = with_text((pt2_packages / "lenet.pt2").read_bytes(), key, text)
    with pytest.raises(InputError, match="not a .pt2 package of this project"):
        read_package(data)


def test_bytes_that_are_no_package(pt2_packages: Path) -> None:
    data = (pt2_packages / "lenet.pt2").read_bytes()
    for part in (b"", b"x" * 1000, data[: len(data) // 2]):
        assert read_pt2_texts(part) == {}
        with pytest.raises(InputError, match="not a .pt2 package of this project"):
            read_package(part)


def test_no_compiler(lenet_model: TrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"no C\+\+ compiler .*apt-get install g\+\+"):
        compile_graph(lenet_model, lenet_model.contract.network_graph, int8=False)


def test_torchao_is_not_installed(
    lenet_model: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization.pt2e.quantizer", None)
    with pytest.raises(InputError, match=r"needs torchao .*pip install 'nin\[export\]'"):
        compile_graph(lenet_model, lenet_model.contract.classifier_graph, int8=True)


class Nothing(nn.Module):
    """No weights at all."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        logits = pixels.flatten(1).float()[:, :8]
        return logits, logits.softmax(1)


def test_a_network_that_torchao_can_not_quantise(
    lenet_model: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that uses a ReLU twice, exported so that torchao takes it for one use."""
    export = pt2_file._export

    def loosely(module: nn.Module, example: Tensor, graph: Any, **_: bool) -> Any:
        return export(module, example, graph, dynamic=True)

    monkeypatch.setattr(pt2_file, "_export", loosely)
    pixels = torch.rand(2, 3, 8, 8)
    with pytest.raises(InputError, match="lenet can't be quantised by torchao: .*; export int8"):
        compile_pt2(Residual().eval(), pixels, lenet_model.contract.network_graph, pixels)


class Residual(nn.Module):
    """A block of a ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.relu = nn.ReLU()

    def forward(self, image: Tensor) -> Tensor:
        block = self.second(self.relu(self.first(image)))
        return self.relu(block + image).flatten(1)


class Branching(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels * 2 if pixels.sum().item() > 0 else pixels


@pytest.mark.parametrize(
    ("module", "int8", "reason"),
    [
        (Nothing(), True, "small has no convolution and no linear layer .*export it in float32"),
        (Branching(), False, "small can't be exported by torch.export: .*; try TorchScript"),
        (Branching(), True, "small can't be exported by torch.export: .*; try TorchScript"),
    ],
)
def test_a_module_that_can_not_be_compiled(
    module: nn.Module, int8: bool, reason: str, lenet_model: TrainedModel
) -> None:
    graph = lenet_model.contract.classifier_graph
    pixels = torch.tensor(samples_of(lenet_model))
    with pytest.raises(InputError, match=reason) as caught:
        compile_pt2(module.eval(), pixels[:2], graph, pixels if int8 else None)
    assert "\n" not in str(caught.value)


def test_int8_that_was_compiled_to_float32_is_refused(
    lenet_model: TrainedModel, monkeypatch: pytest.MonkeyPatch, pt2_packages: Path
) -> None:
    """What AOTInductor does without a word where freezing is off."""
    compiled = read_program((pt2_packages / "lenet.pt2").read_bytes())  # float32
    monkeypatch.setattr(pt2_file, "_compile", lambda *_: compiled.libraries[1])
    with pytest.raises(CheckError, match="AOTInductor compiled the quantised graph to float32"):
        compile_graph(lenet_model, lenet_model.contract.classifier_graph, int8=True)


def test_budgets_and_sizes_are_json(pt2_packages: Path) -> None:
    reader = torch._C.PyTorchFileReader(str(pt2_packages / "small.int8.pt2"))
    assert json.loads(reader.get_record("extra/batch_sizes")) == [1, 4]
    assert json.loads(reader.get_record("extra/golden"))["budget"].keys() == {
        "logits",
        "probabilities",
    }
