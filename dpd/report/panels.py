"""Small figures of a run's metrics over its steps, for a page that shows all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dpd.report.figures import (
    DASHED,
    GREY,
    INK,
    MAX_BINS,
    SHARES,
    Curve,
    Line,
    add_legend,
    draw_line,
    format_axes,
    line_style,
    new_figure,
)
from dpd.report.stats import bootstrap_interval, iqm, mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW_SEEDS = 6  # below, a bootstrap interval is no more informative than the range
RANGE = f"range, for fewer than {FEW_SEEDS} seeds"
PHONE_WIDTH = 4.4
"""Width of a figure for a phone, in inches."""
Curves = Mapping[str, Curve]
"""Curves by the name of their learner or run."""

METRIC_TITLES = {
    "distill/action_distance": "distance of actions",
    "distill/peer_ahead": "states where the gate is open",
    "distill/agree_0.1": "states with every action within 0.1",
    "distill/xi_mean": "gap: the peer's lead in value",
    "distill/xi_rms": "spread of the gap",
    "distill/kl": "KL to the peer or teacher",
    "distill/coef": "weight of the distillation",
    "distill/ess": "effective sample size of the weights",
    "distill/weight_max": "largest weight",
    "distill/weight_q10": "weights: 10 % quantile",
    "distill/weight_q50": "weights: median",
    "distill/weight_q90": "weights: 90 % quantile",
    "distill/entropy_w": "entropy of the weights",
    "distill/delta": "leash",
    "distill/lambda": "multiplier of the leash",
    "distill/dose": "dose",
    "distill/student": "iterations in which it imitates",
    "distill/beta": "share of steps that the teacher acts",
    "distill/coverage": "states that the guide leaves",
    "distill/student_weight": "weight of the student's own action",
    "distill/loss": "loss of the distillation",
    "share/ess": "effective share of the peers' samples",
    "share/weight": "weight of the peers' samples",
    "share/q_own": "value by own critics",
    "share/q_peers": "value by the peers' critics",
    "train/kl": "KL of an update",
    "train/clip_fraction": "clipped samples",
    "train/entropy": "entropy of the policy",
    "train/explained_variance": "explained variance of the returns",
    "train/grad_norm": "norm of the gradient",
    "train/std": "standard deviation of actions",
    "train/alpha": "temperature",
    "train/q": "value of the critics",
    "train/length": "length of an episode in training",
    "eval/length": "length of an episode",
    "eval/retained": "retained return",
    "loss/policy": "loss of the policy",
    "loss/value": "loss of the value function",
    "loss/actor": "loss of the policy",
    "loss/critic": "loss of the critics",
}


def seeds_line(name: str, curve: Curve, seed: int = 0) -> Line:
    """Return the interquartile mean over seeds at each step, with a band.

    The band is a 95 % bootstrap interval, or the range of fewer than FEW_SEEDS seeds; one seed has
    none. `seed` is that of the bootstrap.
    """
    values = list(curve.values())
    middle, n = [float(iqm(v)) for v in values], max(map(len, values))
    if n == 1:
        return Line(name, list(curve), middle, [], "")
    if n < FEW_SEEDS:
        return Line(name, list(curve), middle, [(min(v), max(v)) for v in values], RANGE)
    intervals = [bootstrap_interval(iqm, [v], seed) for v in values]
    band = [(i.low, i.high) for i in intervals if i is not None]
    return Line(name, list(curve), middle, band, "95 % bootstrap interval")


def draw_seed_returns(evaluated: Curves, trained: Curves, width: float = 9.9) -> Figure:
    """Draw evaluation returns with their bands over seeds; training returns faintly behind them."""
    figure = new_figure(width, 3.9)
    axes, names = figure.add_subplot(), list(dict.fromkeys([*evaluated, *trained]))
    for k, name in enumerate(names):
        if name in trained:
            label = None if name in evaluated else name
            steps, means, _ = bin_means(trained[name])
            axes.plot(steps, means, **line_style(k), alpha=0.35, linewidth=0.9, label=label)
    for k, name in enumerate(names):
        if name in evaluated:
            draw_line(axes, seeds_line(name, evaluated[name]), line_style(k))
    finish_axes(axes, [*evaluated.values(), *trained.values()])
    add_legend(figure, columns=4 if width > PHONE_WIDTH else 2)
    return figure


def draw_metric(metric: str, curves: Curves, styles: Mapping[str, int]) -> Figure:
    """Draw a metric's mean over seeds, with the band of `bin_means`.

    `styles` are the numbers of the lines' styles, by name.
    """
    figure = new_figure(3.6, 2.1)
    axes = figure.add_subplot()
    for name, curve in curves.items():
        steps, means, band = bin_means(curve)
        style = line_style(styles[name])
        draw_band(axes, steps, band, style["color"])
        axes.plot(steps, means, **style, linewidth=1.4, label=name)
    finish_axes(axes, list(curves.values()))
    axes.locator_params(nbins=4)
    title = METRIC_TITLES.get(metric, metric)
    axes.set_title(title, loc="left", color=INK, fontsize=9.5, pad=6)
    if metric in SHARES:
        axes.set_ylim(0, 1)
    if metric == "distill/peer_ahead":
        axes.axhline(0.5, color=GREY, linewidth=0.8, linestyle=DASHED, zorder=1)
    return figure


def draw_band(
    axes: Axes, steps: Sequence[float], band: Sequence[tuple[float, float]], colour: str
) -> None:
    """Draw a band, if there is one."""
    if band:
        low, high = zip(*band, strict=True)
        axes.fill_between(steps, low, high, color=colour, alpha=0.14, linewidth=0)


def finish_axes(axes: Axes, curves: Sequence[Curve]) -> None:
    """Style axes whose curves end at the last of their steps."""
    format_axes(axes, max((max(curve) for curve in curves if curve), default=1), "")
    axes.tick_params(labelbottom=True)


def bin_means(
    curve: Curve,
) -> tuple[list[float], list[float], list[tuple[float, float]]]:
    """Average steps and values over at most `MAX_BINS` bins; return steps, means and a band.

    The band has 95 % t intervals over seeds, or the ranges of fewer than FEW_SEEDS. There is none
    for one seed, or if a seed lacks values.
    """
    steps = np.array(list(curve), dtype=float)
    width = max(steps.max() / MAX_BINS, 1.0)
    _, starts = np.unique((steps / width).astype(int), return_index=True)
    counts = np.diff([*starts, len(steps)])
    at = np.add.reduceat(steps, starts) / counts
    n = {len(values) for values in curve.values()}
    if len(n) > 1:  # workers are at different steps
        flat = np.array([np.mean(values) for values in curve.values()])
        return at.tolist(), (np.add.reduceat(flat, starts) / counts).tolist(), []
    each = np.add.reduceat(np.array(list(curve.values())), starts) / counts[:, None]
    means = each.mean(1).tolist()
    if n == {1}:
        return at.tolist(), means, []
    if each.shape[1] < FEW_SEEDS:
        return at.tolist(), means, [(float(row.min()), float(row.max())) for row in each]
    intervals = [mean_interval(row) for row in each]
    return at.tolist(), means, [(i.low, i.high) for i in intervals if i is not None]
