"""The generated configurations, parsed by Triton's own protobuf, against contract and artifacts."""

import io
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from nin.client import TIMEOUT_S
from nin.contract import Contract, Model, Tensor, load_contract
from nin.network.torch_settings import ignore_deprecations
from nin.paths import MODEL_REPOSITORY, NIN
from nin.serve.configs import Layout, config_text, layout_for, model_files, parse
from tests.models import ODD_LABELS

TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8", "object": "TYPE_STRING"}

BUILT_IN = load_contract(NIN)

# The repository in git is `nin publish --cores 2`: the containers of deploy/ have two.
COMMITTED = layout_for(cores=2)

published = pytest.mark.parametrize("served", BUILT_IN.published, ids=lambda m: m.name)


@pytest.fixture(params=["built-in", "resnet18", "lenet"])
def any_contract(request: pytest.FixtureRequest) -> Contract:
    if request.param == "resnet18":
        return load_contract(request.getfixturevalue("resnet18"))
    if request.param == "lenet":
        found: Contract = request.getfixturevalue("lenet")
        return found
    return BUILT_IN


def config_of(contract: Contract, model: Model, layout: Layout = COMMITTED) -> ModelConfig:
    return parse(config_text(contract, model, layout))


def committed(model: Model) -> ModelConfig:
    return parse((MODEL_REPOSITORY / model.name / "config.pbtxt").read_text())


def described(tensor: Tensor) -> tuple[str, str, tuple[int, ...]]:
    return tensor.name, TYPES[tensor.dtype], tensor.shape


def configured(tensor: model_config_pb2.ModelInput) -> tuple[str, str, tuple[int, ...]]:
    return tensor.name, model_config_pb2.DataType.Name(tensor.data_type), tuple(tensor.dims)


# The repository in git


def test_the_committed_repository_is_what_the_generator_writes() -> None:
    """With what is published, and one file of a golden image, left out."""
    generated = {
        f"{model.name}/{name}": data
        for model in BUILT_IN.models
        for name, data in model_files(BUILT_IN, model, COMMITTED).items()
    }
    for name, data in generated.items():
        found = (MODEL_REPOSITORY / name).read_bytes()
        assert found.decode() == data.decode(), name
    assert {path.name for path in MODEL_REPOSITORY.iterdir()} == {m.name for m in BUILT_IN.models}


def test_the_decoders_warm_up_is_the_first_golden_image(pixels: NDArray[np.uint8]) -> None:
    [warmup] = committed(BUILT_IN.decoder).model_warmup
    file = warmup.inputs["encoded_image"].input_data_file
    data = (MODEL_REPOSITORY / BUILT_IN.decoder.name / "warmup" / file).read_bytes()
    (length,) = struct.unpack("<I", data[:4])
    assert length == len(data) - 4
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data[4:]))), pixels[0])


@published
def test_onnx_and_torchscript_files_are_what_the_config_says(
    served: Model, repository: Path
) -> None:
    config = committed(served)
    path = repository / served.name / "1" / served.filename
    inputs, outputs = [i.name for i in config.input], [o.name for o in config.output]
    if served.filename == "model.onnx":
        graph = onnx.load(path).graph
        assert [i.name for i in graph.input] == inputs
        assert [o.name for o in graph.output] == outputs
        values = (*graph.input, *graph.output)
        for tensor, value in zip((*config.input, *config.output), values, strict=True):
            shape = value.type.tensor_type.shape
            assert tuple(d.dim_value for d in shape.dim)[1:] == tuple(tensor.dims)
            dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            assert TYPES[dtype.name] == configured(tensor)[1]
        return
    with ignore_deprecations():
        module = torch.jit.load(path)
    arguments = [a.name for a in module.forward.schema.arguments if a.name != "self"]
    assert arguments == inputs  # then the backend maps by name, else by order
    results = module(
        torch.zeros(2, *config.input[0].dims, dtype=getattr(torch, served.graph.input.dtype))
    )
    results = (results,) if isinstance(results, torch.Tensor) else results
    assert [(tuple(r.shape[1:]), r.dtype) for r in results] == [
        (tuple(o.dims), torch.float32) for o in config.output
    ]


