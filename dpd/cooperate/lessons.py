"""Lessons of a student: states near which a teacher is better, and the loss on all its states.

Counterfactuals are new states at which a teacher's lead is larger. Cooperative knowledge
distillation calls them quintessential: the teacher stays the better one, by more. The search moves
the simulator's state and never an observation, because a changed observation may belong to no
state. Only a student's actor learns, everything else stays unchanged. Letters: n states to learn
from · m states to stay unchanged on · D coordinates, in standard deviations · P pairs ·
O observation · A action.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dpd.agents.nets import StackedNets, mlp, mlp_shapes
from dpd.cooperate.config import CooperateConfig
from dpd.policies.policyfile import Policy

LARGE_QUANTILE = 0.95  # quantile of the gaps that stands for the largest ones


def search_states(h: Callable[[Tensor], Tensor], start: Tensor, config: CooperateConfig) -> Tensor:
    """Move states [n, D] towards a larger predicted gap h [n], within a trust box -> [n, D]."""
    target = target_gaps(h(start).detach(), config.cf_alpha)
    shift = torch.zeros_like(start, requires_grad=True)
    optimizer = torch.optim.Adam([shift], lr=config.cf_lr)
    for _ in range(config.cf_steps):
        loss = search_loss(h(start + shift), target, shift, config.cf_penalty)
        (shift.grad,) = torch.autograd.grad(loss.sum(), shift)
        optimizer.step()
        with torch.no_grad():
            shift.clamp_(-config.cf_box, config.cf_box)
    return start + shift.detach()


def target_gaps(gap: Tensor, alpha: float) -> Tensor:
    """Return the target of each predicted gap [n]: y' = h + alpha (h_95 - h)_+."""
    return gap + alpha * (gap.quantile(LARGE_QUANTILE) - gap).clamp_min(0)


def search_loss(gap: Tensor, target: Tensor, shift: Tensor, penalty: float) -> Tensor:
    """Return (h(s') - y')^2 + penalty * |s' - s|_1 of each state [n]."""
    return (gap - target).square() + penalty * shift.abs().sum(-1)


def are_distinct(states: Tensor, known: Tensor, within: float) -> Tensor:
    """Return which states [n, D] are at least `within` from known ones and those kept before."""
    keep = torch.cdist(states, known).amin(1) >= within
    near = torch.cdist(states, states) < within
    for row in range(1, len(states)):
        if keep[row] and bool((near[row, :row] & keep[:row]).any()):
            keep[row] = False
    return keep


PROXY_HIDDEN = (64, 64)
PROXY_BATCH = 128
PROXY_WEIGHT_DECAY = 1e-2  # without it the network memorises some hundred states
MIN_SCALE = 1e-6  # keeps coordinates and gaps that hardly vary from being scaled up


class GapProxies:
    """Networks h_ij of all pairs as one stack: standardised coordinates -> standardised gap."""

    def __init__(
        self, coords: Tensor, gaps: Tensor, config: CooperateConfig, generator: torch.Generator
    ) -> None:
        """Fit a network to every pair's gap [P, n] at coordinates [n, D]."""
        self.mean, self.scale = coords.mean(0), coords.std(0).clamp_min(MIN_SCALE)  # [D]
        self.gap_mean = gaps.mean(1, keepdim=True)  # [P, 1]
        self.gap_scale = gaps.std(1, keepdim=True).clamp_min(MIN_SCALE)
        shapes = mlp_shapes("gap", [coords.shape[1], *PROXY_HIDDEN, 1])
        self.nets = StackedNets(shapes, len(gaps), "tanh")
        self.nets.init_uniform("gap", [generator] * len(gaps))
        z, y = self.standard(coords), ((gaps - self.gap_mean) / self.gap_scale).float()
        optimizer = torch.optim.AdamW(
            [self.nets.flat], lr=config.proxy_lr, weight_decay=PROXY_WEIGHT_DECAY
        )
        for _ in range(config.proxy_steps):
            rows = torch.randint(len(z), (min(PROXY_BATCH, len(z)),), generator=generator)
            (predicted,) = self.nets(z[rows].expand(len(y), -1, -1), "gap")
            optimizer.zero_grad()
            # The sum over pairs: every pair has its own network and its own mean squared error.
            (predicted.squeeze(-1) - y[:, rows]).square().mean(1).sum().backward()
            optimizer.step()

    def standard(self, coords: Tensor) -> Tensor:
        """Return coordinates [n, D] in standard deviations."""
        return ((coords - self.mean) / self.scale).float()

    def coordinates(self, z: Tensor) -> Tensor:
        """Undo `standard` [n, D]."""
        return z.double() * self.scale + self.mean

    def __call__(self, pair: int, z: Tensor) -> Tensor:
        """Predict a pair's standardised gap at standardised coordinates [n, D] -> [n]."""
        stack = [(w[pair : pair + 1], b[pair : pair + 1]) for w, b in self.nets.layers["gap"]]
        return mlp(stack, z.unsqueeze(0), self.nets.activation)[0].view(-1)

    @torch.no_grad()
    def r2(self, pair: int, coords: Tensor, gap: Tensor) -> float | None:
        """Return R² = 1 - SSE/SST of a pair's gap [n] at coords [n, D]; None if it is constant."""
        wanted = (gap - self.gap_mean[pair]) / self.gap_scale[pair]
        total = (wanted - wanted.mean()).square().sum()
        if not total > MIN_SCALE:
            return None
        error = (self(pair, self.standard(coords)) - wanted).square().sum()
        return float(1 - error / total)


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
