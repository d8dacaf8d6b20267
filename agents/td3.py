"""Twin delayed deep deterministic policy gradient, DDPG, and their exploration noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dpd.agents.base import Batch, LearnerId, Metrics, Rollout, Stateful, per_row
from dpd.agents.dist import DiagGaussian
from dpd.agents.nets import ATEN, Shapes, StackedNets, mlp_shapes
from dpd.agents.norm import ObsNorm
from dpd.agents.offpolicy import Ascent, OffPolicy, Sample
from dpd.agents.offpolicy_config import TD3Config
from dpd.agents.offpolicy_loss import Loss
from dpd.agents.rng import RowRandom

ADOPTION = 1.01  # adaptation factor of parameter noise (OpenAI baselines)


def deterministic_loss(q: Tensor, act: Tensor, of_act: Tensor) -> Loss:
    """Return -mean_B Q(s, tanh(u)) (Silver et al. 2014); q [N, B].

    act [N, B, A] is tanh(u), and of_act the gradient with respect to it. The gradient is that of u.
    """
    loss = -q.mean(1)
    return Loss(loss, {"loss/actor": loss}, (ATEN.tanh_backward(of_act, act),))


class TD3(OffPolicy):
    """N deterministic policies with C critics each (Fujimoto et al. 2018, algorithm 1).

    DDPG is the same with one critic, no delay and no target noise.
    """

    STATE = (*OffPolicy.STATE, "target_nets", "exploration")
    config: TD3Config

    def _make(self, ids: Sequence[LearnerId]) -> None:
        super()._make(ids)
        config = self.config
        self.target_nets = self.nets.twin()
        self.first_critics = self.critics.every(config.n_critics)
        std = per_row(config.peer_noise_std, config.noise_std, ids).to(self.device, self.dtype)
        self.exploration = make_noise(std, config, self.nets, self.act_dim)
        self.log_std = std.log().view(-1, 1, 1).repeat(1, 1, self.act_dim)

    def _actor_shapes(self) -> Shapes:
        return mlp_shapes("actor", [self.in_dim, *self.config.hidden, self.act_dim])

    def dist(self, obs: Tensor) -> DiagGaussian:
        """Return the policy at normalised obs [N, B, O]: its action with deviation `noise_std`.

        It is not squashed, because the noise is added after the tanh.
        """
        return DiagGaussian(self.nets(obs, "actor")[0].tanh(), self.log_std)

    def noise(self) -> Tensor:
        if self.acts_at_random:
            return super().noise()
        c = self.config
        return self.exploration.draw(self.explore, c.n_steps, c.n_envs, self.act_dim)

    def _explore(self, obs: Tensor, noise: Tensor) -> Tensor:
        perturbed = self.exploration.output(self.obs_norm, obs)
        out = self._output(obs) if perturbed is None else perturbed
        return out.tanh_().add_(noise).clamp_(-1, 1)

    @torch.no_grad()
    def prepare(self, rollout: Rollout) -> Batch:
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
    def _is_complete(self) -> bool:
        # paper: every second update
        return self.n_updates % self.config.policy_delay == 0

    def _step(self, sample: Sample, noise: Tensor, judges: Tensor) -> tuple[Metrics, Ascent | None]:
        next_value = self._next_value(sample, noise, judges)
        metrics = self._update_critics(sample.judged, next_value, coef=1.0)
        return metrics, self._improve(sample, noise) if self._moves_policy else None

    def _next_value(self, sample: Sample, noise: Tensor, judges: Tensor) -> Tensor:
        """Return the target critics' least value of the target policy's noisy action [N, B]."""
        (u,), _ = self.target_nets.run(sample.own.next_obs, "actor")
        return self._least(sample, u.tanh_().add_(noise).clamp_(-1, 1), judges)

    def _improve(self, sample: Sample, noise: Tensor) -> Ascent:
        (u,), tape = self.nets.run(sample.own.obs_act[..., : self.in_dim], "actor")
        act = u.tanh()
        q, of_act = self._ascend(sample, act)
        _, metrics, (of_u,) = deterministic_loss(q, act, of_act)
        return Ascent(tape, of_u, q, metrics)

    def _ascend_own(self, obs: Tensor, act: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first critic's values of act, and the gradient of -mean_B Q."""
        q, tape = self._judge(self.first_critics, torch.cat([obs, act], -1))
        of_q = torch.full_like(q, -1 / q.shape[2]).view(-1, q.shape[2], 1)
        return q.squeeze(1), self.first_critics.input_gradient(tape, of_q, self.critic_dim)

    def _follow(self) -> None:
        super()._follow()
        self.target_nets.flat.detach().lerp_(self.nets.flat.detach(), self.config.tau)

    def start_from(self, n: int, policy: Mapping[str, Tensor]) -> None:
        super().start_from(n, policy)
        self.target_nets.flat.detach()[n] = self.nets.flat.detach()[n]

    def export(self, n: int) -> dict[str, Tensor]:
        actor = {name: view[n] for name, view in self.nets.views.items()}
        return actor | {"log_std": self.log_std[n]} | self.obs_norm.export(n)


