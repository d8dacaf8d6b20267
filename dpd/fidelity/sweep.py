"""`dpd sweep`: distil a teacher offline in many ways, and see which students follow it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from dpd.errors import BadInput
from dpd.fidelity.audit import Gap, gap, measured
from dpd.fidelity.measures import Scores, retained
from dpd.fidelity.offline import Lesson, Row, stacks
from dpd.fidelity.policies import Subject, n_parameters, one_thread
from dpd.fidelity.states import (
    HELD_OUT,
    TRAIN,
    Setting,
    setting_of,
    uniform,
    visit,
    visit_together,
)
from dpd.fidelity.variants import Factor, distinct, factors, why_no_weights
from dpd.log.terminal import make_console
from dpd.policies.policyfile import Policy
from dpd.report.tables import Report, require_writable, write_report
from dpd.run.runs import short_names
from dpd.run.sources import load_any, one_policy, place_of

if TYPE_CHECKING:
    from dpd.fidelity.config import SweepConfig

LEAST = 30  # students: a correlation over fewer is little more than chance


@dataclass(frozen=True, kw_only=True)
class Result:
    """A student, and what became of it."""

    row: Row
    policy: Policy
    start: Scores
    """On held-out states, before the first gradient step."""
    scores: dict[str, Scores]
    """By set of states: train, heldout, student."""
    gap: Gap
    returns: np.ndarray  # [K]
    retained: float | None

    @property
    def parameters(self) -> int:
        """How many it has."""
        return n_parameters(self.policy)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Everything found."""

    config: SweepConfig
    setting: Setting
    teacher: Subject
    divergence: str
    factors: list[Factor]
    returns: np.ndarray  # [K] of the teacher
    random: np.ndarray  # [K] of uniform actions
    results: list[Result]
    notes: list[str]


def sweep_teacher(config: SweepConfig) -> int:
    """Train and compare all students; print a table or JSON, and write what is kept."""
    from dpd.fidelity.sweep_report import as_json, page, sheets

    config = config.resolved()
    require_writable(config.out)
    teacher, setting = read_teacher(config)
    with progress_bar() as progress, one_thread():
        found = sweep(config, teacher, setting, progress)
    report = Report("sweep", as_json(found), page(found), sheets(found), found.notes)
    write_report(report, config.out, config.json)
    return 0


def read_teacher(config: SweepConfig) -> tuple[Subject, Setting]:
    """Read the teacher, and where it acts. Raises BadInput or NotAPolicy."""
    file = one_policy(config.teacher)
    policy = load_any(file, config.foreign)
    meta = policy.meta
    if not meta.hidden:
        raise BadInput(f"{file} has no hidden layers whose width could be changed")
    setting = setting_of(config, policy, place_of(file, policy, config.foreign))
    (name,) = short_names([config.teacher])
    return Subject(name=name, policy=policy, file=file), setting


def progress_bar() -> Progress:
    """Return a bar with the speed and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[rate]}"),
        TimeRemainingColumn(),
        console=make_console(stderr=True, highlight=False),
        transient=True,
    )


def sweep(config: SweepConfig, teacher: Subject, setting: Setting, progress: Progress) -> Sweep:
    """Collect states, train all students, and compare them with their teacher."""
    mode, meta = teacher.policy.repeatable_mode, teacher.policy.meta
    bar = progress.add_task("playing the teacher", total=None, rate="")
    returns, held_out = visit(setting, mode, setting.n_states, HELD_OUT)
    random = visit(setting, uniform(setting, meta.act_dim), 0, HELD_OUT).returns
    pool = visit(setting, mode, max(config.sizes), TRAIN).obs
    rates = {"adam": config.lr, "sgd": config.sgd_lr}
    lesson = Lesson(teacher=teacher.policy, pool=pool, steps=config.steps, lr=rates)
    no_weights = why_no_weights(meta)
    changed = factors(config.sizes, no_weights is None)
    seeds = range(config.seed, config.seed + config.seeds)
    rows = [Row(variant, seed) for variant in distinct(changed) for seed in seeds]
    trained = train(lesson, rows, teacher, held_out, progress)
    progress.update(bar, description="playing the students")
    results = compare(teacher, lesson, setting, trained, held_out, (returns, random))
    return Sweep(
        config=config,
        setting=setting,
        teacher=teacher,
        divergence=lesson.divergence,
        factors=changed,
        returns=returns,
        random=random,
        results=sorted(results, key=lambda result: rows.index(result.row)),
        notes=remarks(len(rows), no_weights, returns, random),
    )


Trained = list[tuple[Row, Policy, Scores]]
"""Students, and their scores before training."""


def train(
    lesson: Lesson, rows: Sequence[Row], teacher: Subject, held_out: Tensor, progress: Progress
) -> Trained:
    """Train all students, stack by stack."""
    found: Trained = []
    parts = stacks(lesson, rows)
    total = sum(part.steps * len(part.rows) for part in parts)
    bar = progress.add_task("training the students", total=total, rate="")
    for part in parts:
        start = [against(teacher, policy, held_out) for policy in part.policies()]

        def tell(steps: int, n: int = len(part.rows)) -> None:
            progress.update(bar, advance=steps * n)
            speed = progress.tasks[-1].speed
            progress.update(bar, rate="" if speed is None else f"{speed:,.0f} student steps/s")

        part.train(tell)
        found += zip(part.rows, part.policies(), start, strict=True)
    return found


def against(teacher: Subject, policy: Policy, obs: Tensor) -> Scores:
    """Compare a student with its teacher on states [n, O]."""
    return measured(teacher, Subject(name="student", policy=policy), obs)


def compare(
    teacher: Subject,
    lesson: Lesson,
    setting: Setting,
    trained: Trained,
    held_out: Tensor,
    baselines: tuple[np.ndarray, np.ndarray],
) -> list[Result]:
    """Compare every student on what it learned from, on held-out states and on its own."""
    acts = [policy.repeatable_mode for _, policy, _ in trained]
    visited = visit_together(setting, acts, setting.n_states, HELD_OUT)
    is_better = baselines[0].mean() > baselines[1].mean()
    results = []
    for (row, policy, start), (returns, own) in zip(trained, visited, strict=True):
        seen = lesson.pool[lesson.own(row)][: setting.n_states]
        sets = {"train": seen, "heldout": held_out, "student": own}
        scores = {name: against(teacher, policy, obs) for name, obs in sets.items()}
        kept = float(retained(returns, *baselines)) if is_better else None
        results.append(
            Result(
                row=row,
                policy=policy,
                start=start,
                scores=scores,
                gap=gap(scores),
                returns=returns,
                retained=kept,
            )
        )
    return results


def remarks(
    n_students: int, no_weights: str | None, returns: np.ndarray, random: np.ndarray
) -> list[str]:
    """Say what was left out, and what weakens the numbers."""
    notes = [] if no_weights is None else [no_weights]
    if returns.mean() <= random.mean():
        notes.append(
            "the teacher is no better than random actions: nothing of it is to be retained"
        )
    if n_students < LEAST:
        notes.append(f"a correlation over fewer than {LEAST} students means little")
    return notes
