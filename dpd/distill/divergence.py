"""Divergences between diagonal Gaussian policies, one value per state."""

from __future__ import annotations

import math

from torch import Tensor

from dpd.agents.dist import DiagGaussian

STD_FLOOR = 0.05
"""Least deviation of a target, or the divergence from a nearly deterministic one explodes."""


def as_target(dist: DiagGaussian) -> DiagGaussian:
    """Return what to imitate of a policy: teachers and peers alike.

    The deviation is at least STD_FLOOR. Where the sample is the action, the mean is clipped to the
    action box: beyond it a policy acts as on its edge, and a student need not go there.
    """
    mean = dist.mean if dist.squashed else dist.mean.clamp(-1, 1)
    log_std = dist.log_std.expand_as(mean).clamp(min=math.log(STD_FLOOR))
    return DiagGaussian(mean, log_std, dist.squashed)


def kl(p: DiagGaussian, q: DiagGaussian) -> Tensor:
    """Return KL(p || q) [...] in closed form.

    Of two squashed policies it is that before the tanh, which is a bijection. Raises ValueError
    between a squashed and a plain one, where no closed form holds.
    """
    if p.squashed != q.squashed:
        raise ValueError("no closed-form KL between a squashed and a plain Gaussian; use mse")
    log_ratio = q.log_std - p.log_std
    mahalanobis = (p.mean - q.mean).square() * (-2 * q.log_std).exp()
    return (log_ratio + 0.5 * ((-2 * log_ratio).exp() + mahalanobis - 1)).sum(-1)


def divergence(kind: str, student: DiagGaussian, target: DiagGaussian, sample: Tensor) -> Tensor:
    """Return the distance of a student from a target [...]; the target must carry no gradient.

    `mse` compares the student's mean action with `sample` (the target's mean, or a draw of it),
    averaged over the action's dimensions; `nll` is the student's -log p(sample).
    """
    match kind:
        case "mse":
            return (student.action(student.mean) - sample).square().mean(-1)
        case "kl_forward":
            return kl(target, student)
        case "kl_reverse":
            return kl(student, target)
        case "nll":
            return -student.logp(sample)
    raise ValueError(f"unknown divergence '{kind}'")
