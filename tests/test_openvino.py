"""OpenVINO: its runtime, and a model on Triton's openvino backend, which a stand-in runs here."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.json_format import MessageToDict

from nin.artifact.golden import replay
from nin.client import URLS, Client, Protocol
from nin.contract import Contract, openvino_model
from nin.errors import InputError, ServerError
from nin.gate.parity import check_concurrency, check_parity
from nin.gate.questions import Questions, make_questions, quick_plan
from nin.network.build import load_model
from nin.paths import ROOT
from nin.runtimes import openvino
from nin.runtimes.openvino import OpenVinoRuntime
from nin.runtimes.ort import OrtRuntime
from nin.runtimes.registry import available_runtimes
from nin.runtimes.triton import TritonRuntime
from nin.samples import open_samples
from nin.serve.backends.batching import BackendError, Instance
from nin.serve.backends.openvino_backend import OpenVinoModel
from nin.serve.configs import Layout, config_text, parse
from nin.serve.repository import publish
from nin.serve.server import PORTS, Server, serve
from tests.models import CONTRACT, NETWORK
from tests.variants import Change, added, parameter, refused, swapped, variant

LAYOUT = Layout(instances=2, threads=3)


SERVED = "small_openvino"


# The runtime; tests/test_parity.py holds it to the gate's rules on the built-in model


@pytest.fixture(scope="module")
def questions(lenet: Contract) -> Questions:
    return make_questions(load_model(lenet.folder), open_samples(lenet, None), count=8, seed=1)


def test_passes_the_gate_in_every_batch_size(
    lenet: Contract, lenet_artifacts: Path, questions: Questions
) -> None:
    for graph in lenet.graphs.values():
        runtime = OpenVinoRuntime((lenet_artifacts / f"{graph.name}.onnx").read_bytes(), graph)
        row = check_parity("openvino", runtime, graph, questions, quick_plan(graph.max_batch))
        assert row.failures == []


def test_answers_threads_at_the_same_time(
    lenet: Contract, lenet_artifacts: Path, questions: Questions
) -> None:
    graph = lenet.classifier_graph
    data = (lenet_artifacts / f"{graph.name}.onnx").read_bytes()
    runtime = OpenVinoRuntime(data, graph, streams=2, threads=2)
    assert list(check_concurrency(runtime, graph, questions)) == []
    pixels = questions.reference.pixels
    expected = [runtime(pixels[i : i + 1])["logits"] for i in range(len(pixels))]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            found = pool.map(lambda i: runtime(pixels[i : i + 1])["logits"], range(len(pixels)))
            np.testing.assert_array_equal(list(found), expected)


def test_computes_in_float32_on_every_cpu(lenet: Contract, lenet_artifacts: Path) -> None:
    graph = lenet.network_graph
    runtime = OpenVinoRuntime((lenet_artifacts / f"{graph.name}.onnx").read_bytes(), graph)
    precision = runtime._model.get_property("INFERENCE_PRECISION_HINT")
    assert precision.get_type_name() == "f32"


@pytest.mark.parametrize("data", [b"", b"garbage", b"PK\x03\x04"])
def test_refuses_what_is_no_export(data: bytes) -> None:
    with pytest.raises(InputError, match="not an export of this project"):
        OpenVinoRuntime(data, NETWORK)


def test_says_why_it_can_not_load_a_model(lenet: Contract, lenet_artifacts: Path) -> None:
    graph = lenet.network_graph
    model = onnx.load_from_string((lenet_artifacts / f"{graph.name}.onnx").read_bytes())
    model.graph.node[0].op_type = "Unheard"
    with pytest.raises(InputError, match="OpenVINO can't load the model: .*Unheard"):
        OpenVinoRuntime(model.SerializeToString(), graph)


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the extra isn't installed."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(openvino, "openvino_is_installed", lambda: False)
    monkeypatch.setattr("nin.runtimes.registry.openvino_is_installed", lambda: False)


def test_says_which_extra_is_missing(missing: None, lenet: Contract, lenet_artifacts: Path) -> None:
    graph = lenet.network_graph
    with pytest.raises(InputError, match=r"install it: `pip install 'nin\[openvino\]'`"):
        OpenVinoRuntime((lenet_artifacts / f"{graph.name}.onnx").read_bytes(), graph)
    assert "openvino" not in available_runtimes()


@pytest.mark.parametrize("first", ["openvino", "nin"])
def test_nothing_is_sent(first: str, tmp_path: Path) -> None:
    """A package of that name in the telemetry's place says whether openvino would have sent."""
    package = tmp_path / "openvino_telemetry"
    (package / "backend").mkdir(parents=True)
    (package / "backend" / "__init__.py").touch()
    (package / "backend" / "backend_ga4.py").touch()
    (package / "__init__.py").write_text(
        "class Telemetry:\n"
        "    def __init__(self, *args, **options): pass\n"
        "    def send_event(self, *event, **options): print(*event)\n"
    )
    path = f"{tmp_path}{os.pathsep}{ROOT / 'src'}"
    ended = subprocess.run(
        [sys.executable, "-c", f"import {first}, openvino"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ended.stdout == ("ov import general_import\n" if first == "openvino" else "")


# A model on the openvino backend


def with_openvino(contract: Contract) -> Contract:
    """The contract with its classifier's float32 file on the openvino backend too."""
    added = replace(contract)
    models = (*contract.models, openvino_model(contract.classifier_graph, ".onnx"))
    vars(added)["models"] = models  # in the place of the cached property
    return added


@pytest.mark.parametrize("gpu", [False, True])
def test_the_configuration_divides_the_machine(gpu: bool) -> None:
    model = openvino_model(CONTRACT.classifier_graph, ".int8.onnx")
    config = parse(config_text(CONTRACT, model, replace(LAYOUT, gpu=gpu)))
    assert (config.name, config.backend) == ("fashion_mnist_openvino", "openvino")
    assert config.default_model_filename == "model.onnx"
    values = {name: value.string_value for name, value in config.parameters.items()}
    assert values.pop("files")
    assert values.pop("decoder") == "decode_image"
    assert values == {"NUM_STREAMS": "2", "INFERENCE_NUM_THREADS": "6"}
    [group] = config.instance_group
    assert (group.count, group.kind) == (2, group.KIND_CPU)  # the backend knows no other
    assert config.max_batch_size == 1
    assert list(config.dynamic_batching.preferred_batch_size) == []
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 128
    assert [sample.batch_size for sample in config.model_warmup] == [1]


@pytest.fixture(scope="module")
def repository(
    embedded: None, lenet: Contract, lenet_artifacts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("openvino") / "model_repository"
    publish(with_openvino(lenet), lenet_artifacts, folder, layout=LAYOUT)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    with serve(repository, ports=dict.fromkeys(PORTS, 0)) as running:
        yield running


@pytest.mark.parametrize("protocol", list(URLS))
def test_the_served_model_passes_the_gate(
    protocol: Protocol, server: Server, lenet: Contract, questions: Questions
) -> None:
    model = with_openvino(lenet).models[-1]
    runtime = TritonRuntime(getattr(server, protocol), model, None, protocol=protocol)
    row = check_parity("served", runtime, model.graph, questions, quick_plan(1))
    assert row.failures == []


def test_the_served_model_answers_as_onnxruntime(
    server: Server, lenet: Contract, lenet_artifacts: Path, questions: Questions
) -> None:
    graph = lenet.classifier_graph
    reference = OrtRuntime((lenet_artifacts / f"{graph.name}.onnx").read_bytes(), graph)
    pixels = questions.reference.pixels
    expected = reference(pixels)
    with Client(server.http) as client:
        for i in range(len(pixels)):
            found = client.infer("small_openvino", {"pixels": pixels[i : i + 1]})
            for name, values in found.items():
                error = np.abs(values - expected[name][i : i + 1]).max()
                assert error <= questions.reference.budget[name]
        classes = client.classify(pixels, model="small_openvino")  # one request for each image
    assert [c[0].index for c in classes] == expected["logits"].argmax(1).tolist()


def test_a_published_version_holds_its_golden_vectors(repository: Path, lenet: Contract) -> None:
    graph = lenet.classifier_graph
    runtime = OpenVinoRuntime((repository / "small_openvino/1/model.onnx").read_bytes(), graph)
    replay(runtime, graph, runtime.golden)


# What the backend refuses


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swapped('name: "pixels"', 'name: "image"'),
         "unexpected inference input 'image', allowed inputs are: pixels"),
        (swapped('name: "logits"', 'name: "scores"'),
         "unexpected inference output 'scores', allowed outputs are: logits, probabilities"),
        (swapped("TYPE_UINT8", "TYPE_FP64"), "unsupported datatype TYPE_FP64 for input 'pixels'"),
        (swapped("TYPE_FP32", "TYPE_FP64"), "unsupported datatype TYPE_FP64 for output 'logits'"),
        (swapped("dims: [16, 20]", "dims: [16, 21]"),
         "tensor 'pixels': the model expects 3 dimensions (shape [-1, 16, 20]) but the model "
         "configuration specifies 3 dimensions"),
        (swapped("dims: [16, 20]", "dims: [320]"), "specifies 2 dimensions"),
        (swapped("dims: [8]", "dims: [-1]"), "'logits': the model expects 2 dimensions"),
        (added('input [ { name: "mask" data_type: TYPE_UINT8 dims: [16, 20] } ]'),
         "configuration expects 2 inputs, model provides 1"),
        (swapped('default_model_filename: "model.onnx"', ""), "model.xml"),
        (parameter("INFERENCE_NUM_THREADS", "all"),
         "'INFERENCE_NUM_THREADS' to be a non-negative number, got all"),
        (parameter("INFERENCE_NUM_THREADS", "99999999999"), "openvino error in"),
        (parameter("COMPILATION_NUM_THREADS", "-1"), "to be a non-negative number, got -1"),
        (parameter("NUM_STREAMS", "many"), "to be either AUTO/NUMA/<int_value>, got many"),
        (parameter("PERFORMANCE_HINT", "FAST"), "to be LATENCY/THROUGHPUT/CUMULATIVE_THROUGHPUT"),
        (parameter("HINT_BF16", "no"), "'HINT_BF16' to be YES, got no"),
        (parameter("TARGET_DEVICE", "abacus"), 'Device with "ABACUS" name is not registered'),
        (parameter("CPU_EXTENSION_PATH", "/nowhere.so"), "loading custom CPU extensions"),
    ],
    ids=["input name", "output name", "input dtype", "output dtype", "dims", "rank", "wildcard",
         "inputs", "file", "threads", "range", "compilation", "streams", "hint", "bf16",
         "device", "extension"],
)  # fmt: skip
def test_refuses_at_load(repository: Path, server: Server, change: Change, message: str) -> None:
    refused(server, variant(repository, SERVED, change), message)


