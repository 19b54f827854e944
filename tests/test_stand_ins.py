"""The stand-in backends refuse at load and at run what the official C++ backends refuse.

The rules and the texts are those of the sources of onnxruntime_backend and pytorch_backend.
"""

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from nin.client import Client
from nin.errors import ServerError
from nin.network.torch_settings import ignore_deprecations
from nin.serve.server import PORTS, Server, serve
from tests.variants import Change, added, parameter, refused, swapped, variant


@pytest.fixture(scope="module")
def own(embedded: None, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(repository, tmp_path_factory.mktemp("stand_ins") / "own"))


@pytest.fixture(scope="module")
def server(own: Path) -> Iterator[Server]:
    with serve(own, ports=dict.fromkeys(PORTS, 0)) as running:
        yield running


def output(name: str, dtype: str = "TYPE_FP32", dims: str = "10") -> Change:
    return added(f'output [ {{ name: "{name}" data_type: {dtype} dims: [ {dims} ] }} ]')


def without_batching(instead: str) -> Change:
    return lambda text: re.sub(
        r"dynamic_batching \{.*?\n\}\n", f"{instead}\n", text, flags=re.DOTALL
    )


def accelerator(kind: str, name: str) -> Change:
    return added(
        f"optimization {{ execution_accelerators {{ {kind}_execution_accelerator "
        f'[ {{ name: "{name}" }} ] }} }}'
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swapped('name: "pixels"', 'name: "image"'),
         "unexpected inference input 'image', allowed inputs are: pixels"),
        (swapped('name: "logits"', 'name: "scores"'),
         "unexpected inference output 'scores', allowed outputs are: logits, probabilities"),
        (swapped("TYPE_UINT8", "TYPE_FP32"),
         "configuration expects datatype TYPE_FP32 for input 'pixels', model provides TYPE_UINT8"),
        (swapped("TYPE_FP32", "TYPE_FP64"),
         "configuration expects datatype TYPE_FP64 for output 'logits', model provides TYPE_FP32"),
        (swapped("dims: [28, 28]", "dims: [28, 29]"),
         "tensor 'pixels': the model expects 3 dimensions (shape [-1, 28, 28]) but the model "
         "configuration specifies 3 dimensions (shape [-1, 28, 29])"),
        (swapped("dims: [28, 28]", "dims: [784]"), "specifies 2 dimensions (shape [-1, 784])"),
        (swapped("dims: [10]", "dims: [-1]"), "'logits': the model expects 2 dimensions"),
        (added('input [ { name: "mask" data_type: TYPE_UINT8 dims: [28, 28] } ]'),
         "configuration expects 2 inputs, model provides 1"),
        (parameter("execution_mode", "2"), "execution_mode are 0 or 1 but got 2"),
        (parameter("inter_op_thread_count", "two"), "'two' to integral number"),
        (parameter("enable_mem_arena", "maybe"), "'maybe' to boolean"),
        (added('default_model_filename: "network.onnx"'), "unable to find"),
        (accelerator("cpu", "dnnl"), "unknown Execution Accelerator 'dnnl' is requested"),
    ],
    ids=["input name", "output name", "input dtype", "output dtype", "dims", "rank", "wildcard",
         "inputs", "execution mode", "integer", "boolean", "file", "accelerator"],
)  # fmt: skip
def test_onnxruntime_refuses_at_load(
    own: Path, server: Server, change: Change, message: str
) -> None:
    refused(server, variant(own, "fashion_mnist", change), message)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (without_batching("sequence_batching { max_sequence_idle_microseconds: 1000000 }"),
         "sequence_batching"),
        (swapped('name: "pixels"', 'name: "pixels" allow_ragged_batch: true'),
         "allow_ragged_batch"),
        (added('batch_input [ { kind: BATCH_ELEMENT_COUNT target_name: "count" '
               'data_type: TYPE_FP32 source_input: "pixels" } ]'), "batch_input"),
        (added('batch_output [ { kind: BATCH_SCATTER_WITH_INPUT_SHAPE target_name: "logits" '
               'source_input: "pixels" } ]'), "batch_output"),
        (added("model_transaction_policy { decoupled: true }"),
         "model_transaction_policy decoupled"),
    ],
    ids=["sequences", "ragged", "batch input", "batch output", "decoupled"],
)  # fmt: skip
def test_what_no_stand_in_does_is_refused_at_load(
    own: Path, server: Server, change: Change, name: str
) -> None:
    message = f"the embedded server doesn't do {name}; take it out of config.pbtxt, or use the off"
    refused(server, variant(own, "fashion_mnist_torchscript", change), message)


