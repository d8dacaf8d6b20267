"""Figures: one style for PNG files and for the SVG on pages, and the learning curves of a run."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from markupsafe import Markup

from dpd.files import replacing
from dpd.log.csv import read_rows
from dpd.report.stats import iqm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = dict[int, list[float]]
"""The values of all seeds at each step."""

RETURNS = ("eval/return", "train/return")
SIDE_PANELS = {
    "distill/action_distance": "action distance to the peer",
    "distill/peer_ahead": "share of states where the peer is ahead",
    "distill/agree_0.1": "states with every action within 0.1",
    "distill/coverage": "states that the guide leaves",
    "distill/student_weight": "weight of the student's own action",
}
SHARES = frozenset(SIDE_PANELS) - {"distill/action_distance"}
# Okabe and Ito's palette: distinct with every common colour blindness, and in print. Without its
# black, which is invisible on a dark page.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", ":", "-.")
INK, GREY, GRID = "#222222", "#6b6b6b", "#e4e4e4"
DASHED = (0, (4, 3))
MAX_BINS = 160
MAX_MARKERS = 12
UNITS = ((1_000_000, "M"), (1_000, "k"), (1, ""))


def new_figure(width: float, height: float, dpi: float = 100, gap: float = 0.02) -> Figure:
    """Return an empty figure, its size in inches; `gap`: space between panels, as a share."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # Not pyplot: it keeps every figure alive and may open a display.
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.09, wspace=gap, hspace=gap)
    return Figure(figsize=(width, height), dpi=dpi, layout=layout)


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure, replacing the file at once."""
    with replacing(path) as draft:
        figure.savefig(draft, format="png")


def svg(figure: Figure, salt: str) -> Markup:
    """Return a figure as an SVG element in the colours of the page.

    `salt` differs between the figures of a page: it makes the ids of their elements differ too, and
    the same in every run.
    """
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    text = file.getvalue()
    for colour, name in ((INK, "currentColor"), (GREY, "var(--soft)"), (GRID, "var(--grid)")):
        text = text.replace(colour, name)
    return Markup(text[text.index("<svg") :])


def style_axes(axes: Axes, title: str = "") -> None:
    """Remove the frame except for the x-axis, draw horizontal grid lines and set the title."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.tick_params(colors=GREY, labelcolor=INK, labelsize=9, length=3, width=0.8)
    axes.tick_params(axis="y", length=0)
    if title:
        axes.set_title(title, loc="left", color=INK, fontsize=10, parse_math=False)


def style_rows(axes: Axes, names: Sequence[str], title: str) -> None:
    """Style axes with a named row per line, the first one on top, over returns."""
    axes.set_yticks(range(len(names)), names)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)  # the name of a file may contain dollar signs
    axes.set_ylim(len(names) - 0.5, -0.5)
    style_axes(axes, title)
    axes.xaxis.set_major_formatter(thousands)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color=GRID, linewidth=0.8)


def thousands(value: float, _: float) -> str:
    """Format a tick with separators and a typographic minus sign."""
    return f"{value:,.0f}".replace("-", "\N{MINUS SIGN}")


