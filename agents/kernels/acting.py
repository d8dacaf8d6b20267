"""Compiled policies: normalise observations, run every learner's actor, and sample or clip."""

from __future__ import annotations

import numpy as np

from dpd.agents.kernels.compiled import compiled
from dpd.agents.kernels.imitation import NetTable
from dpd.agents.kernels.nets import (
    OUTPUT,
    ROWS_AT_ONCE,
    matrix,
    run_mlp,
    turn_narrow_weights,
)


@compiled
def act_rows(
    nets: NetTable,
    param: np.ndarray,
    obs: np.ndarray,
    obs_mean: np.ndarray,
    obs_scale: np.ndarray,
    clip: float,
    noise: np.ndarray,
    tape: np.ndarray,
    turned: np.ndarray,
    act: np.ndarray,
) -> None:
    """Write the actions of N learners at raw obs [N, B, O] to act [N, B, A].

    param [N, D]; obs_mean and obs_scale [N, 1, O]. With noise [N, B, A], actions are samples; with
    noise [N, 0, A], they are means, clipped to [-1, 1].
    """
    output_rows(nets, param, obs, obs_mean, obs_scale, clip, tape, turned, act)
    for learner in range(obs.shape[0]):
        if noise.shape[1] > 0:
            std = np.exp(param[learner, nets.log_std : nets.log_std + act.shape[2]])
            _add_noise(std, noise[learner], act[learner])
        else:
            _clip_to_box(act[learner])


@compiled
def output_rows(
    nets: NetTable,
    param: np.ndarray,
    obs: np.ndarray,
    obs_mean: np.ndarray,
    obs_scale: np.ndarray,
    clip: float,
    tape: np.ndarray,
    turned: np.ndarray,
    out: np.ndarray,
) -> None:
    """Write the output of N learners' actors at raw obs [N, B, O] to out [N, B, A]."""
    head = nets.actor[nets.actor.shape[0] - 1]
    for learner in range(obs.shape[0]):
        own = param[learner]
        turn_narrow_weights(nets.actor, own, turned)
        for begin in range(0, obs.shape[1], ROWS_AT_ONCE):
            end = min(begin + ROWS_AT_ONCE, obs.shape[1])
            x, y = obs[learner, begin:end], out[learner, begin:end]
            _normalise(x, obs_mean[learner, 0], obs_scale[learner, 0], clip, tape)
            run_mlp(nets.actor, nets.activation, end - begin, own, tape, turned)
            y[:] = matrix(tape, head[OUTPUT], y.shape[0], y.shape[1])


@compiled
def _normalise(
    obs: np.ndarray, mean: np.ndarray, scale: np.ndarray, clip: float, out: np.ndarray
) -> None:
    """Write normalised obs [B, O] to the beginning of `out`; an infinite clip copies them."""
    width = obs.shape[1]
    for i in range(obs.shape[0]):
        for j in range(width):
            v = obs[i, j]
            if clip < np.inf:
                v = (v - mean[j]) * scale[j]
                v = -clip if v < -clip else (clip if v > clip else v)  # NaN stays
            out[i * width + j] = v


@compiled
def _add_noise(std: np.ndarray, noise: np.ndarray, act: np.ndarray) -> None:
    for i in range(act.shape[0]):
        for j in range(act.shape[1]):
            act[i, j] += std[j] * noise[i, j]


@compiled
def _clip_to_box(act: np.ndarray) -> None:
    one = act.dtype.type(1)
    for i in range(act.shape[0]):
        for j in range(act.shape[1]):
            v = act[i, j]
            act[i, j] = -one if v < -one else (one if v > one else v)
