"""What the stand-in backends share: the rules by which Triton's C++ backends make batches."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

# Triton's error codes, of which its HTTP status follows: 500, 400, 501.
INTERNAL, INVALID_ARG, UNSUPPORTED = 1, 3, 5

Inputs = dict[str, NDArray[Any]]
Outputs = dict[str, NDArray[Any]]

# One batch, its inputs in the config's order, to the outputs in the config's order.
RunBatch = Callable[[list[NDArray[Any]]], Sequence[NDArray[Any]]]


class BackendError(Exception):
    """Why a request fails, or a model doesn't load, with Triton's code for it."""

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        super().__init__(message)
        self.triton_code = code


Answer = Outputs | BackendError


class Model(Protocol):
    """A loaded model instance."""

    def execute(self, requests: list[Inputs]) -> list[Answer]:
        """One answer to each request, in order; it doesn't raise."""


@dataclass(frozen=True)
class Instance:
    """What Triton says of one instance of a model."""

    config: dict[str, Any]
    folder: Path  # of this version
    name: str
    device: int | None  # the GPU's number, None for the CPU

    def file(self, default: str) -> Path:
        """The file of this version; raises BackendError where there is none."""
        path = self.folder / (self.config.get("default_model_filename") or default)
        if not path.is_file():
            raise BackendError(f"unable to find '{path}' for model instance '{self.name}'")
        return path

    def text(self, name: str) -> str | None:
        """A parameter; names are case-sensitive and unknown ones ignored, as officially."""
        value: str | None = self.config.get("parameters", {}).get(name, {}).get("string_value")
        return value

    def integer(self, name: str) -> int:
        """A parameter as C++'s stoi reads it, which stops at the first letter; else 0."""
        text = self.text(name)
        if text is None:
            return 0
        match = re.match(r"\s*[+-]?[0-9]+", text)
        if not match or abs(int(match[0])) >= 2**31:
            raise BackendError(
                f"{name}: failed to convert '{text}' to integral number", INVALID_ARG
            )
        return int(match[0])

    def boolean(self, name: str, default: bool) -> bool:
        text = self.text(name)
        if text is None:
            return default
        if text.lower() in ("true", "on", "1"):
            return True
        if text.lower() in ("false", "off", "0"):
            return False
        raise BackendError(f"{name}: failed to convert '{text}' to boolean", INVALID_ARG)


def dims(io: dict[str, Any]) -> list[int]:
    """An input's or output's dimensions as the model has them, without the batch."""
    return [int(d) for d in io.get("reshape", {}).get("shape", io["dims"])]


def execute(requests: list[Inputs], config: dict[str, Any], run: RunBatch) -> list[Answer]:
    """Answers requests: what the scheduler has batched runs in one call and is split again.

    One that isn't whole is refused alone: Triton's core lets some through.
    """
    answers: list[Answer | None] = [check(request, config) for request in requests]
    whole = [index for index, answer in enumerate(answers) if answer is None]
    batching = config["max_batch_size"] > 0
    for batch in [whole] if batching else [[index] for index in whole]:
        if not batch:
            continue
        results = _run([requests[index] for index in batch], config, run, batching=batching)
        for index, answer in zip(batch, results, strict=True):
            answers[index] = answer
    return [answer for answer in answers if answer is not None]


def check(request: Inputs, config: dict[str, Any]) -> BackendError | None:
    """What is wrong with a request: its inputs must be those of the config, and its batch real."""
    batching = config["max_batch_size"] > 0
    sizes = set()
    for io in config["input"]:
        array = request.get(io["name"])
        if array is None:
            return BackendError(f"no input '{io['name']}'", INVALID_ARG)
        expected = [-1, *dims(io)] if batching else dims(io)
        fits = all(e in (-1, d) for e, d in zip(expected, array.shape, strict=False))
        if len(expected) != array.ndim or not fits:
            return BackendError(
                f"input '{io['name']}' has shape {list(array.shape)}, expected {expected}",
                INVALID_ARG,
            )
        if batching:
            sizes.add(len(array))
    if sizes == {0}:
        return BackendError("the request is a batch of 0", INVALID_ARG)
    if len(sizes) > 1:
        return BackendError(f"inputs of different batch sizes: {sorted(sizes)}", INVALID_ARG)
    return None


def _run(
    requests: list[Inputs], config: dict[str, Any], run: RunBatch, *, batching: bool
) -> list[Answer]:
    names = [io["name"] for io in config["output"]]
    parts = [[request[io["name"]] for request in requests] for io in config["input"]]
    try:
        outputs = run([p[0] if len(p) == 1 else np.concatenate(p) for p in parts])
    except BackendError as error:
        return [error] * len(requests)
    except Exception as error:  # whatever the runtime throws is these requests' answer
        return [BackendError(str(error))] * len(requests)
    named = dict(zip(names, outputs, strict=True))
    if not batching:
        return [named]
    ends = np.cumsum([0, *map(len, parts[0])]).tolist()
    return [_split(named, start, end) for start, end in pairwise(ends)]


def _split(outputs: Outputs, start: int, end: int) -> Answer:
    """One request's rows of a batch's outputs."""
    for name, output in outputs.items():
        rows = len(output) if output.ndim else 0
        if rows < end:
            return BackendError(
                f"failed to split the output tensor '{name}' in responses: expected batch size "
                f"of at least {end} in model output, got {rows}",
                UNSUPPORTED,
            )
    return {name: output[start:end] for name, output in outputs.items()}
