"""Learners whose policies have a state-independent standard deviation: PPO and students."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dpd.agents.base import put_back
from dpd.agents.config import PPOConfig, StudentConfig
from dpd.agents.dist import DiagGaussian
from dpd.agents.learners import Learners
from dpd.agents.nets import Shapes, mlp_shapes
from dpd.agents.rng import RowRandom


class GaussianLearners(Learners):
    """N policies N(actor(obs), exp(log_std)).

    The `nets` of a subclass hold at least `actor` and `log_std`.
    """

    config: PPOConfig | StudentConfig

    def _policy_shapes(self, hidden: Sequence[int]) -> Shapes:
        actor = mlp_shapes("actor", [self.obs_dim, *hidden, self.act_dim])
        return actor | {"log_std": (1, self.act_dim)}

    def _initialise(self, prefix: str, last_gain: float, rng: RowRandom) -> None:
        """Initialise an MLP as Stable-Baselines3 does, and the deviations."""
        trunk = len(self.nets.layers[prefix]) - 1
        self.nets.init_orthogonal(prefix, [math.sqrt(2)] * trunk + [last_gain], rng.generators)
        self.nets.views["log_std"].fill_(self.config.log_std_init)

    def dist(self, obs: Tensor) -> DiagGaussian:
        mean, log_std = self.nets(obs, "actor", "log_std")
        return DiagGaussian(mean, log_std)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Sample actions from raw obs [N, E, O] and noise [N, E, A] -> [N, E, A], unclipped."""
        return self.dist(self.obs_norm(obs)).sample(noise)

    def _policy(self, n: int) -> dict[str, Tensor]:
        """Return views of learner n's policy parameters, without those of a value function."""
        names = [k for k in self.nets.views if k.split(".")[0] in ("actor", "log_std")]
        return {k: self.nets.own(n, k) for k in names}

    def start_from(self, n: int, policy: Mapping[str, Tensor]) -> None:
        own = self._policy(n)
        put_back(own, {k: policy[k] for k in own})
        self.obs_norm.start_from(n, policy)

    def export(self, n: int) -> dict[str, Tensor]:
        return self._policy(n) | self.obs_norm.export(n)
