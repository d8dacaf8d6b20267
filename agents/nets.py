"""Stacked networks: every row's parameters lie in one flat leaf, layers are views of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "elu": torch.nn.functional.elu,
}

Shapes = dict[str, tuple[int, ...]]


class StackedParams:
    """All parameters of N learners as one leaf [N, D] with named views.

    One leaf means one gradient, one norm and one optimizer step for all learners and layers.
    """

    def __init__(self, shapes: Shapes, n: int, dtype: torch.dtype = torch.float32) -> None:
        self.shapes = shapes
        self.sizes = [math.prod(s) for s in shapes.values()]
        self.flat = torch.zeros(n, sum(self.sizes), dtype=dtype, requires_grad=True)

    def views(self) -> dict[str, Tensor]:
        """Return name -> [N, *shape], differentiable with respect to `flat`."""
        parts = self.flat.split(self.sizes, dim=1)
        n = self.flat.shape[0]
        return {k: p.view(n, *s) for (k, s), p in zip(self.shapes.items(), parts, strict=True)}

    def frozen(self) -> dict[str, Tensor]:
        """Return the same views without gradient; they follow the parameters' memory."""
        with torch.no_grad():
            return {k: v.detach() for k, v in self.views().items()}


def mlp_shapes(prefix: str, sizes: Sequence[int]) -> Shapes:
    """Name the layers of an MLP: weights [in, out], biases [1, out]."""
    shapes: Shapes = {}
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        shapes[f"{prefix}.{i}.weight"] = (n_in, n_out)
        shapes[f"{prefix}.{i}.bias"] = (1, n_out)
    return shapes


def mlp(params: dict[str, Tensor], prefix: str, x: Tensor, activation: str) -> Tensor:
    """Run N MLPs on their own inputs: x [N, B, in] -> [N, B, out]; the last layer is linear."""
    act = ACTIVATIONS[activation]
    i = 0
    while True:
        x = torch.baddbmm(params[f"{prefix}.{i}.bias"], x, params[f"{prefix}.{i}.weight"])
        i += 1
        if f"{prefix}.{i}.weight" not in params:
            return x
        x = act(x)


def init_orthogonal(
    params: dict[str, Tensor],
    prefix: str,
    gains: Sequence[float],
    generators: Sequence[torch.Generator],
) -> None:
    """Fill an MLP's weights orthogonally, layer i with gains[i], row n from generators[n]."""
    for i, gain in enumerate(gains):
        weight = params[f"{prefix}.{i}.weight"]
        for row, generator in zip(weight, generators, strict=True):
            # nn.Linear stores [out, in]; drawing that shape gives Stable-Baselines3's values
            drawn = torch.empty(row.shape[1], row.shape[0], dtype=row.dtype)
            torch.nn.init.orthogonal_(drawn, gain, generator=generator)
            row.copy_(drawn.T)
