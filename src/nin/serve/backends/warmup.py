"""Tries a model's warm-up before Triton runs it: one that fails there ends the whole server.

Triton 24.10 frees the error of a failed warm-up twice.
"""

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nin.serve.backends.batching import INVALID_ARG, BackendError, Instance, Model

_DTYPES = {
    "TYPE_BOOL": "?",
    "TYPE_FP16": "f2",
    "TYPE_FP32": "f4",
    "TYPE_FP64": "f8",
    **{f"TYPE_INT{8 * size}": f"i{size}" for size in (1, 2, 4, 8)},
    **{f"TYPE_UINT{8 * size}": f"u{size}" for size in (1, 2, 4, 8)},
}


def try_warmup(model: Model, instance: Instance) -> None:
    """Raises BackendError where a sample of `model_warmup` would fail."""
    batching = instance.config["max_batch_size"] > 0
    for sample in instance.config.get("model_warmup", []):
        try:
            request = {
                name: _array(spec, instance, batching=batching)
                for name, spec in sample["inputs"].items()
            }
        except (OSError, ValueError, KeyError):
            return  # Triton says itself that it can't read the data
        count = max(1, int(sample.get("batch_size", 1)))  # requests of one, in one batch
        for answer in model.execute([request] * count):
            if isinstance(answer, BackendError):
                raise BackendError(f"warm-up '{sample['name']}' fails: {answer}", INVALID_ARG)


def _array(spec: dict[str, Any], instance: Instance, *, batching: bool) -> NDArray[Any]:
    """One input of a sample, from its file or else zeros."""
    shape = [*([1] if batching else []), *map(int, spec["dims"])]
    file = spec.get("input_data_file")
    data = (instance.folder.parent / "warmup" / file).read_bytes() if file else None
    if spec["data_type"] == "TYPE_STRING":
        strings = _strings(data or bytes(4 * prod(shape)))
        array = np.empty(len(strings), dtype=object)
        array[:] = strings
        return array.reshape(shape)
    dtype = np.dtype(_DTYPES[spec["data_type"]])
    return np.zeros(shape, dtype) if data is None else np.frombuffer(data, dtype).reshape(shape)


def _strings(data: bytes) -> list[bytes]:
    """Triton's form: each its length in four bytes, little-endian, and itself."""
    strings = []
    while data:
        end = 4 + int.from_bytes(data[:4], "little")
        strings.append(data[4:end])
        data = data[end:]
    return strings
