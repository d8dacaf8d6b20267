"""What a sweep found, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dpd.fidelity.measures import MEASURES, NEAR
from dpd.fidelity.sweep import Result, Sweep
from dpd.fidelity.variants import FACTORS, Variant
from dpd.sheets import Sheet, mean_and_each, shown

Figure = Callable[[Result], float | None]


def on(states: str, measure: str) -> Figure:
    """Return a measure on a set of states, of a student."""
    return lambda result: result.scores[states].values[measure]


FIGURES: dict[str, Figure] = {
    "train_kl": on("train", "kl_forward"),
    "heldout_kl": on("heldout", "kl_forward"),
    "train_error": on("train", "action_error"),
    "heldout_error": on("heldout", "action_error"),
    "gap_error": lambda result: result.gap.values["action_error"],
    "student_error": on("student", "action_error"),
    f"heldout_agree_{NEAR}": on("heldout", f"agree_{NEAR}"),
    "start_kl": lambda result: result.start.values["kl_forward"],
    "return": lambda result: float(result.returns.mean()),
    "retained": lambda result: result.retained,
}
COLUMNS = {
    "train_kl": "KL seen",
    "heldout_kl": "held",
    "train_error": "error",
    "heldout_error": "held",
    "gap_error": "gap",
    "student_error": "own",
    "retained": "retained",
}
LIKENESS = {
    "KL(T‖S), held-out": ("heldout_kl", -1),
    "error, held-out": ("heldout_error", -1),
    "error, own states": ("student_error", -1),
    f"agreement within {NEAR}, held-out": (f"heldout_agree_{NEAR}", 1),
}
"""Figures that fidelity is read from; -1: less is more."""


def of(found: Sweep, variant: Variant) -> list[Result]:
    """Return a variant's students, one of each seed."""
    return [result for result in found.results if result.row.variant == variant]


def mean(results: Sequence[Result], name: str) -> float | None:
    """Return a figure's mean over seeds, where all have it."""
    values = [value for result in results if (value := FIGURES[name](result)) is not None]
    return float(np.mean(values)) if values and len(values) == len(results) else None


def correlation(found: Sweep, name: str) -> float | None:
    """Return Spearman's correlation of fidelity with return over all students; None: no spread."""
    from scipy.stats import spearmanr

    figure, sign = LIKENESS[name]
    pairs = [(FIGURES[figure](r), float(r.returns.mean())) for r in found.results]
    known = [(sign * value, got) for value, got in pairs if value is not None]
    if len(known) < 3 or any(len(set(column)) < 2 for column in zip(*known, strict=True)):
        return None
    return float(spearmanr(*zip(*known, strict=True)).statistic)


def sweep_sheet(found: Sweep) -> Sheet:
    """Lay out a row per variant, means over seeds; the base comes once for every factor."""
    known = [k for k in COLUMNS if any(FIGURES[k](r) is not None for r in found.results)]
    rows = []
    for factor in found.factors:
        for variant in factor.variants:
            results = of(found, variant)
            figures = [shown(mean(results, name)) for name in known]
            rows.append([factor.label(variant), *figures])
    seeds = f", means of {found.config.seeds} seeds" if found.config.seeds > 1 else ""
    title = (
        f"{found.setting.env_id}: students of {found.teacher.name}, one thing changed at a time"
        f"{seeds}. KL and error of actions on states it learned from (seen), held out, and its own"
    )
    return Sheet(title, ["changed", *(COLUMNS[name] for name in known)], rows)


def baselines_sheet(found: Sweep) -> Sheet:
    """Lay out between which returns students lie."""
    rows = [
        [f"{found.teacher.name} (teacher)", shown(float(found.returns.mean()))],
        ["random actions", shown(float(found.random.mean()))],
    ]
    return Sheet(f"Returns of {found.setting.episodes} episodes", ["policy", "return"], rows)


def correlation_sheet(found: Sweep) -> Sheet:
    """Lay out whether students that follow more closely get more."""
    rows = [[name, shown(correlation(found, name))] for name in LIKENESS]
    title = f"Spearman correlation of fidelity with return, over {len(found.results)} students"
    return Sheet(title, ["fidelity by", "correlation"], rows)


def sheets(found: Sweep) -> list[Sheet]:
    """Return the terminal's tables."""
    return [sweep_sheet(found), baselines_sheet(found), correlation_sheet(found)]


def as_json(found: Sweep) -> dict[str, Any]:
    """Return everything measured, raw returns included."""
    config, setting = found.config, found.setting
    settings = ("sizes", "steps", "lr", "sgd_lr", "seeds", "seed", "episodes", "states")
    return {
        "env": setting.env_id,
        "env_kwargs": setting.env_kwargs,
        **{name: getattr(config, name) for name in settings},
        "divergence": found.divergence,
        "teacher": {
            **found.teacher.origin,
            **mean_and_each(found.returns),
        },
        "random": mean_and_each(found.random),
        "factors": {
            factor.name: {
                "meaning": FACTORS[factor.name],
                "values": [factor.value(variant) for variant in factor.variants],
            }
            for factor in found.factors
        },
        "students": [student_json(result) for result in found.results],
        "correlation": {name: correlation(found, name) for name in LIKENESS},
        "measures": {name: m.meaning for name, m in MEASURES.items()},
        "notes": found.notes,
    }


def student_json(result: Result) -> dict[str, Any]:
    """Return how a student was made, and its figures."""
    return {
        **asdict(result.row.variant),
        "seed": result.row.seed,
        "parameters": result.parameters,
        **{name: figure(result) for name, figure in FIGURES.items()},
        "sets": {name: {"n": s.n, **s.values, "r2": s.r2} for name, s in result.scores.items()},
        "returns": result.returns.tolist(),
    }