@pytest.mark.parametrize(
    "change",
    [
        parameter("NUM_STREAMS", "auto"),
        parameter("PERFORMANCE_HINT", "throughput"),
        parameter("ENABLE_BATCH_PADDING", "maybe"),  # everything but yes is no
        parameter("UNHEARD", "of"),
        parameter("HINT_BF16", "yes"),
        parameter("RESHAPE_IO_LAYERS", "YES"),
    ],
    ids=["streams", "hint", "boolean", "unknown", "bf16", "reshape"],
)
def test_reads_values_as_generously_as_officially(
    repository: Path, server: Server, change: Change
) -> None:
    name = variant(repository, SERVED, change)
    with Client(server.http) as client:
        client.load(name)
        client.infer(name, {"pixels": np.zeros((1, 16, 20), np.uint8)})


def test_converts_datatypes(repository: Path, server: Server) -> None:
    """Another one in the configuration is no error there."""
    name = variant(
        repository, SERVED, swapped("TYPE_FP32", "TYPE_FP16"), swapped("TYPE_UINT8", "TYPE_FP32")
    )
    pixels = np.full((1, 16, 20), 200, np.uint8)
    with Client(server.http) as client:
        client.load(name)
        found = client.infer(name, {"pixels": pixels.astype(np.float32)})["logits"]
        expected = client.infer("small_openvino", {"pixels": pixels})["logits"]
    assert (found.dtype, expected.dtype) == (np.float16, np.float32)
    np.testing.assert_array_equal(found, expected.astype(np.float16))


