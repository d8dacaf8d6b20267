"""Report of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dpd.fidelity.audit import MEASURES, NEAR
from dpd.fidelity.report import origin_text
from dpd.fidelity.sweep import FACTORS, Sweep, SweepResult, Variant
from dpd.report.figures import DASHED, GRID, INK, add_legend, line_style, new_figure, style_axes
from dpd.report.report import Report, Section, Table, describe_returns, table_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ResultFigure = Callable[[SweepResult], float | None]


def measure_on(states: str, measure: str) -> ResultFigure:
    """Return a function that looks up a student's measure on a set of states."""
    return lambda result: result.scores[states].values[measure]


SWEEP_FIGURES: dict[str, ResultFigure] = {
    "train_kl": measure_on("train", "kl_forward"),
    "heldout_kl": measure_on("heldout", "kl_forward"),
    "train_error": measure_on("train", "action_error"),
    "heldout_error": measure_on("heldout", "action_error"),
    "gap_error": lambda result: result.gap.values["action_error"],
    "student_error": measure_on("student", "action_error"),
    f"heldout_agree_{NEAR}": measure_on("heldout", f"agree_{NEAR}"),
    "start_kl": lambda result: result.start.values["kl_forward"],
    "return": lambda result: float(result.returns.mean()),
    "retained": lambda result: result.retained,
}
SWEEP_COLUMNS = {
    "train_kl": "KL seen",
    "heldout_kl": "held",
    "train_error": "error",
    "heldout_error": "held",
    "gap_error": "gap",
    "student_error": "own",
    "retained": "retained",
}
ERROR_LABELS = {
    "train_error": "training states",
    "heldout_error": "held-out states",
    "student_error": "its own states",
}
FIDELITY_FIGURES = {
    "KL(T‖S), held-out": ("heldout_kl", -1),
    "error, held-out": ("heldout_error", -1),
    "error, own states": ("student_error", -1),
    f"agreement within {NEAR}, held-out": (f"heldout_agree_{NEAR}", 1),
}
"""Figures that express fidelity, with their sign; -1: lower is better."""
SWEEP_MEANINGS = {
    "KL": "KL(T‖S), divergence of the student's Gaussian from the teacher's, in nats",
    "error": "mean |difference| of actions, in units of half their range",
    "gap": "error on held-out states minus error on training states: too little data",
    "own": "error on the states that the student visits when it acts",
    "retained": "return above random actions, as a share of the teacher's, in the same episodes",
}


def sweep_report(sweep: Sweep) -> Report:
    """Report on all variants, then on the relation of fidelity and return."""
    config, settings = sweep.config, sweep.settings
    settings_text = (
        f"{config.steps:,} gradient steps on {sweep.divergence}, {config.seeds} "
        f"seed{'s' * (config.seeds > 1)}, {config.episodes} episodes, {config.states:,} states in "
        f"each set, seed {config.seed}; learning rates from {config.lr:g} (Adam) and "
        f"{config.sgd_lr:g} (SGD) to 0 along a cosine."
    )
    baselines = [
        table_row(f"{sweep.teacher.name} (teacher)", float(sweep.returns.mean())),
        table_row("random actions", float(sweep.random.mean())),
    ]
    correlations = [table_row(name, correlation(sweep, name)) for name in FIDELITY_FIGURES]
    title = f"Spearman correlation of fidelity with return, over {len(sweep.results)} students"
    sections = [
        Section(figures=[partial(draw_factors, sweep)], tables=[variants_table(sweep)]),
        Section(
            heading="Does higher fidelity mean higher return?",
            figures=[partial(draw_returns, sweep)],
            tables=[
                Table(f"Returns of {settings.episodes} episodes", ["policy", "return"], baselines),
                Table(title, ["fidelity by", "correlation"], correlations),
            ],
        ),
        Section(heading="What the numbers mean", terms=SWEEP_MEANINGS.items()),
        Section(
            heading="Settings and teacher",
            prose=[settings_text],
            terms=[(sweep.teacher.name, origin_text(sweep.teacher))],
        ),
    ]
    return Report(
        title=f"What makes students follow {sweep.teacher.name} in {settings.env_id}?",
        sections=sections,
        data=sweep_json(sweep),
        notes=sweep.notes,
    )


def results_of(sweep: Sweep, variant: Variant) -> list[SweepResult]:
    """Return the results of a variant, one per seed."""
    return [result for result in sweep.results if result.row.variant == variant]


def mean_figure(results: Sequence[SweepResult], name: str) -> float | None:
    """Return a figure's mean over seeds; None if a seed lacks it."""
    values = [value for result in results if (value := SWEEP_FIGURES[name](result)) is not None]
    return float(np.mean(values)) if values and len(values) == len(results) else None


