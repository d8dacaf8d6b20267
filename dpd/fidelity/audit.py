"""The audit: every student against its teacher, on every set of states and in return."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dpd.fidelity.measures import CLOSE, Scores, retained_return, score, why_no_kl
from dpd.fidelity.policies import ComparedPolicy, Cost, measure_cost
from dpd.fidelity.states import (
    HELD_OUT,
    SETS,
    AuditSettings,
    coin_flip_policy,
    perturbed_states,
    uniform_policy,
    visit,
)
from dpd.report.stats import (
    ALPHA,
    BOOTSTRAP_SEEDS,
    Interval,
    bootstrap_interval,
    unpaired_difference,
)

N_DRAWN_STATES = 1_000  # states whose actions are kept for the pictures


class GeneralisationGap(NamedTuple):
    """How much closer a student follows on states it has seen."""

    seen: str
    """The set of states compared with the held-out ones: `train` where that is known."""
    values: dict[str, float | None]
    """Held-out minus seen, of every measure."""
    unfitted: float
    """Share of seen states where an action is off by more than 0.05: the student was not brought
    to follow there, though it was trained there (optimisation, or too small a student)."""
    ungeneralised: float
    """How much larger that share is on held-out states: too little data."""


@dataclass(frozen=True, kw_only=True)
class StudentAudit:
    """A student and how closely it follows."""

    subject: ComparedPolicy
    cost: Cost
    compression: float
    """Parameters of the teacher per parameter of the student."""
    scores: dict[str, Scores]
    """By set of states."""
    gap: GeneralisationGap
    returns: np.ndarray  # [K]
    ratio: float | None
    """Mean return over the teacher's."""
    retained: float | None
    interval: Interval | None
    acts: tuple[Tensor, Tensor]
    """Actions of teacher and student on some held-out states, [m, A] each."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Everything found."""

    setting: AuditSettings
    teacher: ComparedPolicy
    cost: Cost
    returns: np.ndarray  # [K]
    random: np.ndarray  # [K], of uniform actions
    findings: list[StudentAudit]
    notes: list[str]


def audit(
    teacher: ComparedPolicy,
    students: Sequence[ComparedPolicy],
    setting: AuditSettings,
    tell: Callable[[str], None] = lambda what: None,
) -> Audit:
    """Play, collect states, and compare; `tell` hears what is being done."""
    tell(teacher.name)
    mode, n = teacher.policy.repeatable_mode, setting.n_states
    returns, obs = visit(setting, mode, n)
    random = visit(setting, uniform_policy(setting, teacher.policy.meta.act_dim)).returns
    states = {"teacher": obs, "heldout": visit(setting, mode, n, HELD_OUT).obs}
    states |= perturbed_states(setting, obs)
    own_cost = measure_cost(teacher)
    findings = []
    for student in students:
        tell(student.name)
        findings.append(
            audit_student(teacher, student, setting, states, (returns, random), own_cost)
        )
    return Audit(
        setting=setting,
        teacher=teacher,
        cost=own_cost,
        returns=returns,
        random=random,
        findings=findings,
        notes=audit_notes(teacher, findings, setting, returns, random),
    )


def audit_student(
    teacher: ComparedPolicy,
    student: ComparedPolicy,
    setting: AuditSettings,
    common: Mapping[str, Tensor],
    baselines: tuple[np.ndarray, np.ndarray],
    teachers_cost: Cost,
) -> StudentAudit:
    """Compare one student with its teacher.

    `common`: states that all students share; `baselines`: returns of the teacher, and random ones.
    """
    mode = student.policy.repeatable_mode
    returns, obs = visit(setting, mode, setting.n_states)
    coin = coin_flip_policy(setting, teacher.policy.repeatable_mode, mode)
    states = {**common, "student": obs, "mixed": visit(setting, coin, setting.n_states).obs}
    if student.train is not None:
        states["train"] = student.train
    found = {
        name: compare_policies(teacher, student, states[name]) for name in SETS if name in states
    }
    some = common["heldout"][:N_DRAWN_STATES]
    own_cost = measure_cost(student)
    ratio, kept, interval = compare_returns(returns, *baselines, setting.seed)
    return StudentAudit(
        subject=student,
        cost=own_cost,
        compression=teachers_cost.parameters / own_cost.parameters,
        scores=found,
        gap=generalisation_gap(found),
        returns=returns,
        ratio=ratio,
        retained=kept,
        interval=interval,
        acts=(teacher.answers(some).act, student.answers(some).act),
    )


