"""What the two stand-in backends share: the rules of Triton's official C++ backends.

Runs inside Triton's python stub, whose module `triton_python_backend_utils` exists only there.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as utils
from numpy.typing import NDArray

# One batch, its inputs in the config's order, to the outputs in the config's order.
RunBatch = Callable[[list[NDArray[Any]]], Sequence[NDArray[Any]]]


def model_path(args: dict[str, str], config: dict[str, Any], default: str) -> Path:
    """The file of this version; raises TritonModelException where there is none."""
    name = config.get("default_model_filename") or default
    path = Path(args["model_repository"], args["model_version"], name)
    if not path.is_file():
        raise utils.TritonModelException(
            f"unable to find '{path}' for model instance '{args['model_instance_name']}'"
        )
    return path


def parameter(config: dict[str, Any], name: str, default: str) -> str:
    """A parameter's value; names are case-sensitive and unknown ones ignored, as officially."""
    found: str = config.get("parameters", {}).get(name, {}).get("string_value", default)
    return found


def integer(config: dict[str, Any], name: str) -> int:
    text = parameter(config, name, "0")
    try:
        return int(text)
    except ValueError:
        raise utils.TritonModelException(
            f"failed to convert {name} '{text}' to integral number"
        ) from None


def boolean(config: dict[str, Any], name: str, default: bool) -> bool:
    text = parameter(config, name, str(default)).lower()
    if text not in ("true", "1", "false", "0"):
        raise utils.TritonModelException(f"failed to convert {name} '{text}' to boolean value")
    return text in ("true", "1")


def execute(requests: list[Any], config: dict[str, Any], run: RunBatch) -> list[Any]:
    """Answers requests: what the scheduler has batched runs in one call and is split again."""
    if config["max_batch_size"] == 0:
        return [response for request in requests for response in _execute([request], config, run)]
    return _execute(requests, config, run)


def _execute(requests: list[Any], config: dict[str, Any], run: RunBatch) -> list[Any]:
    inputs = [
        [utils.get_input_tensor_by_name(request, i["name"]).as_numpy() for request in requests]
        for i in config["input"]
    ]
    names = [o["name"] for o in config["output"]]
    try:
        outputs = run([parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in inputs])
    except Exception as error:  # whatever the runtime throws is these requests' answer
        failed = utils.InferenceResponse(error=utils.TritonError(str(error)))
        return [failed] * len(requests)
    if len(requests) == 1:
        return [_response(names, outputs)]
    ends = np.cumsum([len(part) for part in inputs[0]])[:-1]
    split = [np.split(output, ends) for output in outputs]
    return [_response(names, parts) for parts in zip(*split, strict=True)]


def _response(names: list[str], outputs: Sequence[NDArray[Any]]) -> Any:
    tensors = [utils.Tensor(name, array) for name, array in zip(names, outputs, strict=True)]
    return utils.InferenceResponse(tensors)
