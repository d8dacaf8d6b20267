"""Twin delayed deep deterministic policy gradient, and DDPG, for a stack of learners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dpd.agents.base import Batch, Metrics, Stateful, per_row
from dpd.agents.config import TD3Config
from dpd.agents.dist import DiagGaussian
from dpd.agents.nets import Shapes, Tape, mlp_shapes
from dpd.agents.noise import make_noise
from dpd.agents.offpolicy import MethodGradient, OffPolicy
from dpd.agents.replay import Transitions
from dpd.agents.rollout import Rollout
from dpd.agents.td_loss import deterministic_loss


class TD3(OffPolicy):
    """N deterministic policies with C critics each (Fujimoto et al. 2018, algorithm 1).

    DDPG is the same with one critic, no delay and no target noise.
    """

    config: TD3Config

    def _make(self, seeds: Sequence[Sequence[int]]) -> None:
        super()._make(seeds)
        config = self.config
        self.target_nets = self.nets.twin()
        self.first_critics = self.critics.every(config.n_critics)
        std = per_row(config.peer_noise_std, config.noise_std, seeds).to(self.device, self.dtype)
        self.exploration = make_noise(std, config, self.nets, self.act_dim)
        self.log_std = std.log().view(-1, 1, 1).repeat(1, 1, self.act_dim)

    def _actor_shapes(self) -> Shapes:
        return mlp_shapes("actor", [self.obs_dim, *self.config.hidden, self.act_dim])

    def dist(self, obs: Tensor) -> DiagGaussian:
        """Return the policy at normalised obs [N, B, O]: its action with deviation `noise_std`.

        It is not squashed, because the noise is added after the tanh.
        """
        return DiagGaussian(self.nets(obs, "actor")[0].tanh(), self.log_std)

    def noise(self) -> Tensor:
        if self.warming_up:
            return super().noise()
        c = self.config
        return self.exploration.draw(self.explore, c.n_steps, c.n_envs, self.act_dim)

    def _explore(self, obs: Tensor, noise: Tensor) -> Tensor:
        return self.exploration.output(obs).tanh_().add_(noise).clamp_(-1, 1)

    @torch.no_grad()
    def prepare(self, rollout: Rollout) -> Batch:
        """Store a rollout and adapt the exploration; return its states for the method."""
        batch = super().prepare(rollout)
        self.exploration.adapt(self.obs_norm(batch.raw_obs), rollout.done.any(1))
        return batch

    def _draw(self, updates: int) -> Tensor:
        c = self.config
        if c.target_noise == 0:
            return self.gamma.new_zeros(self.n_learners, updates, 1, 1)
        noise = self.batches.normal(updates, c.minibatch_size, self.act_dim, dtype=self.dtype)
        return noise.mul_(c.target_noise).clamp_(-c.target_noise_clip, c.target_noise_clip)

    @property
    def _moves_policy(self) -> bool:
        """True if the current update includes the policy (paper: every second one)."""
        return self.n_updates % self.config.policy_delay == 0

    def _step(self, sample: Transitions, noise: Tensor, method: MethodGradient) -> Metrics:
        metrics = self._update_critics(sample, self._next_value(sample.next_obs, noise), coef=1.0)
        if self._moves_policy:
            improved = self._improve(sample.obs_act, noise)
            metrics |= self._update_policy(*improved, method)
            self._follow(self.target_critics, self.critics)
            self._follow(self.target_nets, self.nets)
        return metrics

    def _next_value(self, next_obs: Tensor, noise: Tensor) -> Tensor:
        """Return the target critics' least value of the target policy's noisy action [N, B]."""
        (u,), _ = self.target_nets.run(next_obs, "actor")
        act = u.tanh_().add_(noise).clamp_(-1, 1)
        return self._judge(self.target_critics, torch.cat([next_obs, act], -1))[0].amin(1)

    def _improve(self, obs_act: Tensor, noise: Tensor) -> tuple[Tape, Tensor, Metrics]:
        """Return a policy update that ascends the first critic."""
        obs = obs_act[..., : self.obs_dim]
        (u,), tape = self.nets.run(obs, "actor")
        act = u.tanh()
        q, judged = self._judge(self.first_critics, torch.cat([obs, act], -1))
        of_q = torch.full_like(q, -1 / q.shape[2]).view(-1, q.shape[2], 1)
        of_act = self.first_critics.input_gradient(judged, of_q, self.obs_dim)
        _, metrics, (of_u,) = deterministic_loss(q.squeeze(1), act, of_act)
        return tape, of_u, metrics

    def _parts(self) -> dict[str, Stateful]:
        return super()._parts() | {
            "target_nets": self.target_nets,
            "exploration": self.exploration,
        }

    def start_from(self, n: int, policy: Mapping[str, Tensor]) -> None:
        super().start_from(n, policy)
        self.target_nets.flat.detach()[n] = self.nets.flat.detach()[n]

    def export(self, n: int) -> dict[str, Tensor]:
        actor = {name: view[n] for name, view in self.nets.views.items()}
        return actor | {"log_std": self.log_std[n]} | self.obs_norm.export(n)
