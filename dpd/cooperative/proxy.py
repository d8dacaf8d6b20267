"""A differentiable stand-in for the gap between two policies, over the simulator's state.

Letters: P pairs of policies · n states · D coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpd.agents.nets import StackedNets, mlp, mlp_shapes
from dpd.cooperative.config import CooperateConfig

HIDDEN = (64, 64)
BATCH = 128
DECAY = 1e-2  # some hundred states would be learned by heart
TINY = 1e-6  # a coordinate or a gap that hardly varies is not blown up


class Proxies:
    """h_ij of all pairs as one stack: standardised gaps from standardised coordinates."""

    def __init__(self, coords: Tensor, gaps: Tensor, generator: torch.Generator) -> None:
        """Take the scales from coords [n, D] and gaps [P, n]."""
        self.mean, self.scale = coords.mean(0), coords.std(0).clamp_min(TINY)  # [D]
        self.gap_mean = gaps.mean(1, keepdim=True)  # [P, 1]
        self.gap_scale = gaps.std(1, keepdim=True).clamp_min(TINY)
        shapes = mlp_shapes("gap", [coords.shape[1], *HIDDEN, 1])
        self.nets = StackedNets(shapes, len(gaps), "tanh")
        self.nets.init_uniform("gap", [generator] * len(gaps))

    def standard(self, coords: Tensor) -> Tensor:
        """Return coordinates [n, D] in standard deviations."""
        return ((coords - self.mean) / self.scale).float()

    def coordinates(self, z: Tensor) -> Tensor:
        """Undo `standard` [n, D]."""
        return z.double() * self.scale + self.mean

    def standard_gap(self, gaps: Tensor) -> Tensor:
        """Return gaps [P, n] in standard deviations of each pair."""
        return ((gaps - self.gap_mean) / self.gap_scale).float()

    def __call__(self, pair: int, z: Tensor) -> Tensor:
        """Predict a pair's standardised gap at standardised coordinates [n, D] -> [n]."""
        stack = [(w[pair : pair + 1], b[pair : pair + 1]) for w, b in self.nets.layers["gap"]]
        return mlp(stack, z.unsqueeze(0), self.nets.activation)[0].view(-1)


def fit(
    coords: Tensor, gaps: Tensor, config: CooperateConfig, generator: torch.Generator
) -> Proxies:
    """Regress every pair's gap [P, n] on the coordinates [n, D]."""
    proxies = Proxies(coords, gaps, generator)
    nets, z, y = proxies.nets, proxies.standard(coords), proxies.standard_gap(gaps)
    optimizer = torch.optim.AdamW([nets.flat], lr=config.proxy_lr, weight_decay=DECAY)
    for _ in range(config.proxy_steps):
        rows = torch.randint(len(z), (min(BATCH, len(z)),), generator=generator)
        (found,) = nets(z[rows].expand(len(y), -1, -1), "gap")
        optimizer.zero_grad()
        squared_error(found.squeeze(-1), y[:, rows]).sum().backward()
        optimizer.step()
    return proxies


def squared_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Return each pair's mean squared error [P] of [P, B]."""
    return (found - wanted).square().mean(1)


@torch.no_grad()
def r2(proxies: Proxies, pair: int, coords: Tensor, gap: Tensor) -> float | None:
    """Return 1 - SSE/SST of a pair's gap [n] at coords [n, D]; None where the gap is constant."""
    wanted = (gap - proxies.gap_mean[pair]) / proxies.gap_scale[pair]
    total = (wanted - wanted.mean()).square().sum()
    if not total > TINY:
        return None
    error = (proxies(pair, proxies.standard(coords)) - wanted).square().sum()
    return float(1 - error / total)
