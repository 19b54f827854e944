"""Weights as people have them: safetensors, or a state dict of torch.save, bare or wrapped."""

import json
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from nin.errors import InputError, first_line
from nin.files import write_atomically

# Keys under which trainers keep the state dict, in the order in which one of several is chosen.
WRAPPING_KEYS = (
    "state_dict", "model_state_dict", "model", "ema", "params_ema", "params", "net", "weights",
)  # fmt: skip

# How files begin that torch.save writes, before and since torch 1.6; TorchScript is as the newer.
_PICKLE, _ZIP = b"\x80\x02", b"PK\x03\x04"
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError)
_LFS = b"version https://git-lfs"

# Buffers that no evaluation reads: of batch norm, and of torch.optim.swa_utils.AveragedModel.
_COUNTERS = ("num_batches_tracked", "n_averaged")

_SAVE = "torch.save(network.state_dict(), 'weights.pt')"


def save_weights(path: Path, network: nn.Module, *, recipe: str, metrics: dict[str, Any]) -> None:
    """Writes a safetensors file with the recipe and the metrics beside the weights."""
    metadata = {"recipe": recipe, "metrics": json.dumps(metrics)}
    tensors = {name: t.contiguous() for name, t in network.state_dict().items()}
    write_atomically(path, save(tensors, metadata))


def load_weights(network: nn.Module, path: Path) -> list[str]:
    """Fills in the network's weights: every tensor, and none left over.

    Returns:
        what was done to make them fit, a line each.

    Raises:
        InputError: says what the file is, or which tensor doesn't fit, and what helps.
    """
    notes: list[str] = []
    tensors = dict(_read(path, notes))
    expected = network.state_dict()
    tensors = _without_prefix(tensors, expected, path, notes)
    tensors = _without_counters(tensors, expected)
    tensors = _converted(tensors, expected, path, notes)
    _check(tensors, expected, path)
    network.load_state_dict(tensors, strict=True)
    return notes


def _read(path: Path, notes: list[str]) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise InputError(f"no weights file at {path}; expected safetensors or a state dict (.pt)")
    with path.open("rb") as file:
        start = file.read(100)
    if start.startswith((_PICKLE, _ZIP)):
        return _read_pickle(path, notes)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        if start.startswith(_LFS):
            raise InputError(
                f"{path} is a pointer of Git LFS, expected the weights; fetch them: `git lfs pull`"
            ) from error
        if start.lstrip().startswith(b"{"):
            raise InputError(
                f"{path} is JSON, as the index of weights in several files is, expected the "
                "weights; merge the files that it names: `safetensors.torch.load_file` each, "
                "`safetensors.torch.save_file` all their tensors"
            ) from error
        raise InputError(
            f"{path} is neither a whole safetensors file nor a state dict of torch.save ({error}); "
            "copy it again"
        ) from error


def _read_pickle(path: Path, notes: list[str]) -> Mapping[str, Tensor]:
    """The state dict in a file of torch.save, unpickled without running code."""
    if zipfile.is_zipfile(path):
        _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error).lower():
            raise InputError(f"{path} isn't a whole file of torch.save; copy it again") from error
        raise InputError(
            f"{path} holds other objects than tensors, such as a whole pickled module, and "
            f"unpickling those would run code; load it where that code is, and {_SAVE}"
        ) from error
    except Exception as error:  # torch.load raises whatever its parts raise
        raise InputError(
            f"{path} isn't a whole file of torch.save ({first_line(error)}); copy it again"
        ) from error
    return _unwrapped(content, path, notes)