def instance_of(repository: Path, name: str, device: int | None = None) -> Instance:
    """What the server says of an instance, as far as a load needs it."""
    config = MessageToDict(
        parse((repository / name / "config.pbtxt").read_text()), preserving_proto_field_name=True
    )
    return Instance(config, repository / name / "1", f"{name}_0", device)


def test_the_instances_of_a_model_share_it_until_its_file_changes(repository: Path) -> None:
    name = variant(repository, SERVED)
    first, second = (OpenVinoModel(instance_of(repository, name)) for _ in range(2))
    assert first._model is second._model
    os.utime(repository / name / "1" / "model.onnx", (0, 0))
    third = OpenVinoModel(instance_of(repository, name))
    assert third._model is not first._model


def test_refuses_a_gpu(repository: Path) -> None:
    with pytest.raises(BackendError, match="OpenVINO backend supports only Kind CPU and AUTO"):
        OpenVinoModel(instance_of(repository, "small_openvino", device=0))


# Batches are of max_batch_size, or an error, or padded.

FOUR = swapped("max_batch_size: 1", "max_batch_size: 4")


def test_a_batch_must_be_whole(repository: Path, server: Server) -> None:
    name = variant(repository, SERVED, FOUR)
    pixels = np.zeros((4, 16, 20), np.uint8)
    with Client(server.http) as client:
        client.load(name)
        assert client.infer(name, {"pixels": pixels})["logits"].shape == (4, 8)
        message = "expected requests with batch size '4', got '3'... this error can be avoided"
        with pytest.raises(ServerError, match=re.escape(message)):
            client.infer(name, {"pixels": pixels[:3]})


