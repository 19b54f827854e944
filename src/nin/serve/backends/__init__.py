"""What the embedded server's backends run: stand-ins for the official ones, in Python.

cpp_client/triton_backend calls `load` for every model instance, in the server's own process, and
then `execute` of what it gives for every batch of requests. The stand-ins run the real packages
under the official backends' rules: the same file names, naming conventions, checks and messages.
"""

import importlib
import json
import os
from pathlib import Path
from typing import Any

from nin.serve.backends.batching import UNSUPPORTED, BackendError, Instance, Model
from nin.serve.backends.warmup import try_warmup

# By the name that config.pbtxt gives, the module that stands in for that backend.
BACKENDS = {
    "onnxruntime": "onnxruntime_backend",
    "openvino": "openvino_backend",
    "python": "python_backend",
    "pytorch": "pytorch_backend",
}


def load(
    backend: str, config: str, folder: bytes, version: int, name: str, device: int | None
) -> Model:
    """Loads one instance of a model. Whatever is raised is why the model can't be loaded.

    Args:
        config: the model's whole configuration as JSON.
        folder: of the model in the repository, as the file system spells it.
        device: the GPU's number, None for the CPU.
    """
    parsed: dict[str, Any] = json.loads(config)
    _require_supported(parsed)
    instance = Instance(parsed, Path(os.fsdecode(folder), str(version)), name, device)
    module = importlib.import_module(f"{__name__}.{BACKENDS[backend]}")
    model: Model = module.load(instance)
    try_warmup(model, instance)
    return model


def _require_supported(config: dict[str, Any]) -> None:
    """Raises BackendError naming what a configuration asks for and no stand-in does."""
    asked_for = {
        "sequence_batching": "sequence_batching" in config,
        "allow_ragged_batch": any(io.get("allow_ragged_batch") for io in config["input"]),
        "batch_input": config.get("batch_input"),
        "batch_output": config.get("batch_output"),
        "model_transaction_policy decoupled": config.get("model_transaction_policy", {}).get(
            "decoupled"
        ),
    }
    for name, asked in asked_for.items():
        if asked:
            raise BackendError(
                f"the embedded server doesn't do {name}; take it out of config.pbtxt, or use the "
                "official container",
                UNSUPPORTED,
            )
