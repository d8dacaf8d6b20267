"""Learners whose value functions and critics see more than their policies.

They are needed in training only, where a simulator shows everything (Pinto et al. 2018,
"Asymmetric actor critic for image-based robot learning").
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dpd.agents.base import LearnerId, Rollout
from dpd.agents.dist import DiagGaussian
from dpd.agents.learners import Learners
from dpd.agents.nets import Shapes, Tape, mlp_shapes
from dpd.agents.norm import ObsNorm
from dpd.agents.offpolicy import OffPolicy
from dpd.agents.ppo import PPO
from dpd.agents.sac import SAC
from dpd.agents.td3 import TD3
from dpd.agents.views import RawNorm


def raw_norm(agent: Learners) -> RawNorm:
    """Return the normaliser of what value functions and critics see of raw observations.

    Raises ValueError for learners whose policies see everything.
    """
    if not agent.views:
        raise ValueError("critic_obs: without views, the policies see everything too")
    columns = agent.critic_columns or range(agent.views[0].obs_dim)
    sizes = agent.n_learners, list(columns), agent.dtype
    return RawNorm(*sizes, agent.config.norm_obs, agent.device)


class AsymmetricPPO(PPO):
    """N learners by PPO, whose policies see a view and whose value functions see more.

    Normalised observations are joint here: what the policy sees [..., F], and behind it columns of
    the raw observation [..., C].
    """

    STATE = (*PPO.STATE, "critic_norm")

    def _make(self, ids: Sequence[LearnerId]) -> None:
        self.critic_norm = raw_norm(self)
        super()._make(ids)

    def _shapes(self, hidden: Sequence[int]) -> Shapes:
        critic = mlp_shapes("critic", [self.critic_norm.mean.shape[-1], *hidden, 1])
        return self._policy_shapes(hidden, self.in_dim) | critic

    def inputs(self, obs: Tensor) -> Tensor:
        return torch.cat([self.obs_norm(obs), self.critic_norm(obs)], -1)

    def dist(self, obs: Tensor) -> DiagGaussian:
        """Return the policy at normalised obs [N, B, F], or at joint ones."""
        return super().dist(obs[..., : self.in_dim])

    def value(self, obs: Tensor) -> Tensor:
        """Return values at joint obs [N, B, F + C] -> [N, B], in scaled reward units."""
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


class AsymmetricCritics(OffPolicy):
    """N learners with a replay, whose policies see a view and whose critics see more."""

    def _make_critic_norm(self) -> ObsNorm:
        return raw_norm(self)

    def observe(self, rollout: Rollout) -> None:
        super().observe(rollout)
        self.critic_norm.update(rollout.flat_obs(), rollout.valid.flatten(1))


class AsymmetricTD3(AsymmetricCritics, TD3):
    """TD3 or DDPG with critics that see more."""

    STATE = (*TD3.STATE, "critic_norm")


class AsymmetricSAC(AsymmetricCritics, SAC):
    """SAC with critics that see more."""

    STATE = (*SAC.STATE, "critic_norm")
