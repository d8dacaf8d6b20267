"""States near those where a teacher is better, at which it is better by more.

Cooperative knowledge distillation calls them quintessential: no flip of the answer, but more of
the same. The search moves the simulator's state and never an observation, which could be of no
state at all. Letters: n states · D coordinates, in standard deviations.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dpd.cooperative.config import CooperateConfig

LARGE = 0.95  # quantile of the gaps that counts as the largest ones


def search(h: Callable[[Tensor], Tensor], start: Tensor, config: CooperateConfig) -> Tensor:
    """Move states [n, D] towards a larger predicted gap h [n] -> [n, D], inside a trust box."""
    target = aim(h(start).detach(), config.cf_alpha)
    shift = torch.zeros_like(start, requires_grad=True)
    optimizer = torch.optim.Adam([shift], lr=config.cf_lr)
    for _ in range(config.cf_steps):
        loss = objective(h(start + shift), target, shift, config.cf_penalty)
        (shift.grad,) = torch.autograd.grad(loss.sum(), shift)
        optimizer.step()
        with torch.no_grad():
            shift.clamp_(-config.cf_box, config.cf_box)
    return start + shift.detach()


def aim(gap: Tensor, alpha: float) -> Tensor:
    """Return the gaps to reach from those predicted [n]: y' = h + alpha (h_95 - h)_+."""
    return gap + alpha * (gap.quantile(LARGE) - gap).clamp_min(0)


def objective(gap: Tensor, target: Tensor, shift: Tensor, penalty: float) -> Tensor:
    """Return (h(s') - y')^2 + penalty * |s' - s|_1 of each state [n]."""
    return (gap - target).square() + penalty * shift.abs().sum(-1)


def distinct(found: Tensor, known: Tensor, within: float) -> Tensor:
    """Return which of found [n, D] are no nearer than `within` to a known state or one before."""
    keep = torch.cdist(found, known).amin(1) >= within
    near = torch.cdist(found, found) < within
    for row in range(1, len(found)):
        if keep[row] and bool((near[row, :row] & keep[:row]).any()):
            keep[row] = False
    return keep
