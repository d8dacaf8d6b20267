"""Measures of how closely one policy follows another, from their outputs on the same states.

Stanton et al., "Does Knowledge Distillation Really Work?" (NeurIPS 2021), for continuous actions.
Letters: n states · A action · H features. Actions are in [-1, 1], so that differences are in
units of half the action range.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dpd.agents.dist import DiagGaussian, kl
from dpd.policies.metadata import PolicyMeta

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


class PolicyOutputs(NamedTuple):
    """Outputs of a policy on n states."""

    act: Tensor  # [n, A] without noise, in [-1, 1]
    dist: DiagGaussian  # mean [n, A]
    features: Tensor  # [n, H], the last hidden layer
    value: Tensor | None = None  # [n]


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
