"""What a model's folder in the repository says of it: `config.pbtxt` and the files beside it.

Everything follows from the contract and from how the server's machine is divided. A configuration
is made with Triton's own protobuf, in sections, so that the file can say why beside each.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from pathlib import Path
from textwrap import fill
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from nin import decoder
from nin.client.served import DECODER
from nin.contract import ENCODED_IMAGE, Contract, Files, Graph, Model, Tensor, Triton

CONFIG = "config.pbtxt"
LABELS = "labels.txt"
WARMUP = "warmup"  # where Triton looks for a warm-up's data

# The parameter of a classifier that says how files become its pixels, as JSON: the backends ignore
# it, and a client that decodes files itself reads it.
FILES = "files"

# How many requests may wait: eight times as many as the benchmark has in flight; of files half.
_QUEUE = 128
_QUEUE_OF_FILES = 64
_QUEUE_TIMEOUT_S = 30  # as long as our clients wait for an answer

_TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8", "object": "TYPE_STRING"}
_SIZES = {"float32": 4, "uint8": 1}  # bytes

# What may differ from our configuration in somebody's repository: it changes no answer.
_TUNABLE = (
    "dynamic_batching",
    "instance_group",
    "model_warmup",
    "optimization",
    "response_cache",
    "version_policy",
)

# By backend, the parameter that says how many threads an instance computes with; for "openvino"
# it is all instances together.
_THREADS = {"onnxruntime": "intra_op_thread_count", "pytorch": "INTRA_OP_THREAD_COUNT"}

_WIDTH = 100  # of a line
_BLOCK = re.compile(r"^( *)(\S+ \{)\n((?:\1 .*\n)+)\1\}$", re.MULTILINE)

_Section = tuple[str, ModelConfig]  # a comment, and the part of a configuration that it is about


@dataclass(frozen=True)
class Layout:
    """How every model divides a machine."""

    instances: int
    threads: int  # of each instance
    gpu: bool = False  # one instance there; decoding alone stays on the CPU
    preferred_batch: int | None = None  # instead of the contract's, as is the delay
    max_queue_delay_us: int | None = None
    reason: str = ""  # why it is so, where it was measured

    def adapt(self, triton: Triton) -> Triton:
        """What the contract says of batching, or else this layout."""
        chosen = {
            name: value
            for name in ("preferred_batch", "max_queue_delay_us")
            if (value := getattr(self, name)) is not None
        }
        return replace(triton, **chosen)


def layout_for(
    instances: int | None = None, cores: int | None = None, *, gpu: bool = False
) -> Layout:
    """The layout for a machine: an instance per core, with one thread each, unless told otherwise.

    Args:
        instances: fewer than cores share them as threads.
        cores: None takes those that this process may use.
    """
    cores = cores or len(os.sched_getaffinity(0))
    instances = instances or cores
    return Layout(instances, max(1, cores // instances), gpu)


def model_files(contract: Contract, model: Model, layout: Layout) -> dict[str, bytes]:
    """The files of a model's folder by path, but for what publishing adds: versions, warm-up."""
    files = {CONFIG: config_text(contract, model, layout).encode()}
    if model != contract.decoder:
        files[LABELS] = "".join(f"{label}\n" for label in contract.labels).encode()
    if model == contract.decoder:
        files["1/model.py"] = Path(decoder.__file__).read_bytes()
    if model == contract.ensemble:
        files["1/.gitkeep"] = b""  # Triton wants a version's folder, git a file in it
    return files


def config_text(contract: Contract, model: Model, layout: Layout) -> str:
    """A model's `config.pbtxt`."""
    sections = list(_sections(contract, model, layout))
    text = "\n".join(_write(*section) for section in sections)
    assert parse(text) == _merge(sections)
    return text


def parse(text: str | bytes) -> ModelConfig:
    """Raises text_format.ParseError, or UnicodeDecodeError."""
    return text_format.Parse(text, ModelConfig())


def foundation(config: ModelConfig) -> ModelConfig:
    """What of a configuration follows from the contract alone."""
    kept = ModelConfig()
    kept.CopyFrom(config)
    for name in _TUNABLE:
        kept.ClearField(name)
    rules = {FILES, DECODER, *(field.name for field in fields(Files))}
    for name in set(kept.parameters) - rules:
        del kept.parameters[name]
    return kept


def _write(comment: str, part: ModelConfig) -> str:
    lines = [
        fill(line, _WIDTH, initial_indent="# ", subsequent_indent="# ") + "\n"
        for line in comment.splitlines()
    ]
    text = text_format.MessageToString(part, as_utf8=True, use_short_repeated_primitives=True)
    return "".join(lines) + _join_short(text)


def _join_short(text: str) -> str:
    """Writes a block in one line where it fits there."""

    def join(block: re.Match[str]) -> str:
        indent, start, body = block.groups()
        line = indent + " ".join(part.strip() for part in block[0].splitlines())
        return line if len(line) <= _WIDTH else f"{indent}{start}\n{_join_short(body)}{indent}}}"

    return _BLOCK.sub(join, text)


