"""Compiled critics of off-policy learners: targets, gradient steps, and ascent of their values."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dpd.agents.kernels.adam import AdamRow, clipped_adam
from dpd.agents.kernels.compiled import compiled
from dpd.agents.kernels.nets import (
    N_IN,
    OUTPUT,
    ROWS_AT_ONCE,
    add_mlp_gradient,
    matrix,
    mlp_input_gradient,
    run_mlp,
    turn_narrow_weights,
    turn_weights,
)


class CriticRows(NamedTuple):
    """One learner's C critics, their Adam states and targets, as live views, and their settings."""

    param: np.ndarray  # [C, D]
    target: np.ndarray  # [C, D]
    avg: np.ndarray
    avg_sq: np.ndarray
    steps: np.ndarray  # [C, 1]
    lr: float
    beta1: float
    beta2: float
    eps: float
    coef: float  # of the loss; see `critic_loss`
    tau: float


class TransitionRow(NamedTuple):
    """One learner's minibatches, as `dpd.agents.replay.Transitions` [K, ...]."""

    obs_act: np.ndarray
    next_obs: np.ndarray
    reward: np.ndarray
    discount: np.ndarray


class CriticWork(NamedTuple):
    """Memory for the critics' passes over a block of rows; `wanted` is for a whole minibatch.

    J is the number of critics that judge: the learner's own C, or all of its pool.
    """

    layers: np.ndarray  # [L, 7], see the columns of `kernels.nets`
    tapes: np.ndarray  # [J, T]
    turned: np.ndarray  # [J, D]
    grad: np.ndarray  # [D]
    of_q: np.ndarray
    spare: np.ndarray
    wanted: np.ndarray  # [B] the critics' targets
    value: np.ndarray  # [n] the least critic's values, or the mean of all
    which: np.ndarray  # [n] the number of the least critic


@compiled
def copy_rows(source: np.ndarray, begin: int, n: int, into: np.ndarray) -> None:
    """Copy n rows to the first columns of `into` [n, W], or to as many as it has."""
    for i in range(n):
        for j in range(min(source.shape[1], into.shape[1])):
            into[i, j] = source[begin + i, j]


@compiled
def critic_input(work: CriticWork, critic: int, n: int) -> np.ndarray:
    """Return the input [n, O + A] on a critic's tape."""
    return matrix(work.tapes[critic], 0, n, work.layers[0, N_IN])


@compiled
def critic_values(work: CriticWork, critic: int, n: int) -> np.ndarray:
    """Return the values [n] on a critic's tape."""
    begin = work.layers[work.layers.shape[0] - 1, OUTPUT]
    return work.tapes[critic, begin : begin + n]


@compiled
def run_targets(
    targets: np.ndarray,
    drawn: np.ndarray,
    work: CriticWork,
    kind: int,
    obs: np.ndarray,
    begin: int,
    act: np.ndarray,
) -> None:
    """Write the least values of the drawn targets at n rows of obs and act [n, A] to work.value."""
    n = act.shape[0]
    x = critic_input(work, 0, n)
    copy_rows(obs, begin, n, x)
    x[:, obs.shape[1] :] = act
    for i in range(drawn.size):
        c = drawn[i]
        run_mlp(work.layers, kind, n, targets[c], work.tapes[0], work.turned[c])
        _keep_least(work, i, critic_values(work, 0, n))


@compiled
def _keep_least(work: CriticWork, critic: int, q: np.ndarray) -> None:
    """Note a critic's values [n] where they are less than those of the critics before it."""
    for i in range(q.size):
        if critic == 0 or not q[i] >= work.value[i]:  # so that NaN stays
            work.value[i] = q[i]
            work.which[i] = critic


@compiled
def _add_share(work: CriticWork, critic: int, of: int, q: np.ndarray) -> None:
    """Add a critic's part of the mean value of several."""
    part = q.dtype.type(1.0 / of)
    for i in range(q.size):
        work.value[i] = q[i] * part if critic == 0 else work.value[i] + q[i] * part


