"""int8: what is exported, and that the gate closes on quantising that went wrong."""

import gzip
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions, quantization
from safetensors.torch import save_file

from nin.artifact.manifest import read_manifest
from nin.contract import Contract, Graph, Int8, Outputs, Tensor, load_contract
from nin.errors import InputError
from nin.export import int8_onnx
from nin.export.formats import INT8_ONNX
from nin.export.onnx_file import compile_onnx
from nin.gate.parity import Row, check_parity
from nin.gate.questions import Plan, Questions, make_questions
from nin.gate.reduced import Losses, quantised_questions
from nin.images import encode_idx, parse_idx
from nin.network.build import TrainedModel
from nin.runtimes.ort import OrtRuntime, unfused
from nin.samples import LEAST_CALIBRATION, open_calibration, open_samples
from nin.training.data import load
from tests.conftest import Script, export_all, run_script
from tests.models import CLASSIFIER, CONTRACT, draw_samples, make_lenet, settled

PLAN = Plan((1, 16), turns=1)

Faults = Callable[[bytes], list[str]]


@pytest.fixture(scope="module")
def questions(model: TrainedModel) -> Questions:
    return make_questions(model, open_samples(CONTRACT), count=50, seed=1)


@pytest.fixture(scope="module")
def int8(artifacts: Path) -> bytes:
    return (artifacts / "fashion_mnist.int8.onnx").read_bytes()


@pytest.fixture(scope="module")
def faults_of(model: TrainedModel, pixels: NDArray[np.uint8]) -> Faults:
    """What the gate has against a file's weights; the network is exported once, not every time."""
    module, example = model.module(CLASSIFIER), torch.tensor(pixels[:2])
    exact = compile_onnx(module, example, CLASSIFIER)

    def faults(data: bytes) -> list[str]:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(int8_onnx, "compile_onnx", lambda *_: exact)
            return int8_onnx.weight_faults(data, module, example, CLASSIFIER)

    return faults


@pytest.fixture(scope="module")
def asked(int8: bytes, questions: Questions) -> Questions:
    return quantised_questions(unfused(int8, CLASSIFIER), CLASSIFIER, questions, [])


def check(runtime: Any, questions: Questions, plan: Plan = PLAN) -> Row:
    return check_parity("x", runtime, CLASSIFIER, questions, plan, ".int8.onnx")


def edited(data: bytes, edit: Callable[[onnx.ModelProto], None]) -> bytes:
    model = onnx.load_from_string(data)
    edit(model)
    return model.SerializeToString()


def multiply(model: onnx.ModelProto, name: str, factor: float) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def weight_scale(model: onnx.ModelProto, layer: int = 4) -> str:
    """The name of the scale of a convolution's weights."""
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    makers = {name: node for node in model.graph.node for name in node.output}
    return str(makers[convolutions[layer].input[1]].input[1])


# What is exported


def test_the_file_is_a_quarter_and_passes_the_gate(
    int8: bytes, faults_of: Faults, asked: Questions, artifacts: Path
) -> None:
    assert len(int8) < (artifacts / "fashion_mnist.onnx").stat().st_size / 3
    assert faults_of(int8) == []
    row = check(OrtRuntime(int8, CLASSIFIER), asked)
    assert row.failures == []
    assert row.agreement is not None
    assert row.agreement >= 0.97
    assert len(row.changed) == round((1 - row.agreement) * 50)
    assert row.max_error["logits"] <= row.budget["logits"] < 1


def test_it_needs_no_more_than_old_servers_have(int8: bytes, artifacts: Path) -> None:
    model = onnx.load_from_string(int8)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert model.ir_version <= 10
    entry = read_manifest(artifacts)["fashion_mnist.int8.onnx"]
    assert (entry.precision, entry.format) == ("int8", "onnx")
    assert "onnxruntime" in entry.versions


def test_the_calibration_images_are_balanced_and_no_test_images() -> None:
    pixels = open_calibration(CONTRACT, open_samples(CONTRACT))
    assert pixels.shape == (256, 28, 28)
    assert CONTRACT.calibration is not None
    labels = (CONTRACT.calibration.path / "train-labels-idx1-ubyte.gz").read_bytes()
    counts = np.bincount(parse_idx(labels, "labels", ()), minlength=10)
    assert set(counts.tolist()) == {25, 26}


