"""Updates of TD3 and SAC by compiled kernels: the arrays of a stack, and one call per learner."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpd.agents.base import Metrics
from dpd.agents.kernels import ACTIVATION_KINDS, adam_rows, layer_table, learner_arrays
from dpd.agents.kernels import critics as critics_kernel
from dpd.agents.kernels import offpolicy as kernel
from dpd.agents.kernels.nets import FEW_OUTPUTS, N_IN, N_OUT, ROWS_AT_ONCE
from dpd.agents.nets import StackedNets
from dpd.agents.offpolicy import OffPolicy, Sample
from dpd.agents.optim import StackedAdam
from dpd.agents.sac import LOG_STD_MAX, LOG_STD_MIN, SAC
from dpd.agents.td3 import TD3

Map = Callable[[Callable[[int], Any], int], list[Any]]


class Call(NamedTuple):
    """Everything that the kernel needs to run a learner's updates, in its order."""

    options: kernel.ReplayOptions
    actor: kernel.ActorRows
    critics: critics_kernel.CriticRows
    judges: kernel.JudgeRows
    data: critics_kernel.TransitionRow
    seen: kernel.SeenRow
    noise: np.ndarray  # [U, 2, B, A]
    first: int
    part: int
    work: kernel.ActorWork
    judge: critics_kernel.CriticWork
    metrics: np.ndarray  # [U, 5]

    def one(self, i: int, part: int) -> Call:
        """Return a part of the i-th update alone."""
        step, size = slice(i, i + 1), self.options.minibatch
        rows = slice(i * size, (i + 1) * size)
        return self._replace(
            judges=self.judges._replace(drawn=self.judges.drawn[step]),
            data=critics_kernel.TransitionRow(*(x[rows] for x in self.data)),
            seen=kernel.SeenRow(*(x[rows] for x in self.seen)),
            noise=self.noise[step],
            first=self.first + i,
            part=part,
            metrics=self.metrics[step],
        )


def run_updates(
    agent: OffPolicy, sample: Sample, noise: Tensor, judges: Tensor, map_: Map
) -> list[Metrics]:
    """Run updates on minibatches [N, U * B, ...] with what the agent drew for them.

    noise and judges [N, U, M] are those of `_draw` and `_draw_judges`. agent.n_updates must count
    all updates. Returns the metrics [N] of every update.
    """
    n, updates = noise.shape[:2]
    first, soft = agent.n_updates - updates + 1, isinstance(agent, SAC)
    delay = agent.config.policy_delay if isinstance(agent, TD3) else 1
    metrics = torch.zeros(n, updates, 5, dtype=agent.dtype)
    calls = _calls(agent, sample, noise, judges, first, metrics)

    if not agent.config.share_experience:
        _run(calls, map_)
    for i in range(updates if agent.config.share_experience else 0):
        _run([call.one(i, kernel.CRITICS) for call in calls], map_)
        if (first + i) % delay == 0:
            _run([call.one(i, kernel.POLICY) for call in calls], map_)
    return [named(metrics[:, i], soft, moved=(first + i) % delay == 0) for i in range(updates)]


def _run(calls: Sequence[Call], map_: Map) -> None:
    """Run learners' calls side by side; return when all have ended."""

    def work(i: int) -> None:
        kernel.offpolicy_updates(*calls[i])

    map_(work, len(calls))


def _calls(
    agent: OffPolicy, sample: Sample, noise: Tensor, judges: Tensor, first: int, found: Tensor
) -> list[Call]:
    """Return each learner's call, for whole updates; metrics go to `found` [N, U, 5]."""
    n, updates = noise.shape[:2]
    c, soft = agent.config, isinstance(agent, SAC)
    shape = n, updates, 2, c.minibatch_size, agent.act_dim
    noises = learner_arrays((noise if soft else noise.unsqueeze(2)).expand(shape))
    data = [learner_arrays(x) for x in sample.judged]
    seen = [learner_arrays(x) for x in sample.own[:2]]
    options = _options(agent)
    actors, critics, judging = actor_rows(agent), critic_rows(agent), judge_rows(agent, judges)
    most = max(x.shape[0] for one in judging for x in (one.targets, one.params))
    return [
        Call(
            options,
            actors[i],
            critics[i],
            judging[i],
            critics_kernel.TransitionRow(*(x[i] for x in data)),
            kernel.SeenRow(*(x[i] for x in seen)),
            noises[i],
            first,
            kernel.WHOLE,
            actor_work(agent.nets, c.minibatch_size, agent.act_dim),
            critic_work(agent.critics, max(most, c.n_critics), c.minibatch_size),
            found[i].numpy(),
        )
        for i in range(n)
    ]


def _options(agent: OffPolicy) -> kernel.ReplayOptions:
    return kernel.ReplayOptions(
        soft=isinstance(agent, SAC),
        mean=agent.config.drawn_critics is not None,
        activation=ACTIVATION_KINDS[agent.nets.activation],
        minibatch=agent.config.minibatch_size,
        policy_delay=agent.config.policy_delay if isinstance(agent, TD3) else 1,
        target_entropy=agent.target_entropy if isinstance(agent, SAC) else 0.0,
        low=LOG_STD_MIN,
        high=LOG_STD_MAX,
    )


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


def judge_rows(agent: OffPolicy, drawn: Tensor) -> list[Any]:
    """Return the critics that judge every learner's actions; drawn [N, U, M], M 0 for all own."""
    params, targets = (x.flat.detach().numpy() for x in (agent.critics, agent.target_critics))
    c = agent.config.n_critics
    if agent.config.drawn_critics is None:
        drawn = torch.arange(c).expand(*drawn.shape[:2], c)
        ascended = c if isinstance(agent, SAC) else 1  # TD3's policy follows the first critic
    else:
        ascended = agent.policy_pool.size
    numbers, of_targets = learner_arrays(drawn), agent.target_pool.size
    rows = []
    for i in range(agent.n_learners):
        at, by = (int(pool.first[i]) for pool in (agent.target_pool, agent.policy_pool))
        judging = targets[at : at + of_targets], numbers[i], params[by : by + ascended]
        rows.append(kernel.JudgeRows(*judging))
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
