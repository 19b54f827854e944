"""The committed configs, parsed by Triton's own protobuf, against contract and artifacts."""

import io
import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from google.protobuf import text_format
from numpy.typing import NDArray
from PIL import Image
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig

from nin.client import TIMEOUT_S
from nin.contract import LABELS, MAX_BATCH, MODELS, Model, Tensor
from nin.paths import MODEL_REPOSITORY
from nin.torch_settings import ignore_deprecations
from nin.triton.repository import PUBLISHED

TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8", "object": "TYPE_STRING"}

every_model = pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
published = pytest.mark.parametrize("model", PUBLISHED, ids=lambda m: m.name)


def config_of(model: Model) -> ModelConfig:
    text = (MODEL_REPOSITORY / model.name / "config.pbtxt").read_text()
    return text_format.Parse(text, ModelConfig())


def described(tensor: Tensor) -> tuple[str, str, tuple[int, ...]]:
    return tensor.name, TYPES[tensor.dtype], tensor.shape


def configured(io: model_config_pb2.ModelInput) -> tuple[str, str, tuple[int, ...]]:
    return io.name, model_config_pb2.DataType.Name(io.data_type), tuple(io.dims)


def test_the_repository_holds_the_models_of_the_contract() -> None:
    found = {path.name for path in MODEL_REPOSITORY.iterdir() if path.is_dir()}
    assert found == {model.name for model in MODELS}


@every_model
def test_names_dtypes_and_shapes_are_the_contracts(model: Model) -> None:
    config = config_of(model)
    assert config.name == model.name
    assert config.max_batch_size == MAX_BATCH
    assert [configured(i) for i in config.input] == [described(model.graph.input)]
    assert [configured(o) for o in config.output] == [described(o) for o in model.graph.outputs]


@every_model
def test_the_backend_is_written_down(model: Model) -> None:
    config = config_of(model)
    if model.backend == "ensemble":
        assert (config.backend, config.platform) == ("", "ensemble")
    else:
        assert (config.backend, config.platform) == (model.backend, "")


@every_model
def test_labels_are_the_contracts(model: Model) -> None:
    for output in config_of(model).output:
        if output.name == "pixels":
            assert output.label_filename == ""
            continue
        labels = (MODEL_REPOSITORY / model.name / output.label_filename).read_text()
        assert labels.splitlines() == list(LABELS)


@published
def test_onnx_and_torchscript_files_are_what_the_config_says(
    model: Model, repository: Path
) -> None:
    config = config_of(model)
    path = repository / model.name / "1" / model.filename
    inputs, outputs = [i.name for i in config.input], [o.name for o in config.output]
    if model.format == ".onnx":
        graph = onnx.load(path).graph
        assert [i.name for i in graph.input] == inputs
        assert [o.name for o in graph.output] == outputs
        values = (*graph.input, *graph.output)
        for io, value in zip((*config.input, *config.output), values, strict=True):
            tensor = value.type.tensor_type
            assert tuple(d.dim_value for d in tensor.shape.dim)[1:] == tuple(io.dims)
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            assert TYPES[dtype.name] == configured(io)[1]
        return
    with ignore_deprecations():
        module = torch.jit.load(path)
    arguments = [a.name for a in module.forward.schema.arguments if a.name != "self"]
    assert arguments == inputs  # then the backend maps by name, else by order
    results = module(
        torch.zeros(2, *config.input[0].dims, dtype=getattr(torch, model.graph.input.dtype))
    )
    results = (results,) if isinstance(results, torch.Tensor) else results
    assert [(tuple(r.shape[1:]), r.dtype) for r in results] == [
        (tuple(o.dims), torch.float32) for o in config.output
    ]


@published
def test_requests_are_batched_and_the_newest_version_serves(model: Model) -> None:
    config = config_of(model)
    assert config.version_policy.latest.num_versions == 2  # a swap fails requests with 1
    assert 0 < config.dynamic_batching.max_queue_delay_microseconds <= 1000
    assert list(config.dynamic_batching.preferred_batch_size) == sorted(
        size for size in config.dynamic_batching.preferred_batch_size if 1 < size <= MAX_BATCH
    )
    assert [(g.kind, g.count) for g in config.instance_group] == [
        (model_config_pb2.ModelInstanceGroup.KIND_AUTO, 1)  # a GPU where there is one
    ]


def test_every_queue_is_bounded_and_outlasts_what_we_ask_of_it() -> None:
    """It takes what the benchmarks have in flight, and holds a request as long as clients wait."""
    queues = {m.name: config_of(m).dynamic_batching.default_queue_policy for m in MODELS}
    del queues["fashion_mnist_image"]  # its steps have theirs
    for name, policy in queues.items():
        assert 64 <= policy.max_queue_size <= 128, name
        assert policy.default_timeout_microseconds == TIMEOUT_S * 1e6, name
        assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT, name
        assert policy.allow_timeout_override, name


@published
def test_warm_up_runs_a_golden_image(
    model: Model, repository: Path, pixels: NDArray[np.uint8]
) -> None:
    """Alone and as a preferred batch; the file is what a request's body would be."""
    config = config_of(model)
    sizes = [warmup.batch_size for warmup in config.model_warmup]
    assert sizes == [1, *config.dynamic_batching.preferred_batch_size]
    for warmup in config.model_warmup:
        (name, tensor), *rest = warmup.inputs.items()
        assert not rest
        assert (name, tuple(tensor.dims)) == (model.graph.input.name, model.graph.input.shape)
        data = (repository / model.name / "warmup" / tensor.input_data_file).read_bytes()
        image = np.frombuffer(data, model.graph.input.dtype).reshape(model.graph.input.shape)
        if model.graph.input.name == "pixels":
            np.testing.assert_array_equal(image, pixels[0])
        else:
            assert 0 <= image.min() < image.max() <= 1
            assert image.mean() == pytest.approx(pixels[0].mean() / 255, rel=1e-3)


def test_the_decoders_warm_up_is_the_first_golden_image(pixels: NDArray[np.uint8]) -> None:
    config = config_of(next(m for m in MODELS if m.name == "decode_image"))
    file = config.model_warmup[0].inputs["encoded_image"].input_data_file
    data = (MODEL_REPOSITORY / "decode_image" / "warmup" / file).read_bytes()
    (length,) = struct.unpack("<I", data[:4])
    assert length == len(data) - 4
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data[4:]))), pixels[0])


def test_the_ensemble_runs_the_newest_versions_of_its_steps() -> None:
    config = config_of(next(m for m in MODELS if m.backend == "ensemble"))
    steps = {s.model_name: s for s in config.ensemble_scheduling.step}
    assert list(steps) == ["decode_image", "fashion_mnist"]
    assert [s.model_version for s in steps.values()] == [-1, -1]
    models = {m.name: m.graph for m in MODELS}
    for name, step in steps.items():
        assert list(step.input_map) == [models[name].input.name]
        assert sorted(step.output_map) == sorted(o.name for o in models[name].outputs)
    assert set(steps["fashion_mnist"].input_map.values()) == set(
        steps["decode_image"].output_map.values()
    )


def test_the_thread_parameter_that_can_abort_a_server_is_not_used() -> None:
    """INTER_OP_THREAD_COUNT in the pytorch backend: triton-inference-server/server#7836."""
    for model in MODELS:
        assert "INTER_OP_THREAD_COUNT" not in config_of(model).parameters