def test_the_calibration_images_are_those_that_the_script_chooses(
    script: Script, tmp_path: Path
) -> None:
    try:
        load("train")
    except InputError as error:
        pytest.skip(f"the training images aren't there: {error}")
    assert script("scripts/make_calibration.py", "--output", tmp_path).code == 0
    assert CONTRACT.calibration is not None
    for path in CONTRACT.calibration.path.iterdir():
        found, committed = (gzip.decompress(p.read_bytes()) for p in (tmp_path / path.name, path))
        assert found == committed


# The gate closes


def saturated(images: NDArray[np.uint8], model: onnx.ModelProto) -> NDArray[Any]:
    """The logits where the first convolution adds pairs of products in 16 bits, as AVX2 does."""
    convolution = next(node for node in model.graph.node if node.op_type == "Conv")
    makers = {name: node for node in model.graph.node for name in node.output}
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    of_input, of_weight, of_bias = (makers[name] for name in convolution.input)
    step, zero = (values[name] for name in of_input.input[1:])
    codes, scale, _ = (values[name] for name in of_weight.input)
    bias = values[of_bias.input[0]] * values[of_bias.input[1]]
    assert int(zero) == 0  # pixels

    extractor = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(model))
    x = torch.tensor(run(extractor.extract_model(["pixels"], [of_input.input[0]]), images)).float()
    outputs, _, height, width = codes.shape
    taps = torch.nn.functional.unfold(x, (height, width))  # (N, 16, positions)
    pairs = taps.unflatten(1, (-1, 2))
    weight = torch.tensor(codes, dtype=torch.float32).reshape(outputs, -1, 2)
    products = torch.einsum("npil,opi->nopl", pairs, weight)
    sums = products.clamp(-32768, 32767).sum(dim=2).numpy()
    scaled = sums * (step * scale).reshape(-1, 1) + bias.reshape(-1, 1)
    side = x.shape[2] - height + 1
    after = extractor.extract_model([convolution.output[0]], ["logits"])
    return run(after, scaled.reshape(len(x), outputs, side, -1).astype(np.float32))


def run(model: onnx.ModelProto, batch: NDArray[Any]) -> NDArray[Any]:
    options = SessionOptions()
    options.graph_optimization_level = GraphOptimizationLevel.ORT_DISABLE_ALL
    session = InferenceSession(model.SerializeToString(), options)
    result: NDArray[Any] = session.run(None, {session.get_inputs()[0].name: batch})[0]
    return result


@pytest.fixture(scope="module")
def compiled(model: TrainedModel) -> Callable[..., bytes]:
    """The classifier, quantised otherwise than the exporter does."""
    pixels = torch.tensor(open_calibration(CONTRACT, open_samples(CONTRACT))[:64])
    right = quantization.quantize_static

    def compile_int8(calibration: torch.Tensor = pixels, **changed: Any) -> bytes:
        with pytest.MonkeyPatch.context() as patch:

            def quantize(source: Path, target: Path, reader: Any, **options: Any) -> None:
                right(source, target, reader, **(options | changed))

            patch.setattr(quantization, "quantize_static", quantize)
            module = model.module(CLASSIFIER)
            program = INT8_ONNX.compile(module, pixels[:2], CLASSIFIER, calibration)
        return INT8_ONNX.write(program, {})

    return compile_int8


def test_closes_on_a_kernel_that_saturates(
    compiled: Callable[..., bytes], faults_of: Faults, questions: Questions
) -> None:
    """With 8-bit weights; those of 7 bits can't."""
    eight_bits = compiled(reduce_range=False)
    assert any("beyond 7 bits" in fault for fault in faults_of(eight_bits))
    images = questions.reference.pixels[:16]
    wide, narrow = (onnx.load_from_string(data) for data in (eight_bits, compiled()))
    for file, is_off in ((wide, True), (narrow, False)):
        plain, *_ = unfused(file.SerializeToString(), CLASSIFIER)
        right = plain(images)["logits"]
        budget = 8 / 127 * np.abs(right).max()
        assert (np.abs(saturated(images, file) - right).max() > budget) == is_off


