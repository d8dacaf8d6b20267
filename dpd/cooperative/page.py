"""What came of cooperation as one self-contained HTML page."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from dpd.cooperative.outcome import Outcome, worded
from dpd.cooperative.tables import sheets
from dpd.intervals import mean_interval
from dpd.sheets import Sheet
from dpd.webpage import INK, definitions, document, legend, look, new_figure, plain, svg, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEANINGS = {
    "before, after, gain": "mean return of whole deterministic episodes, the same ones; 95 % t "
    "interval over episodes, of the gain paired by episode: of these very policies, whatever "
    "another seed would have made of them",
    "p": "how often a mean gain at least as far from 0 comes up when the sign of every episode's "
    "gain is drawn by a coin (an exact test for up to 13 episodes)",
    "p adj.": "p adjusted by Holm for all policies; the verdict follows it, not the interval: "
    "higher or lower at 0.05 or less",
    "states": "where the student is deficient: the teacher gets more from there, over the horizon, "
    "by more than the margin, and of several the most",
    "new": "counterfactuals: states found near those where the played gap is above the threshold",
    "success": "share of the searches that gave one",
    "gap up": "share of the states found whose played gap is larger than where the search began",
    "gap, left": "how much more the teacher gets over the horizon than the student, at deficient "
    "states that nothing learned from: before the lessons, and after them",
    "R²": "of the network that predicts the gap, on such states",
    "drift": "mean |change| of the student's actions, in halves of their range, at such states "
    "where no other was better",
    "trial": "whole episodes, others than those of the first table: who got worse in them stays "
    "as it was",
}
PURPOSES = {
    "probe": "episodes that give the states",
    "competence": "playing every policy from every state",
    "counterfactual": "playing teacher and student from states that were found",
    "trial": "whole episodes after each round",
    "evaluation": "whole episodes of the first table",
}


def page(outcome: Outcome) -> str:
    """Return the page."""
    tables = [table(sheet) for sheet in sheets(outcome)]
    n = 1 + bool(outcome.gains)  # the tables of returns
    parts = [
        f"<p>{escape(verdict(outcome))}</p>",
        *(f"<p>{escape(line)}.</p>" for line in outcome.remarks()),
        *tables[:n],
        returns(outcome),
        f"<h2>What was taught</h2>{gaps(outcome)}",
        *tables[n:],
        f"<h2>What it cost</h2>{table(costs_sheet(outcome))}",
        f"<h2>What the numbers mean</h2>{definitions(MEANINGS)}",
        f"<h2>Where it comes from</h2>{provenance(outcome)}",
    ]
    return document(f"Cooperation in {outcome.env_id}", parts)


def verdict(outcome: Outcome) -> str:
    """Say in a sentence who got better, as far as the episodes tell."""
    if not outcome.gains:
        return "The policies were not evaluated after the last round."
    words: dict[str, list[str]] = {"higher": [], "lower": []}
    for k, gain in enumerate(outcome.gains):
        words.setdefault(worded(gain), []).append(outcome.name(k))
    said = (f"{what}: {', '.join(names)}" for what, names in words.items() if names)
    return f"By the adjusted p of the gain {'; '.join(said)}."


def returns(outcome: Outcome) -> str:
    """Draw every policy's returns before and after, with their intervals."""
    k = len(outcome.subjects)
    figure = new_figure(8.4, 1.1 + 0.5 * k)
    axes = figure.add_subplot()
    for turn, (name, found) in enumerate((("before", outcome.before), ("after", outcome.after))):
        if found is not None:
            marks = {"color": look(turn)["color"], "label": name}
            draw_returns(axes, found, (0.12, -0.12)[turn], marks)
    axes.set_yticks(range(k), [f"{j} {outcome.name(j)}" for j in range(k)])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)  # a file may have dollars in its name
    axes.set_ylim(k - 0.5, -0.5)
    plain(axes, "return per episode, mean and 95 % interval")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", linewidth=0.4)
    legend(figure)
    return svg(figure, "returns")


def draw_returns(axes: Axes, found: np.ndarray, shift: float, marks: dict[str, str]) -> None:
    """Draw a dot and an interval for the returns of every policy [k, K]."""
    means = found.mean(1)
    ends = np.array([mean_interval(row) or (m, m) for row, m in zip(found, means, strict=True)])
    spread = np.abs(ends.T - means)
    at = np.arange(len(found)) - shift
    axes.errorbar(means, at, xerr=spread, fmt="o", markersize=5, linewidth=1.6, **marks)  # type: ignore[arg-type]


def gaps(outcome: Outcome) -> str:
    """Draw the gap of every pair before and after each round's lessons."""
    taught = [(r.number, p) for r in outcome.rounds for p in r.pairs if p.gap_before is not None]
    if not taught:
        return "<p>No state was held out at which another policy was better.</p>"
    figure = new_figure(8.4, 2.7)
    axes = figure.add_subplot()
    for turn, name in enumerate(("before", "after")):
        heights = [(p.gap_before, p.gap_after)[turn] or 0.0 for _, p in taught]
        at = np.arange(len(taught)) + (turn - 0.5) * 0.38
        axes.bar(at, heights, 0.36, color=look(turn)["color"], label=name)
    axes.axhline(0, color=INK, linewidth=0.8)
    names = [f"{p.teacher}→{p.student}\n{number}" for number, p in taught]
    axes.set_xticks(range(len(taught)), names)
    plain(axes, "gap at deficient states that nothing learned from; below: teacher→student, round")
    legend(figure)
    return svg(figure, "gaps")


def costs_sheet(outcome: Outcome) -> Sheet:
    """Lay out the simulator's steps by what they were for."""
    used = outcome.budget.used
    rows = [[f"{what}: {PURPOSES[what]}", f"{n:,}"] for what, n in used.items()]
    total = [f"all, of {outcome.budget.total:,}", f"{outcome.budget.spent:,}"]
    return Sheet("Simulator steps", ["purpose", "steps"], [*rows, total])


def provenance(outcome: Outcome) -> str:
    """Name the files with their digests, and the settings."""
    said = ", ".join(f"{k} {v}" for k, v in outcome.settings.items())
    files = "".join(
        f"<dt>{k} {escape(s.name)}</dt><dd>{escape(str(s.file))}<br>"
        f"<code>{escape(json.dumps(s.origin))}</code></dd>"
        for k, s in enumerate(outcome.subjects)
    )
    return f"<dl>{files}</dl><p>{escape(said)}.</p>"
