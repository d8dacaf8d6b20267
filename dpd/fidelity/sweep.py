"""`dpd sweep`: distil a teacher offline in many ways, and measure which students follow it.

Each variant differs from the common variant in one factor. A student is a row of
`dpd.agents.student.Student` that learns from its own fixed set of teacher states, with the loss of
`dpd distill`. The target is the teacher's unclipped distribution, because fidelity is measured
against that one; `dpd distill` clips its mean to the action box, where it acts the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpd.agents.base import take
from dpd.agents.optim import StackedAdam, StackedSGD
from dpd.agents.rng import RowRandom, Stream
from dpd.agents.student import Student
from dpd.agents.student_config import StudentConfig
from dpd.distill.targets import Targets, descend, distance
from dpd.errors import BadInput
from dpd.fidelity.audit import (
    NOTHING_TO_RETAIN,
    GeneralisationGap,
    Scores,
    compare_policies,
    generalisation_gap,
    retained_return,
    why_no_kl,
)
from dpd.fidelity.policies import ComparedPolicy, n_parameters, one_thread
from dpd.fidelity.states import (
    HELD_OUT,
    NOISE_SCALE,
    TRAIN,
    AuditSettings,
    audit_settings,
    random_returns,
    visit,
    visit_together,
)
from dpd.log.terminal import make_console, steps_progress
from dpd.policies.metadata import PolicyMeta
from dpd.policies.policyfile import Policy
from dpd.policies.views import refuse_view
from dpd.report.report import require_writable, save_report
from dpd.report.studied import SweepOutcome
from dpd.run.sources import load_any, one_policy, place_of, short_names

if TYPE_CHECKING:
    from dpd.fidelity.config import SweepConfig

OFFLINE_BATCH, MAX_GRAD_NORM = 256, 10.0
CHUNK_STEPS = 20  # gradient steps whose states are drawn at once, with one learning rate
MIN_STUDENTS = 30  # a correlation over fewer students is little more than chance
START_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
FACTORS = {
    "states": "states to learn from",
    "augmentation": "augmentation of the states",
    "optimiser": "optimiser",
    "length": "multiple of the gradient steps",
    "capacity": "multiple of the teacher's width",
    "weight": "weight on the teacher at the start",
}
FACTOR_LABELS = {
    "states": "data {:,}",
    "augmentation": "augment {}",
    "optimiser": "optimiser {}",
    "length": "steps ×{}",
    "capacity": "width ×{:g}",
    "weight": "start {:g}",
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Settings of one kind of student."""

    states: int
    augmentation: str = "none"
    optimiser: str = "adam"
    length: int = 1
    """Multiple of the gradient steps."""
    capacity: float = 1.0
    """Multiple of the teacher's widths."""
    weight: float = 0.0
    """Weight of the teacher's parameters at the start; the rest is a random network's."""

    def hidden(self, teacher: Sequence[int]) -> tuple[int, ...]:
        """Return the widths of the student's hidden layers, given the teacher's."""
        return tuple(max(1, round(self.capacity * width)) for width in teacher)

    @property
    def stack(self) -> tuple[str, int, bool]:
        """Return a key that students must share to be rows of one stack.

        Wider students have their own stacks: padded to their width, all others would cost four
        times as much.
        """
        return self.optimiser, self.length, self.capacity > 1


@dataclass(frozen=True, kw_only=True)
class Factor:
    """A factor, and the variants that differ in it alone."""

    name: str
    variants: list[Variant]

    def value(self, variant: Variant) -> Any:
        """Return the value of this factor in a variant."""
        return getattr(variant, self.name)

    def label(self, variant: Variant) -> str:
        """Return a short label of this factor's value in a variant."""
        return FACTOR_LABELS[self.name].format(self.value(variant))


