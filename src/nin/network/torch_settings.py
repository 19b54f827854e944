"""Settings of PyTorch that tracing, exporting and running share."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch


def without_tf32() -> AbstractContextManager[None]:
    """Makes cuDNN's convolutions float32: its default, TensorFloat-32, keeps 10 mantissa bits."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


@contextmanager
def ignore_deprecations() -> Iterator[None]:
    """Silences what the exporters' own code, not ours, should be warned of.

    TorchScript is deprecated as a way to write programs. As a file format it is what Triton's
    pytorch backend and LibTorch load, so it is exported on purpose.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", FutureWarning)
        # torch.onnx.export calls a function of torch.utils that torch has deprecated
        warnings.filterwarnings("ignore", r".*(LeafSpec|treespec)", FutureWarning)
        yield