def test_onnxruntime_needs_a_dynamic_batch(own: Path, server: Server, artifacts: Path) -> None:
    """max_batch_size > 0 with a model whose batch is fixed."""
    model = onnx.load(artifacts / "fashion_mnist.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    data = model.SerializeToString()
    name = variant(own, "fashion_mnist", file=data)
    refused(server, name, "for the model to support batching the shape should have at least 1")


def test_onnxruntime_may_serve_some_outputs_in_any_order(
    own: Path, server: Server, pixels: np.ndarray
) -> None:
    """As the C++ backend: a config may leave outputs out. And unknown parameters are ignored."""

    def change(text: str) -> str:
        return re.sub(r'output \{ name: "logits".*\n', "", text)

    name = variant(own, "fashion_mnist", lambda t: parameter("INTRA_OP", "x")(change(t)))
    with Client(server.http) as client:
        client.load(name)
        assert list(client.infer(name, {"pixels": pixels[:2]})) == ["probabilities"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (added('input [ { name: "mask" data_type: TYPE_UINT8 dims: [28, 28] } ]'),
         "configuration expects 2 inputs, model provides 1"),
        (swapped("TYPE_FP32", "TYPE_FP64"), None),
        (swapped("TYPE_FP32", "TYPE_UINT16"),
         "unsupported datatype TYPE_UINT16 for output 'logits'"),
        (parameter("INTRA_OP_THREAD_COUNT", "all"), "'all' to integral number"),
        (swapped('"INFERENCE_MODE" value { string_value: "true" }',
                 '"INFERENCE_MODE" value { string_value: "yes" }'), "'yes' to boolean"),
        (added('default_model_filename: "network.pt"'), "unable to find"),
        *((parameter(name, "many"), f"{name}: failed to convert 'many' to") for name in (
            "INTER_OP_THREAD_COUNT", "ENABLE_JIT_PROFILING", "ENABLE_JIT_EXECUTOR",
            "ENABLE_TENSOR_FUSER", "ENABLE_WEIGHT_SHARING", "ENABLE_CACHE_CLEANING",
            "DISABLE_CUDNN")),
        (parameter("INTRA_OP_THREAD_COUNT", "99999999999"), "to integral number"),
    ],
    ids=["inputs", "dtype", "unsupported", "integer", "boolean", "file", "inter-op", "profiling",
         "executor", "fuser", "sharing", "cleaning", "cudnn", "range"],
)  # fmt: skip
def test_pytorch_refuses_at_load(
    own: Path, server: Server, change: Change, message: str | None
) -> None:
    """TorchScript doesn't tell dtypes and outputs: those are noticed only when it runs."""
    name = variant(own, "fashion_mnist_torchscript", change)
    if message:
        refused(server, name, message)
        return
    with Client(server.http) as client:
        client.load(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swapped("TYPE_FP32", "TYPE_FP64"),
         "configuration expects datatype TYPE_FP64 for output 'logits', model provides TYPE_FP32"),
        (output("third"), "The output third in the model configuration refers to an output index"),
        (swapped("dims: [28, 28]", "dims: [5, 28, 28]"), "PyTorch execute failure"),
    ],
    ids=["output dtype", "outputs", "shape"],
)  # fmt: skip
def test_pytorch_refuses_when_it_runs(
    own: Path, server: Server, change: Change, message: str
) -> None:
    name = variant(own, "fashion_mnist_torchscript", change)
    shape = (1, 5, 28, 28) if "5" in message or "execute" in message else (1, 28, 28)
    with Client(server.http) as client:
        client.load(name)
        with pytest.raises(ServerError, match=re.escape(message)):
            client.infer(name, {"pixels": np.zeros(shape, np.uint8)})


