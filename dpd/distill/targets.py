"""What to imitate, and the gradient steps towards it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dpd.agents.base import CPU, take
from dpd.agents.dist import DiagGaussian, divergence
from dpd.agents.learners import Learners
from dpd.agents.optim import StackedOptimizer, clip_grad_norm
from dpd.agents.rng import RowRandom


class Targets(NamedTuple):
    """What to imitate at each state, all constant; [N, K, ...]."""

    obs: Tensor  # normalised by the student
    mean: Tensor  # of the target policy, clipped to the action box
    log_std: Tensor
    sample: Tensor
    weight: Tensor  # [N, K]

    def at(self, idx: Tensor) -> Targets:
        """Return those at positions idx [N, B]."""
        return Targets(*(take(x, idx) for x in self))

    def batch(self, i: int, size: int) -> Targets:
        """Return the i-th of equal parts of K, without a copy."""
        return Targets(*(x[:, i * size : (i + 1) * size] for x in self))


def distance(kind: str, student: DiagGaussian, targets: Targets) -> Tensor:
    """Return the divergence of students from their targets [N, B]."""
    target = DiagGaussian(targets.mean, targets.log_std, student.squashed)
    return divergence(kind, student, target, targets.sample)


def imitation_loss(agent: Learners, kind: str, targets: Targets) -> Tensor:
    """Return the weighted divergence of students from their targets [N]."""
    student = agent.dist(targets.obs)
    return weighted_loss(distance(kind, student, targets), targets.weight)


def order(rng: RowRandom, k: int, length: int) -> Tensor:
    """Draw positions [N, length], each pass over all k of them in a new order."""
    passes = -(-length // k)
    return torch.cat([rng.permutation(k) for _ in range(passes)], 1)[:, :length]


def descend(
    agent: Learners,
    optimizer: StackedOptimizer,
    kind: str,
    drawn: Targets,
    steps: int,
    coef: float,
    max_grad_norm: float,
    students: Tensor | None = None,
) -> Tensor:
    """Take gradient steps on equal parts of `drawn`; return their mean loss [N].

    Rows that are no students stay as they are, and so do those whose weights are all zero, which
    must not move on by their momentum. `students` [N]; None: all are.
    """
    size = drawn.weight.shape[1] // steps
    used = (drawn.weight.unflatten(1, (steps, size)).sum(2) > 0).T
    used = used if students is None else used & students
    # As lists, rows move together; on another device that would have to be waited for.
    active = used.tolist() if used.device == CPU else used.unbind(0)
    return take_steps(
        lambda i: imitation_loss(agent, kind, drawn.batch(i, size)),
        steps,
        [(agent.nets.flat, optimizer)],
        max_grad_norm,
        coef,
        active,
    )


def take_steps(
    loss_at: Callable[[int], Tensor],
    steps: int,
    moved: Sequence[tuple[Tensor, StackedOptimizer]],
    max_grad_norm: float,
    coef: float = 1.0,
    active: Sequence[Sequence[bool] | Tensor] | None = None,
) -> Tensor:
    """Take gradient steps on coef * loss_at(i) [N]; return the mean loss [N].

    `moved`: leaves [N, D], each with its optimizer, and clipped by itself. `active`: which rows
    step i moves.
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


def weighted_loss(distance: Tensor, weight: Tensor) -> Tensor:
    """Return mean_B w(s) D(s) per learner: distance, weight [N, B] -> [N] (paper, Eq. 11)."""
    if distance.shape != weight.shape:
        # The 2020 code multiplied (B, 1) by (B,), and its weights cancelled.
        raise ValueError(f"weight {tuple(weight.shape)} for distance {tuple(distance.shape)}")
    return (weight * distance).mean(1)
