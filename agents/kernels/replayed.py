"""Updates of TD3 and SAC by compiled kernels: the arrays of a stack, and one call per learner."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpd.agents.base import Metrics
from dpd.agents.kernels import ACTIVATION_KINDS, adam_rows, layer_table, learner_arrays
from dpd.agents.kernels import critics as critics_kernel
from dpd.agents.kernels import offpolicy as kernel
from dpd.agents.kernels.nets import FEW_OUTPUTS, N_IN, N_OUT, ROWS_AT_ONCE
from dpd.agents.nets import StackedNets
from dpd.agents.offpolicy import OffPolicy
from dpd.agents.optim import StackedAdam
from dpd.agents.replay import Transitions
from dpd.agents.sac import LOG_STD_MAX, LOG_STD_MIN, SAC
from dpd.agents.td3 import TD3

Map = Callable[[Callable[[int], Any], int], list[Any]]


def run_updates(agent: OffPolicy, sample: Transitions, noise: Tensor, map_: Map) -> list[Metrics]:
    """Run updates on normalised minibatches [N, U * B, ...] with the noise that `_draw` returned.

    agent.n_updates must count all of them. Returns the metrics [N] of every update.
    """
    n, updates = noise.shape[:2]
    first = agent.n_updates - updates + 1
    c = agent.config
    size, shape = c.minibatch_size, (n, updates, 2, c.minibatch_size, agent.act_dim)
    soft = isinstance(agent, SAC)
    noises = learner_arrays((noise if soft else noise.unsqueeze(2)).expand(shape))
    data = critics_kernel.TransitionRow(*map(learner_arrays, sample))
    delay = agent.config.policy_delay if isinstance(agent, TD3) else 1
    entropy = agent.target_entropy if isinstance(agent, SAC) else 0.0
    kind = ACTIVATION_KINDS[agent.nets.activation]
    options = kernel.ReplayOptions(soft, kind, size, delay, entropy, LOG_STD_MIN, LOG_STD_MAX)
    actors, critics = actor_rows(agent), critic_rows(agent)
    metrics = torch.zeros(n, updates, 5, dtype=agent.dtype)
    found = metrics.numpy()

    def work(i: int) -> None:
        own = critics_kernel.TransitionRow(*(x[i] for x in data))
        memory = (
            actor_work(agent.nets, size, agent.act_dim),
            critic_work(agent.critics, c.n_critics, size),
        )
        kernel.offpolicy_updates(
            options, actors[i], critics[i], own, noises[i], first, *memory, found[i]
        )

    map_(work, n)
    return [named(metrics[:, i], soft, moved=(first + i) % delay == 0) for i in range(updates)]


def named(values: Tensor, soft: bool, moved: bool) -> Metrics:
    """Name the columns of one update's metrics [N, 5], in the order of the torch path."""
    columns = values.unbind(1)
    metrics = {"train/alpha": columns[kernel.ALPHA]} if soft else {}
    metrics |= {"loss/critic": columns[kernel.CRITIC_LOSS], "train/q": columns[kernel.MEAN_Q]}
    metrics |= {"loss/actor": columns[kernel.ACTOR_LOSS]} if moved else {}
    return metrics | ({"train/entropy": columns[kernel.ENTROPY]} if soft else {})


def actor_rows(agent: OffPolicy) -> list[Any]:
    """Return every learner's policy and temperature; TD3's temperature is never used."""
    rows = adam_rows(agent.nets.flat, agent.optimizer, math.inf)
    if isinstance(agent, SAC):
        alphas = adam_rows(agent.log_alpha, agent.alpha_optimizer, math.inf)
        learns, target = agent.config.alpha is None, agent.nets
    else:
        assert isinstance(agent, TD3)
        none = torch.zeros_like(agent.gamma)
        alphas = adam_rows(none, StackedAdam(none, agent.lr.tolist()), math.inf)
        learns, target = False, agent.target_nets
    targets = target.flat.detach().numpy()
    return [kernel.ActorRows(row, targets[i], alphas[i], learns) for i, row in enumerate(rows)]


def critic_rows(agent: OffPolicy) -> list[Any]:
    """Return every learner's critics."""
    c, coef = agent.config.n_critics, 0.5 if isinstance(agent, SAC) else 1.0
    targets = agent.target_critics.flat.detach().numpy()
    each = adam_rows(agent.critics.flat, agent.critic_optimizer, math.inf)
    param, avg, avg_sq, steps = (
        x.detach().numpy()
        for x in (
            agent.critics.flat,
            agent.critic_optimizer.exp_avg,
            agent.critic_optimizer.exp_avg_sq,
            agent.critic_optimizer.steps.unsqueeze(1),
        )
    )
    rows = []
    for i in range(0, len(each), c):
        own, one = slice(i, i + c), each[i]
        state = param[own], targets[own], avg[own], avg_sq[own], steps[own]
        fixed = one.lr, one.beta1, one.beta2, one.eps, coef, float(agent.config.tau)
        rows.append(critics_kernel.CriticRows(*state, *fixed))
    return rows


def actor_work(nets: StackedNets, minibatch: int, act_dim: int) -> Any:
    """Return memory for one learner's policy."""
    n = min(minibatch, ROWS_AT_ONCE)
    layers, tape, turned, widest = _sizes(nets, "actor", n)
    real = learner_arrays(nets.flat).dtype
    lengths = tape, turned, nets.flat.shape[1], widest, widest, n * act_dim, n * act_dim, n
    return kernel.ActorWork(layers, *(np.empty(x, real) for x in lengths))


def critic_work(nets: StackedNets, critics: int, minibatch: int) -> Any:
    """Return memory for one learner's critics."""
    n = min(minibatch, ROWS_AT_ONCE)
    layers, tape, turned, widest = _sizes(nets, "critic", n)
    real = learner_arrays(nets.flat).dtype
    shapes = (critics, tape), (critics, turned), nets.flat.shape[1], widest, widest, minibatch, n
    memory: list[Any] = [np.empty(x, real) for x in shapes]
    memory.append(np.empty(n, np.int64))
    return critics_kernel.CriticWork(layers, *memory)


def _sizes(nets: StackedNets, prefix: str, n: int) -> tuple[np.ndarray, int, int, int]:
    begin = n * nets.shapes[f"{prefix}.0.weight"][0]
    layers, tape, turned = layer_table(nets, prefix, n, begin, 0)
    widest = int(layers[:, [N_IN, N_OUT]].max()) * max(n, FEW_OUTPUTS)
    return layers, tape, turned, widest