def correlation(sweep: Sweep, name: str) -> float | None:
    """Return Spearman's correlation of fidelity with return; None if either does not vary."""
    from scipy.stats import spearmanr

    figure, sign = FIDELITY_FIGURES[name]
    pairs = [(SWEEP_FIGURES[figure](r), float(r.returns.mean())) for r in sweep.results]
    known = [(sign * value, got) for value, got in pairs if value is not None]
    if len(known) < 3 or any(len(set(column)) < 2 for column in zip(*known, strict=True)):
        return None
    return float(spearmanr(*zip(*known, strict=True)).statistic)


def variants_table(sweep: Sweep) -> Table:
    """Tabulate one row per variant, averaged over seeds; the common one is in every factor."""
    known = [
        k for k in SWEEP_COLUMNS if any(SWEEP_FIGURES[k](r) is not None for r in sweep.results)
    ]
    rows = []
    for factor in sweep.factors:
        for variant in factor.variants:
            results = results_of(sweep, variant)
            rows.append(table_row(factor.label(variant), *(mean_figure(results, k) for k in known)))
    seeds = f", means of {sweep.config.seeds} seeds" if sweep.config.seeds > 1 else ""
    title = (
        f"{sweep.settings.env_id}: students of {sweep.teacher.name}, one factor changed at a time"
        f"{seeds}. KL and error of actions on training (seen), held-out and own states"
    )
    return Table(title, ["changed", *(SWEEP_COLUMNS[name] for name in known)], rows)


def sweep_json(sweep: Sweep) -> dict[str, Any]:
    """Return everything measured, raw returns included."""
    config, settings = sweep.config, sweep.settings
    names = ("sizes", "steps", "lr", "sgd_lr", "seeds", "seed", "episodes", "states")
    return {
        "env": settings.env_id,
        "env_kwargs": settings.env_kwargs,
        **{name: getattr(config, name) for name in names},
        "divergence": sweep.divergence,
        "teacher": {**sweep.teacher.origin, **describe_returns(sweep.returns)},
        "random": describe_returns(sweep.random),
        "factors": {
            factor.name: {
                "meaning": FACTORS[factor.name],
                "values": [factor.value(variant) for variant in factor.variants],
            }
            for factor in sweep.factors
        },
        "students": [sweep_student_json(result) for result in sweep.results],
        "correlation": {name: correlation(sweep, name) for name in FIDELITY_FIGURES},
        "measures": {name: m.meaning for name, m in MEASURES.items()},
        "notes": sweep.notes,
    }


def sweep_student_json(result: SweepResult) -> dict[str, Any]:
    """Return a student's variant, seed and figures."""
    return {
        **asdict(result.row.variant),
        "seed": result.row.seed,
        "parameters": result.parameters,
        **{name: figure(result) for name, figure in SWEEP_FIGURES.items()},
        "sets": {name: {"n": s.n, **s.values, "r2": s.r2} for name, s in result.scores.items()},
        "returns": result.returns.tolist(),
    }


def draw_factors(sweep: Sweep) -> Figure:
    """Draw the error on three sets of states over the values of every factor."""
    rows = -(-len(sweep.factors) // 3)
    figure = new_figure(8.4, 2.5 * rows)
    for place, factor in enumerate(sweep.factors, 1):
        axes = figure.add_subplot(rows, 3, place)
        values = [factor.value(variant) for variant in factor.variants]
        names = [f"{value:,}" if isinstance(value, int) else str(value) for value in values]
        for k, (name, label) in enumerate(ERROR_LABELS.items()):
            heights = [mean_figure(results_of(sweep, v), name) or 0.0 for v in factor.variants]
            axes.plot(names, heights, **line_style(k), marker="o", markersize=4, label=label)
        axes.set_ylim(bottom=0)
        style_axes(axes, FACTORS[factor.name])
    add_legend(figure, "error on {}", columns=3)
    return figure


def draw_returns(sweep: Sweep) -> Figure:
    """Draw every student's return over its error on held-out states, coloured by factor."""
    figure = new_figure(8.4, 3.6)
    axes = figure.add_subplot()
    first, *others = (set(factor.variants) for factor in sweep.factors)
    (common,) = first.intersection(*others)
    kinds = {f.name: [v for v in f.variants if v != common] for f in sweep.factors}
    for k, (name, variants) in enumerate({"common variant": [common], **kinds}.items()):
        results = [result for variant in variants for result in results_of(sweep, variant)]
        errors = [SWEEP_FIGURES["heldout_error"](result) or 0.0 for result in results]
        returns = [float(result.returns.mean()) for result in results]
        colour = INK if k == 0 else line_style(k - 1)["color"]
        axes.scatter(errors, returns, s=22, color=colour, label=name)
    for level in (sweep.returns.mean(), sweep.random.mean()):
        axes.axhline(float(level), color=GRID, linewidth=1.2, linestyle=DASHED)
    style_axes(
        axes, "return over the error on held-out states; dashed: the teacher, random actions"
    )
    axes.legend(loc="best", frameon=False, fontsize=9, labelcolor=INK)
    return figure
