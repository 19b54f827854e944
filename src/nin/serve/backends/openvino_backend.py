"""Stands in for Triton's openvino backend where there is no container.

The same file, names, checks, parameters and rules of batches as the C++ backend:
https://github.com/triton-inference-server/openvino_backend

What differs: it computes in float32 unless HINT_BF16 says otherwise. The C++ backend leaves that to
OpenVINO, which takes bfloat16 where the CPU has it.
"""

import json
import threading
from itertools import accumulate
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from nin.runtimes.openvino import FLOAT32, import_openvino, reason_of
from nin.serve.backends.batching import (
    INVALID_ARG,
    Answer,
    BackendError,
    Inputs,
    Instance,
    check,
    dims,
    execute,
)

_TYPES = {
    "TYPE_BOOL": "boolean",
    "TYPE_FP16": "f16",
    "TYPE_FP32": "f32",
    **{f"TYPE_INT{bits}": f"i{bits}" for bits in (8, 16, 32, 64)},
    **{f"TYPE_UINT{bits}": f"u{bits}" for bits in (8, 16, 32, 64)},
}

# The parameters that become OpenVINO's properties: what each may be beside numbers, and how errors
# say it.
_PROPERTIES: dict[str, tuple[tuple[str, ...], str]] = {
    "INFERENCE_NUM_THREADS": ((), "a non-negative number"),
    "COMPILATION_NUM_THREADS": ((), "a non-negative number"),
    "NUM_STREAMS": (("AUTO", "NUMA"), "either AUTO/NUMA/<int_value>"),
    "PERFORMANCE_HINT": (
        ("LATENCY", "THROUGHPUT", "CUMULATIVE_THROUGHPUT"),
        "LATENCY/THROUGHPUT/CUMULATIVE_THROUGHPUT",
    ),
}

# The compiled models that are in use: the instances of a model share one, as officially.
_compiled: "WeakValueDictionary[str, Any]" = WeakValueDictionary()
_lock = threading.Lock()


class OpenVinoModel:
    def __init__(self, instance: Instance) -> None:
        self._config = instance.config
        self._largest: int = self._config["max_batch_size"]
        self._pads = _is_yes(instance, "ENABLE_BATCH_PADDING")
        self._padding = 0  # stays from batch to batch: a full one fails after a padded one there
        self._model = _compile_once(instance)
        self._request = self._model.create_infer_request()
        self._inputs = [i["name"] for i in self._config["input"]]
        self._outputs = [o["name"] for o in self._config["output"]]

    def execute(self, requests: list[Inputs]) -> list[Answer]:
        whole = [request for request in requests if check(request, self._config) is None]
        if self._largest:
            for total in accumulate(len(request[self._inputs[0]]) for request in whole):
                if total == self._largest:
                    continue
                if not self._pads:
                    return [self._wrong_size(total)] * len(requests)
                self._padding = self._largest - total
        return execute(requests, self._config, self._run)

    def _wrong_size(self, size: int) -> BackendError:
        return BackendError(
            f"expected requests with batch size '{self._largest}', got '{size}'... this error can "
            "be avoided by setting 'ENABLE_BATCH_PADDING' parameter in model configuration to "
            "'YES' at a performance cost."
        )

    def _run(self, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        arrays = map(self._padded, inputs) if self._largest else inputs
        feed = dict(zip(self._inputs, arrays, strict=True))
        try:
            outputs = self._request.infer(feed, share_inputs=True)
        except RuntimeError as error:
            message = f"openvino error in running inference : {reason_of(error)}"
            raise BackendError(message) from error
        rows = self._largest - self._padding if self._largest else None
        return [outputs[name][:rows] for name in self._outputs]

    def _padded(self, array: NDArray[Any]) -> NDArray[Any]:
        missing = self._largest - len(array)
        return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) if missing else array


load = OpenVinoModel


def _compile_once(instance: Instance) -> Any:
    if instance.device is not None:
        raise BackendError(
            f"unable to load model '{instance.config['name']}', Triton OpenVINO backend supports "
            "only Kind CPU and AUTO",
            INVALID_ARG,
        )
    path = instance.file("model.xml")
    key = json.dumps([str(path), path.stat().st_mtime_ns, instance.config])
    with _lock:
        model = _compiled.get(key)
        if model is None:
            model = _compiled[key] = _compile(instance, str(path))
        return model