@published
def test_warm_up_runs_a_golden_image(
    served: Model, repository: Path, pixels: NDArray[np.uint8]
) -> None:
    """Alone and as a preferred batch; the file is what a request's body would be."""
    config = committed(served)
    sizes = [warmup.batch_size for warmup in config.model_warmup]
    assert sizes == [1, *config.dynamic_batching.preferred_batch_size]
    for warmup in config.model_warmup:
        (name, tensor), *rest = warmup.inputs.items()
        assert not rest
        assert (name, tuple(tensor.dims)) == (served.graph.input.name, served.graph.input.shape)
        data = (repository / served.name / "warmup" / tensor.input_data_file).read_bytes()
        image = np.frombuffer(data, served.graph.input.dtype).reshape(served.graph.input.shape)
        if served.graph.input.name == "pixels":
            np.testing.assert_array_equal(image, pixels[0])
        else:
            assert 0 <= image.min() < image.max() <= 1
            assert image.mean() == pytest.approx(pixels[0].mean() / 255, rel=1e-2)


def test_every_queue_is_bounded_and_outlasts_what_we_ask_of_it() -> None:
    """It takes what the benchmark has in flight, and holds a request as long as clients wait."""
    for model in (*BUILT_IN.published, BUILT_IN.decoder):  # the ensemble's steps have theirs
        policy = committed(model).dynamic_batching.default_queue_policy
        assert 64 <= policy.max_queue_size <= 128
        assert policy.default_timeout_microseconds == TIMEOUT_S * 1e6
        assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT
        assert policy.allow_timeout_override


# Any contract


def test_names_dtypes_and_shapes_are_the_contracts(any_contract: Contract) -> None:
    for model in any_contract.models:
        config = config_of(any_contract, model)
        assert config.name == model.name
        assert config.max_batch_size == any_contract.triton.max_batch
        assert [configured(i) for i in config.input] == [described(model.graph.input)]
        outputs = [described(output) for output in model.graph.outputs]
        assert [configured(o) for o in config.output] == outputs
        if model == any_contract.ensemble:
            assert (config.backend, config.platform) == ("", "ensemble")
        else:
            assert (config.backend, config.platform) == (model.backend, "")


def test_labels_are_the_contracts(any_contract: Contract) -> None:
    for model in any_contract.models:
        files = model_files(any_contract, model, COMMITTED)
        names = {output.label_filename for output in config_of(any_contract, model).output}
        if model == any_contract.decoder:
            assert names == {""}
        else:
            [name] = names
            assert tuple(files[name].decode().split("\n")) == (*any_contract.labels, "")


def test_labels_may_be_any_text(lenet: Contract) -> None:
    assert lenet.labels == ODD_LABELS
    assert model_files(lenet, lenet.ensemble, COMMITTED)["labels.txt"].decode() == "\n".join(
        (*ODD_LABELS, "")
    )


def test_requests_are_batched_and_the_newest_version_serves(any_contract: Contract) -> None:
    for model in any_contract.published:
        config = config_of(any_contract, model)
        assert config.version_policy.latest.num_versions == 2  # a swap fails requests with 1
        batching = config.dynamic_batching
        assert batching.max_queue_delay_microseconds == any_contract.triton.max_queue_delay_us
        assert list(batching.preferred_batch_size) == [any_contract.triton.preferred_batch]


def test_clients_learn_from_a_classifier_how_to_decode(any_contract: Contract) -> None:
    for model in any_contract.published:
        parameters = config_of(any_contract, model).parameters
        if model.graph == any_contract.classifier_graph:
            files = json.loads(parameters["files"].string_value)
            assert files == any_contract.files.describe()
        else:
            assert "files" not in parameters


