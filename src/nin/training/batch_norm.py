"""Batch normalisation while the network trains, folded away for good in the weights it leaves.

Ioffe and Szegedy, 2015, https://arxiv.org/abs/1502.03167. What is deployed is the network of the
book, not a parameter more: once training has ended, a normalisation multiplies and shifts each
channel by constants, and the convolution before it can do that itself.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from nin.training.network import NiN

_MOMENTUM = 0.02  # statistics are means over about the last 50 steps


class BatchNorm(nn.BatchNorm2d):
    """Over the batch of all processes, on any device: torch's SyncBatchNorm needs GPUs.

    The running sums start at 0, and `statistics` makes up for it as Adam does: short runs are
    judged fairly too.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=_MOMENTUM)
        self.running_var.zero_()

    def statistics(self) -> tuple[Tensor, Tensor]:
        """The mean and the variance (C,) that stand for the whole training set."""
        seen = 1 - (1 - _MOMENTUM) ** self.num_batches_tracked.clamp(min=1)
        return self.running_mean / seen, self.running_var / seen

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, *self.statistics(), self.weight, self.bias, eps=self.eps)
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(x)
        wide = x.to(self.weight.dtype)
        mean: Tensor = _Mean.apply(wide.mean((0, 2, 3)))
        centred = wide - mean[:, None, None]
        var: Tensor = _Mean.apply(centred.square().mean((0, 2, 3)))
        count = dist.get_world_size() * x[:, 0].numel()
        with torch.no_grad():
            self.running_mean.lerp_(mean, _MOMENTUM)
            self.running_var.lerp_(var * (count / (count - 1)), _MOMENTUM)  # unbiased, as torch's
            self.num_batches_tracked += 1
        scale = self.weight * (var + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class _Mean(torch.autograd.Function):
    """The mean of all processes' values, and backwards of their gradients."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values / dist.get_world_size()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return _Mean.forward(context, gradient)


def add_to(network: NiN) -> None:
    """Normalises what the convolutions give, save the last block's: its maps are the votes."""
    for conv in _convolutions(network):
        conv.norm = BatchNorm(conv.out_channels)
        conv.register_forward_hook(_normalise)
        assert conv.bias is not None
        conv.bias.requires_grad_(False)  # the norm takes away what it adds


@torch.no_grad()
def fit(network: NiN, images: Tensor) -> None:
    """Makes up for the normalisations: finished weights, training, answer to the images as before.

    Each filter gets norm 1, about what Muon's weight decay keeps them at, so that its steps turn
    them about as far as in a run from fresh weights.

    Args:
        network: normalised, its normalisations as new.
        images: (N, 1, H, W) in [0, 1].
    """
    hooks = []
    for conv in _convolutions(network):
        norm = conv.norm
        assert isinstance(norm, BatchNorm)
        assert conv.bias is not None
        size = conv.weight.flatten(1).norm(dim=1).clamp(min=1e-7)
        conv.weight /= size[:, None, None, None]
        conv.bias /= size
        norm.weight.copy_(size)
        hooks.append(norm.register_forward_pre_hook(_fit))
    network.train()(images)
    for hook in hooks:
        hook.remove()


def _fit(norm: BatchNorm, inputs: tuple[Tensor]) -> None:
    var, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
    norm.bias.copy_(norm.weight * mean)
    norm.weight.copy_(norm.weight * (var + norm.eps).sqrt())


def _convolutions(network: NiN) -> Iterator[nn.Conv2d]:
    *blocks, _ = (layer for layer in network if isinstance(layer, nn.Sequential))
    return (layer for block in blocks for layer in block if isinstance(layer, nn.Conv2d))


def _normalise(conv: nn.Conv2d, _: Any, output: Tensor) -> Tensor:
    normalised: Tensor = conv.norm(output)  # type: ignore[operator]
    return normalised


def folded(network: NiN) -> NiN:
    """A copy without normalisations that answers as the network does in evaluation mode."""
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for name, conv in network.named_modules():
        norm = getattr(conv, "norm", None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, BatchNorm):
            mean, var = norm.statistics()
            scale = norm.weight.detach() * (var + norm.eps).rsqrt()
            weights[f"{name}.weight"] *= scale[:, None, None, None]
            weights[f"{name}.bias"] = (weights[f"{name}.bias"] - mean) * scale + norm.bias.detach()
    with torch.device("meta"):  # shapes only
        plain = NiN(**network.arguments)  # type: ignore[arg-type]
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()}, assign=True)
    return plain.eval()
