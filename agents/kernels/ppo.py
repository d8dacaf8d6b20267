"""PPO's update of one learner, compiled: every minibatch of every epoch in one call."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from dpd.agents.kernels.adam import AdamRow, clipped_adam
from dpd.agents.kernels.compiled import compiled
from dpd.agents.kernels.imitation import (
    HALF_LOG_2PI,
    NetTable,
    TargetRow,
    Work,
    add_imitation_gradient,
    add_log_std_gradient,
    distance_at,
)
from dpd.agents.kernels.nets import (
    INPUT,
    N_IN,
    N_OUT,
    OUTPUT,
    ROWS_AT_ONCE,
    add_mlp_gradient,
    matrix,
    run_mlp,
    turn_weights,
)

NO_TERM, OWN_STATES, AT_SAMPLES, PROXIMAL = range(4)
"""Which states a method's term is computed at: none, the targets' states, or the samples' states;
`PROXIMAL` weights the latter by the clipped probability ratio."""


class SampleRow(NamedTuple):
    """One learner's samples, as `dpd.agents.ppo_loss.Samples` [S, ...]."""

    obs: np.ndarray  # [S, O], or [S, F + C] if the critic reads the last C columns alone
    act: np.ndarray
    logp: np.ndarray
    adv: np.ndarray
    ret: np.ndarray
    value: np.ndarray
    weight: np.ndarray  # empty: all weights are 1


class LossOptions(NamedTuple):
    """Settings of the loss; see `PPOConfig`."""

    minibatch: int
    norm_adv: bool
    clip: float
    value_clip: float  # infinite: no clipping
    value_coef: float
    entropy_coef: float
    rl_coef: float  # of advantages


class TermRow(NamedTuple):
    """A method's term in the loss."""

    place: int  # NO_TERM, OWN_STATES, AT_SAMPLES or PROXIMAL
    coef: float
    targets: TargetRow
    first: int  # part of the targets for the first minibatch; OWN_STATES only


@compiled
def gather_advantages(o: LossOptions, data: SampleRow, ids: np.ndarray, adv: np.ndarray) -> None:
    """Copy the samples' advantages to `adv` [B], normalised if asked for, times their weights."""
    for i in range(ids.size):
        adv[i] = data.adv[ids[i]]
    if o.norm_adv:
        centre(adv)
    for i in range(ids.size):
        adv[i] *= o.rl_coef
    if data.weight.size:
        for i in range(ids.size):
            adv[i] *= data.weight[ids[i]]


@compiled
def centre(adv: np.ndarray) -> None:
    """Centre and scale advantages [B] in place, as `normalise_minibatches`."""
    n = adv.size
    total = 0.0
    for i in range(n):
        total += adv[i]
    mean, square = total / n, 0.0
    for i in range(n):
        square += (adv[i] - mean) ** 2
    # n - 1 in a float: one sample gives 0 / 0, NaN as in torch
    std = math.sqrt(square / (n - 1.0)) + 1e-8
    for i in range(n):
        adv[i] = (adv[i] - mean) / std


@compiled
def add_policy_loss(
    o: LossOptions,
    term: TermRow,
    data: SampleRow,
    ids: np.ndarray,
    adv: np.ndarray,
    mean: np.ndarray,
    log_std: np.ndarray,
    of_mean: np.ndarray,
    of_log_std: np.ndarray,
    ratios: np.ndarray,
) -> tuple[float, float]:
    """Return the sums of PPO's policy loss and of the divergences of a term at the samples.

    Writes the gradient by the mean [B, A] and the ratios [B]; adds to that by log_std [A].
    """
    size, n = mean.shape[1], o.minibatch
    policy, distance = 0.0, 0.0
    inv_std = np.exp(-log_std)
    constant = log_std.sum() + HALF_LOG_2PI * size
    for i in range(ids.size):
        k = ids[i]
        square = 0.0
        for j in range(size):
            z = (data.act[k, j] - mean[i, j]) * inv_std[j]
            square += z * z
        ratio = math.exp(-0.5 * square - constant - data.logp[k])
        ratios[i] = ratio
        gain = ratio * adv[i]
        bounded = clamped(ratio, 1 - o.clip, 1 + o.clip) * adv[i]
        policy -= gain if gain <= bounded else bounded
        of_logp = -gain / n if gain <= bounded else 0.0
        of_mean[i] = 0
        if term.place >= AT_SAMPLES:
            found, by_logp = _term_at(o, term, k, ratio, mean[i], log_std, of_mean[i], of_log_std)
            distance += found
            of_logp += by_logp
        for j in range(size):
            z = (data.act[k, j] - mean[i, j]) * inv_std[j]
            of_mean[i, j] += of_logp * z * inv_std[j]
            of_log_std[j] += of_logp * (z * z - 1)
    return policy, distance


@compiled
def clamped(x: float, low: float, high: float) -> float:
    """Return x within bounds; NaN stays."""
    return low if x < low else (high if x > high else x)


@compiled
def _term_at(
    o: LossOptions,
    term: TermRow,
    k: int,
    ratio: float,
    mean: np.ndarray,
    log_std: np.ndarray,
    of_mean: np.ndarray,
    of_log_std: np.ndarray,
) -> tuple[float, float]:
    """Add a term's gradient at sample k; return its divergence and its gradient by logp."""
    coef = term.coef / o.minibatch
    distance = distance_at(term.targets, k, mean, log_std, of_mean)
    weight, by_logp = term.targets.weight[k] + 0.0, 0.0
    if term.place == PROXIMAL:  # the weight is max(ratio, 1 - clip), with its gradient
        weight = 1 - o.clip
        if not ratio < weight:
            weight, by_logp = ratio, coef * distance * ratio
    scale = coef * weight
    for j in range(mean.size):
        of_mean[j] *= scale
    add_log_std_gradient(term.targets, k, mean, log_std, scale, of_log_std)
    return distance, by_logp


