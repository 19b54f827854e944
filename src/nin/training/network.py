"""The network that is trained here: that of the built-in model's folder."""

import sys
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from nin.network.build import import_object
from nin.paths import NIN

if TYPE_CHECKING:
    from network import SCALE, NiN, fold_filters, layer_table
else:
    NiN = import_object(NIN, "network.py:NiN", "network.build")
    _module = sys.modules[NiN.__module__]
    SCALE, fold_filters, layer_table = _module.SCALE, _module.fold_filters, _module.layer_table

__all__ = ["SCALE", "NiN", "fold_filters", "images_of", "layer_table"]


def images_of(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels (N, S, S) uint8, whole or crops -> images (N, 1, 8 S, 8 S) in [0, 1]."""
    image = pixels.unsqueeze(1).to(dtype) / 255
    return F.interpolate(image, scale_factor=SCALE, mode="bilinear", align_corners=False)
