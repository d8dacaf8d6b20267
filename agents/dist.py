"""Diagonal Gaussian policies, and divergences between them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


class DiagGaussian(NamedTuple):
    """Independent Gaussians per action dimension; if `squashed`, the action is tanh of the sample.

    All methods take the sample before the tanh, so that no inverse tanh is needed.
    """

    mean: Tensor  # [..., A]
    log_std: Tensor  # broadcasts against mean
    squashed: bool = False

    def sample(self, noise: Tensor) -> Tensor:
        """Return mean + std * noise, before any tanh [..., A]."""
        return torch.addcmul(self.mean, self.log_std.exp(), noise)

    def action(self, sample: Tensor) -> Tensor:
        """Return the action of a sample [..., A]; an unsquashed one may leave [-1, 1]."""
        return sample.tanh() if self.squashed else sample

    def mode(self) -> Tensor:
        """Return the action without noise, in [-1, 1] [..., A]."""
        return self.mean.tanh() if self.squashed else self.mean.clamp(-1, 1)

    def logp(self, sample: Tensor) -> Tensor:
        """Return the log-probability of the action of a sample [...]."""
        z = (sample - self.mean) * torch.exp(-self.log_std)
        per_dim = z.square().sum(-1)
        logp = per_dim * -0.5 - (self.log_std.sum(-1) + 0.5 * LOG_2PI * self.mean.shape[-1])
        if self.squashed:
            # log |d tanh(u) / du| = 2 (log 2 - u - softplus(-2u)), stable for large |u|
            logp = logp - 2 * (math.log(2) - sample - F.softplus(-2 * sample)).sum(-1)
        return logp

    def entropy(self) -> Tensor:
        """Return the entropy [...]. Raises ValueError if squashed: there is no closed form."""
        if self.squashed:
            raise ValueError("a squashed Gaussian has no closed-form entropy; use -logp(sample)")
        return (self.log_std + 0.5 * (1 + LOG_2PI)).sum(-1)


STD_FLOOR = 0.05
"""Lower bound on a target's deviation: divergences from near-deterministic targets explode."""


def as_target(dist: DiagGaussian) -> DiagGaussian:
    """Return the distribution to imitate for a teacher's or peer's policy.

    The deviation is at least STD_FLOOR. An unsquashed mean is clipped to the action box: the
    environment clips actions anyway, so a student need not imitate a mean outside the box.
    """
    mean = dist.mean if dist.squashed else dist.mean.clamp(-1, 1)
    log_std = dist.log_std.expand_as(mean).clamp(min=math.log(STD_FLOOR))
    return DiagGaussian(mean, log_std, dist.squashed)


def kl(p: DiagGaussian, q: DiagGaussian) -> Tensor:
    """Return KL(p || q) [...] in closed form.

    For two squashed policies it is the KL before the tanh, which is equal: tanh is a bijection.
    Raises ValueError for a squashed and an unsquashed policy, which have no closed form.
    """
    if p.squashed != q.squashed:
        raise ValueError("no closed-form KL between a squashed and a plain Gaussian; use mse")
    log_ratio = q.log_std - p.log_std
    mahalanobis = (p.mean - q.mean).square() * (-2 * q.log_std).exp()
    return (log_ratio + 0.5 * ((-2 * log_ratio).exp() + mahalanobis - 1)).sum(-1)


def divergence(kind: str, student: DiagGaussian, target: DiagGaussian, sample: Tensor) -> Tensor:
    """Return the divergence of a student from a target [...]; the target must carry no gradient.

    `mse` is the squared error between the student's mean action and `sample` (the target's mean
    or a sample of the target), averaged over action dimensions; `huber` is half of it up to an
    error of 1 and linear from there (torch's huber_loss); `nll` is -log p(sample).
    """
    match kind:
        case "mse":
            return (student.action(student.mean) - sample).square().mean(-1)
        case "huber":
            act = student.action(student.mean)
            return F.huber_loss(act, sample, reduction="none").mean(-1)
        case "kl_forward":
            return kl(target, student)
        case "kl_reverse":
            return kl(student, target)
        case "nll":
            return -student.logp(sample)
    raise ValueError(f"unknown divergence '{kind}'")