def test_the_decoder_is_told_the_contracts_rules(any_contract: Contract) -> None:
    parameters = config_of(any_contract, any_contract.decoder).parameters
    rules = {name: value.string_value for name, value in parameters.items()}
    assert rules == {name: str(value) for name, value in any_contract.files.describe().items()}


def test_the_ensemble_runs_the_newest_versions_of_its_steps(any_contract: Contract) -> None:
    config = config_of(any_contract, any_contract.ensemble)
    steps = {s.model_name: s for s in config.ensemble_scheduling.step}
    assert list(steps) == [any_contract.decoder.name, any_contract.name]
    assert [s.model_version for s in steps.values()] == [-1, -1]
    graphs = {m.name: m.graph for m in any_contract.models}
    for name, step in steps.items():
        assert list(step.input_map) == [graphs[name].input.name]
        assert sorted(step.output_map) == sorted(o.name for o in graphs[name].outputs)
    decoder, classifier = steps.values()
    assert set(classifier.input_map.values()) == set(decoder.output_map.values())


def test_a_preferred_batch_of_one_is_warmed_up_once(lenet: Contract) -> None:
    alone = replace(lenet, triton=replace(lenet.triton, preferred_batch=1))
    [warmup] = config_of(alone, alone.published[0]).model_warmup
    assert warmup.batch_size == 1


def test_the_comments_numbers_follow_the_contract(lenet: Contract) -> None:
    text = config_text(lenet, lenet.published[0], COMMITTED)
    assert "images (1x32x20 floats)" in text
    assert "A batch of 5 goes at once" in text
    assert "at most 2 MB of image" in text.replace("\n# ", " ")  # 128 x 5 x 32 x 20 x 4


def test_no_line_is_long(any_contract: Contract) -> None:
    """But for a text that can't be broken."""
    for model in any_contract.models:
        for line in config_text(any_contract, model, COMMITTED).splitlines():
            assert len(line) <= 100 or "string_value" in line


# Layouts


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: layout_for(cores=8), Layout(8, 1)),
        (lambda: layout_for(cores=8, instances=2), Layout(2, 4)),
        (lambda: layout_for(cores=2, instances=3), Layout(3, 1)),
        (lambda: layout_for(cores=4, gpu=True), Layout(4, 1, gpu=True)),
    ],
)
def test_an_instance_per_core_unless_told_otherwise(
    make: Callable[[], Layout], expected: Layout
) -> None:
    assert make() == expected


def test_the_layout_without_options_is_this_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 3, 5})
    assert layout_for() == Layout(3, 1)


@published
def test_instances_and_threads_divide_the_machine(served: Model) -> None:
    config = config_of(BUILT_IN, served, layout_for(cores=6, instances=3))
    [group] = config.instance_group
    assert (group.kind, group.count) == (ModelInstanceGroup.KIND_CPU, 3)
    name = {"onnxruntime": "intra_op_thread_count", "pytorch": "INTRA_OP_THREAD_COUNT"}
    assert config.parameters[name[served.backend]].string_value == "2"


def test_on_a_gpu_there_is_one_instance_and_decoding_stays_on_the_cpu() -> None:
    layout = layout_for(cores=4, gpu=True)
    for model in (*BUILT_IN.published, BUILT_IN.decoder):
        [group] = config_of(BUILT_IN, model, layout).instance_group
        decodes = model == BUILT_IN.decoder
        kind = ModelInstanceGroup.KIND_CPU if decodes else ModelInstanceGroup.KIND_GPU
        assert (group.kind, group.count) == (kind, 4 if decodes else 1)


def test_the_thread_parameter_that_can_abort_a_server_is_not_used(any_contract: Contract) -> None:
    """INTER_OP_THREAD_COUNT in the pytorch backend: triton-inference-server/server#7836."""
    for model in any_contract.models:
        assert "INTER_OP_THREAD_COUNT" not in config_of(any_contract, model).parameters
