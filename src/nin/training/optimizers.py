"""The optimizers of the recipes."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from nin.training.recipes import Recipe


class Muon(Optimizer):
    """Momentum, orthogonalised: each step turns a convolution, seen as a matrix, alike in all
    directions.

    From Keller Jordan's Muon, https://kellerjordan.github.io/posts/muon/. torch.optim.Muon takes
    matrices only and computes in bfloat16, which processors without bfloat16 products do a
    hundred times slower than float32; this one takes the dtype.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for weight in group["params"]:
                gradient = weight.grad
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(gradient)
                state["momentum"].lerp_(gradient, 1 - momentum)
                direction = gradient.lerp(state["momentum"], momentum)  # Nesterov's
                update = orthogonalise(direction.flatten(1).to(self.dtype)).view(direction.shape)
                rows, columns = direction.flatten(1).shape
                scale = max(1, rows / columns) ** 0.5
                weight.mul_(1 - lr * group["weight_decay"])
                weight.add_(update.to(weight.dtype), alpha=-lr * scale)


def orthogonalise(matrix: Tensor) -> Tensor:
    """About U V^T of the matrix's U S V^T: five Newton-Schulz steps, singular values near 1.

    The quintic's coefficients are Muon's: steep at 0, and within 0.7 to 1.2 after five steps.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def make_optimizers(network: nn.Module, recipe: Recipe, dtype: torch.dtype) -> list[Optimizer]:
    """Those that together train all that learns; each group knows its peak rate, `initial_lr`."""
    optimizers: list[Optimizer]
    lr, momentum, weight_decay = recipe.lr, recipe.momentum, recipe.weight_decay
    learning = [p for p in network.parameters() if p.requires_grad]
    if recipe.optimizer == "sgd":
        optimizers = [SGD(learning, lr, momentum, weight_decay=weight_decay)]
    else:
        weights = [p for p in learning if p.ndim == 4]
        matrices = weights[1:-1]  # neither the filters on the image nor the votes of the classes
        rest = [p for p in learning if all(p is not m for m in matrices)]
        optimizers = [
            Muon(matrices, lr=lr, momentum=momentum, weight_decay=weight_decay, dtype=dtype),
            # as far below Muon's as in the runs that found both
            AdamW(rest, lr=lr / 20, weight_decay=0.0),
        ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers
