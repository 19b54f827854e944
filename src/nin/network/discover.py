"""What can be found out about somebody's network by building it and showing it an image."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nin.errors import InputError, first_line

# Heights and widths that networks are trained with, the likeliest first.
SIZES = (224, 299, 256, 128, 96, 64, 32, 28)

Size = tuple[int, int]  # height, width

_PROBES = 2  # images, so that a batch can be told from a class


@dataclass(frozen=True)
class Discovered:
    """What a network takes and gives."""

    channels: int
    height: int
    width: int
    classes: int


def discover(network: nn.Module, context: str, sizes: tuple[Size, ...]) -> Discovered:
    """Shows the network images of these sizes, in turns, until it takes one.

    Raises:
        InputError: begins with the context, and says why the network is no classifier of images.
    """
    refusals = []
    for channels in _channels(network, context):
        for height, width in sizes:
            images = torch.zeros(_PROBES, channels, height, width)
            try:
                with torch.inference_mode():
                    logits = network(images)
            except Exception as error:  # it is the user's code
                refusals.append(f"{tuple(images.shape)}: {type(error).__name__}: {_line(error)}")
                continue
            return Discovered(channels, height, width, _classes(logits, context))
    raise InputError(
        f"{context} takes none of the {len(refusals)} images shown to it, {refusals[0]}; "
        "expected a network that takes a batch (N, channels, height, width) alone. If it needs "
        "another size, name it: --size HEIGHTxWIDTH"
    )


def _channels(network: nn.Module, context: str) -> Iterator[int]:
    """Those of its first convolution, or of colour and grey."""
    convolution = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    if convolution is None:
        yield from (3, 1)
        return
    if convolution.in_channels not in (1, 3):
        raise InputError(
            f"{context} takes images of {convolution.in_channels} channels, expected 1 for grey "
            "or 3 for RGB"
        )
    yield convolution.in_channels


def _classes(logits: Any, context: str) -> int:
    """How many classes the network tells apart. Raises InputError where it is no classifier."""
    if not isinstance(logits, Tensor):
        raise InputError(
            f"{context} returns a {type(logits).__name__}, expected a tensor of logits "
            "(N, classes); wrap it in a module that returns them alone"
        )
    if logits.ndim != 2 or len(logits) != _PROBES or logits.shape[1] < 2:
        raise InputError(
            f"{context} makes {tuple(logits.shape)} of {_PROBES} images, expected logits "
            f"({_PROBES}, classes) of at least 2 classes"
        )
    return logits.shape[1]


def _line(error: Exception) -> str:
    return first_line(error)[:200]