def test_closes_on_a_calibration_on_black_images(
    compiled: Callable[..., bytes], questions: Questions
) -> None:
    black = compiled(torch.zeros(64, 28, 28, dtype=torch.uint8))
    failures = losses(black, questions)
    assert [failure.partition(":")[0] for failure in failures] == [
        "accuracy",
        "agreement",
        "margin",
    ]


def losses(data: bytes, questions: Questions) -> list[str]:
    plain, *_ = unfused(data, CLASSIFIER)
    count = questions.samples
    logits = plain(questions.reference.pixels[:count])["logits"]
    exact = questions.reference.outputs["logits"][:count]
    return list(Losses(logits, exact, questions.classes, questions.int8).check(questions.names))


def test_closes_on_one_scale_for_all_channels(
    compiled: Callable[..., bytes], faults_of: Faults
) -> None:
    faults = faults_of(compiled(per_channel=False))
    assert any("a wrong scale, or one for all channels" in fault for fault in faults)


@pytest.mark.parametrize(("layer", "factor"), [(n, (1.02, 0.98)[n % 2]) for n in range(12)])
def test_closes_on_a_scale_that_is_off_by_2_percent(
    factor: float, layer: int, int8: bytes, faults_of: Faults, asked: Questions
) -> None:
    """In the file, and in a runtime that scales one layer otherwise than the file says."""

    def edit(model: onnx.ModelProto) -> None:
        multiply(model, weight_scale(model, layer), factor)

    wrong = edited(int8, edit)
    assert any("a wrong scale" in fault for fault in faults_of(wrong))
    failures = check(OrtRuntime(wrong, CLASSIFIER), asked).failures
    assert any(failure.startswith("mean: the logits are off") for failure in failures)


def test_closes_on_a_scale_that_differs_between_writing_and_reading(
    int8: bytes, faults_of: Faults
) -> None:
    def edit(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.op_type == "DequantizeLinear" and
                    n.input[0].endswith("QuantizeLinear_Output"))  # fmt: skip
        tensor = next(t for t in model.graph.initializer if t.name == node.input[1])
        values = numpy_helper.to_array(tensor) * np.float32(1.02)
        model.graph.initializer.append(numpy_helper.from_array(values, "other"))
        node.input[1] = "other"

    faults = faults_of(edited(int8, edit))
    assert [fault.endswith("is written by one scale and read by another") for fault in faults] == [
        True
    ]


def test_closes_on_a_bias_that_changed(int8: bytes, faults_of: Faults) -> None:
    def edit(model: onnx.ModelProto) -> None:
        bias = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT32
                    and len(t.dims) == 1 and t.dims[0] > 1)  # fmt: skip
        values = numpy_helper.to_array(bias).copy()
        values[np.abs(values).argmax()] *= -1
        bias.CopyFrom(numpy_helper.from_array(values, bias.name))

    [fault] = faults_of(edited(int8, edit))
    assert "the bias of" in fault


def test_layers_may_be_in_another_order() -> None:
    """As of a residual network, whose shortcuts the quantizer sorts behind what they shorten."""
    network = settled(torchvision.models.resnet18(), (4, 3, 32, 32))
    outputs = (Tensor("logits", "float32", (1000,)),)
    graph = Graph("resnet18", Tensor("image", "float32", (3, 32, 32)), outputs, max_batch=4)
    images = torch.rand(4, 3, 32, 32)
    model = int8_onnx.compile_int8_onnx(network, images[:2], graph, images)
    assert int8_onnx.weight_faults(model.SerializeToString(), network, images[:2], graph) == []
    shortcut: Any = network.get_submodule("layer2.0.downsample.0")
    shortcut.weight.data[3] *= -1
    [fault] = int8_onnx.weight_faults(model.SerializeToString(), network, images[:2], graph)
    assert "steps of its channel, allowed is 0.51" in fault


class Spoilt:
    """The right runtime but for what `change` does to the outputs of each batch."""

    def __init__(self, data: bytes, change: Callable[[NDArray[Any], Outputs], None]) -> None:
        self._runtime = OrtRuntime(data, CLASSIFIER)
        self._change = change
        self.contract, self.labels = self._runtime.contract, self._runtime.labels
        self.golden, self.weights_sha256 = self._runtime.golden, self._runtime.weights_sha256

    def __call__(self, batch: NDArray[Any]) -> Outputs:
        outputs = self._runtime(batch)
        self._change(batch, outputs)
        return outputs


