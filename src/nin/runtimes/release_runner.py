"""Runs one export in the packages of the Python that runs this file: PYTHON release_runner.py FILE.

It stands alone: numpy, and onnxruntime or torch of any version. Batches come through stdin and
outputs go to stdout, as arrays in numpy's own format; each answer begins with the number of its
arrays, or with 0 and a text that says what failed.
"""

import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

Run = Callable[[Any], Sequence[Any]]


def open_onnx(path: str) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [taken] = session.get_inputs()

    def run(batch: Any) -> Sequence[Any]:
        outputs: Sequence[Any] = session.run(None, {taken.name: batch})
        return outputs

    return run


def open_torchscript(path: str) -> Run:
    import torch

    module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]

    def run(batch: Any) -> Sequence[Any]:
        with torch.inference_mode():
            outputs = module(torch.tensor(batch))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return [output.numpy() for output in outputs]

    return run


def send(stream: IO[bytes], array: Any) -> None:
    data = io.BytesIO()
    np.save(data, array)
    stream.write(data.tell().to_bytes(8, "little") + data.getvalue())
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Raises EOFError where nothing more comes."""
    size = int.from_bytes(stream.read(8), "little")
    data = stream.read(size)
    if not size or len(data) < size:
        raise EOFError
    return np.load(io.BytesIO(data))


OPEN = {".onnx": open_onnx, ".pt": open_torchscript}


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a package prints is no answer

    def answer(arrays: Sequence[Any], error: str = "") -> None:
        for array in (np.array(len(arrays)), *(arrays or [np.array(error)])):
            send(answers, array)

    try:
        run = OPEN[Path(sys.argv[1]).suffix](sys.argv[1])
        answer([np.array(True)])  # it is loaded
    except Exception as error:
        answer([], str(error) or type(error).__name__)
        return
    while True:
        try:
            batch = receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer(run(batch))
        except Exception as error:
            answer([], str(error) or type(error).__name__)


if __name__ == "__main__":
    main()
