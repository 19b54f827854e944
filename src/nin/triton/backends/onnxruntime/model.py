"""Stands in for Triton's onnxruntime backend where there is no container.

The same file, names and checks at load as the C++ backend, and those of its parameters below:
https://github.com/triton-inference-server/onnxruntime_backend
"""

import json
import os
from pathlib import Path
from typing import Any

import onnxruntime
import triton_python_backend_utils as utils
from numpy.typing import NDArray

from nin.triton.stand_in import boolean, execute, integer, model_path

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


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._config = json.loads(args["model_config"])
        path = model_path(args, self._config, "model.onnx")
        on_gpu = args["model_instance_kind"] == "GPU"
        device = int(args["model_instance_device_id"]) if on_gpu else None
        self._session = _open(path, self._config, device)
        _check(self._session, self._config)
        self._inputs = [i["name"] for i in self._config["input"]]
        self._outputs = [o["name"] for o in self._config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        return execute(requests, self._config, self._run)

    def _run(self, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        try:
            feed = dict(zip(self._inputs, inputs, strict=True))
            outputs: list[NDArray[Any]] = self._session.run(self._outputs, feed)
        except Exception as error:  # its exceptions share no other base class
            raise RuntimeError(f"onnx runtime error: {error}") from error
        return outputs


def _open(path: Path, config: dict[str, Any], device: int | None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    level = config.get("optimization", {}).get("graph", {}).get("level", 0)
    options.graph_optimization_level = _LEVELS.get(
        level, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    )
    mode = integer(config, "execution_mode")
    if mode not in (0, 1):
        raise utils.TritonModelException(
            f"Invalid configuration value provided. Expected values for execution_mode "
            f"are 0 or 1 but got {mode}."
        )
    options.execution_mode = (
        onnxruntime.ExecutionMode.ORT_PARALLEL if mode else onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    )
    # beyond the C++ backend: OMP_NUM_THREADS, so that `serve.py --threads` limits all models
    threads = integer(config, "intra_op_thread_count") or int(os.environ.get("OMP_NUM_THREADS", 0))
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = integer(config, "inter_op_thread_count")
    options.enable_cpu_mem_arena = boolean(config, "enable_mem_arena", True)
    options.enable_mem_pattern = boolean(config, "enable_mem_pattern", True)
    providers: list[Any] = ["CPUExecutionProvider"]
    if device is not None:
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device}))
    try:
        session = onnxruntime.InferenceSession(path, options, providers)
    except Exception as error:
        raise utils.TritonModelException(f"onnx runtime error: {error}") from error
    if device is not None and "CUDAExecutionProvider" not in session.get_providers():
        raise utils.TritonModelException(
            f"unable to load model '{config['name']}': onnxruntime has no CUDA here; "
            "set the instance group's kind to KIND_CPU"
        )
    return session


def _check(session: onnxruntime.InferenceSession, config: dict[str, Any]) -> None:
    """The config must describe the model: count of inputs, names, datatypes, shapes."""
    found, expected = len(session.get_inputs()), len(config["input"])
    if found != expected:
        raise utils.TritonModelException(
            f"unable to load model '{config['name']}', configuration expects {expected} inputs, "
            f"model provides {found}"
        )
    for kind, tensors in (("input", session.get_inputs()), ("output", session.get_outputs())):
        known = {tensor.name: tensor for tensor in tensors}
        for io in config[kind]:
            if io["name"] not in known:
                raise utils.TritonModelException(
                    f"unexpected inference {kind} '{io['name']}', allowed {kind}s are: "
                    f"{', '.join(sorted(known))}"
                )
            _check_tensor(io, known[io["name"]], kind, config)


def _check_tensor(io: dict[str, Any], tensor: Any, kind: str, config: dict[str, Any]) -> None:
    name, datatype = io["name"], _TYPES.get(tensor.type, tensor.type)
    if io["data_type"] != datatype:
        raise utils.TritonModelException(
            f"unable to load model '{config['name']}', configuration expects datatype "
            f"{io['data_type']} for {kind} '{name}', model provides {datatype}"
        )
    model = [d if isinstance(d, int) else -1 for d in tensor.shape]
    dims = [int(d) for d in io.get("reshape", {}).get("shape", io["dims"])]
    batching = config["max_batch_size"] > 0
    if batching and (not model or model[0] != -1):
        raise utils.TritonModelException(
            f"model '{config['name']}', tensor '{name}': for the model to support batching the "
            "shape should have at least 1 dimension and the first dimension must be -1; but "
            f"shape expected by the model is {model}"
        )
    full = [-1, *dims] if batching else dims
    # a model's dynamic dimension takes any size of an input, an output must be declared as it is
    fits = len(model) == len(full) and all(
        m == f or (kind == "input" and m == -1) for m, f in zip(model, full, strict=True)
    )
    if not fits:
        raise utils.TritonModelException(
            f"model '{config['name']}', tensor '{name}': the model expects {len(model)} dimensions "
            f"(shape {model}) but the model configuration specifies {len(full)} dimensions "
            f"(shape {full})"
        )
