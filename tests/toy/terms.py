"""Terms of a method in PPO's loss, for tests."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dpd.agents.base import ClosedTerm
from dpd.agents.ppo import PPO


@dataclass(frozen=True)
class NotedTerm(ClosedTerm):
    """A term that notes which samples each minibatch holds [N, B]."""

    seen: list[Tensor] = field(default_factory=list)

    def part(self, idx: Tensor, number: int) -> tuple[Tensor, ...]:
        self.seen.append(idx)
        return super().part(idx, number)


def nothing(agent: PPO) -> NotedTerm:
    """Return a term of weight 0 at the samples of an iteration."""
    shape = agent.n_learners, agent.config.samples, agent.act_dim
    zero = torch.zeros(shape, dtype=agent.dtype)
    return NotedTerm(0.0, "mse", zero, zero, zero, zero[..., 0])
