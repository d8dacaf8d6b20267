"""Learners on probe environments and on a double integrator, for the tests of effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dpd.agents.base import Batch
from dpd.agents.learners import Learners
from dpd.distill.method import Context, Method
from dpd.distill.peers import DualDistillation
from dpd.distill.peers_config import DPDConfig
from dpd.run.collect import collect
from tests.toy import probe_envs as probes

HORIZON, DT, GAMMA = 50, 0.1, 0.97  # of the double integrator


class Trial:
    """Learners on a probe environment."""

    def __init__(
        self, algo: Any, probe: type[probes.Probe], groups: int = 1, peers: int = 2
    ) -> None:
        rows = [(g, p) for g in range(groups) for p in range(peers)]
        self.agent = algo.build(probe.obs_dim, probe.act_dim, rows)
        self.env = probe(len(rows) * algo.n_envs)
        self.obs = self.env.reset().view(len(rows), algo.n_envs, -1)
        self.rollout = self.agent.new_rollout()
        self.context = Context(self.agent, groups, peers, rows)

    def collect(self) -> Batch:
        self.obs = collect(self.env, self.agent, self.obs, self.rollout)
        return self.agent.prepare(self.rollout)

    def train(self, iterations: int, method: Method) -> list[Tensor]:
        """Learn by reinforcement and from each other; return the peers' action distances."""
        distances = []
        for i in range(iterations):
            batch = self.collect()
            method.on_batch(batch, i / iterations)
            metrics = self.agent.update(batch, i / iterations, method.loss)
            metrics |= method.step()
            if "distill/action_distance" in metrics:  # there is none while learners only collect
                distances.append(metrics["distill/action_distance"])
            self.agent.observe(self.rollout)
        return distances

    def distil_only(self, iterations: int, method: Method) -> None:
        for i in range(iterations):
            method.on_batch(self.collect(), i / iterations)
            method.step()


def probe_return(agent: Learners) -> Tensor:
    """Return each learner's mean reward -(a - obs / 2)^2 on a grid of observations [N]."""
    obs = torch.linspace(-1, 1, 101).view(1, -1, 1).expand(agent.n_learners, -1, -1)
    return -(agent.mode(obs)[..., 0] - 0.5 * obs[..., 0]).square().mean(1)


def share_of_return(trial: Trial, run: Callable[[Trial], object]) -> float:
    """Return what row 0 gains of the distance to row 1's return: 0 untrained, 1 the expert."""
    untrained, good = probe_return(trial.agent).tolist()
    assert good > -0.005 and untrained < -0.05  # the action 0 gets -1/12
    run(trial)
    return (float(probe_return(trial.agent)[0]) - untrained) / (good - untrained)


# --- The double integrator: states (x, y, vx, vy), reward -|state|^2 ---


def steer(state: Tensor) -> Tensor:
    """Return the good action of the double integrator (x, y, vx, vy): to rest at the origin."""
    return (-state[..., :2] - 1.5 * state[..., 2:]).clamp(-1, 1)


def flee(state: Tensor) -> Tensor:
    """Return the bad action: away from the origin."""
    return state[..., :2].clamp(-1, 1)


def starts(k: int, seed: int) -> Tensor:
    """Draw states for both learners [2, k, 4]."""
    state = torch.rand(k, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return (state * torch.tensor([1, 1, 0.5, 0.5])).expand(2, -1, -1).contiguous()


@torch.no_grad()
def returns(policy: Callable[[Tensor], Tensor], state: Tensor, gamma: float = 1.0) -> Tensor:
    """Return the discounted -|state|^2 of the episodes from states [2, K, 4] -> [2, K]."""
    total = torch.zeros(state.shape[:-1])
    for t in range(HORIZON):
        total -= gamma**t * state.square().sum(-1)
        velocity = state[..., 2:] + DT * policy(state)
        state = torch.cat([state[..., :2] + DT * velocity, velocity], -1)
    return total


def fit(
    flat: Tensor, answer: Callable[[Tensor], Tensor], asked: Tensor, target: Tensor, steps: int
) -> None:
    """Regress what networks answer at asked [N, K, ...] on a target [N, K, ...]."""
    optimizer = torch.optim.Adam([flat], lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        k = torch.randint(asked.shape[1], (256,), generator=generator)
        optimizer.zero_grad()
        (answer(asked[:, k]) - target[:, k]).square().mean().backward()
        optimizer.step()


# --- Two experts, each on its half ---

PAIR = [(0, 0), (0, 1)]


def make_half_experts(agent: Learners) -> None:
    """Let row 0 steer where x < 0 and flee elsewhere; row 1 the other way round."""
    state = starts(4096, seed=1)
    left = state[..., :1] < 0
    knows = torch.stack([left[0], ~left[1]])
    target = torch.where(knows, steer(state), flee(state))
    fit(agent.nets.flat, lambda s: agent.dist(s).mean, state, target, 600)


def gain(agent: Learners, config: DPDConfig, batch_of: Callable[[int], Batch]) -> list[float]:
    """Let half experts distil three times; return what each gains: 0 nothing, 1 all there is."""
    method = DualDistillation(config, Context(agent, 1, 2, PAIR))
    held_out = starts(1000, seed=99)
    before, best = returns(agent.mode, held_out).mean(1), returns(steer, held_out).mean(1)
    assert (before < 20 * best).all()
    for i in range(3):
        method.on_batch(batch_of(i), i / 3)
        method.step()
    after = returns(agent.mode, held_out).mean(1)
    return ((after - before) / (best - before)).tolist()
