"""Offline distillation of many students at once, each from its own fixed set of teacher states.

A student is a row of `dpd.agents.student.Student`, trained with the loss of `dpd distill`. The
target is the teacher's unclipped distribution, because fidelity is measured against that one;
`dpd distill` clips its mean to the action box, where it acts the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dpd.agents.base import take
from dpd.agents.config import StudentConfig
from dpd.agents.optim import StackedAdam, StackedSGD
from dpd.agents.rng import RowRandom, Stream
from dpd.agents.student import Student
from dpd.distill.targets import Targets, descend
from dpd.fidelity.measures import why_no_kl
from dpd.fidelity.states import NOISE_SCALE
from dpd.policies.policyfile import Policy

if TYPE_CHECKING:
    from dpd.fidelity.sweep import Variant

OFFLINE_BATCH, MAX_GRAD_NORM = 256, 10.0
CHUNK_STEPS = 20  # gradient steps whose states are drawn at once, with one learning rate


class SweepStudent(NamedTuple):
    """A student to train, as a row of a stack."""

    variant: Variant
    seed: int


@dataclass(frozen=True, kw_only=True)
class OfflineData:
    """Training data and learning rates shared by all students."""

    teacher: Policy
    pool: Tensor  # [P, O] raw states, in random order
    steps: int
    lr: dict[str, float]
    """Initial learning rate of each optimiser."""

    @property
    def divergence(self) -> str:
        """Name the loss: KL if it is defined for students of this teacher, else squared error."""
        meta = self.teacher.meta
        student = replace(meta, algo="student", squashed=False, tanh_mean=False)
        return "kl_forward" if why_no_kl(meta, student) is None else "mse"

    def own(self, row: SweepStudent) -> Tensor:
        """Return a student's positions in the pool; larger sets contain the smaller ones."""
        generator = torch.Generator().manual_seed(row.seed)
        return torch.randperm(len(self.pool), generator=generator)[: row.variant.states]

    def normalised(self, obs: Tensor) -> Tensor:
        """Normalise raw obs [..., O] with the teacher's statistics, which its students share."""
        tensors, meta = self.teacher.tensors, self.teacher.meta
        if not meta.norm_obs:
            return obs
        scaled = (obs - tensors["obs_mean"]) * tensors["obs_scale"]
        return scaled.clamp(-meta.clip_obs, meta.clip_obs)