def test_closes_on_one_image_in_many_that_swaps_its_class(int8: bytes, asked: Questions) -> None:
    victim = asked.reference.pixels[7]

    def swap(batch: NDArray[Any], outputs: Outputs) -> None:
        for index in np.flatnonzero((batch == victim).all(axis=(1, 2))):
            for values in outputs.values():
                first, second = values[index].argsort()[-2:]
                values[index, [first, second]] = values[index, [second, first]]

    failures = check(Spoilt(int8, swap), asked).failures
    assert any(failure.startswith("classes: 1 images changed class") for failure in failures)


def test_closes_on_an_answer_that_depends_on_its_batch(int8: bytes, asked: Questions) -> None:
    """By less than a quantised graph may be off in any batch."""

    def drift(batch: NDArray[Any], outputs: Outputs) -> None:
        outputs["logits"] += 1e-3 * len(batch)

    twice = Plan((1, 2, 16), turns=2)
    failures = check(Spoilt(int8, drift), asked, twice).failures
    assert any(failure.startswith("batches: sample") for failure in failures)


def test_losses_are_bounded_by_what_the_samples_can_tell() -> None:
    exact = np.zeros((10_000, 4))
    exact[:, 1], exact[:, 2] = 5.0, 4.9
    names = tuple(map(str, range(len(exact))))

    def of(count: int, changed: int, allowed: Int8 = CONTRACT.int8) -> list[str]:
        logits = exact[:count].copy()
        logits[:changed, 2] = 6
        classes = np.ones(count, np.int64)
        failures = Losses(logits, exact[:count], classes, allowed).check(names)
        return [failure.partition(":")[0] for failure in failures]

    assert of(10_000, 10) == []  # a thousandth of the accuracy
    assert of(10_000, 11) == ["accuracy"]
    assert of(10_000, 51) == ["accuracy", "agreement"]
    assert of(1_000, 5) == []  # 0.5 %: so few may do that by chance
    assert of(1_000, 40) == ["accuracy", "agreement"]
    # and by what the model's folder allows
    assert of(10_000, 51, Int8(0.01, 0.99, 0.5)) == []
    assert of(10_000, 51, Int8(0.01, 0.99, 0)) == ["margin"]


def test_a_sure_image_may_not_change_however_few_do() -> None:
    exact = np.zeros((10_000, 4))
    exact[:, 1] = 5.0
    logits = exact.copy()
    logits[7, 2] = 6
    [failure] = Losses(logits, exact, None, CONTRACT.int8).check(tuple(map(str, range(len(exact)))))
    assert failure == (
        "margin: 7 changes its class, though the reference is 5.00 ahead; allowed is "
        f"{0.5 * exact.std():.2f}"
    )