def test_a_padded_batch_is_cut_and_a_whole_one_after_it_fails(
    repository: Path, server: Server, questions: Questions
) -> None:
    """The official backend forgets there that nothing is padded any more."""
    name = variant(
        repository, SERVED, FOUR, parameter("ENABLE_BATCH_PADDING", "Yes"),
        swapped("count: 2", "count: 1"),
    )  # fmt: skip
    pixels = questions.reference.pixels[:4]
    with Client(server.http) as client:
        client.load(name)
        whole = client.infer(name, {"pixels": pixels})["logits"]
        three = client.infer(name, {"pixels": pixels[:3]})["logits"]
        np.testing.assert_array_equal(three, whole[:3])
        with pytest.raises(ServerError, match="expected batch size of at least 4 in model output"):
            client.infer(name, {"pixels": pixels})


def test_without_batching_a_request_is_of_any_size(
    repository: Path, server: Server, questions: Questions
) -> None:
    def change(text: str) -> str:
        text = text.replace("max_batch_size: 1", "max_batch_size: 0")
        text = text.replace("dims: [16, 20]", "dims: [-1, 16, 20]")
        return text.replace("dims: [8]", "dims: [-1, 8]")

    name = variant(repository, SERVED, change)
    pixels = questions.reference.pixels[:7]
    with Client(server.http) as client:
        client.load(name)
        found = client.infer(name, {"pixels": pixels})["logits"]
    error = np.abs(found - questions.reference.outputs["logits"][:7]).max()
    assert error <= questions.reference.budget["logits"]


def test_reshapes_where_that_is_asked_for(repository: Path, server: Server) -> None:
    """The pixels' size is part of this network, so that OpenVINO refuses another one itself."""
    name = variant(
        repository, SERVED, parameter("RESHAPE_IO_LAYERS", "yes"),
        swapped("dims: [16, 20]", "dims: [16, 21]"),
    )  # fmt: skip
    refused = "openvino error in applying the model configuration"
    with Client(server.http) as client, pytest.raises(ServerError, match=refused):
        client.load(name)


def test_says_at_load_which_extra_is_missing(repository: Path, tmp_path: Path) -> None:
    """A module of that name that can't be imported takes the place of openvino."""
    (tmp_path / "openvino.py").write_text("raise ImportError('not here')\n")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        with (
            pytest.raises(Exception, match=r"install it: `pip install 'nin\[openvino\]'`"),
            serve(repository, ports=dict.fromkeys(PORTS, 0)),
        ):
            pass
