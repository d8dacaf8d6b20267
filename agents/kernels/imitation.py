"""Compiled divergences from targets, and gradient steps on them, for one learner."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from dpd.agents.kernels.adam import AdamRow, clipped_adam
from dpd.agents.kernels.compiled import compiled
from dpd.agents.kernels.nets import (
    N_IN,
    N_OUT,
    OUTPUT,
    ROWS_AT_ONCE,
    add_mlp_gradient,
    matrix,
    run_mlp,
    turn_weights,
)

MSE, KL_FORWARD, KL_REVERSE, NLL, HUBER = range(5)
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class NetTable(NamedTuple):
    """Positions of a learner's networks; the first layers' inputs begin the tape."""

    actor: np.ndarray  # [L, 7], see the columns of `kernels.nets`
    critic: np.ndarray  # [L, 7]; no rows if there is no critic
    log_std: int  # position in the parameters
    activation: int


class Work(NamedTuple):
    """Memory for intermediate values."""

    grad: np.ndarray  # [D]
    tape: np.ndarray
    turned: np.ndarray
    of_mean: np.ndarray
    of_value: np.ndarray
    spare: np.ndarray
    adv: np.ndarray


class TargetRow(NamedTuple):
    """One learner's targets [K, ...]; see `dpd.distill.targets.Targets`."""

    kind: int
    obs: np.ndarray
    mean: np.ndarray
    log_std: np.ndarray
    sample: np.ndarray
    weight: np.ndarray  # [K]


@compiled
def distance_at(
    t: TargetRow, k: int, mean: np.ndarray, log_std: np.ndarray, of_mean: np.ndarray
) -> float:
    """Return the divergence from target k, as `dist.divergence`; write its gradient by the mean.

    mean, log_std, of_mean: [A].
    """
    size = mean.size
    total = 0.0
    for j in range(size):
        s = log_std[j]
        if t.kind == MSE:
            error = mean[j] - t.sample[k, j]
            total += error * error / size
            of_mean[j] = 2 * error / size
        elif t.kind == HUBER:
            error = mean[j] - t.sample[k, j]
            clipped = min(max(error, -1.0), 1.0)
            total += clipped * (error - 0.5 * clipped) / size
            of_mean[j] = clipped / size
        elif t.kind == NLL:
            inverse = math.exp(-s)
            z = (t.sample[k, j] - mean[j]) * inverse
            total += 0.5 * z * z + s + HALF_LOG_2PI
            of_mean[j] = -z * inverse
        else:
            u = t.log_std[k, j]
            error = mean[j] - t.mean[k, j]
            forward = t.kind == KL_FORWARD
            ratio = s - u if forward else u - s
            scaled = error * math.exp(-2 * (s if forward else u))
            total += ratio + 0.5 * (math.exp(-2 * ratio) + error * scaled - 1)
            of_mean[j] = scaled
    return total


@compiled
def add_log_std_gradient(
    t: TargetRow, k: int, mean: np.ndarray, log_std: np.ndarray, scale: float, total: np.ndarray
) -> None:
    """Add the gradient by log_std of scale times the divergence from target k to `total` [A]."""
    for j in range(mean.size):
        s = log_std[j]
        if t.kind == NLL:
            z = (t.sample[k, j] - mean[j]) * math.exp(-s)
            total[j] += scale * (1 - z * z)
        elif t.kind == KL_FORWARD:
            z = (t.mean[k, j] - mean[j]) * math.exp(-s)
            total[j] += scale * (1 - math.exp(2 * (t.log_std[k, j] - s)) - z * z)
        elif t.kind == KL_REVERSE:
            total[j] += scale * (math.exp(2 * (s - t.log_std[k, j])) - 1)


@compiled
def add_imitation_gradient(
    nets: NetTable, param: np.ndarray, t: TargetRow, begin: int, n: int, coef: float, work: Work
) -> float:
    """Add the gradient of coef * mean(weight * divergence) at n targets; return the mean."""
    turn_weights(nets.actor, param, work.turned)
    total = 0.0
    for first in range(begin, begin + n, ROWS_AT_ONCE):
        rows = min(ROWS_AT_ONCE, begin + n - first)
        total += _imitate_block(nets, param, t, first, rows, coef / n, work)
    return total / n


@compiled
def _imitate_block(
    nets: NetTable, param: np.ndarray, t: TargetRow, begin: int, n: int, coef: float, work: Work
) -> float:
    """Add the gradient of coef * sum(weight * divergence) at n targets; return the sum."""
    last = nets.actor[nets.actor.shape[0] - 1]
    act_dim = last[N_OUT]
    x = matrix(work.tape, 0, n, nets.actor[0, N_IN])
    for i in range(n):
        for j in range(x.shape[1]):
            x[i, j] = t.obs[begin + i, j]
    run_mlp(nets.actor, nets.activation, n, param, work.tape, work.turned)
    mean = matrix(work.tape, last[OUTPUT], n, act_dim)
    log_std = param[nets.log_std : nets.log_std + act_dim]
    of_log_std = work.grad[nets.log_std : nets.log_std + act_dim]
    of_mean = matrix(work.of_mean, 0, n, act_dim)
    total = 0.0
    for i in range(n):
        weight = t.weight[begin + i]
        total += weight * distance_at(t, begin + i, mean[i], log_std, of_mean[i])
        scale = coef * weight
        for j in range(act_dim):
            of_mean[i, j] *= scale
        add_log_std_gradient(t, begin + i, mean[i], log_std, scale, of_log_std)
    add_mlp_gradient(
        nets.actor, nets.activation, n, work.tape, work.turned, work.of_mean, work.spare, work.grad
    )
    return total


@compiled
def imitation_steps(
    nets: NetTable, row: AdamRow, t: TargetRow, coef: float, active: np.ndarray, work: Work
) -> float:
    """Take one step on each of the equal parts of the targets; return the mean loss.

    `active` [steps] says in which of them the parameters move.
    """
    steps = active.size
    n = t.weight.size // steps
    total = 0.0
    for i in range(steps):
        work.grad[:] = 0
        total += add_imitation_gradient(nets, row.param, t, i * n, n, coef, work)
        clipped_adam(row, work.grad, active[i])
    return total / steps
