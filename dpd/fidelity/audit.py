"""Audit of students: compare each with its teacher on sets of states and by return.

The measures are those of Stanton et al., "Does Knowledge Distillation Really Work?" (NeurIPS
2021), for continuous actions. Letters: n states · A action · H features · K episodes. Actions are
in [-1, 1], so that differences are in units of half the action range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dpd.agents.dist import DiagGaussian, kl
from dpd.fidelity.aliasing import NEIGHBOURS, AliasingScores, aliasing_verdict, score_aliasing
from dpd.fidelity.policies import ComparedPolicy, Cost, PolicyOutputs, measure_cost
from dpd.fidelity.states import (
    HELD_OUT,
    SETS,
    AuditSettings,
    CoinFlip,
    PlayedEpisodes,
    perturbed_states,
    random_returns,
    visit,
)
from dpd.policies.metadata import PolicyMeta
from dpd.policies.playing import Playing
from dpd.report.stats import (
    ALPHA,
    BOOTSTRAP_SEEDS,
    Interval,
    bootstrap_interval,
    unpaired_difference,
)

CLOSE, NEAR = 0.05, 0.1
CONSTANT = 1e-8  # a smaller variance counts as 0, where R² is undefined


class Measure(NamedTuple):
    """Column title and explanation of a measure."""

    title: str
    meaning: str


MEASURES = {
    "kl_forward": Measure(
        "KL(T‖S)", "divergence of the student's Gaussian from the teacher's, in nats"
    ),
    "kl_reverse": Measure("KL(S‖T)", "divergence in the reverse direction, in nats"),
    "action_error": Measure("error", "mean |difference| of actions, in units of half their range"),
    "action_mse": Measure("MSE", "mean squared difference of actions, in the same units"),
    f"agree_{CLOSE}": Measure("≤0.05", "share of states where no action differs by more than 0.05"),
    f"agree_{NEAR}": Measure("≤0.1", "share of states where no action differs by more than 0.1"),
    "r2_mean": Measure("R²", "explained share of the variance of the teacher's actions; at most 1"),
    "r2_min": Measure("min R²", "R² of the action dimension where it is lowest"),
    "cka": Measure(
        "CKA", "similarity of the last hidden layers up to rotation and scale (linear CKA)"
    ),
    "value_gap": Measure("value gap", "mean |difference| of the value functions, in reward units"),
}


class Scores(NamedTuple):
    """Scores of a student on one set of states."""

    n: int
    values: dict[str, float | None]
    """By the names of MEASURES; None if a measure is undefined."""
    r2: list[float | None]
    """R² of each action dimension; None if the teacher's action is constant."""


def score(teacher: PolicyOutputs, student: PolicyOutputs, has_kl: bool) -> Scores:
    """Compute every measure from the outputs of two policies on the same states."""
    gap = (student.act - teacher.act).double().abs()
    each = r2_per_dimension(teacher.act, student.act)
    known = [x for x in each if x is not None]
    forward, reverse = kl_both_ways(teacher.dist, student.dist) if has_kl else (None, None)
    values = {
        "kl_forward": forward,
        "kl_reverse": reverse,
        "action_error": finite_or_none(gap.mean()),
        "action_mse": finite_or_none(gap.square().mean()),
        f"agree_{CLOSE}": agreement(gap, CLOSE),
        f"agree_{NEAR}": agreement(gap, NEAR),
        "r2_mean": sum(known) / len(known) if known else None,
        "r2_min": min(known, default=None),
        "cka": cka(teacher.features, student.features),
        "value_gap": value_gap(teacher.value, student.value),
    }
    return Scores(len(gap), values, each)


def finite_or_none(value: Tensor) -> float | None:
    """Return a scalar tensor as a float, or None if it is not finite."""
    scalar = float(value)
    return scalar if np.isfinite(scalar) else None


def agreement(gap: Tensor, within: float) -> float:
    """Return the share of states whose every |difference| [n, A] is at most `within`."""
    return float((gap.amax(-1) <= within).double().mean())


def r2_per_dimension(teacher: Tensor, student: Tensor) -> list[float | None]:
    """Return 1 - SSE/SST of each dimension [n, A] -> A; None if the teacher is constant."""
    t, s = teacher.double(), student.double()
    error, spread = (s - t).square().mean(0), (t - t.mean(0)).square().mean(0)
    return [
        None if v < CONSTANT else 1 - e / v
        for e, v in zip(error.tolist(), spread.tolist(), strict=True)
    ]


def cka(x: Tensor, y: Tensor) -> float | None:
    """Return the linear centred kernel alignment of features [n, H], [n, K]; None if constant.

    Kornblith et al., 2019: |XᵀY|² / (|XᵀX| |YᵀY|) of centred features, with Frobenius norms;
    invariant to rotation and scale of either. It needs many more states than features.
    """
    x, y = (z.double() - z.double().mean(0) for z in (x, y))
    # Scale first: squares of large features would overflow, and the ratio does not change.
    x, y = (z / z.abs().max().clamp_min(1e-300) for z in (x, y))
    norm = (x.T @ x).norm() * (y.T @ y).norm()
    return finite_or_none((x.T @ y).norm().square() / norm) if norm > 0 else None


