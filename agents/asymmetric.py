"""PPO with an asymmetric value function, which sees more than the policy.

A value function is needed in training only, where a simulator shows everything (Pinto et al. 2018,
"Asymmetric actor critic for image-based robot learning"). Normalised observations are joint here:
what the policy sees [..., F], and behind it the whole observation [..., O].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dpd.agents.base import LearnerId, Rollout
from dpd.agents.dist import DiagGaussian
from dpd.agents.nets import Shapes, Tape, mlp_shapes
from dpd.agents.ppo import PPO
from dpd.agents.views import RawNorm


class AsymmetricPPO(PPO):
    """N learners by PPO, whose policies see a view and whose value functions see everything."""

    STATE = (*PPO.STATE, "critic_norm")

    def _make(self, ids: Sequence[LearnerId]) -> None:
        if not self.views:
            raise ValueError("critic_obs all: without views, the policies see everything too")
        raw_dim = self.views[0].obs_dim
        sizes = self.n_learners, raw_dim, self.dtype
        self.critic_norm = RawNorm(*sizes, self.config.norm_obs, self.device)
        super()._make(ids)

    def _shapes(self, hidden: Sequence[int]) -> Shapes:
        critic = mlp_shapes("critic", [self.views[0].obs_dim, *hidden, 1])
        return self._policy_shapes(hidden, self.in_dim) | critic

    def inputs(self, obs: Tensor) -> Tensor:
        return torch.cat([self.obs_norm(obs), self.critic_norm(obs)], -1)

    def dist(self, obs: Tensor) -> DiagGaussian:
        """Return the policy at normalised obs [N, B, F], or at joint ones."""
        return super().dist(obs[..., : self.in_dim])

    def value(self, obs: Tensor) -> Tensor:
        """Return values at joint obs [N, B, F + O] -> [N, B], in scaled reward units."""
        return super().value(obs[..., self.in_dim :])

    def _run(self, obs: Tensor) -> tuple[tuple[Tensor, ...], Tape]:
        policy, seen = self.nets.run(obs[..., : self.in_dim], "actor", "log_std")
        value, known = self.nets.run(obs[..., self.in_dim :], "critic")
        return policy + value, Tape(seen.names + known.names, seen.inputs + known.inputs)

    def _judged(self, obs: Tensor) -> tuple[DiagGaussian, Tensor]:
        return self.dist(obs), self.value(obs)

    def observe(self, rollout: Rollout) -> None:
        super().observe(rollout)
        self.critic_norm.update(rollout.flat_obs(), rollout.valid.flatten(1))