def _check_archive(path: Path) -> None:
    """Raises InputError where it is no archive of weights, or damaged: torch.load doesn't look."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise InputError(
                    f"{path} is a TorchScript file, a program with its weights; save the state "
                    f"dict of the network that it was made from: {_SAVE}"
                )
            damaged = archive.testzip()
    except _BROKEN_ZIP as error:
        raise InputError(
            f"{path} isn't a whole file of torch.save ({first_line(error)}); copy it again"
        ) from error
    if damaged:
        raise InputError(f"{path} is damaged: its {damaged} has changed; copy it again")


def _unwrapped(content: Any, path: Path, notes: list[str]) -> Mapping[str, Tensor]:
    seen: list[int] = []  # a dictionary may hold itself
    while isinstance(content, Mapping) and id(content) not in seen:
        seen.append(id(content))
        inner = next((key for key in WRAPPING_KEYS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        notes.append(f"{path}: took the weights under {inner!r}")
        content = content[inner]
    if not isinstance(content, Mapping) or not content:
        held = "nothing" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise InputError(f"{path} holds {held}, expected a state dict; write one by {_SAVE}")
    for name, value in content.items():
        if not isinstance(name, str):
            raise InputError(
                f"{path} isn't a state dict: {name!r} is a key, expected the names of tensors; "
                f"write one by {_SAVE}"
            )
        if isinstance(value, Tensor) and not _is_plain(value):
            raise InputError(
                f"{path} can't be used: {name} is a sparse, nested or meta tensor, expected "
                "dense ones"
            )
        if not isinstance(value, Tensor):
            raise InputError(
                f"{path} isn't a state dict: {name!r} is of type {type(value).__name__}, expected "
                f"tensors, or the state dict under one of {', '.join(WRAPPING_KEYS)}"
            )
    return content


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not (tensor.is_nested or tensor.is_meta)


def _without_prefix(
    tensors: dict[str, Tensor], expected: dict[str, Tensor], path: Path, notes: list[str]
) -> dict[str, Tensor]:
    """Takes off what wrappers of a network, DataParallel's say, put before every name."""
    known = next(iter(expected), "")
    prefix = next((n.removesuffix(known) for n in tensors if n.endswith(f".{known}")), "")
    named = [name for name in tensors if name not in _COUNTERS]
    if known in tensors or not prefix or not all(name.startswith(prefix) for name in named):
        return tensors
    notes.append(f"{path}: took {prefix!r} off the names of the tensors")
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _without_counters(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Neither too many nor too few of the buffers that no evaluation reads."""
    counters = {n: t for n, t in expected.items() if n.rpartition(".")[2] in _COUNTERS}
    kept = {n: t for n, t in tensors.items() if n in expected or n not in _COUNTERS}
    return {**counters, **kept}


def _converted(
    tensors: dict[str, Tensor], expected: dict[str, Tensor], path: Path, notes: list[str]
) -> dict[str, Tensor]:
    """Floating-point tensors in the network's precision."""
    converted = {
        name: tensor.to(expected[name].dtype)
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and name in expected and tensor.dtype != expected[name].dtype
    }
    if converted:
        before, after = (
            ", ".join(sorted({_dtype(one[name]) for name in converted}))
            for one in (tensors, converted)
        )
        notes.append(f"{path}: converted {before} to {after}")
    return tensors | converted


def _check(tensors: dict[str, Tensor], expected: dict[str, Tensor], path: Path) -> None:
    """Raises InputError naming the first tensor that doesn't fit."""
    for name, parameter in expected.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise InputError(
                f"{path} is of another network: it has no tensor {name}"
                + _examples(tensors.keys() - expected.keys())
            )
        if tensor.shape != parameter.shape or tensor.dtype != parameter.dtype:
            raise InputError(
                f"{path} is of another network: {name} is {_describe(tensor)}, "
                f"expected {_describe(parameter)}"
            )
        if not tensor.isfinite().all():
            raise InputError(f"{path} can't be used: {name} holds NaN or infinity; train it again")
    if unknown := sorted(tensors.keys() - expected.keys()):
        raise InputError(f"{path} is of another network, which has no tensor {unknown[0]}")


def _examples(names: set[str]) -> str:
    return f", but {min(names)}" if names else ""


def _describe(tensor: Tensor) -> str:
    return f"{_dtype(tensor)} {tuple(tensor.shape)}"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
