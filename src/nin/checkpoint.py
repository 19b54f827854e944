"""Trained weights: a safetensors file with what is needed to rebuild and to judge them."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from nin.artifact import write_atomically
from nin.errors import InputError
from nin.model import NiN

# How files begin that torch.save writes, before and since torch 1.6; TorchScript is as the newer.
_PICKLE, _ZIP = b"\x80\x02", b"PK\x03\x04"


_CONVERT = (
    "load it into NiN() and write that with nin.checkpoint.save_checkpoint "
    '(README, "Use your own weights")'
)


@dataclass(frozen=True)
class Checkpoint:
    """A network in evaluation mode, how it was trained, how good it is."""

    network: NiN
    recipe: str
    metrics: dict[str, Any]
    sha256: str  # of the file


def save_checkpoint(path: Path, network: NiN, *, recipe: str, metrics: dict[str, Any]) -> None:
    """Writes the weights, the network's arguments, the recipe and the metrics, atomically."""
    metadata = {
        "arguments": json.dumps(network.arguments),
        "recipe": recipe,
        "metrics": json.dumps(metrics),
    }
    tensors = {name: t.contiguous() for name, t in network.state_dict().items()}
    write_atomically(path, save(tensors, metadata))


def load_checkpoint(path: Path) -> Checkpoint:
    """Rebuilds the network from its weights.

    Raises:
        InputError: the file isn't there, isn't a safetensors file of this project, or holds
            tensors that don't fit; the first that doesn't is named.
    """
    if not path.is_file():
        raise InputError(f"no weights file at {path}; the shipped ones are weights/nin.safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(_other_format(path, error)) from error
    _refuse_convertible(path, tensors)
    network = _build(path, metadata)
    _check_tensors(path, network, tensors)
    network.load_state_dict(tensors, assign=True)
    return Checkpoint(
        network=network.eval(),
        recipe=metadata.get("recipe", ""),
        metrics=_metrics(path, metadata),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def _other_format(path: Path, error: Exception) -> str:
    """What a file is that safetensors can't read, and what to do with it."""
    with path.open("rb") as file:
        start = file.read(100).lstrip()
    if start.startswith((_PICKLE, _ZIP)):
        return f"{path} is a file of torch.save, expected safetensors; {_CONVERT}"
    if start.startswith(b"{"):
        return (
            f"{path} is JSON, as the index of weights in several files is, expected the weights; "
            f"merge the tensors of the .safetensors files that it names, {_CONVERT}"
        )
    return f"{path} isn't a whole safetensors file ({error}); copy or train it again"


def _refuse_convertible(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Raises InputError for the network's tensors under other names or in another precision."""
    with torch.device("meta"):  # for its names only: no memory, no random numbers
        name = next(iter(NiN().state_dict()))
    prefix = next((n.removesuffix(name) for n in tensors if n.endswith(f".{name}")), "")
    if prefix and all(n.startswith(prefix) for n in tensors):
        raise InputError(
            f"{path} has {prefix!r} before the name of every tensor, as torch's wrappers of a "
            f"network add it; take it away: {{name.removeprefix({prefix!r}): tensor ...}}, "
            f"{_CONVERT}"
        )
    other = next(
        (
            n
            for n, t in tensors.items()
            if t.is_floating_point() and t.dtype != torch.get_default_dtype()
        ),
        "",
    )
    if other:
        raise InputError(
            f"{path} is in another precision: {other} is {_describe(tensors[other])}, expected "
            f"float32; {_CONVERT}: load_state_dict converts it"
        )


def _build(path: Path, metadata: dict[str, str]) -> NiN:
    if "arguments" not in metadata:
        raise InputError(
            f"{path} doesn't carry the network's arguments; "
            "write weights with nin.checkpoint.save_checkpoint"
        )
    try:
        with torch.device("meta"):  # shapes only: the tensors come from the file
            return NiN(**json.loads(metadata["arguments"]))
    except (TypeError, ValueError, RuntimeError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path} is of another network: arguments {metadata['arguments'][:100]} ({reason}); "
            f"expected those of NiN, such as {json.dumps(NiN().arguments)}"
        ) from error


def _metrics(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    try:
        return dict(json.loads(metadata.get("metrics", "{}")))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: its metrics aren't a JSON object; save it again") from error


def _check_tensors(path: Path, network: NiN, tensors: dict[str, torch.Tensor]) -> None:
    expected = network.state_dict()
    for name, parameter in expected.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise InputError(f"{path} is of another network: it has no tensor {name}")
        if tensor.shape != parameter.shape or tensor.dtype != parameter.dtype:
            raise InputError(
                f"{path} is of another network: {name} is {_describe(tensor)}, "
                f"expected {_describe(parameter)}"
            )
        if not tensor.isfinite().all():
            raise InputError(f"{path} can't be used: {name} holds NaN or infinity; train it again")
    if unknown := sorted(tensors.keys() - expected.keys()):
        raise InputError(f"{path} is of another network: NiN has no tensor {unknown[0]}")


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