@compiled
def turn_targets(targets: np.ndarray, drawn: np.ndarray, work: CriticWork) -> None:
    """Prepare the drawn target critics' weights for `run_targets`."""
    for i in range(drawn.size):
        turn_narrow_weights(work.layers, targets[drawn[i]], work.turned[drawn[i]])


@compiled
def turn_critics(params: np.ndarray, work: CriticWork) -> None:
    """Prepare critics' weights [J, D] for `climb`."""
    for c in range(params.shape[0]):
        turn_weights(work.layers, params[c], work.turned[c])


@compiled
def critics_step(
    rows: CriticRows, work: CriticWork, kind: int, data: TransitionRow, begin: int
) -> tuple[float, float]:
    """Take a step of every critic towards work.wanted [B]; return the loss and the mean value."""
    size = work.wanted.size
    count = rows.param.shape[0]
    square, total = 0.0, 0.0
    for c in range(count):
        param = rows.param[c]
        turn_weights(work.layers, param, work.turned[c])
        work.grad[:] = 0
        for at in range(0, size, ROWS_AT_ONCE):
            n = min(ROWS_AT_ONCE, size - at)
            copy_rows(data.obs_act, begin + at, n, critic_input(work, c, n))
            run_mlp(work.layers, kind, n, param, work.tapes[c], work.turned[c])
            found = _error(
                critic_values(work, c, n), work.wanted[at : at + n], 2 * rows.coef / size, work.of_q
            )
            square += found[0]
            total += found[1]
            memory = work.tapes[c], work.turned[c], work.of_q, work.spare, work.grad
            add_mlp_gradient(work.layers, kind, n, *memory)
        state = param, rows.avg[c], rows.avg_sq[c], rows.steps[c]
        row = AdamRow(*state, rows.lr, rows.beta1, rows.beta2, rows.eps, np.inf)
        clipped_adam(row, work.grad, True)
    return rows.coef * square / size, total / (size * count)


@compiled
def _error(
    q: np.ndarray, wanted: np.ndarray, scale: float, of_q: np.ndarray
) -> tuple[float, float]:
    """Return the sums of squared errors and of values; write the gradient [n]."""
    square, total = 0.0, 0.0
    factor = q.dtype.type(scale)
    for i in range(q.size):
        error = q[i] - wanted[i]
        square += error * error
        total += q[i]
        of_q[i] = error * factor
    return square, total


@compiled
def climb(
    params: np.ndarray,
    work: CriticWork,
    kind: int,
    mean: bool,
    size: int,
    obs: np.ndarray,
    begin: int,
    act: np.ndarray,
    of_act: np.ndarray,
) -> None:
    """Write the gradient of -sum(Q) / size by act [n, A] to `of_act`, and Q to work.value.

    Q is the mean or the least of the critics params [J, D]. Call `turn_critics` before.
    """
    n, real, count = act.shape[0], act.dtype.type, params.shape[0]
    for c in range(count):
        x = critic_input(work, c, n)
        copy_rows(obs, begin, n, x)
        x[:, x.shape[1] - act.shape[1] :] = act
        run_mlp(work.layers, kind, n, params[c], work.tapes[c], work.turned[c])
        if mean:
            _add_share(work, c, count, critic_values(work, c, n))
        else:
            _keep_least(work, c, critic_values(work, c, n))
    of_act[:] = 0
    share = real(-1.0 / (size * count)) if mean else real(-1.0 / size)
    for c in range(count):
        for i in range(n):
            work.of_q[i] = share if mean or work.which[i] == c else real(0)
        memory = params[c], work.tapes[c], work.turned[c], work.of_q, work.spare
        mlp_input_gradient(work.layers, kind, n, *memory, of_act)


@compiled
def follow(target: np.ndarray, param: np.ndarray, tau: float) -> None:
    """Move target parameters towards the trained ones (Polyak averaging)."""
    step = param.dtype.type(tau)
    for i in range(target.size):
        target[i] += step * (param[i] - target[i])