def _compile(instance: Instance, path: str) -> Any:
    """The steps and the words for their errors are the C++ backend's."""
    properties = FLOAT32 | _properties(instance)
    openvino = import_openvino()
    core = openvino.Core()
    device = (instance.text("TARGET_DEVICE") or "CPU").upper()
    step = "loading custom CPU extensions"
    try:
        if extension := instance.text("CPU_EXTENSION_PATH"):
            core.add_extension(extension)
        step = "reading model"
        model = core.read_model(path)
        step = "applying the model configuration"
        model = _with_inputs(openvino, model, instance)
        model = _with_outputs(openvino, model, instance.config)
        step = "configuring openvino core"
        core.set_property(device, properties)
        step = "loading model"
        return core.compile_model(model, device)
    except RuntimeError as error:
        raise BackendError(f"openvino error in {step} : {reason_of(error)}") from error


def _properties(instance: Instance) -> dict[str, str]:
    properties = {}
    for name, (words, expected) in _PROPERTIES.items():
        value = (instance.text(name) or "").upper()
        number = name != "PERFORMANCE_HINT" and value.isascii() and value.isdigit()
        if value and not number and value not in words:
            raise _not_a_value(name, expected, value)
        if value:
            properties[name] = value
    if bf16 := instance.text("HINT_BF16"):
        if bf16.upper() != "YES":
            raise _not_a_value("HINT_BF16", "YES", bf16)
        properties["INFERENCE_PRECISION_HINT"] = "bf16"
    return properties


def _not_a_value(name: str, expected: str, value: str) -> BackendError:
    return BackendError(
        f"expected the parameter '{name}' to be {expected}, got {value.lower()}", INVALID_ARG
    )


def _is_yes(instance: Instance, name: str) -> bool:
    """Any other text is a no, and no error."""
    return (instance.text(name) or "").lower() == "yes"


def _with_inputs(openvino: Any, model: Any, instance: Instance) -> Any:
    """Takes the datatypes of the configuration, converted, and its batch, which is a constant."""
    config = instance.config
    largest = config["max_batch_size"]
    if (found := len(model.inputs)) != (expected := len(config["input"])):
        raise BackendError(
            f"unable to load model '{config['name']}', configuration expects {expected} inputs, "
            f"model provides {found}",
            INVALID_ARG,
        )
    steps = openvino.preprocess.PrePostProcessor(model)
    for io in config["input"]:
        shape = _shape(io, "input", model.inputs)
        tensor = steps.input(io["name"]).tensor()
        tensor.set_element_type(_element_type(openvino, io, "input", config))
        if _is_yes(instance, "RESHAPE_IO_LAYERS"):
            tensor.set_shape(openvino.PartialShape([*shape[: bool(largest)], *dims(io)]))
        else:
            _compare(io, shape, config, exact=False)
        if largest:
            tensor.set_layout(openvino.Layout("N..."))
    model = steps.build()
    if largest:
        openvino.set_batch(model, largest)
    return model


def _with_outputs(openvino: Any, model: Any, config: dict[str, Any]) -> Any:
    steps = openvino.preprocess.PrePostProcessor(model)
    for io in config["output"]:
        shape = _shape(io, "output", model.outputs)
        element_type = _element_type(openvino, io, "output", config)
        steps.output(io["name"]).tensor().set_element_type(element_type)
        _compare(io, shape, config, exact=True)
    return steps.build()


def _shape(io: dict[str, Any], kind: str, tensors: Any) -> list[int]:
    """What the model says, -1 for what is dynamic."""
    known = {tensor.get_any_name(): tensor for tensor in tensors}
    if io["name"] not in known:
        raise BackendError(
            f"unexpected inference {kind} '{io['name']}', allowed {kind}s are: "
            f"{', '.join(sorted(known))}",
            INVALID_ARG,
        )
    shape = known[io["name"]].get_partial_shape()
    return [d.get_length() if d.is_static else -1 for d in shape]


def _element_type(openvino: Any, io: dict[str, Any], kind: str, config: dict[str, Any]) -> Any:
    if io["data_type"] not in _TYPES:
        raise BackendError(
            f"unsupported datatype {io['data_type']} for {kind} '{io['name']}' for model "
            f"'{config['name']}'"
        )
    return getattr(openvino.Type, _TYPES[io["data_type"]])


def _compare(io: dict[str, Any], model: list[int], config: dict[str, Any], *, exact: bool) -> None:
    """With batching an input's batch is left out, and its dimensions may be declared as any."""
    largest = config["max_batch_size"]
    full = [largest, *dims(io)] if largest else dims(io)
    lenient = bool(largest) and not exact
    fits = len(model) == len(full) and all(
        m in (-1, f) or (lenient and (index == 0 or f == -1))
        for index, (m, f) in enumerate(zip(model, full, strict=True))
    )
    if not fits:
        initial = " (an initial batch dimension because max_batch_size > 0)" if largest else ""
        raise BackendError(
            f"model '{config['name']}', tensor '{io['name']}': the model expects {len(model)} "
            f"dimensions (shape {model}) but the model configuration specifies {len(full)} "
            f"dimensions{initial} (shape {full})",
            INVALID_ARG,
        )
