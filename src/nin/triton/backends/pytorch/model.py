"""Stands in for Triton's pytorch backend where there is no container.

The same file, naming conventions and checks as the C++ backend, and those of its parameters below:
https://github.com/triton-inference-server/pytorch_backend
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
import triton_python_backend_utils as utils
from numpy.typing import NDArray

from nin.torch_settings import ignore_deprecations
from nin.triton.stand_in import boolean, execute, integer, model_path

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
_INDEXED = re.compile(r".*?__(\d*)")  # <name>__<index>


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._config = json.loads(args["model_config"])
        path = model_path(args, self._config, "model.pt")
        if threads := integer(self._config, "INTRA_OP_THREAD_COUNT"):
            torch.set_num_threads(threads)
        self._inference_mode = boolean(self._config, "INFERENCE_MODE", True)
        # process-wide in the C++ backend as well
        optimized = not boolean(self._config, "DISABLE_OPTIMIZED_EXECUTION", False)
        torch._C._set_graph_executor_optimize(optimized)
        on_gpu = args["model_instance_kind"] == "GPU"
        self._device = f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu"
        self._module = _load(path, self._config["name"], self._device)
        self._order = _input_order(self._module, self._config)
        self._indices = _output_indices(self._config)

    def execute(self, requests: list[Any]) -> list[Any]:
        return execute(requests, self._config, self._run)

    def _run(self, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        try:
            with torch.inference_mode(self._inference_mode), torch.no_grad():
                arguments = [torch.tensor(inputs[i], device=self._device) for i in self._order]
                result = self._module(*arguments)
        except Exception as error:  # TorchScript's exceptions share no other base class
            raise RuntimeError(f"PyTorch execute failure: {error}") from error
        results = (result,) if isinstance(result, torch.Tensor) else tuple(result)
        return [
            _output(results, index, io)
            for index, io in zip(self._indices, self._config["output"], strict=True)
        ]


def _load(path: Path, name: str, device: str) -> torch.jit.ScriptModule:
    try:
        with ignore_deprecations():
            module = torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise utils.TritonModelException(f"failed to load model '{name}': {error}") from error
    loaded: torch.jit.ScriptModule = module.eval()
    return loaded


def _input_order(module: torch.jit.ScriptModule, config: dict[str, Any]) -> list[int]:
    """For every argument of forward() the config's input that goes there.

    By the names of the arguments if all inputs have one, else by <name>__<index>, else in order.
    """
    forward: Any = module.forward
    arguments = [a.name for a in forward.schema.arguments if a.name != "self"]
    names = [i["name"] for i in config["input"]]
    if len(arguments) != len(names):
        raise utils.TritonModelException(
            f"unable to load model '{config['name']}', configuration expects {len(names)} inputs, "
            f"model provides {len(arguments)}"
        )
    _check_types(config, "input")
    if set(names) <= set(arguments):
        return [names.index(argument) for argument in arguments]
    indices = _indices(names)
    return [indices.index(position) for position in range(len(names))]


def _output_indices(config: dict[str, Any]) -> list[int]:
    if not config["output"]:
        raise utils.TritonModelException(
            "model configuration must contain at least one output, none were specified."
        )
    _check_types(config, "output")
    return _indices([o["name"] for o in config["output"]])


def _indices(names: list[str]) -> list[int]:
    """By <name>__<index> if all names are of that form, else in the config's order."""
    found = [_INDEXED.fullmatch(name) for name in names]
    if all(found):
        return [int(match[1] or 0) for match in found if match]
    return list(range(len(names)))


def _check_types(config: dict[str, Any], kind: str) -> None:
    for io in config[kind]:
        if io["data_type"] not in _TYPES:
            raise utils.TritonModelException(
                f"unsupported datatype {io['data_type']} for {kind} '{io['name']}' "
                f"for model '{config['name']}'"
            )


def _output(results: tuple[torch.Tensor, ...], index: int, io: dict[str, Any]) -> NDArray[Any]:
    """One output; a wrong index or datatype is noticed only here, as in the C++ backend."""
    if index >= len(results):
        raise RuntimeError(
            f"The output {io['name']} in the model configuration refers to an output index "
            f"which doesn't exist. This model has {len(results)} outputs"
        )
    tensor = results[index]
    if tensor.dtype != _TYPES[io["data_type"]]:
        raise RuntimeError(
            f"configuration expects datatype {io['data_type']} for output '{io['name']}', "
            f"model provides {_NAMES.get(tensor.dtype, tensor.dtype)}"
        )
    return tensor.contiguous().cpu().numpy()