@pytest.mark.parametrize(
    "change",
    [
        parameter("ENABLE_WEIGHT_SHARING", "on"),
        parameter("DISABLE_CUDNN", "OFF"),
        parameter("INTRA_OP_THREAD_COUNT", " 2x"),
    ],
    ids=["on", "off", "2x"],
)
def test_pytorch_reads_values_as_generously_as_officially(
    own: Path, server: Server, change: Change
) -> None:
    name = variant(own, "fashion_mnist_torchscript", change)
    with Client(server.http) as client:
        client.load(name)


class Odd(torch.nn.Module):
    """Answers in one of the forms that the official backend refuses."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.dropout = torch.nn.Dropout()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        rows = pixels.flatten(1).float()
        if self.form == "one row":
            return rows[:1]
        if self.form == "list":
            return [rows, rows]  # type: ignore[return-value]
        if self.form == "scalar":
            return rows.sum()
        return self.dropout(rows)


def odd_model(own: Path, form: str) -> str:
    """A model of 28x28 pixels to 784 numbers; returns its name."""
    folder = own / f"variant_{len(list(own.glob('variant_*')))}"
    (folder / "1").mkdir(parents=True)
    with ignore_deprecations():
        module = torch.jit.trace(Odd(form), torch.ones(2, 28, 28), check_trace=False, strict=False)
        module.save(folder / "1" / "model.pt")
    (folder / "config.pbtxt").write_text(
        f'name: "{folder.name}" backend: "pytorch" max_batch_size: 4\n'
        'input [ { name: "pixels" data_type: TYPE_FP32 dims: [28, 28] } ]\n'
        'output [ { name: "rows" data_type: TYPE_FP32 dims: [ -1 ] } ]\n'
    )
    return folder.name


@pytest.mark.parametrize(
    ("form", "status", "message"),
    [
        ("one row", "501", "expected batch size of at least 3 in model output, got 1"),
        ("list", "500", "must be of type Tensor, received list"),
        ("scalar", "400", "output 'rows' is a scalar which is not supported"),
    ],
)
def test_pytorch_refuses_what_is_no_batch_of_tensors(
    own: Path, server: Server, form: str, status: str, message: str
) -> None:
    name = odd_model(own, form)
    with Client(server.http) as client:
        client.load(name)
        with pytest.raises(ServerError, match=message) as raised:
            client.infer(name, {"pixels": np.ones((3, 28, 28), np.float32)})
        assert raised.value.__cause__.status() == status  # type: ignore[union-attr]
        assert counted(client, name) == (1, 0)


def counted(client: Client, name: str) -> tuple[int, int]:
    """Failures and successes; Triton counts a request after it has answered it."""
    for _ in range(50):
        counts = client.statistics(name)["inference_stats"]
        if any(result := (counts["fail"]["count"], counts["success"]["count"])):
            return result
        time.sleep(0.1)
    raise TimeoutError("the server counts nothing")


def test_pytorch_leaves_a_module_in_the_mode_it_was_saved_in(own: Path, server: Server) -> None:
    """Dropout saved in training mode drops: the gate closes on it, and evaluation isn't forced."""
    name = odd_model(own, "dropout")
    with Client(server.http) as client:
        client.load(name)
        rows = client.infer(name, {"pixels": np.ones((1, 28, 28), np.float32)})["rows"]
    assert set(rows.flat) == {0, 2}