def add_legend(figure: Figure, names: str = "{}", columns: int = 4) -> None:
    """Add a legend of the first panel's lines above all panels, if there are at least two."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if len(handles) < 2:
        return
    legend = figure.legend(
        handles,
        [names.format(label) for label in labels],
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def line_style(k: int) -> dict[str, Any]:
    """Return the colour of line k; beyond the palette, colours repeat with other dashes."""
    turn, colour = divmod(k, len(COLOURS))
    return {"color": COLOURS[colour], "linestyle": DASHES[turn % len(DASHES)]}


def learning_curves(
    metrics_csv: Path, out_png: Path, title: str, names: Sequence[str] = ()
) -> None:
    """Draw a run's returns, and a panel for each metric of SIDE_PANELS that was logged.

    `names`: labels of the peers, by default their numbers. Draws nothing before the first episode
    has ended.
    """
    curves, seeds = read_curves(metrics_csv, (*RETURNS, *SIDE_PANELS))
    if not any(name in curves for name in RETURNS):
        return
    side = [name for name in SIDE_PANELS if name in curves]
    figure = new_figure(10.4 if side else 7.4, 4.5, 200, gap=0.03)
    # One large panel on the left, and a column of small ones on the right.
    layout: list[Any] = [["", name] for name in side] or [[""]]
    panels = figure.subplot_mosaic(layout, width_ratios=(1.75, 1) if side else None)
    main = panels.pop("")
    draw_return_curves(main, curves, seeds, names)
    set_title(main, title, caption(curves, seeds))
    several = any(len(peers) > 1 for peers in curves.values())
    end = max(step for peers in curves.values() for curve in peers.values() for step in curve)
    format_axes(main, end, "environment steps" + " of all peers together" * several)
    for name, axes in panels.items():
        draw_side_panel(axes, curves[name], name)
        format_axes(axes, end, "environment steps" * (name == side[-1]))
    save_png(figure, out_png)


def read_curves(
    path: Path, names: Iterable[str] | None = None
) -> tuple[dict[str, dict[int, Curve]], int]:
    """Read metrics as name -> peer -> step -> values over seeds, and count the seeds.

    None: all metrics that learners have.
    """
    curves: dict[str, dict[int, Curve]] = {}
    wanted, seeds = None if names is None else frozenset(names), set()
    for row in read_rows(path):
        value = float(row["value"])
        is_wanted = wanted is None or row["metric"] in wanted
        if is_wanted and row["peer"] and math.isfinite(value):
            peers = curves.setdefault(row["metric"], {})
            curve = peers.setdefault(int(row["peer"]), defaultdict(list))
            curve[int(row["step"])].append(value)
            seeds.add(row["seed"])
    ordered = {
        name: {peer: dict(sorted(curve.items())) for peer, curve in peers.items()}
        for name, peers in curves.items()
    }
    return ordered, len(seeds)


def binned(curve: Curve) -> tuple[list[float], list[float]]:
    """Average steps and values over at most `MAX_BINS` bins, to smooth raw training curves."""
    width = max(max(curve) / MAX_BINS, 1)
    steps, means = [], []
    for _, group in groupby(sorted(curve), key=lambda step: int(step / width)):
        inside = list(group)
        steps.append(float(np.mean(inside)))
        means.append(float(np.mean([value for step in inside for value in curve[step]])))
    return steps, means


def draw_return_curves(
    axes: Axes, curves: dict[str, dict[int, Curve]], seeds: int, names: Sequence[str] = ()
) -> None:
    """Draw evaluation returns with their range over seeds, and training returns faintly."""
    evaluations, labels = curves.get("eval/return", {}), dict(enumerate(names))
    for peer, curve in sorted(curves.get("train/return", {}).items()):
        label = labels.get(peer, f"peer {peer}") if not evaluations else None
        axes.plot(*binned(curve), **line_style(peer), label=label, alpha=0.35, linewidth=0.9)
    for peer, curve in sorted(evaluations.items()):
        draw_evaluations(axes, peer, curve, labels.get(peer, f"peer {peer}"), band=seeds > 1)
    axes.set_ylabel("return per episode", color=INK, fontsize=10)
    if len(evaluations or curves["train/return"]) > 1:
        legend = axes.legend(loc="best", frameon=False, fontsize=9.5, handlelength=1.6)
        for line in legend.get_lines():
            line.set(linewidth=2.6, alpha=1)


class Line(NamedTuple):
    """A curve over seeds; without steps, one level across the whole figure."""

    name: str
    steps: list[int]
    middle: list[float]
    band: list[tuple[float, float]]  # low and high at each step, or empty
    spread: str
    """Name of the band's statistic, for the caption."""


def draw_line(axes: Axes, line: Line, style: dict[str, Any]) -> None:
    """Draw a line and its band, or its level."""
    if not line.steps:
        axes.axhline(line.middle[0], color=style["color"], linestyle="--", label=line.name)
        return
    if line.band:
        low, high = zip(*line.band, strict=True)
        axes.fill_between(line.steps, low, high, color=style["color"], alpha=0.14, linewidth=0)
    style = style | {"marker": "o" if len(line.steps) <= MAX_MARKERS else "", "markersize": 4}
    axes.plot(line.steps, line.middle, **style, label=line.name, linewidth=2)


