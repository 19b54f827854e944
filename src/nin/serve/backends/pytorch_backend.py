"""Stands in for Triton's pytorch backend where there is no container.

The same file, naming conventions and checks as the C++ backend, and the same parameters:
https://github.com/triton-inference-server/pytorch_backend
"""

import re
from typing import Any

import torch
from numpy.typing import NDArray

from nin.network.torch_settings import ignore_deprecations
from nin.serve.backends.batching import (
    INVALID_ARG,
    Answer,
    BackendError,
    Inputs,
    Instance,
    execute,
)

_TYPES = {
    "TYPE_BOOL": torch.bool,
    "TYPE_UINT8": torch.uint8,
    "TYPE_INT8": torch.int8,
    "TYPE_INT16": torch.int16,
    "TYPE_INT32": torch.int32,
    "TYPE_INT64": torch.int64,
    "TYPE_FP16": torch.float16,
    "TYPE_FP32": torch.float32,
    "TYPE_FP64": torch.float64,
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}

# Whether a switch is on, to what turns it; process-wide in the C++ backend too.
_SWITCHES: dict[str, Any] = {
    "ENABLE_JIT_PROFILING": torch._C._jit_set_profiling_mode,
    "ENABLE_JIT_EXECUTOR": torch._C._jit_set_profiling_executor,
    "ENABLE_TENSOR_FUSER": torch._C._jit_set_texpr_fuser_enabled,
}


class TorchModel:
    def __init__(self, instance: Instance) -> None:
        self._config = instance.config
        path = instance.file("model.pt")
        self._device = "cpu" if instance.device is None else f"cuda:{instance.device}"
        self._inference_mode = instance.boolean("INFERENCE_MODE", True)
        self._optimized = not instance.boolean("DISABLE_OPTIMIZED_EXECUTION", False)
        _configure(instance)
        try:
            with ignore_deprecations():
                self._module = torch.jit.load(path, map_location=self._device)  # type: ignore[no-untyped-call]
        except Exception as error:
            name = self._config["name"]
            raise BackendError(f"failed to load model '{name}': {error}") from error
        self._order = _input_order(self._module, self._config)
        self._indices = _output_indices(self._config)

    def execute(self, requests: list[Inputs]) -> list[Answer]:
        return execute(requests, self._config, self._run)

    def _run(self, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        torch._C._set_graph_executor_optimize(self._optimized)  # of this thread
        try:
            with torch.inference_mode(self._inference_mode), torch.no_grad():
                arguments = [torch.tensor(inputs[i], device=self._device) for i in self._order]
                results = _tensors(self._module(*arguments))
        except Exception as error:  # TorchScript's exceptions share no other base class
            raise BackendError(f"PyTorch execute failure: {error}") from error
        return [
            _output(results, index, io)
            for index, io in zip(self._indices, self._config["output"], strict=True)
        ]


load = TorchModel


def _configure(instance: Instance) -> None:
    """Reads every parameter of the official backend; a value that isn't one ends the load."""
    for name in ("ENABLE_CACHE_CLEANING", "ENABLE_WEIGHT_SHARING"):  # of GPU memory, between GPUs
        instance.boolean(name, False)
    torch.backends.cudnn.enabled = not instance.boolean("DISABLE_CUDNN", False)
    for name, turn in _SWITCHES.items():
        if instance.text(name) is not None:
            turn(instance.boolean(name, False))
    if (threads := instance.integer("INTRA_OP_THREAD_COUNT")) > 0:
        torch.set_num_threads(threads)
    if (threads := instance.integer("INTER_OP_THREAD_COUNT")) > 0:
        try:
            torch.set_num_interop_threads(threads)
        except RuntimeError as error:  # the second time; it would end the official server
            raise BackendError(f"INTER_OP_THREAD_COUNT: {error}", INVALID_ARG) from error


def _input_order(module: torch.jit.ScriptModule, config: dict[str, Any]) -> list[int]:
    """For every argument of forward() the config's input that goes there.

    By the names of the arguments if all inputs have one, else by <name>__<index>, else in order.
    """
    forward: Any = module.forward
    arguments = [a for a in forward.schema.arguments if a.name != "self"]
    for argument in arguments:
        if not argument.type.isSubtypeOf(torch._C.TensorType.get()):
            raise BackendError(
                f"An input of type '{argument.type}' was detected in the model. "
                "This server takes inputs of type Tensor."
            )
    names = [i["name"] for i in config["input"]]
    if len(arguments) != len(names):
        raise BackendError(
            f"unable to load model '{config['name']}', configuration expects {len(names)} inputs, "
            f"model provides {len(arguments)}",
            INVALID_ARG,
        )
    _check_types(config, "input")
    known = [a.name for a in arguments]
    if set(names) <= set(known):
        return [names.index(argument) for argument in known]
    indices = _indices(names)
    if sorted(indices) != list(range(len(names))):
        raise BackendError(
            f"inputs {names} have the indices {indices}, expected 0 to {len(names) - 1}",
            INVALID_ARG,
        )
    return [indices.index(position) for position in range(len(names))]


def _output_indices(config: dict[str, Any]) -> list[int]:
    if not config["output"]:
        raise BackendError(
            "model configuration must contain at least one output, none were specified."
        )
    _check_types(config, "output")
    return _indices([o["name"] for o in config["output"]])


def _indices(names: list[str]) -> list[int]:
    """By <name>__<index>, where the first `__` counts, if all are of that form; else in order."""
    ends = [name.partition("__") for name in names]
    if all(mark and re.fullmatch("[0-9]*", index) for _, mark, index in ends):
        return [int(index or 0) for *_, index in ends]
    return list(range(len(names)))


def _check_types(config: dict[str, Any], kind: str) -> None:
    for io in config[kind]:
        if io["data_type"] not in _TYPES:
            raise BackendError(
                f"unsupported datatype {io['data_type']} for {kind} '{io['name']}' "
                f"for model '{config['name']}'"
            )


def _tensors(result: Any) -> tuple[torch.Tensor, ...]:
    """What a module may return: a tensor, or a tuple of them. A list is none, as officially."""
    results = result if isinstance(result, tuple) else (result,)
    for index, item in enumerate(results):
        if not isinstance(item, torch.Tensor):
            raise TypeError(
                f"output at index {index} must be of type Tensor, received {type(item).__name__}"
            )
    return results


def _output(results: tuple[torch.Tensor, ...], index: int, io: dict[str, Any]) -> NDArray[Any]:
    """One output; a wrong index or datatype is noticed only here, as in the C++ backend."""
    if index >= len(results):
        raise BackendError(
            f"The output {io['name']} in the model configuration refers to an output index "
            f"which doesn't exist. This model has {len(results)} outputs",
            INVALID_ARG,
        )
    tensor = results[index]
    if tensor.dtype != _TYPES[io["data_type"]]:
        raise BackendError(
            f"configuration expects datatype {io['data_type']} for output '{io['name']}', "
            f"model provides {_NAMES.get(tensor.dtype, tensor.dtype)}",
            INVALID_ARG,
        )
    if tensor.ndim == 0:
        raise BackendError(
            f"output '{io['name']}' is a scalar which is not supported.", INVALID_ARG
        )
    array: NDArray[Any] = tensor.contiguous().cpu().numpy()
    return array
