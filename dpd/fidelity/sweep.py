"""`dpd sweep`: distil a teacher offline in many ways, and measure which students follow it.

Each variant differs from the common variant in one factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from dpd.errors import BadInput
from dpd.fidelity.audit import GeneralisationGap, compare_policies, generalisation_gap
from dpd.fidelity.measures import Scores, retained_return
from dpd.fidelity.offline import OfflineData, SweepStudent, make_stacks
from dpd.fidelity.policies import ComparedPolicy, n_parameters, one_thread
from dpd.fidelity.states import (
    HELD_OUT,
    TRAIN,
    AuditSettings,
    audit_settings,
    uniform_policy,
    visit,
    visit_together,
)
from dpd.log.terminal import make_console
from dpd.policies.metadata import PolicyMeta
from dpd.policies.policyfile import Policy
from dpd.report.report import deliver_report, require_writable
from dpd.run.runs import short_names
from dpd.run.sources import load_any, one_policy, place_of

if TYPE_CHECKING:
    from dpd.fidelity.config import SweepConfig

MIN_STUDENTS = 30  # a correlation over fewer students is little more than chance
AUGMENTATIONS = ("none", "noise", "mixup")
OPTIMISERS = ("adam", "sgd")
LENGTHS = (1, 4)
CAPACITIES = (0.25, 0.5, 1.0, 2.0)
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
        "augmentation": AUGMENTATIONS,
        "optimiser": OPTIMISERS,
        "length": LENGTHS,
        "capacity": CAPACITIES,
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


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """A trained student with its scores and returns."""

    row: SweepStudent
    policy: Policy
    start: Scores
    """Scores on held-out states before the first gradient step."""
    scores: dict[str, Scores]
    """By set of states: train, heldout, student."""
    gap: GeneralisationGap
    returns: np.ndarray  # [K]
    retained: float | None

    @property
    def parameters(self) -> int:
        """Number of the student's parameters."""
        return n_parameters(self.policy)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Result of a sweep."""

    config: SweepConfig
    settings: AuditSettings
    teacher: ComparedPolicy
    divergence: str
    factors: list[Factor]
    returns: np.ndarray  # [K] of the teacher
    random: np.ndarray  # [K] of uniform actions
    results: list[SweepResult]
    notes: list[str]


def sweep_teacher(config: SweepConfig) -> int:
    """Train and compare all students; print tables or JSON, and write the report."""
    from dpd.fidelity.sweep_report import sweep_report

    config = config.resolved()
    require_writable(config.out)
    teacher, settings = read_sweep_teacher(config)
    with progress_bar() as progress, one_thread():
        result = sweep(config, teacher, settings, progress)
    deliver_report(sweep_report(result), config.out, "sweep", config.json)
    return 0


def read_sweep_teacher(config: SweepConfig) -> tuple[ComparedPolicy, AuditSettings]:
    """Read the teacher and the environment it acts in. Raises BadInput or NotAPolicy."""
    file = one_policy(config.teacher)
    policy = load_any(file, config.foreign)
    meta = policy.meta
    if not meta.hidden:
        raise BadInput(f"{file} has no hidden layers whose width the sweep could change")
    settings = audit_settings(config, policy, place_of(file, policy, config.foreign))
    (name,) = short_names([config.teacher])
    return ComparedPolicy(name=name, policy=policy, file=file), settings


def progress_bar() -> Progress:
    """Return a progress bar with the speed and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[rate]}"),
        TimeRemainingColumn(),
        console=make_console(stderr=True, highlight=False),
        transient=True,
    )


