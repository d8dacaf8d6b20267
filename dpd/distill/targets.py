"""Targets of imitation, and gradient steps towards them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from dpd.agents.base import CPU, ClosedTerm, take
from dpd.agents.dist import DiagGaussian, divergence
from dpd.agents.learners import FusedImitation
from dpd.agents.optim import StackedOptimizer, clip_grad_norm
from dpd.agents.rng import RowRandom


class Targets(NamedTuple):
    """The policy to imitate at each state, and its weight, all constant; [N, K, ...]."""

    obs: Tensor  # normalised by the student
    mean: Tensor  # of the target policy, clipped to the action box
    log_std: Tensor
    sample: Tensor
    weight: Tensor  # [N, K]

    def as_term(self, coef: float | Tensor, kind: str, at_samples: bool) -> ClosedTerm:
        """Return the weighted divergence from these targets as a term of PPO's loss.

        `at_samples`: their states are those of the iteration's samples, in the same order.
        """
        policy = self.mean, self.log_std, self.sample
        obs = None if at_samples else self.obs
        return ClosedTerm(coef, kind, *policy, self.weight, obs=obs)


class Answers(NamedTuple):
    """The teacher's policy at states [N, K, ...], all constant."""

    mean: Tensor
    log_std: Tensor
    sample: Tensor  # the action that all but KL compare with


SampleTuple = TypeVar("SampleTuple", bound=tuple[Tensor, ...])
"""A named tuple of samples [N, K, ...]."""


def samples_at(samples: SampleTuple, idx: Tensor) -> SampleTuple:
    """Return the samples at positions idx [N, B]."""
    return type(samples)(*(take(x, idx) for x in samples))


def minibatch(samples: SampleTuple, i: int, size: int) -> SampleTuple:
    """Return the i-th of equal parts of K, from the first again after the last; without a copy."""
    i %= samples[0].shape[1] // size
    return type(samples)(*(x[:, i * size : (i + 1) * size] for x in samples))


def distance(kind: str, student: DiagGaussian, targets: Targets | Answers) -> Tensor:
    """Return the divergence of every student from its targets [N, B]."""
    target = DiagGaussian(targets.mean, targets.log_std, student.squashed)
    return divergence(kind, student, target, targets.sample)


def order(rng: RowRandom, k: int, length: int) -> Tensor:
    """Draw positions [N, length], each pass over all k of them in a new order."""
    passes = -(-length // k)
    return torch.cat([rng.permutation(k) for _ in range(passes)], 1)[:, :length]


LEASH = (0.1, 100.0)
"""Bounds of an adapted coefficient, in units of the one it began with.

Peers begin as equals, nearer than any target: without a narrow lower bound the coefficient sinks
until they part, and many iterations pass before it holds them again.
"""


def adapted_coef(coef: Tensor, off: Tensor, target: float, start: float) -> Tensor:
    """Return coefficients [N] that hold the divergences `off` [N] near `target`.

    Multiplied by off / target, at least by 2/3 and at most by 3, unless the divergence is within a
    factor of 1.5 of the target (after the adaptive KL penalty of Schulman et al. 2017, Sec. 4,
    which doubles and halves). They stay within LEASH of `start`.
    """
    factor = (off / target).clamp(1 / 1.5, 3.0)
    is_near = (off <= 1.5 * target) & (off >= target / 1.5)
    adapted = torch.where(is_near, coef, coef * factor)
    return adapted.clamp(start * LEASH[0], start * LEASH[1])


Leaf = tuple[Tensor, StackedOptimizer]
"""Parameters [N, D] with their optimizer."""


def descend(
    leaf: Leaf,
    loss_of: Callable[[Targets], Tensor],
    drawn: Targets,
    steps: int,
    max_grad_norm: float,
    coef: float = 1.0,
    students: Tensor | None = None,
    fused: FusedImitation | None = None,
) -> Tensor:
    """Take gradient steps on coef * loss_of(equal parts of `drawn`); return the mean loss [N].

    Rows outside `students` [N] (None: all rows) stay unchanged, and so do rows whose weights are
    all zero: otherwise their momentum would move them. `fused` takes the same steps by a kernel.
    """
    size = drawn.weight.shape[1] // steps
    used = (drawn.weight.unflatten(1, (steps, size)).sum(2) > 0).T
    used = used if students is None else used & students
    if fused is not None:
        return fused(drawn, used, max_grad_norm, coef)
    # Lists move rows together on a CPU; reading them from another device would wait for it.
    active = used.tolist() if used.device == CPU else used.unbind(0)

    def loss_at(i: int) -> Tensor:
        return loss_of(minibatch(drawn, i, size))

    return take_steps(loss_at, steps, [leaf], max_grad_norm, coef, active)


def take_steps(
    loss_at: Callable[[int], Tensor],
    steps: int,
    moved: Sequence[Leaf],
    max_grad_norm: float,
    coef: float = 1.0,
    active: Sequence[Sequence[bool] | Tensor] | None = None,
) -> Tensor:
    """Take gradient steps on coef * loss_at(i) [N]; return the mean loss [N].

    The gradient of each leaf in `moved` is clipped by itself. `active`: the rows that step i moves.
    """
    losses = []
    for i in range(steps):
        loss = loss_at(i)
        grads = torch.autograd.grad(loss * coef, [leaf for leaf, _ in moved], torch.ones_like(loss))
        for grad, (_, optimizer) in zip(grads, moved, strict=True):
            clip_grad_norm(grad, max_grad_norm)
            optimizer.step(grad, None if active is None else active[i])
        losses.append(loss.detach())
    return torch.stack(losses).mean(0)
