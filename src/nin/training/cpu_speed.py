"""What makes training faster on a CPU; exact but for rounding. docs/training.md has the gains."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from nin.training import stem, winograd
from nin.training.network import NiN

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h's


@contextmanager
def accelerated(network: NiN, *, convolutions: bool) -> Iterator[None]:
    """Trains a network faster as long as the context lasts; evaluation is as ever.

    Args:
        convolutions: by the folded stem and Winograd's way too, which compute in float32. While
            they do, the network takes pixels (N, S, S) uint8, besides images.
    """
    if convolutions:
        stem.use_in(network)
        winograd.use_in(network)
    try:
        with kept_memory():
            yield
    finally:
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                vars(module).pop("forward", None)  # the class's own shows again


@contextmanager
def kept_memory() -> Iterator[None]:
    """Lets glibc keep what torch frees on the CPU, as torch itself does on a GPU.

    By default it returns each large tensor to the kernel, which has to clear its pages for the
    next one: about a fifth of a step.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # neither musl nor macOS has it
        yield
        return
    libc.mallopt(_M_MMAP_MAX, 0)  # all from the heap
    libc.mallopt(_M_TRIM_THRESHOLD, -1)  # which never shrinks
    try:
        yield
    finally:
        libc.mallopt(_M_MMAP_MAX, 65536)  # glibc's defaults
        libc.mallopt(_M_TRIM_THRESHOLD, 128 * 1024)
        libc.malloc_trim(0)
