"""What a sweep found, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dpd.fidelity.measures import MEASURES, NEAR
from dpd.fidelity.report import origin
from dpd.fidelity.sweep import Result, Sweep
from dpd.fidelity.variants import FACTORS, Variant
from dpd.report.figures import new_figure
from dpd.report.page import (
    GRID,
    INK,
    Section,
    legend,
    page_line_style,
    render_page,
    style_axes,
    svg,
)
from dpd.report.tables import Table, describe_returns, format_number

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


def sweep_sheet(found: Sweep) -> Table:
    """Lay out a row per variant, means over seeds; the base comes once for every factor."""
    known = [k for k in COLUMNS if any(FIGURES[k](r) is not None for r in found.results)]
    rows = []
    for factor in found.factors:
        for variant in factor.variants:
            results = of(found, variant)
            figures = [format_number(mean(results, name)) for name in known]
            rows.append([factor.label(variant), *figures])
    seeds = f", means of {found.config.seeds} seeds" if found.config.seeds > 1 else ""
    title = (
        f"{found.setting.env_id}: students of {found.teacher.name}, one thing changed at a time"
        f"{seeds}. KL and error of actions on states it learned from (seen), held out, and its own"
    )
    return Table(title, ["changed", *(COLUMNS[name] for name in known)], rows)


def baselines_sheet(found: Sweep) -> Table:
    """Lay out between which returns students lie."""
    rows = [
        [f"{found.teacher.name} (teacher)", format_number(float(found.returns.mean()))],
        ["random actions", format_number(float(found.random.mean()))],
    ]
    return Table(f"Returns of {found.setting.episodes} episodes", ["policy", "return"], rows)


def correlation_sheet(found: Sweep) -> Table:
    """Lay out whether students that follow more closely get more."""
    rows = [[name, format_number(correlation(found, name))] for name in LIKENESS]
    title = f"Spearman correlation of fidelity with return, over {len(found.results)} students"
    return Table(title, ["fidelity by", "correlation"], rows)


def sheets(found: Sweep) -> list[Table]:
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
            **describe_returns(found.returns),
        },
        "random": describe_returns(found.random),
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


LINES = {
    "train_error": "states it learned from",
    "heldout_error": "held-out states",
    "student_error": "its own states",
}
MEANINGS = {
    "KL": "KL(T‖S), by how many nats the student's Gaussian misses the teacher's",
    "error": "mean |difference| of actions, in halves of their range",
    "gap": "error on held-out states less that on those it learned from: too little data",
    "own": "error on the states that the student comes to when it acts",
    "retained": "return above random actions, as a share of the teacher's, in the same episodes",
}


def page(found: Sweep) -> str:
    """Return the page."""
    config = found.config
    seeds = "1 seed" if config.seeds == 1 else f"{config.seeds} seeds"
    said = (
        f"{config.steps:,} gradient steps towards the teacher by {found.divergence}, "
        f"{seeds}, {config.episodes} episodes, {config.states:,} states in each set, "
        f"seed {config.seed}; Adam from {config.lr:g} and SGD from {config.sgd_lr:g}, to 0 as a "
        "cosine."
    )
    sections = [
        Section("", [by_factor(found), sweep_sheet(found)]),
        Section(
            "Does fidelity bring return?",
            [scatter(found), correlation_sheet(found), baselines_sheet(found)],
        ),
        Section("What the numbers mean", [MEANINGS.items()]),
        Section("Where it comes from", [said, [origin(found.teacher)]]),
    ]
    title = f"What makes students follow {found.teacher.name} in {found.setting.env_id}?"
    return render_page(title, sections, found.notes)


def by_factor(found: Sweep) -> str:
    """Draw the error on three sets of states over the values of every factor."""
    figure = new_figure(8.4, 2.5 * -(-len(found.factors) // 3))
    for place, factor in enumerate(found.factors):
        axes = figure.add_subplot(-(-len(found.factors) // 3), 3, place + 1)
        names = [
            f"{value:,}" if isinstance(value := factor.value(v), int) else str(value)
            for v in factor.variants
        ]
        for k, (name, label) in enumerate(LINES.items()):
            heights = [mean(of(found, variant), name) or 0.0 for variant in factor.variants]
            axes.plot(names, heights, **page_line_style(k), marker="o", markersize=4, label=label)
        axes.set_ylim(bottom=0)
        style_axes(axes, FACTORS[factor.name])
    legend(figure, "error on {}", columns=3)
    return svg(figure, "factors")


def scatter(found: Sweep) -> str:
    """Draw the return of every student over its error on held-out states, by factor."""
    figure = new_figure(8.4, 3.6)
    axes = figure.add_subplot()
    common = base(found)
    kinds = {"all in common": [common], **{f.name: f.variants for f in found.factors}}
    for k, (name, variants) in enumerate(kinds.items()):
        own = [v for v in variants if k == 0 or v != common]
        results = [result for variant in own for result in of(found, variant)]
        errors = [FIGURES["heldout_error"](result) or 0.0 for result in results]
        returns = [float(result.returns.mean()) for result in results]
        colour = INK if k == 0 else page_line_style(k - 1)["color"]
        axes.scatter(errors, returns, s=22, color=colour, label=name)
    for level in (found.returns.mean(), found.random.mean()):
        axes.axhline(float(level), color=GRID, linewidth=1.2, linestyle=(0, (4, 3)))
    style_axes(
        axes, "return over the error on held-out states; dashed: the teacher, random actions"
    )
    axes.legend(loc="best", frameon=False, fontsize=9, labelcolor=INK)
    return svg(figure, "returns")


def base(found: Sweep) -> Variant:
    """Return the variant that all factors have in common."""
    first, *others = (set(factor.variants) for factor in found.factors)
    (common,) = first.intersection(*others)
    return common
