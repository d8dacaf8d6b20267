"""TD3's and SAC's updates of one learner, compiled: many minibatches in one call."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from dpd.agents.kernels.adam import AdamRow, clipped_adam
from dpd.agents.kernels.compiled import compiled
from dpd.agents.kernels.critics import (
    CriticRows,
    CriticWork,
    TransitionRow,
    climb,
    copy_rows,
    critics_step,
    follow,
    run_targets,
    turn_critics,
    turn_targets,
)
from dpd.agents.kernels.imitation import HALF_LOG_2PI
from dpd.agents.kernels.nets import (
    N_IN,
    N_OUT,
    OUTPUT,
    ROWS_AT_ONCE,
    TANH,
    activate,
    add_mlp_gradient,
    matrix,
    run_mlp,
    turn_narrow_weights,
    turn_weights,
)
from dpd.agents.kernels.ppo import clamped

LOG_2 = math.log(2)
CRITIC_LOSS, MEAN_Q, ACTOR_LOSS, ENTROPY, ALPHA = range(5)
"""Columns of the metrics."""
WHOLE, CRITICS, POLICY = range(3)
"""Parts of an update. Learners that read each other's critics finish one before the next begins."""


class ReplayOptions(NamedTuple):
    """Settings of the updates; see `OffPolicyConfig`."""

    soft: bool  # SAC; else TD3
    mean: bool  # the policy ascends the mean of its judges; else their least
    activation: int
    minibatch: int
    policy_delay: int
    target_entropy: float
    low: float  # bounds of SAC's log_std
    high: float


class ActorRows(NamedTuple):
    """One learner's policy: its target (of SAC, itself) and its temperature's Adam state."""

    row: AdamRow
    target: np.ndarray  # [D]
    alpha: AdamRow  # of log(alpha) [1]
    learns_alpha: bool


class SeenRow(NamedTuple):
    """One learner's minibatches as its policy reads them: the first columns of [K, F or more]."""

    obs: np.ndarray
    next_obs: np.ndarray


class JudgeRows(NamedTuple):
    """Critics that judge one learner's actions, its own or its peers' too; read only."""

    targets: np.ndarray  # [J, D] target critics, some of which are drawn for an update
    drawn: np.ndarray  # [U, M] their numbers
    params: np.ndarray  # [J', D] critics that the policy ascends


class ActorWork(NamedTuple):
    """Memory for the policy's passes over a block of rows."""

    layers: np.ndarray  # [L, 7], see the columns of `kernels.nets`
    tape: np.ndarray
    turned: np.ndarray
    grad: np.ndarray
    of_output: np.ndarray
    spare: np.ndarray
    act: np.ndarray  # n * A numbers, as the next
    of_act: np.ndarray
    logp: np.ndarray  # n numbers


@compiled
def _run_actor(
    o: ReplayOptions, work: ActorWork, param: np.ndarray, obs: np.ndarray, begin: int, n: int
) -> np.ndarray:
    """Run the policy at n rows of obs; return its output [n, A or 2A]."""
    last = work.layers[work.layers.shape[0] - 1]
    copy_rows(obs, begin, n, matrix(work.tape, 0, n, work.layers[0, N_IN]))
    run_mlp(work.layers, o.activation, n, param, work.tape, work.turned)
    return matrix(work.tape, last[OUTPUT], n, last[N_OUT])


@compiled
def _squash(
    o: ReplayOptions, out: np.ndarray, noise: np.ndarray, act: np.ndarray, logp: np.ndarray
) -> None:
    """Write SAC's actions [n, A] for noise [n, A], and their log-probabilities [n]."""
    n, size = act.shape
    for i in range(n):
        total = 0.0
        for j in range(size):
            log_std = clamped(out[i, size + j], o.low, o.high)
            u = out[i, j] + math.exp(log_std) * noise[i, j]
            act[i, j] = u
            # log |d tanh(u) / du| = 2 (log 2 - u - softplus(-2u)), as `DiagGaussian.logp`
            softplus = max(-2 * u, 0) + math.log1p(math.exp(-2 * abs(u)))
            slope = 2 * (LOG_2 - u - softplus)
            total -= 0.5 * noise[i, j] * noise[i, j] + log_std + HALF_LOG_2PI + slope
        logp[i] = total
    activate(TANH, act.reshape(act.size))


@compiled
def _want(
    o: ReplayOptions,
    actor: ActorRows,
    targets: np.ndarray,
    drawn: np.ndarray,
    data: TransitionRow,
    seen: SeenRow,
    begin: int,
    noise: np.ndarray,
    work: ActorWork,
    judge: CriticWork,
) -> None:
    """Write the critics' targets at a minibatch, with noise [B, A] on the next actions."""
    size = noise.shape[1]
    turn_narrow_weights(work.layers, actor.target, work.turned)
    turn_targets(targets, drawn, judge)
    alpha = math.exp(actor.alpha.param[0])
    for at in range(0, o.minibatch, ROWS_AT_ONCE):
        n, first = min(ROWS_AT_ONCE, o.minibatch - at), begin + at
        out = _run_actor(o, work, actor.target, seen.next_obs, first, n)
        act, logp = matrix(work.act, 0, n, size), work.logp[:n]
        if o.soft:
            _squash(o, out, noise[at : at + n], act, logp)
        else:
            _perturb(out, noise[at : at + n], act)
            logp[:] = 0
        run_targets(targets, drawn, judge, o.activation, data.next_obs, first, act)
        for i in range(n):
            value = judge.value[i] - alpha * logp[i]
            judge.wanted[at + i] = data.reward[first + i] + data.discount[first + i] * value


