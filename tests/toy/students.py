"""Saved policies as teachers, and learners that a method with a teacher moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dpd.agents.base import Metrics
from dpd.agents.config import LearnerConfig
from dpd.agents.learners import Learners
from dpd.agents.offpolicy_config import SACConfig, TD3Config
from dpd.agents.ppo_config import PPOConfig
from dpd.agents.student_config import StudentConfig
from dpd.distill.method import Context, Method
from dpd.distill.teacher import Teacher
from dpd.distill.teaching_config import TeachingConfig
from dpd.policies.metadata import PolicyMeta
from dpd.policies.policyfile import Policy
from dpd.run.collect import collect
from tests.toy import probe_envs as probes
from tests.toy.point_mass import DT, HORIZON

O, A = 4, 2  # noqa: E741
SMALL: dict[str, Any] = {"n_envs": 4, "n_steps": 16, "minibatch_size": 16, "hidden": (16, 16)}
STUDENT = StudentConfig(**SMALL, capacity=512, lr=3e-3)
PLAIN = PPOConfig(**SMALL, epochs=2, lr=3e-3, lr_schedule="constant")
REPLAYED = SMALL | {"capacity": 512, "learning_starts": 0, "updates_per_step": 0.25, "lr": 3e-3}
TD3 = TD3Config(**REPLAYED, norm_obs=True)
SAC = SACConfig(**REPLAYED, norm_obs=True)


class Wandering(probes.Probe):
    """Eight steps from one random state to the next; the reward is the first action."""

    length, obs_dim, act_dim = 8, O, A

    def first(self) -> Tensor:
        return torch.randn(self.n_envs, O, generator=self.generator) * 3 + 1

    def after(self) -> Tensor:
        return self.first()

    def reward(self) -> Tensor:
        return self.act[:, 0]


class DoubleIntegrator(probes.Probe):
    """The system of `trials`: episodes of HORIZON steps from a random state."""

    length, obs_dim, act_dim = HORIZON, 4, 2

    def first(self) -> Tensor:
        return super().first() * torch.tensor([1, 1, 0.5, 0.5])

    def after(self) -> Tensor:
        velocity = self.obs[:, 2:] + DT * self.act
        return torch.cat([self.obs[:, :2] + DT * velocity, velocity], 1)

    def reward(self) -> Tensor:
        return -self.obs.square().sum(1)


def meta_of(config: LearnerConfig, obs_dim: int, act_dim: int, **changes: Any) -> PolicyMeta:
    """Describe learners' policies."""
    names = ("activation", "squashed", "tanh_mean", "state_std", "hidden", "norm_obs")
    fields = {name: getattr(config, name) for name in names}
    fields |= {"algo": "some", "env_id": "probe", "obs_dim": obs_dim, "act_dim": act_dim}
    return PolicyMeta(**fields | {"env_kwargs": {}, "provenance": {}} | changes)


def policy_of(agent: Learners, n: int = 0) -> Policy:
    """Return learner n's policy as a file would hold it."""
    ends = {"act_low": -torch.ones(agent.act_dim), "act_high": torch.ones(agent.act_dim)}
    tensors = {name: x.detach().clone() for name, x in agent.export(n).items()}
    return Policy(tensors | ends, meta_of(agent.config, agent.obs_dim, agent.act_dim))


def drawn(algo: LearnerConfig = PLAIN, seed: int = 7) -> Policy:
    """Return a policy of random weights whose actions cover their range."""
    agent: Learners = algo.build(O, A, [(seed, 0)])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for view in agent.nets.views.values():  # weights [1, in, out], biases [1, 1, out]
            spread = view.shape[1] ** -0.5 if view.shape[1] > 1 else 0.2
            view.normal_(0, spread, generator=generator)
    agent.obs_norm.update(torch.randn(1, 100, O, generator=generator) * 3 + 1)
    return policy_of(agent)


def linear(weight: Tensor, bias: Tensor, log_std: float = -1.0, **changes: Any) -> Policy:
    """Return the policy N(obs @ weight + bias, exp(log_std)), without a normaliser."""
    o, a = weight.shape
    tensors = {
        "actor.0.weight": weight,
        "actor.0.bias": bias.view(1, a),
        "log_std": torch.full((1, a), log_std),
        "obs_mean": torch.zeros(1, o),
        "obs_scale": torch.ones(1, o),
        "obs_count": torch.ones(1, 1),
        "act_low": -torch.ones(a),
        "act_high": torch.ones(a),
    }
    return Policy(tensors, meta_of(PLAIN, o, a, **{"hidden": (), "norm_obs": False} | changes))


def constant(*act: float, **changes: Any) -> Policy:
    """Return the policy that answers the same everywhere."""
    return linear(torch.zeros(O, len(act)), torch.tensor(act), **changes)


class School:
    """Learners in an environment, their teachers, and the method that moves them."""

    def __init__(
        self,
        config: TeachingConfig,
        algo: LearnerConfig,
        *teachers: Policy,
        groups: int = 1,
        peers: int = 1,
        history: Sequence[Policy] = (),
        world: type[probes.Probe] = Wandering,
    ) -> None:
        self.rows = [(g, p) for g in range(groups) for p in range(peers)]
        self.agent: Learners = algo.build(world.obs_dim, world.act_dim, self.rows)
        self.env = world(len(self.rows) * algo.n_envs)
        self.obs = self.env.reset().view(len(self.rows), algo.n_envs, -1)
        self.rollout = self.agent.new_rollout()
        self.teacher = Teacher(teachers, history)
        self.context = Context(self.agent, groups, peers, self.rows, self.teacher)
        self.method: Method = config.build(self.context)

    def iterate(self, progress: float) -> Metrics:
        """Collect, learn and distil, as a stack of a run does."""
        self.obs = collect(self.env, self.method.actor, self.obs, self.rollout)
        self.method.on_rollout(self.rollout)
        batch = self.agent.prepare(self.rollout)
        self.method.on_batch(batch, progress)
        metrics = self.agent.update(batch, progress, self.method.loss)
        metrics |= self.method.step()
        self.agent.observe(self.rollout)
        return metrics

    def run(self, iterations: int) -> list[Metrics]:
        """Iterate from the beginning to the end of a run."""
        return [self.iterate(i / iterations) for i in range(iterations)]

    @property
    def flat(self) -> Tensor:
        """All parameters [N, D]."""
        return self.agent.nets.flat.detach()