def sweep(
    config: SweepConfig, teacher: ComparedPolicy, settings: AuditSettings, progress: Progress
) -> Sweep:
    """Collect states, train all students, and compare them with their teacher."""
    mode, meta = teacher.policy.repeatable_mode, teacher.policy.meta
    bar = progress.add_task("playing the teacher", total=None, rate="")
    returns, held_out = visit(settings, mode, settings.n_states, HELD_OUT)
    random = visit(settings, uniform_policy(settings, meta.act_dim), 0, HELD_OUT).returns
    pool = visit(settings, mode, max(config.sizes), TRAIN).obs
    rates = {"adam": config.lr, "sgd": config.sgd_lr}
    lesson = OfflineData(teacher=teacher.policy, pool=pool, steps=config.steps, lr=rates)
    no_weights = why_no_weights(meta)
    changed = make_factors(config.sizes, no_weights is None)
    seeds = range(config.seed, config.seed + config.seeds)
    rows = [SweepStudent(variant, seed) for variant in distinct_variants(changed) for seed in seeds]
    trained = train_students(lesson, rows, teacher, held_out, progress)
    progress.update(bar, description="playing the students")
    results = score_students(teacher, lesson, settings, trained, held_out, (returns, random))
    return Sweep(
        config=config,
        settings=settings,
        teacher=teacher,
        divergence=lesson.divergence,
        factors=changed,
        returns=returns,
        random=random,
        results=sorted(results, key=lambda result: rows.index(result.row)),
        notes=sweep_notes(len(rows), no_weights, returns, random),
    )


TrainedStudents = list[tuple[SweepStudent, Policy, Scores]]
"""Students, their policies, and their scores before training."""


def train_students(
    lesson: OfflineData,
    rows: Sequence[SweepStudent],
    teacher: ComparedPolicy,
    held_out: Tensor,
    progress: Progress,
) -> TrainedStudents:
    """Train all students, stack by stack."""
    trained: TrainedStudents = []
    parts = make_stacks(lesson, rows)
    total = sum(part.steps * len(part.rows) for part in parts)
    bar = progress.add_task("training the students", total=total, rate="")
    for part in parts:
        start = [score_student(teacher, policy, held_out) for policy in part.policies()]

        def tell(steps: int, n: int = len(part.rows)) -> None:
            progress.update(bar, advance=steps * n)
            speed = progress.tasks[-1].speed
            progress.update(bar, rate="" if speed is None else f"{speed:,.0f} student steps/s")

        part.train(tell)
        trained += zip(part.rows, part.policies(), start, strict=True)
    return trained


def score_student(teacher: ComparedPolicy, policy: Policy, obs: Tensor) -> Scores:
    """Score a student against its teacher on states [n, O]."""
    return compare_policies(teacher, ComparedPolicy(name="student", policy=policy), obs)


def score_students(
    teacher: ComparedPolicy,
    lesson: OfflineData,
    settings: AuditSettings,
    trained: TrainedStudents,
    held_out: Tensor,
    baselines: tuple[np.ndarray, np.ndarray],
) -> list[SweepResult]:
    """Score every student on its training states, on held-out states and on its own states."""
    acts = [policy.repeatable_mode for _, policy, _ in trained]
    visited = visit_together(settings, acts, settings.n_states, HELD_OUT)
    is_better = baselines[0].mean() > baselines[1].mean()
    results = []
    for (row, policy, start), (returns, own) in zip(trained, visited, strict=True):
        seen = lesson.pool[lesson.own(row)][: settings.n_states]
        sets = {"train": seen, "heldout": held_out, "student": own}
        scores = {name: score_student(teacher, policy, obs) for name, obs in sets.items()}
        kept = float(retained_return(returns, *baselines)) if is_better else None
        results.append(
            SweepResult(
                row=row,
                policy=policy,
                start=start,
                scores=scores,
                gap=generalisation_gap(scores),
                returns=returns,
                retained=kept,
            )
        )
    return results


def sweep_notes(
    n_students: int, no_weights: str | None, returns: np.ndarray, random: np.ndarray
) -> list[str]:
    """Return notes on what was left out and on weak evidence."""
    notes = [] if no_weights is None else [no_weights]
    if returns.mean() <= random.mean():
        notes.append("the teacher is no better than random actions: there is no return to retain")
    if n_students < MIN_STUDENTS:
        notes.append(f"a correlation over fewer than {MIN_STUDENTS} students means little")
    return notes
