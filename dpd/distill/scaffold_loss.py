"""Losses of scaffolding: pi is the student, b a broad density, g in (0, 1) the guide.

All are given per state [N, B] by their logarithms, so that g may be 0 and nothing overflows.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_ERROR = 5.0  # the error that counts at most in the budget (DiSK: max_ce)


def mixture_nll(logp: Tensor, log_broad: Tensor, log_g: Tensor) -> Tensor:
    """Return -log[(pi + g b) / (1 + g)] [N, B]; at g = 0 exactly -log pi.

    The mixture of student and broad density that DiSK's lifted posterior (s + g 1_b) / (1 + K g)
    is for actions. Its gradient is that of -log pi times the student's responsibility.
    """
    return F.softplus(log_g) - torch.logaddexp(logp, log_g + log_broad)


def responsibility(logp: Tensor, log_broad: Tensor, log_g: Tensor) -> Tensor:
    """Return pi / (pi + g b) [N, B], how much of a state's gradient the student still gets."""
    return torch.sigmoid(logp - log_broad - log_g)


def capped(log_g: Tensor, coverage: float) -> Tensor:
    """Scale g down where its mean [N] leaves less than `coverage` of the states.

    The scale is constant to the gradient: otherwise a guide near 1 everywhere could never come
    down, since the cap undoes what all states have in common.
    """
    mean = log_g.detach().logsumexp(1, keepdim=True) - math.log(log_g.shape[1])
    return log_g + (math.log(1 - coverage) - mean).clamp(max=0)


def spent(g: Tensor, distance: Tensor, is_wrong: Tensor) -> Tensor:
    """Return what a guide spends [N]: 1 / n_err sum g min(d, 5) / 5, n_err the student's errors."""
    share = distance.clamp(max=MOST_ERROR) / MOST_ERROR
    return (g * share).sum(1) / is_wrong.sum(1).clamp(min=1)


def student_loss(nll: Tensor, square: Tensor, aux: float) -> Tensor:
    """Return the student's loss [N] from `mixture_nll` and its squared error [N, B]."""
    return nll.mean(1) + aux * square.mean(1)


def guide_loss(nll: Tensor, excess: Tensor, multiplier: Tensor) -> Tensor:
    """Return the guide's loss [N] from `mixture_nll` [N, B] and its excess over the budget [N]."""
    return nll.mean(1) + multiplier * excess.clamp(min=0)
