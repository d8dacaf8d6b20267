"""Counterfactuals: states near those where a teacher is better, at which its lead is larger.

Cooperative knowledge distillation calls them quintessential: the teacher stays the better one, by
more. The search moves the simulator's state and never an observation, because a changed observation
may belong to no state. Letters: n states · D coordinates, in standard deviations · P pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dpd.agents.nets import StackedNets, mlp, mlp_shapes
from dpd.cooperate.config import CooperateConfig

LARGE_QUANTILE = 0.95  # quantile of the gaps that stands for the largest ones


def search_states(h: Callable[[Tensor], Tensor], start: Tensor, config: CooperateConfig) -> Tensor:
    """Move states [n, D] towards a larger predicted gap h [n], within a trust box -> [n, D]."""
    target = target_gaps(h(start).detach(), config.cf_alpha)
    shift = torch.zeros_like(start, requires_grad=True)
    optimizer = torch.optim.Adam([shift], lr=config.cf_lr)
    for _ in range(config.cf_steps):
        loss = search_loss(h(start + shift), target, shift, config.cf_penalty)
        (shift.grad,) = torch.autograd.grad(loss.sum(), shift)
        optimizer.step()
        with torch.no_grad():
            shift.clamp_(-config.cf_box, config.cf_box)
    return start + shift.detach()


def target_gaps(gap: Tensor, alpha: float) -> Tensor:
    """Return the target of each predicted gap [n]: y' = h + alpha (h_95 - h)_+."""
    return gap + alpha * (gap.quantile(LARGE_QUANTILE) - gap).clamp_min(0)


def search_loss(gap: Tensor, target: Tensor, shift: Tensor, penalty: float) -> Tensor:
    """Return (h(s') - y')^2 + penalty * |s' - s|_1 of each state [n]."""
    return (gap - target).square() + penalty * shift.abs().sum(-1)


def are_distinct(states: Tensor, known: Tensor, within: float) -> Tensor:
    """Return which states [n, D] are at least `within` from known ones and those kept before."""
    keep = torch.cdist(states, known).amin(1) >= within
    near = torch.cdist(states, states) < within
    for row in range(1, len(states)):
        if keep[row] and bool((near[row, :row] & keep[:row]).any()):
            keep[row] = False
    return keep


PROXY_HIDDEN = (64, 64)
PROXY_BATCH = 128
PROXY_WEIGHT_DECAY = 1e-2  # without it the network memorises some hundred states
MIN_SCALE = 1e-6  # keeps coordinates and gaps that hardly vary from being scaled up


class GapProxies:
    """Networks h_ij of all pairs as one stack: standardised coordinates -> standardised gap."""

    def __init__(self, coords: Tensor, gaps: Tensor, generator: torch.Generator) -> None:
        """Initialise the networks; take the scales from coords [n, D] and gaps [P, n]."""
        self.mean, self.scale = coords.mean(0), coords.std(0).clamp_min(MIN_SCALE)  # [D]
        self.gap_mean = gaps.mean(1, keepdim=True)  # [P, 1]
        self.gap_scale = gaps.std(1, keepdim=True).clamp_min(MIN_SCALE)
        shapes = mlp_shapes("gap", [coords.shape[1], *PROXY_HIDDEN, 1])
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


def fit_proxies(
    coords: Tensor, gaps: Tensor, config: CooperateConfig, generator: torch.Generator
) -> GapProxies:
    """Fit a network to every pair's gap [P, n] at coordinates [n, D]."""
    proxies = GapProxies(coords, gaps, generator)
    nets, z, y = proxies.nets, proxies.standard(coords), proxies.standard_gap(gaps)
    optimizer = torch.optim.AdamW([nets.flat], lr=config.proxy_lr, weight_decay=PROXY_WEIGHT_DECAY)
    for _ in range(config.proxy_steps):
        rows = torch.randint(len(z), (min(PROXY_BATCH, len(z)),), generator=generator)
        (predicted,) = nets(z[rows].expand(len(y), -1, -1), "gap")
        optimizer.zero_grad()
        # The sum over pairs: every pair has its own network and its own mean squared error.
        (predicted.squeeze(-1) - y[:, rows]).square().mean(1).sum().backward()
        optimizer.step()
    return proxies


@torch.no_grad()
def proxy_r2(proxies: GapProxies, pair: int, coords: Tensor, gap: Tensor) -> float | None:
    """Return R² = 1 - SSE/SST of a pair's gap [n] at coords [n, D]; None if it is constant."""
    wanted = (gap - proxies.gap_mean[pair]) / proxies.gap_scale[pair]
    total = (wanted - wanted.mean()).square().sum()
    if not total > MIN_SCALE:
        return None
    error = (proxies(pair, proxies.standard(coords)) - wanted).square().sum()
    return float(1 - error / total)
