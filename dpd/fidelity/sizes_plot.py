"""Students of several sizes in one picture: return and fidelity against parameters and latency."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dpd.fidelity.measures import NEAR
from dpd.fidelity.sizes import Size, Sizes
from dpd.files import replacing
from dpd.plots import COLOURS, GREY, INK, head, unframe

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RETURN, AGREE = "return", "agree"
TITLES = {
    RETURN: "return per episode",
    AGREE: f"held-out states with every action within {NEAR}",
}
LABELS = {"parameters": "parameters", "latency_us": "microseconds per action, one thread"}


def draw_sizes(found: Sizes, out_png: Path, title: str) -> None:
    """Draw return and agreement of every size, its seeds faintly, and the teacher's."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.09, wspace=0.04, hspace=0.05)
    figure = Figure(figsize=(10.4, 6.8), dpi=200, layout=layout)
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    for row, figure_name in enumerate(TITLES):
        for column, cost in enumerate(LABELS):
            draw(panels[row, column], found, figure_name, cost)
    for column, label in enumerate(LABELS.values()):
        panels[1, column].set_xlabel(label, color=INK, fontsize=10)
    for row, text in enumerate(TITLES.values()):
        panels[row, 0].set_ylabel(text, color=INK, fontsize=10)
    seeds = max(len(size.of(RETURN)) for size in found.sizes)
    means = f"means of {seeds} seeds, faint: each seed; " if seeds > 1 else ""
    head(panels[0, 0], title, f"{means}dashed: the teacher")
    with replacing(out_png) as draft:
        figure.savefig(draft, format="png")


def draw(axes: Axes, found: Sizes, figure: str, cost: str) -> None:
    """Draw one figure of every size over one of its costs."""
    for k, size in enumerate(found.sizes):
        value, colour = size.mean(figure), COLOURS[k % (len(COLOURS) - 1)]
        if value is None:
            continue
        seeds = size.of(figure)
        faint = {"color": colour, "s": 14, "alpha": 0.35, "linewidths": 0}
        axes.scatter([place(size, cost)] * len(seeds), seeds, **faint)  # type: ignore[arg-type]
        axes.scatter([place(size, cost)], [value], color=colour, s=46, zorder=3)
        if cost == "parameters":  # latencies lie too close; the colour says which it is
            place_of = (size.parameters, value)
            look = {"fontsize": 8.5, "color": colour, "textcoords": "offset points"}
            axes.annotate(size.name, place_of, xytext=(6, 5), **look)  # type: ignore[arg-type]
    axes.axhline(
        found.returns.teacher if figure == RETURN else 1.0,
        color=GREY,
        linewidth=0.9,
        linestyle=(0, (4, 3)),
        zorder=1,
    )
    finish(axes, cost)


def place(size: Size, cost: str) -> float:
    """Return where a size stands on an axis of costs."""
    return size.parameters if cost == "parameters" else size.mean(cost) or 0.0


def finish(axes: Axes, cost: str) -> None:
    """Take away the frame, and spread parameters by their logarithm."""
    unframe(axes)
    axes.margins(x=0.15)
    if cost == "parameters":
        from matplotlib.ticker import LogLocator, NullLocator

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    else:
        axes.set_xlim(0, 1.15 * axes.dataLim.x1)