def draw_evaluations(axes: Axes, peer: int, curve: Curve, label: str, band: bool) -> None:
    """Draw one peer's interquartile mean over seeds, and their range as a band."""
    ranges = [(min(seeds), max(seeds)) for seeds in curve.values()] if band else []
    line = Line(label, list(curve), [float(iqm(v)) for v in curve.values()], ranges, "range")
    draw_line(axes, line, line_style(peer))


def set_title(axes: Axes, title: str, text: str) -> None:
    """Write the title, and below it an explanation of the lines and bands."""
    pad = 24 + 11 * text.count("\n")
    axes.set_title(title, loc="left", color=INK, fontsize=13, fontweight="bold", pad=pad)
    axes.text(0, 1.02, text, transform=axes.transAxes, va="bottom", color=GREY, fontsize=8.5)


def caption(curves: dict[str, dict[int, Curve]], seeds: int) -> str:
    """Explain the lines and bands of a run's returns."""
    middle = "interquartile mean" if seeds > 3 else "mean"
    words = []
    if "eval/return" in curves:
        spread = f", {middle} and range of {seeds} seeds" if seeds > 1 else ""
        words.append(f"deterministic evaluation{spread}")
    if "train/return" in curves:
        words.append("faint: training episodes" if words else "training episodes")
    return "; ".join(words)


def draw_side_panel(axes: Axes, peers: dict[int, Curve], name: str) -> None:
    """Draw one metric of every peer, averaged over seeds."""
    for peer, curve in sorted(peers.items()):
        axes.plot(*binned(curve), **line_style(peer), linewidth=1.5)
    axes.set_title(SIDE_PANELS[name], loc="left", color=INK, fontsize=9.5, pad=6)
    if name in SHARES:
        axes.set_ylim(0, 1)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    else:
        axes.set_ylim(bottom=0)
    if name == "distill/peer_ahead":
        axes.axhline(0.5, color=GREY, linewidth=0.8, linestyle=DASHED, zorder=1)


def format_axes(axes: Axes, end: int, x_label: str) -> None:
    """Remove the frame and format the ticks; `end` is the last step on the x-axis."""
    style_axes(axes)
    axes.set_xlim(0, end * 1.01 or 1)
    axes.locator_params(axis="x", nbins=6)
    format_steps(axes, end)
    if axes.get_ylim()[1] >= 1_000:
        axes.yaxis.set_major_formatter(thousands)
    if x_label:
        axes.set_xlabel(x_label, color=INK, fontsize=10)
    else:
        axes.tick_params(labelbottom=False)


def format_steps(axes: Axes, end: int) -> None:
    """Format an axis of steps in thousands or millions."""
    size, unit = next((size, unit) for size, unit in UNITS if end >= size or size == 1)
    axes.xaxis.set_major_formatter(lambda step, _: f"{step / size:g} {unit}" if step else "0")


def compared_curves(lines: Sequence[Line], out_png: Path, title: str) -> None:
    """Draw the curves of several runs, with their bands, in one panel."""
    figure = new_figure(7.4, 4.5, 200)
    axes = figure.add_subplot()
    for k, line in enumerate(lines):
        draw_line(axes, line, line_style(k))
    axes.set_ylabel("return per episode", color=INK, fontsize=10)
    axes.legend(loc="best", frameon=False, fontsize=9.5, handlelength=1.8)
    set_title(axes, title, compared_caption(lines))
    end = max(step for line in lines for step in line.steps)
    format_axes(axes, end, "environment steps of all peers together")
    save_png(figure, out_png)


def compared_caption(lines: Sequence[Line]) -> str:
    """Explain the lines and bands of several runs."""
    words = []
    if spreads := sorted({line.spread for line in lines if line.spread}):
        words.append(f"bands: {' or '.join(spreads)}")
    if any(not line.steps for line in lines):
        words.append("dashed: fresh episodes of a saved policy")
    lines_are = "deterministic evaluation: mean of a seed's peers, interquartile mean over seeds"
    return f"{lines_are}\n{'; '.join(words)}".rstrip()