def _merge(sections: Iterable[_Section]) -> ModelConfig:
    config = ModelConfig()
    for _, part in sections:
        config.MergeFrom(part)
    return config


def _sections(contract: Contract, model: Model, layout: Layout) -> Iterator[_Section]:
    yield _subject(contract, model), _tensors(contract, model)
    if model == contract.decoder:
        yield from _decoder_sections(contract, layout)
    elif model == contract.ensemble:
        yield from _ensemble_sections(contract)
    else:
        yield from _published_sections(contract, model, layout)


# --- what every model has ---


def _subject(contract: Contract, model: Model) -> str:
    if model == contract.decoder:
        return "PNG and JPEG files to pixels; 1/model.py says how."
    if model == contract.ensemble:
        return (
            f"PNG or JPEG files to probabilities: {contract.decoder.name}, then the newest version "
            f"of {contract.name}."
        )
    if not model.graph.files:
        what = f"The network: images ({_by(model.graph.input.shape)} floats) to logits."
    elif model.format and model.format.startswith(".int8"):
        what = (
            "The classifier in int8, the fastest on a CPU: raw pixels to probabilities, within the "
            "losses that the gate allows (docs/parity.md)."
        )
    else:
        what = "The classifier: raw pixels to probabilities."
    return f"{what} Published by `nin publish`."


def _tensors(contract: Contract, model: Model) -> ModelConfig:
    labels = {} if model == contract.decoder else {"label_filename": LABELS}
    backend = "platform" if model == contract.ensemble else "backend"
    return ModelConfig(
        **{backend: model.backend},
        name=model.name,
        max_batch_size=model.graph.max_batch,
        input=[_tensor(model.graph.input)],
        output=[_tensor(output) | labels for output in model.graph.outputs],
    )


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "data_type": _TYPES[tensor.dtype], "dims": tensor.shape}


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _parameters(values: dict[str, Any]) -> ModelConfig:
    config = ModelConfig()
    for name, value in values.items():
        config.parameters[name].string_value = str(value)
    return config


def _queue_policy(size: int) -> dict[str, Any]:
    return {
        "timeout_action": "REJECT",
        "default_timeout_microseconds": _QUEUE_TIMEOUT_S * 1_000_000,
        "allow_timeout_override": True,
        "max_queue_size": size,
    }


def _warmup(tensor: Tensor, sizes: dict[str, int]) -> ModelConfig:
    """`tensor`'s data lie in a file of its name."""
    data = {
        "data_type": _TYPES[tensor.dtype],
        "dims": tensor.shape,
        "input_data_file": tensor.name,
    }
    config = ModelConfig()
    for name, size in sizes.items():
        sample = config.model_warmup.add(name=name, batch_size=size)
        sample.inputs[tensor.name].MergeFrom(type(sample.inputs[tensor.name])(**data))
    return config


# --- the published models ---


def _published_sections(contract: Contract, model: Model, layout: Layout) -> Iterator[_Section]:
    contract = replace(contract, triton=layout.adapt(contract.triton))
    graph = model.graph
    if model.backend == "openvino":
        yield (
            "The backend's own format is another one, but it reads ONNX too.",
            ModelConfig(default_model_filename=model.filename),
        )
    if graph.files:
        decoder = {} if model.name == contract.name else {DECODER: contract.decoder.name}
        yield (
            "How a client makes pixels of a PNG or JPEG file, as the server does"
            + (", and which model does it; " if decoder else "; ")
            + "the backend ignores it.",
            _parameters({FILES: json.dumps(graph.files.describe())} | decoder),
        )
    yield (
        "The newest answers, the one before stays loaded: requests that were on their way to it "
        "at the moment of a swap would fail otherwise (docs/serving.md).",
        ModelConfig(version_policy={"latest": {"num_versions": 2}}),
    )
    yield _batching_section(contract, model)
    yield from _instance_sections(model, layout)
    if model.backend == "pytorch":
        yield (
            "No gradients are kept. No profiling runs: else the first two batches of a size "
            "compile anew.",
            _parameters({"INFERENCE_MODE": "true", "DISABLE_OPTIMIZED_EXECUTION": "true"}),
        )
    if graph.files and model.backend == "onnxruntime":
        yield (
            "Used only by a server that was started with --cache-config; see docs/serving.md.",
            ModelConfig(response_cache={"enable": True}),
        )
    batch = _preferred_batch(contract, graph)
    sizes = {"one": 1, "batch": batch} if batch > 1 else {"one": 1}
    yield (
        "The first request isn't slower than the others: one golden image, alone and as a batch.",
        _warmup(graph.input, sizes),
    )


def _batching_section(contract: Contract, model: Model) -> _Section:
    batching: dict[str, Any] = {"default_queue_policy": _queue_policy(_QUEUE)}
    if model.backend == "openvino":
        comment = (
            "An image at a time, which OpenVINO computes as fast as several: this backend computes "
            "max_batch_size images however few a request holds (docs/serving.md)."
        )
    else:
        batching["preferred_batch_size"] = [_preferred_batch(contract, model.graph)]
        batching["max_queue_delay_microseconds"] = contract.triton.max_queue_delay_us
        comment = _batching_comment(contract, model.graph)
    return (
        f"{comment}\n{_queue_comment(model.graph)}",
        ModelConfig(dynamic_batching=batching),
    )


