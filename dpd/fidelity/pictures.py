"""The page's pictures, as inline SVG that follows its colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dpd.fidelity.audit import Audit, Finding
from dpd.fidelity.measures import CLOSE, NEAR
from dpd.fidelity.tables import label
from dpd.sheets import shown
from dpd.webpage import INK, legend, look, new_figure, plain, svg

if TYPE_CHECKING:
    pass

MAX_DIMS = 8
LEAST, MOST = 1e-4, 2.0  # |difference| of actions


def bars(found: Audit) -> str:
    """Draw agreement and action error of every student on every set of states."""
    figure = new_figure(8.4, 4.6)
    names = list(dict.fromkeys(s for f in found.findings for s in f.scores))
    for row, (measure, title) in enumerate(
        [
            (f"agree_{CLOSE}", f"share of states with every action within {CLOSE}"),
            ("action_error", "mean |difference| of actions, in halves of their range"),
        ]
    ):
        axes = figure.add_subplot(2, 1, row + 1)
        width = 0.8 / len(found.findings)
        for k, f in enumerate(found.findings):
            heights = [
                (f.scores[s].values[measure] or 0) if s in f.scores else np.nan for s in names
            ]
            at = np.arange(len(names)) + (k + 0.5) * width - 0.4
            axes.bar(at, heights, 0.94 * width, color=look(k)["color"], label=label(f))
        axes.set_xticks(range(len(names)), names)
        plain(axes, title)
        if measure.startswith("agree"):
            axes.set_ylim(0, 1)
    legend(figure)
    return svg(figure, "bars")


def histogram(found: Audit) -> str:
    """Draw how far the worst action of a held-out state is off."""
    figure = new_figure(8.4, 2.9)
    axes = figure.add_subplot()
    edges = np.geomspace(LEAST, MOST, 61).tolist()
    for k, f in enumerate(found.findings):
        teacher, student = f.acts
        worst = (student - teacher).abs().amax(-1).clamp(LEAST, MOST).numpy()
        share = np.full(len(worst), 1 / len(worst))
        axes.hist(
            worst,
            edges,
            weights=share,
            histtype="step",
            linewidth=1.8,
            **look(k),
            label=label(f),
        )
    for within in (CLOSE, NEAR):
        axes.axvline(within, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_xscale("log")
    axes.set_xlim(LEAST * 0.9, MOST)
    axes.set_xticks([1e-4, 1e-3, 1e-2, 1e-1, 1], ["≤0.0001", "0.001", "0.01", "0.1", "1"])
    axes.minorticks_off()
    plain(axes, "held-out states by their worst action's |difference|; dashed: 0.05 and 0.1")
    legend(figure)
    return svg(figure, "histogram")


def worst_dims(f: Finding) -> Sequence[int]:
    """Return the action dimensions to draw: all, or those with the largest error."""
    teacher, student = f.acts
    error = (student - teacher).double().square().mean(0)
    return sorted(torch.topk(error, min(MAX_DIMS, len(error))).indices.tolist())


def ends(*acts: np.ndarray) -> tuple[float, float]:
    """Return the ends of an axis that shows all actions."""
    low, high = min(a.min() for a in acts), max(a.max() for a in acts)
    margin = 0.05 * (high - low) or 0.05
    return float(low - margin), float(high + margin)


def scatter(f: Finding, k: int) -> str:
    """Draw a student's actions over its teacher's, a panel per dimension; k: its place."""
    dims = worst_dims(f)
    columns = min(4, len(dims))
    rows = -(-len(dims) // columns)
    figure = new_figure(2.1 * max(columns, 2), 2.2 * rows)
    teacher, student = (x.numpy() for x in f.acts)
    for place, a in enumerate(dims):
        axes = figure.add_subplot(rows, columns, place + 1)
        low, high = ends(teacher[:, a], student[:, a])
        axes.plot([low, high], [low, high], color=INK, linewidth=0.7, linestyle=(0, (4, 3)))
        # one image instead of a thousand elements
        dots: dict[str, Any] = {"s": 4, "alpha": 0.5, "linewidths": 0, "rasterized": True}
        axes.scatter(teacher[:, a], student[:, a], color=look(k)["color"], **dots)
        plain(axes, f"action {a}, R² {shown(f.scores['heldout'].r2[a])}")
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axes.locator_params(nbins=2)
    return svg(figure, f"scatter{k}")
