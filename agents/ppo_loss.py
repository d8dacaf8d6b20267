"""PPO's clipped loss with its hand-written gradient (`StackedNets` says why), and its samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dpd.agents.base import Metrics
from dpd.agents.dist import LOG_2PI, DiagGaussian, divergence
from dpd.agents.ppo_config import PPOConfig


class Samples(NamedTuple):
    """The samples that the loss is computed on, normalised; [N, S, ...]."""

    obs: Tensor
    act: Tensor
    logp: Tensor
    adv: Tensor
    ret: Tensor
    value: Tensor  # before the update
    weight: Tensor | None = None  # [N, S] factor of the normalised advantage; None: 1

    def each(self, change: Callable[[Tensor], Tensor]) -> Samples:
        """Return all fields changed by a function of one."""
        weight = None if self.weight is None else change(self.weight)
        return Samples._make((*map(change, self[:6]), weight))


class Clipped(NamedTuple):
    """The loss [N], its terms, and intermediate values for its gradient."""

    loss: Tensor
    ratio: Tensor  # [N, B] new over old probability of the action taken
    policy: Tensor  # [N]
    value_error: Tensor  # [N]
    inv_std: Tensor
    z: Tensor  # [N, B, A] (act - mean) / std
    gain: Tensor  # [N, B] ratio times advantage
    bounded: Tensor  # [N, B] the same with the ratio clipped
    error: Tensor  # [N, B] return minus value; 0 where the value clip is active

    @property
    def metrics(self) -> Metrics:
        """The metrics to log [N]."""
        return {"loss/policy": self.policy.detach(), "loss/value": self.value_error.detach()}


def clipped_loss(dist: DiagGaussian, value: Tensor, data: Samples, config: PPOConfig) -> Clipped:
    """Return the clipped loss per learner (Schulman et al. 2017, eq. 7 and 9).

    value [N, B]; data [N, B, ...] with normalised advantages, each of which counts times its
    weight. The value error is a mean square without the factor 1/2; with `value_clip` c it is the
    mean of the larger of (R - V)^2 and (R - V_old - clip(V - V_old, -c, c))^2 (OpenAI baselines'
    ppo2). An entropy bonus subtracts the mean entropy.
    """
    inv_std = torch.exp(-dist.log_std)
    z = (data.act - dist.mean) * inv_std
    logp = (z * z).sum(-1) * -0.5 - (dist.log_std.sum(-1) + 0.5 * LOG_2PI * dist.mean.shape[-1])
    ratio = torch.exp(logp - data.logp)
    adv = data.adv if data.weight is None else data.adv * data.weight
    gain = ratio * adv
    if data.weight is not None:  # the ratio of a sample that does not count may be infinite
        gain = gain.masked_fill(data.weight == 0, 0)
    bounded = ratio.clamp(1 - config.clip, 1 + config.clip) * adv
    policy = torch.min(gain, bounded).mean(1).neg_()
    error, square = value_errors(value, data, config.value_clip)
    value_error = square.mean(1)
    loss = torch.add(policy, value_error, alpha=config.value_coef)
    if config.entropy_coef:
        loss = loss - config.entropy_coef * dist.entropy().mean(1)
    return Clipped(loss, ratio, policy, value_error, inv_std, z, gain, bounded, error)


def value_errors(value: Tensor, data: Samples, clip: float | None) -> tuple[Tensor, Tensor]:
    """Return the error in the value's gradient and the squared error, both [N, B]."""
    error = data.ret - value
    square = error * error
    if clip is None:
        return error, square
    moved = value - data.value
    clipped = (data.ret - data.value - moved.clamp(-clip, clip)).square()
    # Within the bound both squares are equal up to rounding, which must not decide.
    counts = (moved.abs() <= clip) | (square >= clipped)
    return torch.where(counts, error, 0.0), torch.where(counts, square, clipped)


def clipped_gradient(
    c: Clipped, config: PPOConfig, of_loss: Tensor, of_ratio: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of mean, log_std and value from those of loss [N] and ratio [N, B]."""
    per_sample = (of_loss / -c.ratio.shape[1]).unsqueeze(1)
    # where the clipped term is the smaller one, it is constant: no gradient
    of_logp = torch.where(c.gain <= c.bounded, c.gain, 0.0) * per_sample
    if of_ratio is not None:
        of_logp = of_logp + of_ratio * c.ratio
    of_z = of_logp.unsqueeze(-1) * c.z  # d logp / d mean = z / std; d logp / d log_std = z^2 - 1
    of_log_std = (of_z * c.z).sum(1, keepdim=True) - of_logp.sum(1).view(-1, 1, 1)
    if config.entropy_coef:
        of_log_std = of_log_std - config.entropy_coef * of_loss.view(-1, 1, 1)  # d entropy = 1
    return of_z * c.inv_std, of_log_std, c.error * (2 * config.value_coef * per_sample)


class _ClippedLoss(torch.autograd.Function):
    """`clipped_loss` as one node of autograd's graph.

    A step with a method's loss takes two learners 0.87 ms with it, and 0.93 ms with plain autograd.
    """

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
    """Return `clipped_loss`, with loss and ratio differentiable by mean, log_std and value."""
    return Clipped(*_ClippedLoss.apply(dist.mean, dist.log_std, value, data, config))


class TermPart(NamedTuple):
    """The targets of a method's term at a minibatch; see `ClosedTerm`."""

    coef: Tensor  # [N]
    mean: Tensor
    log_std: Tensor
    sample: Tensor
    weight: Tensor  # [N, B]
    obs: Tensor | None = None  # normalised; None: those of the minibatch


def proximal_weight(ratio: Tensor, clip: float) -> Tensor:
    """Return max(ratio, 1 - clip) [...], with its gradient (Spigler 2024, Eq. 5)."""
    return ratio.clamp(min=1 - clip)


def term_loss(
    kind: str, student: DiagGaussian, part: TermPart, weight: Tensor
) -> tuple[Tensor, Metrics]:
    """Return coef * mean(weight * divergence) [N] of students from their targets, and metrics.

    The metric of a term with states of its own is the weighted mean; else the plain one.
    """
    target = DiagGaussian(part.mean, part.log_std, student.squashed)
    off = divergence(kind, student, target, part.sample)
    loss = (weight * off).mean(1)
    shown = off.mean(1) if part.obs is None else loss
    return part.coef * loss, {"distill/loss": shown.detach()}


def normalise_minibatches(adv: Tensor) -> Tensor:
    """Centre and scale advantages [N, M, B] within each minibatch (ddof 1, 1e-8: as SB3)."""
    return (adv - adv.mean(-1, keepdim=True)) / (adv.std(-1, keepdim=True) + 1e-8)


def variance(x: Tensor, valid: Tensor) -> Tensor:
    """Return the variance of the valid ones of x [N, S] -> [N] (ddof 1)."""
    n = valid.sum(1)
    mean = x.masked_fill(~valid, 0).sum(1) / n.clamp(min=1)
    off = (x - mean.unsqueeze(1)).masked_fill(~valid, 0)
    return off.square().sum(1) / (n - 1).clamp(min=1)


def mean_kl(ratio: Tensor, weight: Tensor | None = None) -> Tensor:
    """Estimate KL(old || new) per learner from ratios [N, M, B] -> [N] (Schulman 2020, k3).

    A weight of each sample [N, M, B] stands for the old policy's samples among a peer's.
    """
    k3 = (ratio - 1) - ratio.log()
    if weight is None:
        return k3.mean((1, 2))
    return (k3.masked_fill(weight == 0, 0) * weight).sum((1, 2)) / weight.sum((1, 2))
