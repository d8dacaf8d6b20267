"""PPO's loss of a Gaussian policy, and its gradient written out, for the reason in nets.py."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dpd.agents.base import Metrics
from dpd.agents.dist import LOG_2PI, DiagGaussian
from dpd.agents.ppo_config import PPOConfig


class Samples(NamedTuple):
    """Samples as the loss wants them, normalised; [N, S, ...]."""

    obs: Tensor
    act: Tensor
    logp: Tensor
    adv: Tensor
    ret: Tensor
    value: Tensor  # before the update


class Clipped(NamedTuple):
    """The loss [N] with the terms it is made of, and what its gradient needs."""

    loss: Tensor
    ratio: Tensor  # [N, B] new over old probability of the action taken
    policy: Tensor  # [N]
    value_error: Tensor  # [N]
    inv_std: Tensor
    z: Tensor  # [N, B, A] (act - mean) / std
    gain: Tensor  # [N, B] ratio times advantage
    bounded: Tensor  # [N, B] the same with the ratio clipped
    error: Tensor  # [N, B] that the value is moved by: 0 where its bound is flat

    @property
    def metrics(self) -> Metrics:
        """Return what to log."""
        return {"loss/policy": self.policy.detach(), "loss/value": self.value_error.detach()}


def clipped_loss(dist: DiagGaussian, value: Tensor, data: Samples, config: PPOConfig) -> Clipped:
    """Return the clipped loss per learner (Schulman et al. 2017, eq. 7 and 9).

    value [N, B]; data [N, B, ...] with advantages already normalised. The value error is a plain
    mean square, without one half; with `value_clip` c it is the mean of the larger of (R - V)^2 and
    (R - V_old - clip(V - V_old, -c, c))^2 (OpenAI baselines' ppo2). With an entropy bonus, the mean
    entropy is taken off.
    """
    inv_std = torch.exp(-dist.log_std)
    z = (data.act - dist.mean) * inv_std
    logp = (z * z).sum(-1) * -0.5 - (dist.log_std.sum(-1) + 0.5 * LOG_2PI * dist.mean.shape[-1])
    ratio = torch.exp(logp - data.logp)
    gain = ratio * data.adv
    bounded = ratio.clamp(1 - config.clip, 1 + config.clip) * data.adv
    policy = torch.min(gain, bounded).mean(1).neg_()
    error, square = value_errors(value, data, config.value_clip)
    value_error = square.mean(1)
    loss = torch.add(policy, value_error, alpha=config.value_coef)
    if config.entropy_coef:
        loss = loss - config.entropy_coef * dist.entropy().mean(1)
    return Clipped(loss, ratio, policy, value_error, inv_std, z, gain, bounded, error)


def value_errors(value: Tensor, data: Samples, clip: float | None) -> tuple[Tensor, Tensor]:
    """Return the error that the value is moved by, and the squared error, both [N, B]."""
    error = data.ret - value
    square = error * error
    if clip is None:
        return error, square
    moved = value - data.value
    held = (data.ret - data.value - moved.clamp(-clip, clip)).square()
    # Within the bound both are the same but for rounding, which must not decide.
    counts = (moved.abs() <= clip) | (square >= held)
    return torch.where(counts, error, 0.0), torch.where(counts, square, held)


def clipped_gradient(
    c: Clipped, config: PPOConfig, of_loss: Tensor, of_ratio: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of mean, log_std and value from those of the loss [N] and the ratio."""
    per_sample = (of_loss / -c.ratio.shape[1]).unsqueeze(1)
    # where the bound is the smaller, it is flat: no gradient
    of_logp = torch.where(c.gain <= c.bounded, c.gain, 0.0) * per_sample
    if of_ratio is not None:
        of_logp = of_logp + of_ratio * c.ratio
    of_z = of_logp.unsqueeze(-1) * c.z  # d logp / d mean = z / std; d logp / d log_std = z^2 - 1
    of_log_std = (of_z * c.z).sum(1, keepdim=True) - of_logp.sum(1).view(-1, 1, 1)
    if config.entropy_coef:
        of_log_std = of_log_std - config.entropy_coef * of_loss.view(-1, 1, 1)  # d entropy = 1
    return of_z * c.inv_std, of_log_std, c.error * (2 * config.value_coef * per_sample)


class _ClippedLoss(torch.autograd.Function):
    """The same as one node of autograd's graph."""

    @staticmethod
    def forward(
        ctx: Any, mean: Tensor, log_std: Tensor, value: Tensor, data: Samples, config: PPOConfig
    ) -> tuple[Tensor, ...]:
        c = clipped_loss(DiagGaussian(mean, log_std), value, data, config)
        ctx.save_for_backward(*c)
        ctx.config = config
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*c[2:])
        return tuple(c)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        c = Clipped(*ctx.saved_tensors)
        of_loss = c.loss.new_zeros(c.loss.shape) if grads[0] is None else grads[0]
        return *clipped_gradient(c, ctx.config, of_loss, grads[1]), None, None


def ppo_loss(dist: DiagGaussian, value: Tensor, data: Samples, config: PPOConfig) -> Clipped:
    """Return `clipped_loss`, differentiable: loss and ratio, by policy and value."""
    return Clipped(*_ClippedLoss.apply(dist.mean, dist.log_std, value, data, config))