@compiled
def _perturb(out: np.ndarray, noise: np.ndarray, act: np.ndarray) -> None:
    """Write TD3's actions [n, A], with noise, clipped to [-1, 1]; NaN stays."""
    one = act.dtype.type(1)
    act[:] = out
    activate(TANH, act.reshape(act.size))
    for i in range(act.shape[0]):
        for j in range(act.shape[1]):
            v = act[i, j] + noise[i, j]
            act[i, j] = -one if v < -one else (one if v > one else v)


@compiled
def _add_ascent(
    o: ReplayOptions,
    actor: ActorRows,
    params: np.ndarray,
    data: TransitionRow,
    seen: SeenRow,
    begin: int,
    noise: np.ndarray,
    work: ActorWork,
    judge: CriticWork,
) -> tuple[float, float]:
    """Add the gradient of the policy's loss at a minibatch; return the sums of loss and logp."""
    size = noise.shape[1]
    param, alpha = actor.row.param, math.exp(actor.alpha.param[0])
    turn_weights(work.layers, param, work.turned)
    turn_critics(params, judge)
    loss, entropy = 0.0, 0.0
    for at in range(0, o.minibatch, ROWS_AT_ONCE):
        n, first = min(ROWS_AT_ONCE, o.minibatch - at), begin + at
        out = _run_actor(o, work, param, seen.obs, first, n)
        act, of_act = matrix(work.act, 0, n, size), matrix(work.of_act, 0, n, size)
        logp = work.logp[:n]
        if o.soft:
            _squash(o, out, noise[at : at + n], act, logp)
        else:
            act[:] = out
            activate(TANH, act.reshape(act.size))
            logp[:] = 0
        climb(params, judge, o.activation, o.mean, o.minibatch, data.obs_act, first, act, of_act)
        for i in range(n):
            loss += alpha * logp[i] - judge.value[i]
            entropy += logp[i]
        of_output = matrix(work.of_output, 0, n, out.shape[1])
        _into_output(o, alpha / o.minibatch, act, of_act, out, noise[at : at + n], of_output)
        memory = work.tape, work.turned, work.of_output, work.spare, work.grad
        add_mlp_gradient(work.layers, o.activation, n, *memory)
    return loss, entropy


@compiled
def _into_output(
    o: ReplayOptions,
    share: float,
    act: np.ndarray,
    of_act: np.ndarray,
    out: np.ndarray,
    noise: np.ndarray,
    of_output: np.ndarray,
) -> None:
    """Write the gradient of the policy's output from that of its actions [n, A].

    share: the temperature divided by the minibatch's size; see `deterministic_loss`, `soft_loss`.
    """
    n, size = act.shape
    for i in range(n):
        for j in range(size):
            of_u = of_act[i, j] * (1 - act[i, j] * act[i, j])
            if o.soft:
                of_u += 2 * share * act[i, j]
                log_std = out[i, size + j]
                inside = log_std >= o.low and log_std <= o.high
                slope = of_u * math.exp(log_std) * noise[i, j] - share if inside else 0.0
                of_output[i, size + j] = slope
            of_output[i, j] = of_u


@compiled
def offpolicy_updates(
    o: ReplayOptions,
    actor: ActorRows,
    critics: CriticRows,
    judges: JudgeRows,
    data: TransitionRow,
    seen: SeenRow,
    noise: np.ndarray,
    first: int,
    part: int,
    work: ActorWork,
    judge: CriticWork,
    metrics: np.ndarray,
) -> None:
    """Run an update for each row of metrics [U, 5]; `first` is the number of the first, from 1.

    The critics read `data`, and the policy `seen`. noise [U, 2, B, A]: that of the actions at obs,
    and at next_obs. `part` leaves out the policy, or the critics.
    """
    size = o.minibatch
    for step in range(metrics.shape[0]):
        begin, found = step * size, metrics[step]
        if part != POLICY:
            targets, drawn = judges.targets, judges.drawn[step]
            _want(o, actor, targets, drawn, data, seen, begin, noise[step, 1], work, judge)
            loss = critics_step(critics, judge, o.activation, data, begin)
            found[CRITIC_LOSS], found[MEAN_Q] = loss
        if part == CRITICS or (first + step) % o.policy_delay != 0:
            continue
        work.grad[:] = 0
        by = judges.params
        sums = _add_ascent(o, actor, by, data, seen, begin, noise[step, 0], work, judge)
        clipped_adam(actor.row, work.grad, True)
        found[ACTOR_LOSS], found[ENTROPY] = sums[0] / size, -sums[1] / size
        if actor.learns_alpha:
            work.grad[0] = -(sums[1] / size + o.target_entropy)
            clipped_adam(actor.alpha, work.grad[:1], True)
        found[ALPHA] = math.exp(actor.alpha.param[0])
        for c in range(critics.param.shape[0]):
            follow(critics.target[c], critics.param[c], critics.tau)
        if not o.soft:
            follow(actor.target, actor.row.param, critics.tau)
