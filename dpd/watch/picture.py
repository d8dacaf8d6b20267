"""One frame of `dpd watch`: a run in detail, or several runs as a line each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from statistics import median

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dpd.log.terminal import MAX_ROWS, formatted
from dpd.watch.records import Learner, WatchedRun

LEVELS, PLAIN_LEVELS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
CURVE_WIDTH, BAR_WIDTH = 24, 40
STYLES = {"running": "green", "evaluating": "green", "finished": "bold", "stopped": "yellow"}
EXCHANGE = {
    "distill/action_distance": "disagreement",
    "distill/peer_ahead": "peer ahead",
    "distill/student": "imitates",
    "distill/ess": "states that count",
    "distill/weight_max": "largest weight",
    "distill/kl": "KL to peer",
    "distill/coef": "coefficient",
    "distill/agree_0.1": "agreement",
    "share/ess": "shared samples that count",
    "share/weight": "shared weight",
    "act/foreign": "steps by peers",
    "train/kl": "KL of update",
    "distill/loss": "distillation loss",
}
"""Headings of what says how the exchange is: as many as the terminal has room for."""
EXCHANGE_SHARES = ("distill/student", "distill/ess", "share/ess", "act/foreign")


def frame(runs: Sequence[WatchedRun], width: int, unicode: bool = True) -> RenderableType:
    """Return a frame of one run in detail, or of several runs as a table.

    Without `unicode`, curves are drawn in ASCII.
    """
    levels = LEVELS if unicode else PLAIN_LEVELS
    return one_run(runs[0], width, levels) if len(runs) == 1 else several_runs(runs, levels)


def one_run(run: WatchedRun, width: int, levels: str) -> RenderableType:
    """Lay out a run: its state, its returns, and the exchange between its learners."""
    config = run.config
    title = Text(f"{run.path}", style="bold").append(
        f"  dpd {config.command} {config.run.env}: {config.method}, {config.algo_name}", "default"
    )
    words = "  ".join(progress_words(run))
    room = width - len(words) - len(run.state) - 4  # two spaces before each
    bar = Table.grid(padding=(0, 2, 0, 0))
    bar.add_row(
        ProgressBar(total=run.total, completed=run.step, width=max(min(room, BAR_WIDTH), 1)),
        Text(words),
        state_text(run),
    )
    parts: list[RenderableType] = [title, bar]
    if run.metrics():
        parts += [run_returns(run, levels), exchange_table(run, width)]
    if not run.is_held and not run.is_done:
        parts.append(Text(f"resume with: dpd {config.command} --resume {run.path}"))
    return Group(*parts)


def progress_words(run: WatchedRun) -> list[str]:
    """Return the progress as words: per cent, steps, steps per second, time left."""
    words = [f"{run.step / run.total:.1%}".replace("%", " %"), f"{run.step:,}/{run.total:,} steps"]
    if run.speed is not None:
        words.append(f"{run.speed.total:,.0f} steps/s")
    if run.seconds_left is not None:
        words.append(f"{timedelta(seconds=int(run.seconds_left))} left")
    return words


def state_text(run: WatchedRun) -> Text:
    """Return the state of a run in its colour."""
    return Text(run.state, style=STYLES.get(run.state, "red"))


def plain_table(*headings: str) -> Table:
    """Return a table without a frame; the first column names the rows."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(headings[0], no_wrap=True)
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def rows_of_run(run: WatchedRun) -> dict[str, list[Learner]]:
    """Return the rows of a table: each learner, or with many learners, each peer of all seeds."""
    learners, several = run.learners, run.config.run.seeds > 1
    if len(learners) <= MAX_ROWS:
        return {
            (f"seed {seed}  " if several else "") + run.names[peer]: [(seed, peer)]
            for seed, peer in learners
        }
    return {
        name: [learner for learner in learners if learner[1] == peer]
        for peer, name in enumerate(run.names)
    }