def _preferred_batch(contract: Contract, graph: Graph) -> int:
    return min(contract.triton.preferred_batch, graph.max_batch)


def _batching_comment(contract: Contract, graph: Graph) -> str:
    delay_ms = contract.triton.max_queue_delay_us / 1000
    company = f"waits for company, at most {delay_ms:g} ms: enough for what arrives together"
    return (
        f"A batch of {_preferred_batch(contract, graph)} goes at once: on a CPU more images at a "
        f"time only wait longer. A smaller one {company if delay_ms else 'waits for nobody'} "
        "(docs/speed.md). On a GPU, larger batches may do better."
    )


def _queue_comment(graph: Graph) -> str:
    waiting = _QUEUE * graph.max_batch * prod(graph.input.shape) * _SIZES[graph.input.dtype]
    return (
        f"What can't be answered in time is refused instead of computed. {_QUEUE} requests may "
        f"wait, eight times what the benchmark has in flight, at most {_megabytes(waiting)} of "
        f"{graph.input.name}; one more is answered 503 at once. Each waits {_QUEUE_TIMEOUT_S} s at "
        "most, as long as our clients wait for an answer, or as long as its own parameter "
        "`timeout` says."
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _instance_sections(model: Model, layout: Layout) -> Iterator[_Section]:
    if model.backend == "openvino":
        yield _openvino_section(layout)
        return
    if layout.gpu:
        yield (
            "On the GPU.",
            ModelConfig(instance_group=[{"count": 1, "kind": "KIND_GPU"}]),
        )
        return
    part = _parameters({_THREADS[model.backend]: layout.threads})
    part.instance_group.add(count=layout.instances, kind="KIND_CPU")
    usual = (
        f"For {layout.instances * layout.threads} cores. An instance to each, with one thread, "
        "answers more images a second than one instance on all of them, which answers a lone "
        "request sooner (docs/serving.md)."
    )
    yield f"{layout.reason or usual} `nin publish --cores N` writes it for others.", part


def _openvino_section(layout: Layout) -> _Section:
    threads = layout.instances * layout.threads
    part = _parameters({"NUM_STREAMS": layout.instances, "INFERENCE_NUM_THREADS": threads})
    part.instance_group.add(count=layout.instances, kind="KIND_CPU")
    return (
        f"For {threads} cores, always those of the CPU. The instances share one compiled model, "
        "and each has a stream of it; the threads are those of all streams. "
        f"{layout.reason}{' ' if layout.reason else ''}"
        "`nin publish --cores N` writes it for others.",
        part,
    )


# --- the decoder and the ensemble ---


def _decoder_sections(contract: Contract, layout: Layout) -> Iterator[_Section]:
    yield "The rules, which the classifier's pixels need.", _parameters(contract.files.describe())
    yield (
        "Its code belongs to the repository and isn't published: there is one version.",
        ModelConfig(version_policy={"specific": {"versions": [1]}}),
    )
    yield (
        "Files are decoded one by one, so that waiting for others gains nothing. A batch saves a "
        "call.\n"
        "What can't be answered in time is refused instead of decoded. "
        f"{_QUEUE_OF_FILES} requests may wait, four times what the benchmark has in flight: over "
        "HTTP each may hold 32 MiB of files (deploy/Dockerfile), "
        f"{_QUEUE_OF_FILES * 32 / 1024:g} GiB in all. One more is answered 503 at once. Each waits "
        f"{_QUEUE_TIMEOUT_S} s at most, as long as our clients wait for an answer, or as long as "
        "its own parameter `timeout` says.",
        ModelConfig(
            dynamic_batching={
                "max_queue_delay_microseconds": 0,
                "default_queue_policy": _queue_policy(_QUEUE_OF_FILES),
            }
        ),
    )
    yield (
        "Decoding is one thread of Python to an instance, always on the CPU.",
        ModelConfig(instance_group=[{"count": layout.instances, "kind": "KIND_CPU"}]),
    )
    yield (
        "The first golden image as a PNG file: imports and first use happen before the first "
        "request.",
        _warmup(ENCODED_IMAGE, {"one": 1}),
    )


def _ensemble_sections(contract: Contract) -> Iterator[_Section]:
    yield (
        "The way is fixed, the versions change in its steps. Batches are made there too, by each "
        "step.",
        ModelConfig(version_policy={"specific": {"versions": [1]}}),
    )
    classifier = next(m for m in contract.models if m.name == contract.name)
    steps = [
        {
            "model_name": model.name,
            "model_version": -1,
            "input_map": {model.graph.input.name: model.graph.input.name},
            "output_map": {output.name: output.name for output in model.graph.outputs},
        }
        for model in (contract.decoder, classifier)
    ]
    yield "", ModelConfig(ensemble_scheduling={"step": steps})