class GaussianNoise(Stateful):
    """Independent normal noise on every action; the base class of all exploration noise."""

    def __init__(self, std: Tensor, actor: StackedNets) -> None:
        self.std, self.actor = std.view(-1, 1, 1, 1), actor

    def draw(self, rng: RowRandom, *shape: int) -> Tensor:
        """Draw the noise to add to an iteration's actions [N, T, E, A]."""
        return rng.normal(*shape, dtype=self.actor.flat.dtype).mul_(self.std)

    def output(self, norm: ObsNorm, obs: Tensor) -> Tensor | None:
        """Return other networks' output at raw obs [N, E, O] -> [N, E, A]; None: the policy's."""
        return None

    def adapt(self, obs: Tensor, ended: Tensor) -> None:
        """Adapt to the normalised obs [N, S, O] that the last draw led to; by default do nothing.

        `ended` [N, E] marks environments in which an episode ended.
        """


class OrnsteinUhlenbeck(GaussianNoise):
    """The process x <- (1 - theta) x + std * normal per environment (Lillicrap et al. 2016).

    Its stationary deviation is std / sqrt(2 theta - theta^2). It continues across episode ends,
    since an iteration's noise is drawn before it is known where episodes will end.
    """

    STATE = ("x",)

    def __init__(self, std: Tensor, config: TD3Config, actor: StackedNets, act_dim: int) -> None:
        super().__init__(std, actor)
        self.keep = 1 - config.ou_theta
        self.x = std.new_zeros(actor.flat.shape[0], config.n_envs, act_dim)

    def draw(self, rng: RowRandom, *shape: int) -> Tensor:
        noise = super().draw(rng, *shape)
        for t in range(noise.shape[1]):
            noise[:, t] += self.keep * (noise[:, t - 1] if t else self.x)
        self.x.copy_(noise[:, -1])
        return noise


class ParameterNoise(GaussianNoise):
    """Normal noise on the policy's parameters, fixed per episode (Plappert et al. 2018).

    Every environment has a perturbed copy of its learner's policy. The copy stays fixed during an
    episode while the policy itself is updated, and is redrawn in the first iteration after the
    episode's end: random numbers are drawn before the steps, so that the host need not wait for
    the device. The copy thus acts up to n_steps - 1 steps into the next episode, or for exactly
    one episode if the episode length is a multiple of n_steps (1,000 of 50).

    The deviation adapts per learner and iteration, so that the actions of a freshly perturbed
    policy are at a distance of `noise_std` (root mean square) from the policy's own. As in OpenAI
    baselines, the distance is measured with a separate perturbation that never acts. (The paper's
    networks have layer normalisation, which evens out the effect of a perturbation; these do not.)
    """

    STATE = ("std", "perturbed", "due")

    def __init__(self, std: Tensor, actor: StackedNets, n_envs: int) -> None:
        super().__init__(std, actor)
        self.target, self.n_envs = std.unsqueeze(1), n_envs  # [N, 1]
        self.perturbed, self.trial = actor.repeated(n_envs), actor.twin()
        self.std = self.target.clone()
        n = actor.flat.shape[0]
        self.due = torch.ones(n, n_envs, dtype=torch.bool, device=actor.flat.device)
        self.fresh = False  # whether the perturbed policies acted since the last adaptation

    def draw(self, rng: RowRandom, *shape: int) -> Tensor:
        """Redraw the copies that are due; return zero action noise [N, T, E, A]."""
        flat = self.actor.flat.detach()
        n, size = flat.shape
        noise = rng.normal(self.n_envs + 1, size, dtype=flat.dtype) * self.std.unsqueeze(2)
        drawn = noise + flat.unsqueeze(1)
        copies = self.perturbed.flat.detach().view(n, self.n_envs, size)
        copies.copy_(torch.where(self.due.unsqueeze(2), drawn[:, 1:], copies))
        self.trial.flat.detach().copy_(drawn[:, 0])
        self.due.fill_(False)
        self.fresh = True
        return flat.new_zeros(n, *shape)

    def output(self, norm: ObsNorm, obs: Tensor) -> Tensor:
        n, e = obs.shape[:2]
        (u,), _ = self.perturbed.run(norm(obs).reshape(n * e, 1, -1), "actor")
        return u.view(n, e, -1)

    def adapt(self, obs: Tensor, ended: Tensor) -> None:
        """Widen or narrow the noise by its effect; copies whose episode ended become due."""
        if not self.fresh:
            return
        self.due |= ended
        own, perturbed = (net.run(obs, "actor")[0][0].tanh() for net in (self.actor, self.trial))
        distance = (own - perturbed).square().mean((1, 2)).sqrt().unsqueeze(1)
        self.std *= torch.where(distance < self.target, ADOPTION, 1 / ADOPTION)
        self.fresh = False


def make_noise(std: Tensor, config: TD3Config, actor: StackedNets, act_dim: int) -> GaussianNoise:
    """Return the exploration noise that the settings name, with deviations std [N]."""
    match config.exploration:
        case "ou":
            return OrnsteinUhlenbeck(std, config, actor, act_dim)
        case "param":
            return ParameterNoise(std, actor, config.n_envs)
    return GaussianNoise(std, actor)