def middle(values: Sequence[float | None]) -> float | None:
    """Return the median of the values that are known."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return median(known) if known else None


def run_returns(run: WatchedRun, levels: str) -> Table:
    """Lay out the latest and the best return of each row, with its curve."""
    rows, run_curves = rows_of_run(run), {}
    evaluated = bool(run.metrics() & {"eval/return"})
    metric = "eval/return" if evaluated else "train/return"
    for name, learners in rows.items():
        run_curves[name] = median_curve([run.curve(learner, metric) for learner in learners])
    is_median = any(len(learners) > 1 for learners in rows.values())
    first = f"median of {run.config.run.seeds} seeds" if is_median else ""
    table = plain_table(first, "eval", "best", "train", f"{metric.partition('/')[0]} return")
    known = [value for curve in run_curves.values() for value in curve.values()]
    for name, learners in rows.items():
        curve = run_curves[name]
        cells = [
            middle([run.latest(learner, "eval/return") for learner in learners]),
            max(curve.values(), default=None) if evaluated else None,
            middle([run.latest(learner, "train/return") for learner in learners]),
        ]
        shown = [formatted("eval/return", value) for value in cells]
        table.add_row(name, *shown, sparkline(curve, known, levels))
    return table


def median_curve(curves: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Return the median of several curves at every step that any of them has."""
    steps = sorted({step for curve in curves for step in curve})
    middles = {step: middle([curve.get(step) for curve in curves]) for step in steps}
    return {step: value for step, value in middles.items() if value is not None}


def sparkline(curve: Mapping[int, float], known: Sequence[float], levels: str = LEVELS) -> str:
    """Draw a curve as a line of at most CURVE_WIDTH signs, from the least to the most of `known`.

    Each sign is the mean of an equal share of the curve's values.
    """
    values = [value for value in curve.values() if math.isfinite(value)]
    finite = [value for value in known if math.isfinite(value)]
    if not values:
        return ""
    n = min(CURVE_WIDTH, len(values))
    shares = [values[k * len(values) // n : (k + 1) * len(values) // n] for k in range(n)]
    least, span = min(finite), max(finite) - min(finite)
    heights = [(sum(share) / len(share) - least) / span if span else 0.5 for share in shares]
    return "".join(levels[min(int(height * len(levels)), len(levels) - 1)] for height in heights)


def exchange_table(run: WatchedRun, width: int) -> RenderableType:
    """Lay out the latest values of what learners exchange, as far as they fit into the width."""
    rows, present = rows_of_run(run), run.metrics()
    room = width - max(map(len, rows)) - 2
    names: list[str] = []
    for name in (name for name in EXCHANGE if name in present):
        room -= max(len(EXCHANGE[name]), 6) + 2
        if room < 0:
            break
        names.append(name)
    if not names:
        return Text("")
    table = plain_table("", *(EXCHANGE[name] for name in names))
    for row, learners in rows.items():
        values = {n: middle([run.latest(learner, n) for learner in learners]) for n in names}
        table.add_row(row, *(exchange_cell(name, value) for name, value in values.items()))
    return table


def exchange_cell(name: str, value: float | None) -> str:
    """Format a value of the exchange: shares in per cent."""
    if name in EXCHANGE_SHARES and value is not None:
        return f"{value:.0%}".replace("%", " %")
    return formatted(name, value)


def several_runs(runs: Sequence[WatchedRun], levels: str) -> RenderableType:
    """Lay out several runs, a line each, below how many have finished."""
    ended = sum(run.state == "finished" for run in runs)
    going = sum(run.is_held for run in runs)
    table = plain_table("run", "", "state", "steps/s", "left", "return", "eval return")
    for run in runs:
        curve, left, speed = run.mean_curve(), run.seconds_left, run.speed
        table.add_row(
            str(run.path),
            progress_words(run)[0],
            state_text(run),
            f"{speed.total:,.0f}" if speed is not None else "-",
            str(timedelta(seconds=int(left))) if left is not None else "-",
            formatted("eval/return", next(reversed(curve.values()), None)),
            sparkline(curve, list(curve.values()), levels),
        )
    return Group(Text(f"{ended} of {len(runs)} runs finished, {going} running"), table)