def make_factors(sizes: Sequence[int], has_weights: bool) -> list[Factor]:
    """Return all factors with their variants; each contains the common variant."""
    ordered = sorted(sizes)
    base = Variant(states=ordered[len(ordered) // 2])
    values: dict[str, Sequence[Any]] = {
        "states": ordered,
        "augmentation": ("none", "noise", "mixup"),
        "optimiser": ("adam", "sgd"),
        "length": (1, 4),
        "capacity": (0.25, 0.5, 1.0, 2.0),
        "weight": START_WEIGHTS if has_weights else (),
    }
    return [
        Factor(name=name, variants=[replace(base, **{name: value}) for value in some])
        for name, some in values.items()
        if some
    ]


def distinct_variants(factors: Sequence[Factor]) -> list[Variant]:
    """Return every variant once."""
    return list(dict.fromkeys(v for factor in factors for v in factor.variants))


def why_no_weights(teacher: PolicyMeta) -> str | None:
    """Return why no student can start between the teacher and a random network, or None."""
    if teacher.squashed or teacher.tanh_mean or teacher.state_std or teacher.memory is not None:
        return (
            f"students are Gaussian policies without a tanh, {teacher.algo}'s are not: no student "
            "starts between the teacher and a random network"
        )
    return None


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
    def student(self) -> PolicyMeta:
        """Metadata of a student as large as the teacher: a Gaussian policy without a tanh."""
        plain = replace(self.teacher.meta, squashed=False, tanh_mean=False, state_std=False)
        return replace(plain, algo="student", memory=None, provenance={})

    @property
    def divergence(self) -> str:
        """Name the loss: KL if it is defined for students of this teacher, else squared error."""
        return "kl_forward" if why_no_kl(self.teacher.meta, self.student) is None else "mse"

    def own(self, row: SweepStudent) -> Tensor:
        """Return a student's positions in the pool; larger sets contain the smaller ones."""
        generator = torch.Generator().manual_seed(row.seed)
        return torch.randperm(len(self.pool), generator=generator)[: row.variant.states]


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
            norm_obs=False,  # they read observations that the teacher has normalised
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
        kinds = [row.variant.augmentation for row in rows]
        self.is_noisy, self.is_mixed = (
            torch.tensor([kind == name for kind in kinds]).view(-1, 1, 1)
            for name in ("noise", "mixup")
        )
        self.spread = lesson.pool.std(0, correction=0)

    def _start_near_the_teacher(self, n: int, weight: float) -> None:
        for name in self.agent.nets.rows[n]:
            own, goal = self.agent.nets.own(n, name), self.lesson.teacher.tensors[name]
            own.copy_((1 - weight) * own + weight * goal)

    def train(self, tell: Callable[[int], None]) -> None:
        """Take all gradient steps; `tell` receives the steps just taken, of all students."""
        for done in range(0, self.steps, CHUNK_STEPS):
            steps = min(CHUNK_STEPS, self.steps - done)
            rate = self.lr * 0.5 * (1 + math.cos(math.pi * done / self.steps))
            self.optimizer.lr = [rate] * len(self.rows)
            leaf, drawn = (self.agent.nets.flat, self.optimizer), self._draw(steps * OFFLINE_BATCH)
            descend(leaf, self._loss, drawn, steps, MAX_GRAD_NORM)
            tell(steps * len(self.rows))

    def _loss(self, targets: Targets) -> Tensor:
        student = self.agent.dist(targets.obs)
        return distance(self.lesson.divergence, student, targets).mean(1)

    @torch.no_grad()
    def _draw(self, k: int) -> Targets:
        """Draw and augment k states for every student, with the teacher's targets."""
        obs = self._states(self.batches, k)
        if self.is_noisy.any():
            noise = self.noise.normal(*obs.shape[1:]) * (NOISE_SCALE * self.spread)
            obs = torch.where(self.is_noisy, obs + noise, obs)
        if self.is_mixed.any():
            share = self.noise.uniform(k, 1)  # Beta(1, 1)
            mixed = share * obs + (1 - share) * self._states(self.noise, k)
            obs = torch.where(self.is_mixed, mixed, obs)
        teacher_dist = self.lesson.teacher.dist(obs.flatten(0, 1))
        mean = teacher_dist.mean.view(*obs.shape[:2], -1)  # [N, K, A]
        log_std = teacher_dist.log_std.expand_as(teacher_dist.mean).view_as(mean)
        sample = teacher_dist.mode().view_as(mean)
        weight = obs.new_ones(obs.shape[:2])
        return Targets(self.lesson.teacher.normalised(obs), mean, log_std, sample, weight)

    def _states(self, rng: RowRandom, k: int) -> Tensor:
        """Draw k training states for each student [N, K, O]."""
        at = (rng.uniform(k, dtype=torch.float64) * self.n_own).long()
        return self.lesson.pool[take(self.own, at)]

    def students(self) -> list[ComparedPolicy]:
        """Return the current students as policies with the teacher's normaliser."""
        nets, teacher = self.agent.nets, self.lesson.teacher
        kept = ("obs_mean", "obs_scale", "obs_count", "act_low", "act_high")
        tensors = {name: teacher.tensors[name] for name in kept}
        students = []
        for n, row in enumerate(self.rows):
            own = {name: nets.own(n, name).clone() for name in nets.rows[n]}
            hidden = row.variant.hidden(teacher.meta.hidden)
            policy = Policy(tensors | own, replace(self.lesson.student, hidden=hidden))
            students.append(ComparedPolicy(name="student", policy=policy))
        return students


def make_stacks(lesson: OfflineData, rows: Sequence[SweepStudent]) -> list[StudentStack]:
    """Group students that can be trained together into stacks."""
    kinds: dict[tuple[str, int, bool], list[SweepStudent]] = {}
    for row in rows:
        kinds.setdefault(row.variant.stack, []).append(row)
    return [StudentStack(lesson, some) for some in kinds.values()]


class SweepResult(NamedTuple):
    """A trained student with its scores and returns."""

    row: SweepStudent
    parameters: int
    start: Scores
    """Scores on held-out states before the first gradient step."""
    scores: dict[str, Scores]
    """By set of states: train, heldout, student."""
    gap: GeneralisationGap
    returns: np.ndarray  # [K]
    retained: float | None


class Sweep(NamedTuple):
    """Result of a sweep."""

    config: SweepConfig
    settings: AuditSettings
    teacher: ComparedPolicy
    divergence: str
    factors: list[Factor]
    returns: np.ndarray  # [K] of the teacher
    random: np.ndarray  # [K] of uniform actions
    results: list[SweepResult]

    @property
    def notes(self) -> list[str]:
        """Notes on what was left out and on weak evidence."""
        no_weights = why_no_weights(self.teacher.policy.meta)
        notes = [] if no_weights is None else [no_weights]
        if self.returns.mean() <= self.random.mean():
            notes.append(NOTHING_TO_RETAIN)
        if len(self.results) < MIN_STUDENTS:
            notes.append(f"a correlation over fewer than {MIN_STUDENTS} students means little")
        return notes


def sweep_teacher(config: SweepConfig) -> SweepOutcome:
    """Train and compare all students, and write the report."""
    from dpd.fidelity.sweep_report import sweep_report

    config = config.resolved()
    require_writable(config.out)
    with one_thread():
        result = sweep(config, *read_sweep_teacher(config))
    report = sweep_report(result)
    page = save_report(report, config.out, "sweep")
    return SweepOutcome(report=report, page=page, lines=[f"report  {page}"])


def read_sweep_teacher(config: SweepConfig) -> tuple[ComparedPolicy, AuditSettings]:
    """Read the teacher and the environment it acts in. Raises BadInput or NotAPolicy."""
    file = one_policy(config.teacher)
    policy = load_any(file, config.foreign)
    refuse_view(policy, "dpd sweep")
    if not policy.meta.hidden:
        raise BadInput(f"{file} has no hidden layers whose width the sweep could change")
    settings = audit_settings(config, policy, place_of(file, policy, config.foreign))
    (name,) = short_names([config.teacher])
    return ComparedPolicy(name=name, policy=policy, file=file), settings


def sweep(config: SweepConfig, teacher: ComparedPolicy, settings: AuditSettings) -> Sweep:
    """Collect states, train all students, and compare them with their teacher."""
    mode, meta = teacher.policy.repeatable_mode, teacher.policy.meta
    factors = make_factors(config.sizes, why_no_weights(meta) is None)
    seeds = range(config.seed, config.seed + config.seeds)
    rows = [SweepStudent(variant, seed) for variant in distinct_variants(factors) for seed in seeds]
    total = config.steps * sum(row.variant.length for row in rows)
    with steps_progress(make_console(stderr=True, highlight=False), total) as tell:
        tell("playing the teacher", 0)
        returns, held_out, _ = visit(settings, mode, settings.n_states, HELD_OUT)
        random = random_returns(settings, meta.act_dim, HELD_OUT)
        pool = visit(settings, mode, max(config.sizes), TRAIN).obs
        lr = {"adam": config.lr, "sgd": config.sgd_lr}
        lesson = OfflineData(teacher=teacher.policy, pool=pool, steps=config.steps, lr=lr)
        trained: dict[SweepStudent, tuple[ComparedPolicy, Scores]] = {}
        for stack in make_stacks(lesson, rows):
            start = [compare_policies(teacher, student, held_out) for student in stack.students()]
            stack.train(partial(tell, "training the students"))
            ends = zip(stack.students(), start, strict=True)
            trained |= zip(stack.rows, ends, strict=True)
        tell("playing the students", 0)
        acts = [trained[row][0].policy.repeatable_mode for row in rows]
        visited = visit_together(settings, acts, settings.n_states, HELD_OUT)
    results = []
    for row, (got, own, _) in zip(rows, visited, strict=True):
        student, before = trained[row]
        seen = pool[lesson.own(row)][: settings.n_states]
        sets = {"train": seen, "heldout": held_out, "student": own}
        scores = {name: compare_policies(teacher, student, obs) for name, obs in sets.items()}
        is_better = returns.mean() > random.mean()
        kept = float(retained_return(got, returns, random)) if is_better else None
        n, gap = n_parameters(student.policy), generalisation_gap(scores)
        results.append(SweepResult(row, n, before, scores, gap, got, kept))
    return Sweep(config, settings, teacher, lesson.divergence, factors, returns, random, results)
