"""A sweep as one self-contained HTML page."""

from __future__ import annotations

from html import escape

from dpd.fidelity.page import origin
from dpd.fidelity.sweep import Sweep
from dpd.fidelity.sweep_tables import (
    FIGURES,
    baselines_sheet,
    correlation_sheet,
    mean,
    of,
    sweep_sheet,
)
from dpd.fidelity.variants import FACTORS, Variant
from dpd.webpage import (
    GRID,
    INK,
    definitions,
    document,
    legend,
    look,
    new_figure,
    notes,
    plain,
    svg,
    table,
)

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
        "cosine"
    )
    parts = [
        *notes(found.notes),
        by_factor(found),
        table(sweep_sheet(found)),
        f"<h2>Does fidelity bring return?</h2>{scatter(found)}",
        table(correlation_sheet(found)),
        table(baselines_sheet(found)),
        f"<h2>What the numbers mean</h2>{definitions(MEANINGS)}",
        f"<h2>Where it comes from</h2><p>{escape(said)}.</p><dl>{origin(found.teacher)}</dl>",
    ]
    return document(
        f"What makes students follow {found.teacher.name} in {found.setting.env_id}?", parts
    )


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
            axes.plot(names, heights, **look(k), marker="o", markersize=4, label=label)
        axes.set_ylim(bottom=0)
        plain(axes, FACTORS[factor.name])
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
        colour = INK if k == 0 else look(k - 1)["color"]
        axes.scatter(errors, returns, s=22, color=colour, label=name)
    for level in (found.returns.mean(), found.random.mean()):
        axes.axhline(float(level), color=GRID, linewidth=1.2, linestyle=(0, (4, 3)))
    plain(axes, "return over the error on held-out states; dashed: the teacher, random actions")
    axes.legend(loc="best", frameon=False, fontsize=9, labelcolor=INK)
    return svg(figure, "returns")


def base(found: Sweep) -> Variant:
    """Return the variant that all factors have in common."""
    first, *others = (set(factor.variants) for factor in found.factors)
    (common,) = first.intersection(*others)
    return common
