"""Audit of students: compare each with its teacher on sets of states and by return."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
    random_returns,
    visit,
)
from dpd.report.stats import (
    ALPHA,
    BOOTSTRAP_SEEDS,
    Interval,
    bootstrap_interval,
    unpaired_difference,
)

N_DRAWN_STATES = 1_000  # held-out states whose actions are kept for the figures


class GeneralisationGap(NamedTuple):
    """Difference between a student's scores on held-out states and on states it has seen."""

    seen: str
    """The set compared with the held-out states: `train`, or `teacher` if that is unknown."""
    values: dict[str, float | None]
    """Held-out minus seen, for every measure."""
    unfitted: float
    """Share of seen states where some action is off by more than 0.05: the student underfits, by
    poor optimisation or because it is too small."""
    ungeneralised: float
    """How much larger that share is on held-out states: too little data."""


@dataclass(frozen=True, kw_only=True)
class StudentAudit:
    """Fidelity, cost and returns of one student."""

    subject: ComparedPolicy
    cost: Cost
    compression: float
    """Parameters of the teacher divided by those of the student."""
    scores: dict[str, Scores]
    """By set of states."""
    gap: GeneralisationGap
    returns: np.ndarray  # [K]
    ratio: float | None
    """Mean return divided by the teacher's; None if that is 0."""
    retained: float | None
    """Share of the teacher's return above random actions."""
    interval: Interval | None
    """Bootstrap interval of `retained`."""
    acts: tuple[Tensor, Tensor]
    """Actions of teacher and student on the same held-out states, [m, A] each."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Result of an audit."""

    settings: AuditSettings
    teacher: ComparedPolicy
    cost: Cost
    returns: np.ndarray  # [K]
    random: np.ndarray  # [K], of uniform actions
    entries: list[StudentAudit] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """Notes on the gaps, on what was left out and on weak evidence."""
        return [*gap_notes(self.entries), *omission_notes(self), *evidence_notes(self)]


def audit(
    teacher: ComparedPolicy,
    students: Sequence[ComparedPolicy],
    settings: AuditSettings,
    tell: Callable[[str], None] = lambda what: None,
) -> Audit:
    """Play episodes, collect states and compare; `tell` receives the name of each policy played."""
    tell(teacher.name)
    mode, n = teacher.policy.repeatable_mode, settings.n_states
    returns, obs = visit(settings, mode, n)
    random = random_returns(settings, teacher.policy.meta.act_dim)
    states = {"teacher": obs, "heldout": visit(settings, mode, n, HELD_OUT).obs}
    states |= perturbed_states(settings, obs)
    cost = measure_cost(teacher)
    result = Audit(settings=settings, teacher=teacher, cost=cost, returns=returns, random=random)
    for student in students:
        tell(student.name)
        result.entries.append(audit_student(result, student, states))
    return result


def audit_student(
    result: Audit, student: ComparedPolicy, common: Mapping[str, Tensor]
) -> StudentAudit:
    """Compare one student with its teacher; `common`: sets of states shared by all students."""
    settings, teacher = result.settings, result.teacher
    mode = student.policy.repeatable_mode
    returns, obs = visit(settings, mode, settings.n_states)
    coin = coin_flip_policy(settings, teacher.policy.repeatable_mode, mode)
    states = {**common, "student": obs, "mixed": visit(settings, coin, settings.n_states).obs}
    if student.train is not None:
        states["train"] = student.train
    scores = {
        name: compare_policies(teacher, student, states[name]) for name in SETS if name in states
    }
    some = common["heldout"][:N_DRAWN_STATES]
    cost = measure_cost(student)
    ratio, kept, interval = compare_returns(returns, result.returns, result.random, settings.seed)
    return StudentAudit(
        subject=student,
        cost=cost,
        compression=result.cost.parameters / cost.parameters,
        scores=scores,
        gap=generalisation_gap(scores),
        returns=returns,
        ratio=ratio,
        retained=kept,
        interval=interval,
        acts=(teacher.outputs(some).act, student.outputs(some).act),
    )


def compare_policies(teacher: ComparedPolicy, student: ComparedPolicy, obs: Tensor) -> Scores:
    """Score a student against its teacher on states [n, O]."""
    has_kl = why_no_kl(teacher.policy.meta, student.policy.meta) is None
    return score(teacher.outputs(obs), student.outputs(obs), has_kl)


def generalisation_gap(scores: Mapping[str, Scores]) -> GeneralisationGap:
    """Compare held-out states with training states, or with the teacher's if those are unknown."""
    seen = "train" if "train" in scores else "teacher"
    before, after = scores[seen].values, scores["heldout"].values
    values = {
        name: None if new is None or (old := before[name]) is None else new - old
        for name, new in after.items()
    }
    agree = f"agree_{CLOSE}"
    return GeneralisationGap(seen, values, 1 - (before[agree] or 0), -(values[agree] or 0))


def compare_returns(
    student: np.ndarray, teacher: np.ndarray, random: np.ndarray, seed: int
) -> tuple[float | None, float | None, Interval | None]:
    """Return R_S / R_T, the retained return, and its interval over episodes paired by their seed.

    The last two are None if the teacher is no better than random actions.
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


def gap_notes(entries: Sequence[StudentAudit]) -> Iterator[str]:
    """Separate underfitting from too little data, where training states are known."""
    for entry in entries:
        if entry.gap.seen == "train":
            yield (
                f"{entry.subject.name} is off by more than {CLOSE} on {entry.gap.unfitted:.1%} of "
                "its training states (poor optimisation, or too small a student); on held-out "
                f"states this share changes by {entry.gap.ungeneralised:+.1%} (too little data)"
            )
    unknown = [e.subject.name for e in entries if e.gap.seen != "train" and not e.subject.is_floor]
    if unknown:
        yield (
            f"training states are unknown for {', '.join(unknown)}: the gap compares two sets of "
            "the teacher's states and does not show too little data; see --train-states"
        )


def omission_notes(result: Audit) -> Iterator[str]:
    """Say which measures are missing and which students act outside their own environment."""
    for entry in result.entries:
        if reason := why_no_kl(result.teacher.policy.meta, entry.subject.policy.meta):
            yield f"no KL for {entry.subject.name}: {reason}"
    if all(entry.scores["heldout"].values["value_gap"] is None for entry in result.entries):
        yield (
            "no value gap: it needs the value functions of both policies; runs keep them in "
            "checkpoints, and students have none"
        )
    acts_in = result.settings.env_id
    for entry in result.entries:
        trained_in = entry.subject.policy.meta.env_id
        if trained_in != acts_in:
            yield f"{entry.subject.name} was trained in {trained_in} but acts in {acts_in}"


def evidence_notes(result: Audit) -> Iterator[str]:
    """Warn of a teacher close to random actions and of too few episodes."""
    difference = unpaired_difference(result.returns.tolist(), result.random.tolist())
    episodes = result.settings.episodes
    if difference.mean <= 0 or difference.p is None or difference.p > ALPHA:
        yield (
            f"{result.teacher.name} is not clearly better than random actions in {episodes} "
            "episodes: the share of its return that students retain means little"
        )
    if 1 < episodes < BOOTSTRAP_SEEDS:
        yield (
            "the bootstrap intervals of the retained return are too narrow with fewer than "
            f"{BOOTSTRAP_SEEDS} episodes"
        )
