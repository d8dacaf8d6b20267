"""Compiled gradient clipping and Adam for one learner."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from dpd.agents.kernels.compiled import compiled


class AdamRow(NamedTuple):
    """One learner's parameters and Adam state, as live views, and its rate."""

    param: np.ndarray  # [D]
    avg: np.ndarray
    avg_sq: np.ndarray
    steps: np.ndarray  # [1]
    lr: float
    beta1: float
    beta2: float
    eps: float
    max_grad_norm: float  # infinite: the gradient is not clipped


@compiled
def clipped_adam(row: AdamRow, grad: np.ndarray, active: bool) -> float:
    """Clip a gradient [D] and, if active, take a step; return the norm before clipping.

    As `clip_grad_norm` and `StackedAdam`.
    """
    param, avg, avg_sq = row.param, row.avg, row.avg_sq
    real = param.dtype.type
    square = real(0)
    for i in range(grad.size):
        square += grad[i] * grad[i]
    norm = math.sqrt(square)
    if not active:
        return norm
    scale = row.max_grad_norm / (norm + 1e-6)
    factor = real(1.0 if scale > 1.0 else scale)  # NaN stays
    row.steps[0] += 1
    correction = math.sqrt(1 - row.beta2 ** row.steps[0])
    rate = real(row.lr / (1 - row.beta1 ** row.steps[0]))
    per_root, eps = real(1 / correction), real(row.eps)
    keep1, add1 = real(row.beta1), real(1 - row.beta1)
    keep2, add2 = real(row.beta2), real(1 - row.beta2)
    for i in range(grad.size):
        g = grad[i] * factor
        avg[i] = keep1 * avg[i] + add1 * g
        avg_sq[i] = keep2 * avg_sq[i] + add2 * g * g
        param[i] -= rate * avg[i] / (math.sqrt(avg_sq[i]) * per_root + eps)
    return norm
