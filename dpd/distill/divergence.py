"""Divergences between diagonal Gaussian policies, one value per state."""

from __future__ import annotations

from torch import Tensor

from dpd.agents.dist import DiagGaussian


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
