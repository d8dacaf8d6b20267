"""Students, a teacher that is a function or a network, and lessons without an environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dpd.agents.base import Batch, Metrics
from dpd.agents.dist import DiagGaussian
from dpd.agents.nets import mlp_shapes
from dpd.agents.student import Student
from dpd.agents.student_config import StudentConfig
from dpd.distill.method import Context
from dpd.distill.teacher import Teacher
from dpd.policies.metadata import PolicyMeta
from dpd.policies.policyfile import Policy


class Function(Policy):
    """A policy that answers with a function of the state."""

    def __init__(
        self, mean: Callable[[Tensor], Tensor], obs_dim: int, act_dim: int, std: float = 0.05
    ) -> None:
        drawn = network(obs_dim, act_dim, (4,), 1.0)
        super().__init__(drawn.tensors, drawn.meta)
        self.function, self.std = mean, torch.full((act_dim,), std)

    def dist(self, obs: Tensor) -> DiagGaussian:
        return DiagGaussian(self.function(obs), self.std.log())


def network(
    obs_dim: int,
    act_dim: int,
    hidden: Sequence[int],
    gain: float,
    squashed: bool = False,
    seed: int = 0,
) -> Policy:
    """Return a random tanh network as a policy; `gain` bends it."""
    g = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(*shape, generator=g) * (gain * shape[0] ** -0.5 if shape[0] > 1 else 0.5)
        for name, shape in mlp_shapes("actor", [obs_dim, *hidden, act_dim]).items()
    }
    last = f"actor.{len(hidden)}"
    for kind in ("weight", "bias"):
        tensors[f"{last}.{kind}"] *= 0.5 / gain
    tensors |= {"obs_mean": torch.zeros(1, obs_dim), "obs_scale": torch.ones(1, obs_dim)}
    tensors |= {"obs_count": torch.ones(1, 1), "log_std": torch.full((1, act_dim), -3.0)}
    tensors |= {"act_low": -torch.ones(act_dim), "act_high": torch.ones(act_dim)}
    meta = PolicyMeta(
        algo="ppo",
        env_id="Some-v0",
        activation="tanh",
        squashed=squashed,
        obs_dim=obs_dim,
        act_dim=act_dim,
        hidden=tuple(hidden),
        env_kwargs={},
        provenance={},
    )
    return Policy(tensors, meta)


class Classroom:
    """Groups of students of one method, and the states they are shown."""

    def __init__(
        self,
        distill: Any,
        teacher: Policy,
        states: Callable[[torch.Generator, int], Tensor],
        groups: int = 1,
        dtype: torch.dtype = torch.float32,
        first: int = 0,
        **student: Any,
    ) -> None:
        config = StudentConfig(n_envs=8, n_steps=64, **student)
        peers = max(1, len(config.sizes))
        self.seeds = [(first + g, p) for g in range(groups) for p in range(peers)]
        self.rng = torch.Generator().manual_seed(first)
        self.states = states
        obs_dim = states(torch.Generator(), 1).shape[-1]
        self.agent = Student(config, obs_dim, teacher.meta.act_dim, self.seeds, dtype)
        self.method = distill.build(
            Context(self.agent, groups, peers, self.seeds, Teacher([teacher]))
        )

    def collect(self) -> Batch:
        """Show every student the same new states."""
        rollout = self.agent.new_rollout()
        shown = self.states(self.rng, rollout.obs[0, ..., 0].numel())
        rollout.obs.copy_(shown.view(1, *rollout.obs.shape[1:]).expand_as(rollout.obs))
        self.agent.observe(rollout)
        return self.agent.prepare(rollout)

    def iterate(self, progress: float) -> Metrics:
        """Run one iteration."""
        self.method.on_batch(self.collect(), progress)
        self.last = self.method.step()
        return self.last

    def teach(self, iterations: int) -> Metrics:
        """Run so many iterations from the beginning; return the last one's metrics."""
        for i in range(iterations):
            self.iterate(i / iterations)
        return self.last