def compare_policies(teacher: ComparedPolicy, student: ComparedPolicy, obs: Tensor) -> Scores:
    """Compare two policies on states [n, O]."""
    has_kl = why_no_kl(teacher.policy.meta, student.policy.meta) is None
    return score(teacher.answers(obs), student.answers(obs), has_kl)


def generalisation_gap(found: Mapping[str, Scores]) -> GeneralisationGap:
    """Compare held-out states with those seen in training, or with the teacher's others."""
    seen = "train" if "train" in found else "teacher"
    before, after = found[seen].values, found["heldout"].values
    values = {name: subtract(after[name], before[name]) for name in after}
    agree = f"agree_{CLOSE}"
    return GeneralisationGap(seen, values, 1 - (before[agree] or 0), -(values[agree] or 0))


def subtract(a: float | None, b: float | None) -> float | None:
    """Subtract where both are known."""
    return None if a is None or b is None else a - b


def compare_returns(
    student: np.ndarray, teacher: np.ndarray, random: np.ndarray, seed: int
) -> tuple[float | None, float | None, Interval | None]:
    """Return R_S / R_T, the return retained, and its interval over episodes, paired by their seed.

    Nothing is retained of a teacher that is no better than random.
    """
    ratio = float(student.mean() / teacher.mean()) if teacher.mean() else None
    if teacher.mean() <= random.mean():
        return ratio, None, None
    with np.errstate(divide="ignore", invalid="ignore"):
        samples: Any = [student, teacher, random]
        interval = bootstrap_interval(retained_return, samples, seed, paired=True)
    if interval is not None and not np.isfinite(interval).all():
        interval = None
    return ratio, float(retained_return(student, teacher, random)), interval


def audit_notes(
    teacher: ComparedPolicy,
    findings: Sequence[StudentAudit],
    setting: AuditSettings,
    returns: np.ndarray,
    random: np.ndarray,
) -> list[str]:
    """Say what was left out, what the gaps mean, and what weakens the numbers."""
    notes = [fit_note(f) for f in findings if f.gap.seen == "train"]
    unknown = [f.subject.name for f in findings if f.gap.seen != "train" and not f.subject.is_floor]
    if unknown:
        notes.append(
            f"training states unknown of {', '.join(unknown)}: the gap is between two sets of the "
            "teacher's states, and tells nothing of too little data (--train-states)"
        )
    for f in findings:
        if reason := why_no_kl(teacher.policy.meta, f.subject.policy.meta):
            notes.append(f"no KL for {f.subject.name}: {reason}")
    if all(f.scores["heldout"].values["value_gap"] is None for f in findings):
        notes.append(
            "no value gap: it needs the value functions of both, which a run's checkpoint of a "
            "policy's step holds, and students have none"
        )
    for f in findings:
        if f.subject.policy.meta.env_id != setting.env_id:
            was = f.subject.policy.meta.env_id
            notes.append(f"{f.subject.name} was trained in {was}, and acts in {setting.env_id}")
    apart = unpaired_difference(returns.tolist(), random.tolist())
    if apart.mean <= 0 or apart.p is None or apart.p > ALPHA:
        notes.append(
            f"{teacher.name} is not clearly better than random actions in {setting.episodes} "
            "episodes: what is retained of its return means little"
        )
    if 1 < setting.episodes < BOOTSTRAP_SEEDS:
        notes.append(
            "the bootstrap intervals of the return retained are too narrow for fewer than "
            f"{BOOTSTRAP_SEEDS} episodes"
        )
    return notes


def fit_note(f: StudentAudit) -> str:
    """Separate what a student was not brought to follow from what it does not generalise."""
    return (
        f"{f.subject.name} is off by more than {CLOSE} on {f.gap.unfitted:.1%} of its training "
        f"states (optimisation, or too small a student), and on {f.gap.ungeneralised:+.1%} beside "
        "that of held-out ones (too little data)"
    )
