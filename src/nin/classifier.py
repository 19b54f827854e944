"""The classifier: raw pixels in, logits and probabilities out."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nin.model import NiN

# The book's preprocessing: 28x28 pixels in [0, 255] become a 224x224 image in [0, 1].
SCALE = 8


def preprocess(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The naive form: pixels (N, 28, 28) uint8 -> image (N, 1, 224, 224) in [0, 1]."""
    image = pixels.unsqueeze(1).to(dtype) / 255
    return F.interpolate(image, scale_factor=SCALE, mode="bilinear", align_corners=False)


def fold_stem(conv: nn.Conv2d) -> nn.Conv2d:
    """Folds the division by 255, the bilinear upsampling and the 11x11 convolution into one.

    Resize and convolution are both linear. Output row o of the convolution (stride 4) covers the
    upsampled rows 4o..4o+10, so o = 2k + phase needs only the pixel rows k-1..k+2, with weights
    that don't depend on k; columns likewise. Four phases give 4x4 kernels for 4 times the
    channels, and a pixel shuffle by 2 interleaves them.

    Args:
        conv: weight (C, 1, 11, 11), stride 4, on the upsampled image.

    Returns:
        A convolution on the pixels, weight (4 C, 1, 4, 4). Its input is padded by 1 with
        replication, which is how bilinear resize treats the edges.
    """
    weight = fold_filters(conv.weight.detach().double())
    folded = nn.Conv2d(1, 4 * conv.out_channels, kernel_size=4)
    folded.weight = nn.Parameter(weight.reshape(-1, 1, 4, 4).to(conv.weight.dtype))
    assert conv.bias is not None  # NiN's convolutions have one
    folded.bias = nn.Parameter(conv.bias.detach().repeat_interleave(4))
    return folded


def fold_filters(weight: Tensor) -> Tensor:
    """The filters (C, 1, 11, 11) on the upsampled image as filters on the pixels, per phase.

    Returns:
        (C, 2, 2, 4, 4): [c, p, q] gives rows 2k + p and columns 2l + q of the output.
    """
    # upsample[i, u]: the share of pixel i in upsampled pixel u, far from the edges
    upsample = F.interpolate(
        torch.eye(8, dtype=torch.float64)[None], scale_factor=SCALE, mode="linear"
    )[0]
    k, rows = 2, weight.shape[2]
    first = [4 * (2 * k + phase) for phase in (0, 1)]
    # taps[phase, pixel, row]: pixels k-1..k+2, rows of the 11x11 kernel
    taps = torch.stack([upsample[k - 1 : k + 3, u : u + rows] for u in first]).to(weight.dtype)
    kernels = weight.permute(0, 2, 3, 1).squeeze(3)  # by way of channels-last: so is the gradient
    return torch.einsum("pit,qju,ctu->cpqij", taps, taps, kernels) / 255


class Classifier(nn.Module):
    """Pixels (N, 28, 28) uint8 -> logits and probabilities, both (N, 10).

    Equal to `network(preprocess(pixels))` but for rounding, without ever making the large image.
    """

    def __init__(self, network: NiN) -> None:
        super().__init__()
        first_block = network[0]
        assert isinstance(first_block, nn.Sequential)
        assert isinstance(first_block[0], nn.Conv2d)
        self.stem = fold_stem(first_block[0])
        self.rest = nn.Sequential(*first_block[1:], *list(network)[1:])
        self.train(network.training)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = pixels.unsqueeze(1).to(self.stem.weight.dtype)  # (N, 1, 28, 28)
        x = self.stem(F.pad(x, (1, 1, 1, 1), mode="replicate"))  # (N, 384, 27, 27)
        logits = self.rest(F.pixel_shuffle(x, 2))  # from (N, 96, 54, 54)
        return logits, logits.softmax(dim=1)
