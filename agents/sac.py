"""Soft actor-critic for a stack of learners."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dpd.agents.base import LearnerId, Metrics
from dpd.agents.dist import DiagGaussian
from dpd.agents.nets import ATEN, Shapes, Tape, mlp_shapes
from dpd.agents.offpolicy import Ascent, OffPolicy, Sample
from dpd.agents.offpolicy_config import SACConfig
from dpd.agents.offpolicy_loss import Loss
from dpd.agents.optim import StackedAdam

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0  # the paper's code, and Stable-Baselines3


def soft_loss(
    q: Tensor, logp: Tensor, alpha: Tensor, dist: DiagGaussian, noise: Tensor, of_act: Tensor
) -> Loss:
    """Return mean_B (alpha log pi(a|s) - Q(s, a)) (Haarnoja et al. 2018, eq. 7) at a squashed dist.

    q, logp [N, B]; alpha [N, 1]; the action was sampled with noise [N, B, A]; of_act [N, B, A] is
    the gradient of -mean_B Q with respect to the action. The gradients are those of mean and
    log_std.
    """
    loss = (alpha * logp - q).mean(1)
    deviation = dist.log_std.exp() * noise
    act = (dist.mean + deviation).tanh()
    share = (alpha / logp.shape[1]).unsqueeze(-1)
    # With the noise fixed, d log pi / du = 2 tanh(u), and d log pi / d log_std = -1.
    of_u = torch.addcmul(ATEN.tanh_backward(of_act, act), share, act, value=2)
    metrics = {"loss/actor": loss, "train/entropy": -logp.mean(1)}
    return Loss(loss, metrics, (of_u, of_u * deviation - share))


def temperature_gradient(logp: Tensor, target_entropy: float) -> Tensor:
    """Return the gradient of -log(alpha) mean_B (log pi + target_entropy) by log(alpha) [N, 1].

    logp [N, B]. This is Stable-Baselines3's loss; the paper's eq. 18 has alpha for log(alpha).
    """
    return -(logp.mean(1, keepdim=True) + target_entropy)


class Sampled(NamedTuple):
    """Actions sampled from a policy, with everything its gradient needs."""

    output: Tensor  # of the actor [N, B, 2A]
    tape: Tape
    dist: DiagGaussian
    u: Tensor  # [N, B, A] before the tanh
    logp: Tensor  # [N, B]


class SAC(OffPolicy):
    """N squashed Gaussian policies with C critics and a temperature each (Haarnoja et al. 2018).

    The actor's last layer has 2A outputs: the mean, and the log standard deviation.
    """

    STATE = (*OffPolicy.STATE, "alpha_optimizer", "log_alpha")
    config: SACConfig

    def _make(self, ids: Sequence[LearnerId]) -> None:
        super()._make(ids)
        config = self.config
        start = config.alpha_init if config.alpha is None else config.alpha
        log_alpha = math.log(start) if start > 0 else -math.inf
        self.log_alpha = torch.full_like(self.gamma, log_alpha)
        self.alpha_optimizer = StackedAdam(self.log_alpha, self.lr.tolist())
        wanted = config.target_entropy
        self.target_entropy = -float(self.act_dim) if wanted is None else wanted

    def _actor_shapes(self) -> Shapes:
        return mlp_shapes("actor", [self.in_dim, *self.config.hidden, 2 * self.act_dim])

    def dist(self, obs: Tensor) -> DiagGaussian:
        return gaussian(self.nets(obs, "actor")[0])

    def _explore(self, obs: Tensor, noise: Tensor) -> Tensor:
        return gaussian(self._output(obs)).sample(noise).tanh_()

    def _draw(self, updates: int) -> Tensor:
        """Draw the noise of the actions at obs and at next_obs [N, updates, 2, B, A]."""
        size = (updates, 2, self.config.minibatch_size, self.act_dim)
        return self.batches.normal(*size, dtype=self.dtype)

    def _step(self, sample: Sample, noise: Tensor, judges: Tensor) -> tuple[Metrics, Ascent | None]:
        # As Stable-Baselines3: temperature, critics and policy share one sample of pi(s), and the
        # critics and the policy use the temperature from before its update.
        alpha = self.log_alpha.exp()
        if not self._moves_policy:
            next_value = self._next_value(sample, noise[:, 1], alpha, judges)
            return self._update_critics(sample.judged, next_value, coef=0.5), None
        drawn = self._sample(sample.own.obs_act, noise[:, 0])
        metrics = self._update_temperature(drawn.logp)
        next_value = self._next_value(sample, noise[:, 1], alpha, judges)
        metrics |= self._update_critics(sample.judged, next_value, coef=0.5)
        return metrics, self._climb(drawn, sample, noise[:, 0], alpha)

    def _sample(self, obs_act: Tensor, noise: Tensor) -> Sampled:
        """Sample the policy at the states of obs_act [N, B, O + A]."""
        (output,), tape = self.nets.run(obs_act[..., : self.in_dim], "actor")
        dist = gaussian(output)
        u = dist.sample(noise)
        return Sampled(output, tape, dist, u, dist.logp(u))

    def _improve(self, sample: Sample, noise: Tensor) -> Ascent:
        drawn = self._sample(sample.own.obs_act, noise[:, 0])
        return self._climb(drawn, sample, noise[:, 0], self.log_alpha.exp())

    def _climb(self, drawn: Sampled, sample: Sample, noise: Tensor, alpha: Tensor) -> Ascent:
        q, of_act = self._ascend(sample, drawn.u.tanh())
        _, metrics, grads = soft_loss(q, drawn.logp, alpha, drawn.dist, noise, of_act)
        return Ascent(drawn.tape, gaussian_gradient(drawn.output, *grads), q, metrics)

    def _update_temperature(self, logp: Tensor) -> Metrics:
        # Without a weight, nothing holds the policy's entropy where a temperature wants it, which
        # would grow or shrink without end.
        if self.config.alpha is None and self.rl_coef > 0:
            self.alpha_optimizer.step(temperature_gradient(logp, self.target_entropy))
        return {"train/alpha": self.log_alpha.exp().squeeze(1)}

    def _next_value(self, sample: Sample, noise: Tensor, alpha: Tensor, judges: Tensor) -> Tensor:
        """Return the soft value of a sampled action by the target critics [N, B]."""
        dist = gaussian(self.nets.run(sample.own.next_obs, "actor")[0][0])
        u = dist.sample(noise)
        logp = dist.logp(u)
        least = self._least(sample, u.tanh_(), judges)
        return torch.addcmul(least, alpha, logp, value=-1)

    def _ascend_own(self, obs: Tensor, act: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least critic's values of act, and the gradient of -mean_B Q."""
        q, tape = self._judge(self.critics, torch.cat([obs, act], -1))
        n, c, b = q.shape
        least, which = q.min(1, keepdim=True)
        of_q = torch.zeros_like(q).scatter_(1, which, -1 / b).view(n * c, b, 1)
        of_act = self.critics.input_gradient(tape, of_q, self.critic_dim)
        return least.squeeze(1), of_act.view(n, c, b, -1).sum(1)

    def _set_rates(self) -> None:
        super()._set_rates()
        self.alpha_optimizer.lr = self.lr.tolist()

    def _imported(self, name: str, policy: Mapping[str, Tensor]) -> Tensor:
        _, layer, kind = name.split(".")
        if int(layer) < len(self.config.hidden):
            return policy[name]
        return torch.cat([policy[name], policy[f"log_std_head.0.{kind}"]], -1)

    def export(self, n: int) -> dict[str, Tensor]:
        # The last layer is split: `actor` ends in the mean, `log_std_head` reads the same features.
        actor = {name: view[n] for name, view in self.nets.views.items()}
        last = f"actor.{len(self.config.hidden)}"
        for kind in ("weight", "bias"):
            mean, log_std = actor[f"{last}.{kind}"].chunk(2, -1)
            actor |= {f"{last}.{kind}": mean, f"log_std_head.0.{kind}": log_std}
        return actor | self.obs_norm.export(n)


def gaussian(output: Tensor) -> DiagGaussian:
    """Return the squashed policy of an actor's output [N, B, 2A]."""
    mean, log_std = output.chunk(2, -1)
    return DiagGaussian(mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX), squashed=True)


def gaussian_gradient(output: Tensor, of_mean: Tensor, of_log_std: Tensor) -> Tensor:
    """Return the gradient of an actor's output from those of mean and log_std."""
    log_std = output.chunk(2, -1)[1]
    inside = (log_std >= LOG_STD_MIN) & (log_std <= LOG_STD_MAX)
    return torch.cat([of_mean, of_log_std * inside], -1)