def kl_both_ways(teacher: DiagGaussian, student: DiagGaussian) -> tuple[float | None, float | None]:
    """Return the means over states of KL(teacher || student) and KL(student || teacher)."""
    t, s = (
        p._replace(mean=p.mean.double(), log_std=p.log_std.double()) for p in (teacher, student)
    )
    return finite_or_none(kl(t, s).mean()), finite_or_none(kl(s, t).mean())


def why_no_kl(teacher: PolicyMeta, student: PolicyMeta) -> str | None:
    """Return why the KL divergence of two policies is undefined, or None if it is defined."""
    noisy = [m.algo for m in (teacher, student) if m.tanh_mean]
    if noisy:
        return f"the actions of {noisy[0]} are deterministic; its deviation is for exploration only"
    if teacher.squashed != student.squashed:
        return "it has no closed form between a squashed and a plain Gaussian"
    return None


def value_gap(teacher: Tensor | None, student: Tensor | None) -> float | None:
    """Return the mean |difference| of values [n], or None if either is missing."""
    if teacher is None or student is None:
        return None
    return finite_or_none((student - teacher).double().abs().mean())


NOTHING_TO_RETAIN = "the teacher is no better than random actions: there is no return to retain"


def retained_return(
    student: np.ndarray, teacher: np.ndarray, random: np.ndarray, axis: int = -1
) -> np.ndarray:
    """Return (R_S - R_random) / (R_T - R_random) of mean returns along an axis.

    Unlike R_S / R_T, it keeps its meaning when returns are negative.
    """
    floor: Any = random.mean(axis=axis)
    return (student.mean(axis=axis) - floor) / (teacher.mean(axis=axis) - floor)


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
    aliasing: dict[str, AliasingScores]
    """By set of states that were visited in episodes, where it is defined."""
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
        about_students = [*gap_notes(self.entries), *aliasing_notes(self.entries)]
        return [*about_students, *omission_notes(self), *evidence_notes(self)]


def audit(
    teacher: ComparedPolicy,
    students: Sequence[ComparedPolicy],
    settings: AuditSettings,
    tell: Callable[[str], None] = lambda what: None,
) -> Audit:
    """Play episodes, collect states and compare; `tell` receives the name of each policy played."""
    tell(teacher.name)
    mode, n = Playing(teacher.policy), settings.n_states
    played = {"teacher": visit(settings, mode, n), "heldout": visit(settings, mode, n, HELD_OUT)}
    returns, obs, _ = played["teacher"]
    random = random_returns(settings, teacher.policy.meta.act_dim)
    cost = measure_cost(teacher)
    result = Audit(settings=settings, teacher=teacher, cost=cost, returns=returns, random=random)
    perturbed = perturbed_states(settings, obs)
    for student in students:
        tell(student.name)
        result.entries.append(audit_student(result, student, played, perturbed))
    return result


def audit_student(
    result: Audit,
    student: ComparedPolicy,
    common: Mapping[str, PlayedEpisodes],
    perturbed: Mapping[str, Tensor],
) -> StudentAudit:
    """Compare one student with its teacher, on sets of states shared by all and on its own."""
    settings, teacher = result.settings, result.teacher
    mode = Playing(student.policy)
    own = visit(settings, mode, settings.n_states)
    coin = CoinFlip(settings, Playing(teacher.policy), mode)
    played = {**common, "student": own, "mixed": visit(settings, coin, settings.n_states)}
    states = {name: episodes.obs for name, episodes in played.items()} | dict(perturbed)
    if student.train is not None:
        states["train"] = student.train
    scores = {
        name: compare_policies(teacher, student, states[name]) for name in SETS if name in states
    }
    some = states["heldout"][:N_DRAWN_STATES]
    cost = measure_cost(student)
    ratio, kept, interval = compare_returns(
        own.returns, result.returns, result.random, settings.seed
    )
    return StudentAudit(
        subject=student,
        cost=cost,
        compression=result.cost.parameters / cost.parameters,
        scores=scores,
        aliasing=aliasing_by_set(teacher, student, played),
        gap=generalisation_gap(scores),
        returns=own.returns,
        ratio=ratio,
        retained=kept,
        interval=interval,
        acts=(teacher.outputs(some).act, student.outputs(some).act),
    )


def aliasing_by_set(
    teacher: ComparedPolicy, student: ComparedPolicy, played: Mapping[str, PlayedEpisodes]
) -> dict[str, AliasingScores]:
    """Measure aliasing on every set of visited states where it is defined."""
    found = {
        name: score_aliasing(teacher, student, visited.obs, visited.episodes)
        for name, visited in played.items()
    }
    return {name: scores for name, scores in found.items() if scores is not None}


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


def aliasing_notes(entries: Sequence[StudentAudit]) -> Iterator[str]:
    """Answer for each student whether more data or another view helps, on held-out states."""
    for entry in entries:
        scores, subject = entry.aliasing.get("heldout"), entry.subject
        if scores is not None and not subject.is_floor:
            verdict = aliasing_verdict(scores, subject.policy.meta.sees_all)
            yield f"{subject.name} {verdict}"
    if any("heldout" not in entry.aliasing for entry in entries):
        yield (
            f"no aliasing: it needs a teacher whose actions vary, and for each state {NEIGHBOURS} "
            "states of other episodes; see --episodes and --states"
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