@compiled
def add_value_loss(
    o: LossOptions, data: SampleRow, ids: np.ndarray, value: np.ndarray, of_value: np.ndarray
) -> float:
    """Return the sum of the values' squared errors, clipped; write the gradient [B]."""
    total = 0.0
    for i in range(ids.size):
        ret, old = data.ret[ids[i]], data.value[ids[i]]
        error = ret - value[i]
        square = error * error
        moved = value[i] - old
        bounded = ret - old - clamped(moved, -o.value_clip, o.value_clip)
        if not abs(moved) <= o.value_clip and square < bounded * bounded:
            error, square = error * 0, bounded * bounded
        total += square
        of_value[i] = error * (-2 * o.value_coef / o.minibatch)
    return total


@compiled
def add_ppo_gradient(
    nets: NetTable,
    o: LossOptions,
    param: np.ndarray,
    data: SampleRow,
    ids: np.ndarray,
    term: TermRow,
    ratios: np.ndarray,
    work: Work,
) -> tuple[float, float, float]:
    """Add a minibatch's gradient to work.grad; return policy loss, value error and divergence."""
    for layers in (nets.actor, nets.critic):
        turn_weights(layers, param, work.turned)
    gather_advantages(o, data, ids, work.adv)
    act_dim = nets.actor[nets.actor.shape[0] - 1, N_OUT]
    for j in range(act_dim):
        work.grad[nets.log_std + j] -= o.entropy_coef
    policy, value_error, distance = 0.0, 0.0, 0.0
    for begin in range(0, ids.size, ROWS_AT_ONCE):
        part = slice(begin, min(begin + ROWS_AT_ONCE, ids.size))
        sums = _ppo_block(nets, o, param, data, ids[part], work.adv[part], term, ratios[part], work)
        policy += sums[0]
        value_error += sums[1]
        distance += sums[2]
    return policy / ids.size, value_error / ids.size, distance / ids.size


@compiled
def place_inputs(
    layers: np.ndarray, first: int, obs: np.ndarray, ids: np.ndarray, tape: np.ndarray
) -> None:
    """Copy the inputs of an MLP, columns of obs [S, O] from `first` on, to their place."""
    x = matrix(tape, layers[0, INPUT], ids.size, layers[0, N_IN])
    for i in range(ids.size):
        for j in range(x.shape[1]):
            x[i, j] = obs[ids[i], first + j]


@compiled
def _ppo_block(
    nets: NetTable,
    o: LossOptions,
    param: np.ndarray,
    data: SampleRow,
    ids: np.ndarray,
    adv: np.ndarray,
    term: TermRow,
    ratios: np.ndarray,
    work: Work,
) -> tuple[float, float, float]:
    """Add the gradient of some of a minibatch's samples; return the sums of the losses."""
    n, kind = ids.size, nets.activation
    head = nets.actor[nets.actor.shape[0] - 1]
    place_inputs(nets.actor, 0, data.obs, ids, work.tape)
    if nets.critic[0, INPUT] > 0:  # the critic has inputs of its own, behind the actor's
        place_inputs(nets.critic, nets.actor[0, N_IN], data.obs, ids, work.tape)
    for layers in (nets.actor, nets.critic):
        run_mlp(layers, kind, n, param, work.tape, work.turned)
    mean = matrix(work.tape, head[OUTPUT], n, head[N_OUT])
    of_mean = matrix(work.of_mean, 0, n, head[N_OUT])
    spread = slice(nets.log_std, nets.log_std + head[N_OUT])
    policy, distance = add_policy_loss(
        o, term, data, ids, adv, mean, param[spread], of_mean, work.grad[spread], ratios
    )
    value_at = nets.critic[nets.critic.shape[0] - 1, OUTPUT]
    value = work.tape[value_at : value_at + n]
    value_error = add_value_loss(o, data, ids, value, work.of_value)
    for layers, of_output in ((nets.actor, work.of_mean), (nets.critic, work.of_value)):
        add_mlp_gradient(layers, kind, n, work.tape, work.turned, of_output, work.spare, work.grad)
    return policy, value_error, distance


@compiled
def ppo_epochs(
    nets: NetTable,
    o: LossOptions,
    row: AdamRow,
    active: bool,
    data: SampleRow,
    order: np.ndarray,
    term: TermRow,
    ratios: np.ndarray,
    work: Work,
) -> tuple[float, float, float, float]:
    """Run PPO over the samples in the given orders [epochs, S]; `ratios` [S] gets the last ones.

    Returns the means of policy loss, value error, gradient norm and the term's divergence.
    """
    n = o.minibatch
    per_epoch = order.shape[1] // n
    parts = max(1, term.targets.weight.size // n)
    policy, value_error, norm, distance = 0.0, 0.0, 0.0, 0.0
    for step in range(order.shape[0] * per_epoch):
        begin = step % per_epoch * n
        ids = order[step // per_epoch, begin : begin + n]
        work.grad[:] = 0
        losses = add_ppo_gradient(
            nets, o, row.param, data, ids, term, ratios[begin : begin + n], work
        )
        policy += losses[0]
        value_error += losses[1]
        distance += losses[2]
        if term.place == OWN_STATES:
            at = (term.first + step) % parts * n
            distance += add_imitation_gradient(
                nets, row.param, term.targets, at, n, term.coef, work
            )
        norm += clipped_adam(row, work.grad, active)
    steps = order.shape[0] * per_epoch
    return policy / steps, value_error / steps, norm / steps, distance / steps
