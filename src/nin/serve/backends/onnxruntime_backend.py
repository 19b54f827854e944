"""Stands in for Triton's onnxruntime backend where there is no container.

The same file, names and checks at load as the C++ backend, and those of its parameters below:
https://github.com/triton-inference-server/onnxruntime_backend
"""

from typing import Any

import onnxruntime
from numpy.typing import NDArray

from nin.serve.backends.batching import (
    INVALID_ARG,
    Answer,
    BackendError,
    Inputs,
    Instance,
    dims,
    execute,
)

# `optimization { graph { level } }`; the C++ backend reads 0, the default, as everything.
_LEVELS = {
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(double)": "TYPE_FP64",
    "tensor(float)": "TYPE_FP32",
    "tensor(float16)": "TYPE_FP16",
    "tensor(string)": "TYPE_STRING",
    **{f"tensor({kind}{bits})": f"TYPE_{kind.upper()}{bits}"
       for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}  # fmt: skip


class OnnxModel:
    def __init__(self, instance: Instance) -> None:
        self._config = instance.config
        self._session = _open(instance)
        _check(self._session, self._config)
        self._inputs = [i["name"] for i in self._config["input"]]
        self._outputs = [o["name"] for o in self._config["output"]]

    def execute(self, requests: list[Inputs]) -> list[Answer]:
        return execute(requests, self._config, self._run)

    def _run(self, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        try:
            feed = dict(zip(self._inputs, inputs, strict=True))
            outputs: list[NDArray[Any]] = self._session.run(self._outputs, feed)
        except Exception as error:  # its exceptions share no other base class
            raise BackendError(f"onnx runtime error: {error}") from error
        return outputs


load = OnnxModel


def _open(instance: Instance) -> onnxruntime.InferenceSession:
    path, config = instance.file("model.onnx"), instance.config
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    level = config.get("optimization", {}).get("graph", {}).get("level", 0)
    options.graph_optimization_level = _LEVELS.get(
        level, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    )
    mode = instance.integer("execution_mode")
    if mode not in (0, 1):
        raise BackendError(
            f"Invalid configuration value provided. Expected values for execution_mode "
            f"are 0 or 1 but got {mode}."
        )
    options.execution_mode = (
        onnxruntime.ExecutionMode.ORT_PARALLEL if mode else onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    )
    options.intra_op_num_threads = instance.integer("intra_op_thread_count")
    options.inter_op_num_threads = instance.integer("inter_op_thread_count")
    options.enable_cpu_mem_arena = instance.boolean("enable_mem_arena", True)
    options.enable_mem_pattern = instance.boolean("enable_mem_pattern", True)
    _refuse_accelerators(instance)
    providers: list[Any] = ["CPUExecutionProvider"]
    if instance.device is not None:
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": instance.device}))
    try:
        session = onnxruntime.InferenceSession(path, options, providers)
    except Exception as error:
        raise BackendError(f"onnx runtime error: {error}") from error
    if instance.device is not None and "CUDAExecutionProvider" not in session.get_providers():
        raise BackendError(
            f"unable to load model '{config['name']}': onnxruntime has no CUDA here; "
            "set the instance group's kind to KIND_CPU"
        )
    return session


def _refuse_accelerators(instance: Instance) -> None:
    """None is built in here but CUDA: what isn't known is refused, as officially."""
    accelerators = instance.config.get("optimization", {}).get("execution_accelerators", {})
    requested = list(accelerators.get("cpu_execution_accelerator", []))
    if instance.device is not None:
        gpu = accelerators.get("gpu_execution_accelerator", [])
        requested += [a for a in gpu if a["name"] != "cuda"]
    for accelerator in requested:
        raise BackendError(
            f"unknown Execution Accelerator '{accelerator['name']}' is requested", INVALID_ARG
        )


def _check(session: onnxruntime.InferenceSession, config: dict[str, Any]) -> None:
    """The config must describe the model: count of inputs, names, datatypes, shapes."""
    found, expected = len(session.get_inputs()), len(config["input"])
    if found != expected:
        raise BackendError(
            f"unable to load model '{config['name']}', configuration expects {expected} inputs, "
            f"model provides {found}",
            INVALID_ARG,
        )
    for kind, tensors in (("input", session.get_inputs()), ("output", session.get_outputs())):
        known = {tensor.name: tensor for tensor in tensors}
        for io in config[kind]:
            if io["name"] not in known:
                raise BackendError(
                    f"unexpected inference {kind} '{io['name']}', allowed {kind}s are: "
                    f"{', '.join(sorted(known))}",
                    INVALID_ARG,
                )
            _check_tensor(io, known[io["name"]], kind, config)


def _check_tensor(io: dict[str, Any], tensor: Any, kind: str, config: dict[str, Any]) -> None:
    name, datatype = io["name"], _TYPES.get(tensor.type, tensor.type)
    if io["data_type"] != datatype:
        raise BackendError(
            f"unable to load model '{config['name']}', configuration expects datatype "
            f"{io['data_type']} for {kind} '{name}', model provides {datatype}",
            INVALID_ARG,
        )
    model = [d if isinstance(d, int) else -1 for d in tensor.shape]
    batching = config["max_batch_size"] > 0
    if batching and (not model or model[0] != -1):
        raise BackendError(
            f"model '{config['name']}', tensor '{name}': for the model to support batching the "
            "shape should have at least 1 dimension and the first dimension must be -1; but "
            f"shape expected by the model is {model}",
            INVALID_ARG,
        )
    full = [-1, *dims(io)] if batching else dims(io)
    # a model's dynamic dimension takes any size of an input, an output must be declared as it is
    fits = len(model) == len(full) and all(
        m == f or (kind == "input" and m == -1) for m, f in zip(model, full, strict=True)
    )
    if not fits:
        raise BackendError(
            f"model '{config['name']}', tensor '{name}': the model expects {len(model)} dimensions "
            f"(shape {model}) but the model configuration specifies {len(full)} dimensions "
            f"(shape {full})",
            INVALID_ARG,
        )
