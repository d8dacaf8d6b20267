"""Who acts while students collect: they, their teacher, or a mixture of both."""

from __future__ import annotations

import torch
from torch import Tensor

from dpd.agents.learners import Learners
from dpd.agents.rng import RowRandom
from dpd.distill.teacher import Teacher


class Mixture:
    """At every step the teacher acts with probability `beta`, otherwise the student (DAgger).

    The student explores, or acts without noise; the teacher draws from its policy.
    """

    def __init__(self, agent: Learners, teacher: Teacher, rng: RowRandom, explores: bool) -> None:
        self.agent, self.teacher, self.rng, self.explores = agent, teacher, rng, explores
        self.beta = 1.0

    def noise(self) -> Tensor:
        """Draw a student's noise, a teacher's, a coin, and which teacher [N, T, E, ...]."""
        own = self.agent.noise()
        steps, envs, a = own.shape[1], own.shape[2], self.agent.act_dim
        theirs = self.rng.normal(steps, envs, a, dtype=own.dtype)
        coins = self.rng.uniform(steps, envs, 2, dtype=own.dtype)
        return torch.cat([own, theirs, coins], -1)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Act on raw obs [N, E, O] -> [N, E, A]."""
        a = self.agent.act_dim
        own, theirs, coin, which = noise.split([noise.shape[-1] - a - 2, a, 1, 1], -1)
        if self.beta == 0:
            return self._student(obs, own)
        asked = self.teacher.ask(obs, self.teacher.pick(which.squeeze(-1)))
        act = asked.action(asked.sample(theirs))
        return (
            act if self.beta == 1 else torch.where(coin < self.beta, act, self._student(obs, own))
        )

    def _student(self, obs: Tensor, noise: Tensor) -> Tensor:
        return self.agent.act(obs, noise) if self.explores else self.agent.mode(obs)
