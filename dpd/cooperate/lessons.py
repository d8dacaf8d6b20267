"""Lessons of a student and their loss: only its actor learns, everything else stays unchanged.

Letters: n states to learn from · m states to stay unchanged on · O observation · A action.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dpd.cooperate.config import CooperateConfig
from dpd.policies.policyfile import Policy

LEARNED = ("actor.", "log_std_head.")  # neither a constant log_std nor the normaliser


class Lessons(NamedTuple):
    """States for one student; either kind may be empty."""

    obs: Tensor  # [n, O] where another policy is better
    target: Tensor  # [n, A] actions of that policy
    own: Tensor  # [m, O] where no other policy is better


class LessonBatch(NamedTuple):
    """Outputs of a student on a minibatch, and their targets."""

    act: Tensor  # [B, A] before clipping, which would stop the gradient
    log_std: Tensor
    target: Tensor  # [B, A]
    old_log_std: Tensor


def imitation_error(part: LessonBatch) -> Tensor:
    """Return the squared error of each action [B], plus that of a state-dependent log_std.

    The squared error of actions is defined between any two families of policies. The deviation is
    not taught: if it shares the actor's features, the loss keeps it at its old value.
    """
    error = (part.act - part.target).square().mean(-1)
    if part.log_std.requires_grad:
        error = error + (part.log_std - part.old_log_std).square().mean(-1)
    return error


def lesson_loss(learn: LessonBatch | None, stay: LessonBatch | None, anchor: float) -> Tensor:
    """Return E_{R u CF} D(best peer, student) + anchor * E_{competent} D(old, student)."""
    taught = imitation_error(learn).mean() if learn else torch.zeros(())
    return taught + anchor * imitation_error(stay).mean() if stay else taught


def teach(
    policy: Policy, lessons: Lessons, config: CooperateConfig, generator: torch.Generator
) -> Policy:
    """Return a trained copy of a policy; without states to learn from, an identical one."""
    learned = {k: v.clone() for k, v in policy.tensors.items() if k.startswith(LEARNED)}
    student = Policy({**policy.tensors, **learned}, policy.meta)
    if not len(lessons.obs):
        return student
    optimizer = torch.optim.Adam([t.requires_grad_() for t in learned.values()], lr=config.lr)
    for _ in range(config.steps):
        student = Policy({**policy.tensors, **learned}, policy.meta)
        rows = draw_minibatch(len(lessons.obs), config.batch, generator)
        learn = lesson_batch(student, policy, lessons.obs[rows], lessons.target[rows])
        own = lessons.own[draw_minibatch(len(lessons.own), config.batch, generator)]
        stay = lesson_batch(student, policy, own) if len(own) else None
        optimizer.zero_grad()
        lesson_loss(learn, stay, config.anchor).backward()
        optimizer.step()
    return Policy({k: v.detach() for k, v in student.tensors.items()}, policy.meta)


def lesson_batch(
    student: Policy, old: Policy, obs: Tensor, target: Tensor | None = None
) -> LessonBatch:
    """Evaluate a student at obs [B, O]; without a target, the target is its own old action."""
    now = student.dist(obs)
    with torch.no_grad():
        before = old.dist(obs)
    wanted = before.action(before.mean) if target is None else target
    return LessonBatch(now.action(now.mean), now.log_std, wanted, before.log_std)


def draw_minibatch(n: int, batch: int, generator: torch.Generator) -> Tensor:
    """Draw up to `batch` of n row indices [B], with replacement."""
    return torch.randint(max(n, 1), (min(batch, n),), generator=generator)