@pytest.mark.parametrize("name", ["fashion_mnist_torchscript", "decode_image"])
def test_a_warm_up_that_would_fail_is_refused_at_load(own: Path, server: Server, name: str) -> None:
    """Else Triton 24.10 frees its error twice, and dies."""
    folder = own / f"variant_{len(list(own.glob('variant_*')))}"
    shutil.copytree(own / name, folder)
    if name == "decode_image":
        (folder / "warmup" / "encoded_image").write_bytes(b"\x03\0\0\0bad")
    else:
        shutil.copy(own / "nin_torchscript" / "1" / "model.pt", folder / "1")
    config = folder / "config.pbtxt"
    config.write_text(config.read_text().replace(f'name: "{name}"', f'name: "{folder.name}"'))
    refused(server, folder.name, "warm-up 'one' fails: ")


class Difference(torch.nn.Module):
    def forward(self, minuend: torch.Tensor, subtrahend: torch.Tensor) -> list[torch.Tensor]:
        return minuend - subtrahend, minuend + subtrahend  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("inputs", "outputs", "swaps_inputs", "swaps_outputs"),
    [
        (("subtrahend", "minuend"), ("difference", "sum"), False, False),  # names of arguments
        (("a__1", "b__0"), ("difference", "sum"), True, False),  # <name>__<index>
        (("a", "b"), ("difference", "sum"), False, False),  # else the config's order
        (("a", "b"), ("sum__1", "difference__0"), False, False),
        (("a__1", "b"), ("sum__0", "difference__x"), False, True),  # one of another form: order
        (("a", "b"), ("difference__b__1", "sum__0"), False, False),  # the first __ counts
    ],
)
def test_pytorch_naming_conventions(
    own: Path, server: Server, inputs: tuple[str, str], outputs: tuple[str, str],
    swaps_inputs: bool, swaps_outputs: bool,
) -> None:  # fmt: skip
    folder = own / f"variant_{len(list(own.glob('variant_*')))}"
    (folder / "1").mkdir(parents=True)
    example = (torch.zeros(1, 2), torch.zeros(1, 2))
    with ignore_deprecations():
        torch.jit.trace(Difference(), example).save(folder / "1" / "model.pt")
    tensors = "".join(
        f'{kind} [ {{ name: "{name}" data_type: TYPE_FP32 dims: [ 2 ] }} ]\n'
        for kind, names in (("input", inputs), ("output", outputs))
        for name in names
    )
    (folder / "config.pbtxt").write_text(
        f'name: "{folder.name}" backend: "pytorch" max_batch_size: 4\n{tensors}'
    )
    first, second = np.array([[5, 7]], np.float32), np.array([[1, 2]], np.float32)
    minuend, subtrahend = (second, first) if swaps_inputs else (first, second)
    if inputs[0] == "subtrahend":
        minuend, subtrahend = second, first
    with Client(server.http) as client:
        client.load(folder.name)
        found = client.infer(folder.name, {inputs[0]: first, inputs[1]: second})
    expected = {"difference": minuend - subtrahend, "sum": minuend + subtrahend}
    for name, array in found.items():
        kind = name.split("__")[0]
        if swaps_outputs:
            kind = {"sum": "difference", "difference": "sum"}[kind]
        np.testing.assert_array_equal(array, expected[kind], err_msg=name)


def test_without_batching_each_request_runs_alone(
    own: Path, server: Server, artifacts: Path
) -> None:
    """max_batch_size: 0; the config's dims are then the whole shape."""

    def change(text: str) -> str:
        text = text.replace("max_batch_size: 64", "max_batch_size: 0")
        text = text.replace("dims: [28, 28]", "dims: [-1, 28, 28]")
        text = text.replace("dims: [10]", "dims: [-1, 10]")
        return re.sub(r"dynamic_batching \{.*?\n\}\n", "", text, flags=re.DOTALL)

    name = variant(own, "fashion_mnist", change)
    with Client(server.http) as client:
        client.load(name)
        assert client.infer(name, {"pixels": np.zeros((5, 28, 28), np.uint8)})["logits"].shape == (
            5,
            10,
        )