# Other models


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LeNet with images to calibrate on."""
    folder = tmp_path_factory.mktemp("int8") / "small"
    make_lenet(folder)
    for seed in range(2, 7):
        draw_samples(folder / f"more{seed}", ((40, 30), (20, 16)), mode="L", seed=seed)
    calibration = folder / "calibration"
    calibration.mkdir()
    for path in folder.glob("more*/*"):
        path.rename(calibration / f"{path.parent.name} {path.name}")
    with (folder / "model.toml").open("a") as file:
        file.write('[calibration]\npath = "calibration"\n')
    return folder


@pytest.fixture
def own(small: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small, tmp_path / "own")


@pytest.fixture(scope="module")
def small_artifacts(small: Path) -> Path:
    """All exports, and both graphs in int8."""
    folder = small / "artifacts"
    export_all(small, folder)
    int8 = ("--precision", "int8", "--graph", "lenet", "--model", small, "--output", folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run_script(monkeypatch, "export/to_onnx.py", *int8) == 0
    return folder


def test_another_model_goes_through_the_gate(
    small: Path, small_artifacts: Path, nin: Script
) -> None:
    """Both graphs, in a network with linear layers, GELU and batch norm."""
    options = ("--model", small, "--artifacts", small_artifacts)
    ended = nin("verify", *options, "--runtimes", "onnxruntime")
    assert ended.code == 0, ended.err
    assert ended.out.count("| .int8.onnx |") == 2


def test_openvino_is_served_once_it_was_asked_for(
    small: Path, small_artifacts: Path, nin: Script, tmp_path: Path
) -> None:
    """Both backends get the same file."""
    repository = tmp_path / "model_repository"
    options = ("--model", small, "--artifacts", small_artifacts, "--repository", repository)
    assert nin("publish", *options, "--unproven").code == 0
    assert not (repository / "small_openvino").exists()
    assert nin("publish", *options, "--unproven", "--openvino").code == 0
    assert nin("publish", *options, "--unproven").code == 0
    files = [
        (repository / name / "3" / "model.onnx").read_bytes()
        for name in ("small_int8", "small_openvino")
    ]
    assert files[0] == files[1] == (small_artifacts / "small.int8.onnx").read_bytes()


@pytest.mark.parametrize(
    ("break_folder", "reason"),
    [
        (lambda f: shutil.rmtree(f / "calibration"), "no folder of samples at .*nothing is there"),
        (
            lambda f: [p.unlink() for p in sorted((f / "calibration").iterdir())[31:]],
            f"holds 31 images, expected {LEAST_CALIBRATION} or more training images",
        ),
        (
            lambda f: shutil.copy(
                f / "samples" / "0" / "sample 0.png", f / "calibration" / "a.png"
            ),
            r"a.png is the sample 0/sample 0.png; calibrate on training images",
        ),
        (
            lambda f: (f / "model.toml").write_text(
                (f / "model.toml").read_text().partition("[calibration]")[0]
            ),
            r"has no \[calibration\], which int8 needs",
        ),
    ],
    ids=["missing", "few", "a sample", "not given"],
)
def test_refuses_unfit_calibration_images(
    break_folder: Callable[[Path], object], reason: str, own: Path, nin: Script, tmp_path: Path
) -> None:
    break_folder(own)
    output = tmp_path / "output"
    ended = nin("export", "onnx", "--precision", "int8", "--model", own, "--output", output)
    assert ended.code == 2
    assert len(ended.err.strip().splitlines()) == 1
    assert re.search(reason, ended.err)
    assert not output.exists()


def test_refuses_calibration_images_of_another_shape(tmp_path: Path) -> None:
    folder = tmp_path / "calibration"
    folder.mkdir()
    images = np.zeros((40, 20, 20), np.uint8)
    (folder / "train-images-idx3-ubyte").write_bytes(encode_idx(images))
    assert CONTRACT.calibration is not None
    contract = replace(CONTRACT, calibration=replace(CONTRACT.calibration, path=folder))
    with pytest.raises(InputError, match=r"20.*20"):
        open_calibration(contract, open_samples(contract))


def test_a_network_without_weights_has_nothing_to_quantise(own: Path, nin: Script) -> None:
    (own / "net.py").write_text(
        "import torch\n"
        "def make(classes):\n"
        "    class Means(torch.nn.Module):\n"
        "        def __init__(self):\n"
        "            super().__init__()\n"
        "            self.offset = torch.nn.Parameter(torch.zeros(classes))\n"
        "        def forward(self, x):\n"
        "            return x.flatten(1)[:, :classes] + self.offset\n"
        "    return Means()\n"
    )
    classes = len(load_contract(own).labels)
    save_file({"offset": torch.zeros(classes)}, own / "weights.safetensors")
    ended = nin("export", "onnx", "--precision", "int8", "--model", own, "--output", own / "out")
    assert ended.code == 2
    assert "small has nothing to quantise: no convolution or linear layer" in ended.err
    assert not list((own / "out").glob("*.onnx"))


def test_torchscript_has_no_int8(nin: Script, tmp_path: Path) -> None:
    ended = nin("export", "torchscript", "--precision", "int8", "--output", tmp_path / "out")
    assert ended.code == 2
    assert "torchscript has no int8; use onnx" in ended.err


def test_only_a_model_that_is_calibrated_is_served_in_int8(lenet: Contract, small: Path) -> None:
    assert "small_int8" not in [model.name for model in lenet.models]
    [served] = [m for m in load_contract(small).models if m.name == "small_int8"]
    assert (served.backend, served.format, served.filename) == (
        "onnxruntime",
        ".int8.onnx",
        "model.onnx",
    )