class StudentStack:
    """Students trained together: they share an optimiser and a number of steps."""

    def __init__(self, lesson: OfflineData, rows: Sequence[SweepStudent]) -> None:
        self.lesson, self.rows = lesson, rows
        teacher = lesson.teacher.meta
        widths = ["x".join(map(str, r.variant.hidden(teacher.hidden))) for r in rows]
        sizes = list(dict.fromkeys(widths))
        config = StudentConfig(
            hidden=teacher.hidden,
            sizes=tuple(sizes),
            activation=teacher.activation,  # type: ignore[arg-type]
            norm_obs=False,  # they share the teacher's normaliser, see `normalised`
            minibatch_size=OFFLINE_BATCH,
            capacity=OFFLINE_BATCH,  # nothing is collected
            n_envs=1,
            n_steps=1,
        )
        # The variant is not part of the seed: students of one seed and size start alike and see
        # the same draws.
        seeds = [(r.seed, sizes.index(w)) for r, w in zip(rows, widths, strict=True)]
        self.agent = Student(config, teacher.obs_dim, teacher.act_dim, seeds)
        for n, row in enumerate(rows):
            if row.variant.weight > 0:
                self._start_near_the_teacher(n, row.variant.weight)
        self.batches = RowRandom(seeds, Stream.BATCH)
        self.noise = RowRandom(seeds, Stream.DISTILL)
        kind = rows[0].variant.optimiser
        self.lr = lesson.lr[kind]
        flat, rates = self.agent.nets.flat, [self.lr] * len(rows)
        self.optimizer = StackedAdam(flat, rates) if kind == "adam" else StackedSGD(flat, rates)
        self.steps = lesson.steps * rows[0].variant.length
        own = [lesson.own(row) for row in rows]
        self.n_own = torch.tensor([[len(x)] for x in own])  # [N, 1]
        self.own = torch.nn.utils.rnn.pad_sequence(own, batch_first=True)  # [N, most]
        self.is_like = {k: [r.variant.augmentation == k for r in rows] for k in ("noise", "mixup")}
        self.spread = lesson.pool.std(0, correction=0)

    def _start_near_the_teacher(self, n: int, weight: float) -> None:
        for name in self.agent.nets.rows[n]:
            own, goal = self.agent.nets.own(n, name), self.lesson.teacher.tensors[name]
            own.copy_((1 - weight) * own + weight * goal)

    def train(self, tell: Callable[[int], None]) -> None:
        """Take all gradient steps; `tell` receives the number of steps just taken."""
        for done in range(0, self.steps, CHUNK_STEPS):
            steps = min(CHUNK_STEPS, self.steps - done)
            rate = self.lr * 0.5 * (1 + math.cos(math.pi * done / self.steps))
            self.optimizer.lr = [rate] * len(self.rows)
            descend(
                self.agent,
                self.optimizer,
                self.lesson.divergence,
                self._draw(steps * OFFLINE_BATCH),
                steps,
                1.0,
                MAX_GRAD_NORM,
            )
            tell(steps)

    @torch.no_grad()
    def _draw(self, k: int) -> Targets:
        """Draw and augment k states for every student, with the teacher's targets."""
        obs = self._states(self.batches, k)
        if any(self.is_like["noise"]):
            noise = self.noise.normal(*obs.shape[1:]) * (NOISE_SCALE * self.spread)
            obs = torch.where(self._mask("noise"), obs + noise, obs)
        if any(self.is_like["mixup"]):
            share = self.noise.uniform(k, 1)  # Beta(1, 1)
            mixed = share * obs + (1 - share) * self._states(self.noise, k)
            obs = torch.where(self._mask("mixup"), mixed, obs)
        teacher_dist = self.lesson.teacher.dist(obs.flatten(0, 1))
        mean = teacher_dist.mean.view(*obs.shape[:2], -1)  # [N, K, A]
        log_std = teacher_dist.log_std.expand_as(teacher_dist.mean).view_as(mean)
        sample = teacher_dist.mode().view_as(mean)
        weight = obs.new_ones(obs.shape[:2])
        return Targets(self.lesson.normalised(obs), mean, log_std, sample, weight)

    def _mask(self, kind: str) -> Tensor:
        return torch.tensor(self.is_like[kind]).view(-1, 1, 1)

    def _states(self, rng: RowRandom, k: int) -> Tensor:
        """Draw k training states for each student [N, K, O]."""
        at = (rng.uniform(k, dtype=torch.float64) * self.n_own).long()
        return self.lesson.pool[take(self.own, at)]

    def policies(self) -> list[Policy]:
        """Return the current students as policies with the teacher's normaliser."""
        teacher = self.lesson.teacher
        common = ("obs_mean", "obs_scale", "obs_count", "act_low", "act_high")
        policies = []
        for n, row in enumerate(self.rows):
            own = {k: self.agent.nets.own(n, k).clone() for k in self.agent.nets.rows[n]}
            meta = replace(
                teacher.meta,
                algo="student",
                squashed=False,
                tanh_mean=False,
                state_std=False,
                memory=None,
                hidden=row.variant.hidden(teacher.meta.hidden),
                provenance={"seed": row.seed},
            )
            policies.append(Policy({k: teacher.tensors[k] for k in common} | own, meta))
        return policies


def make_stacks(lesson: OfflineData, rows: Sequence[SweepStudent]) -> list[StudentStack]:
    """Group students that can be trained together into stacks."""
    kinds: dict[tuple[str, int, bool], list[SweepStudent]] = {}
    for row in rows:
        kinds.setdefault(row.variant.stack, []).append(row)
    return [StudentStack(lesson, some) for some in kinds.values()]
