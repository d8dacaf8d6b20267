"""What a study found, as tables and as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from dpd import __version__
from dpd.report.figures import COLOURS, format_steps
from dpd.report.page import definitions, document, look, new_figure, notes, plain, svg, table
from dpd.report.stats import BOOTSTRAP_SEEDS, CONFIDENCE, Difference, least_seeds
from dpd.report.tables import Table, format_number
from dpd.study.compare import JUDGED, Result, difference_cells, line_of, result_json
from dpd.study.study import Findings, Task, Whole, worst_quarter

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def sheets(found: Findings) -> list[Table]:
    """Return the terminal's tables: those over all tasks last, where one looks."""
    by_task = [s for task in found.tasks for s in task_sheets(found, task)]
    return [*by_task, *whole_sheets(found)]


def task_sheets(found: Findings, task: Task) -> list[Table]:
    """Return the tables of one task."""
    best = [best_sheet(found, task)] if task.best_gaps else []
    return [scores_sheet(found, task), gaps_sheet(found, task), *best]


def scores_sheet(found: Findings, task: Task) -> Table:
    """Lay out every arm's returns over seeds."""
    config = found.config
    title = (
        f"{task.env}, {config.total_steps:,} steps and {config.episodes} fresh episodes; "
        f"{config.seeds} seeds, mean of a seed's peers"
    )
    rows = [[arm, *map(format_number, figures(r, config.seed))] for arm, r in task.results.items()]
    rows.append(["uniform actions", format_number(task.random), *["-"] * 4])
    return Table(title, ["arm", "mean", "IQM", "95 % interval", "worst ¼", "best peer"], rows)


def figures(result: Result, seed: int) -> list[Any]:
    """Return what is shown of an arm."""
    scores = list(result.scores.values())
    interval = result.interval(seed)
    return [np.mean(scores), result.iqm, interval, worst_quarter(scores), result.best_peers]


def gaps_sheet(found: Findings, task: Task) -> Table:
    """Lay out how far the subject lies above every other arm."""
    rows = []
    for arm in found.others:
        rows.append([arm, *difference_cells(task.gaps[arm])])
    title = f"{task.env}: mean return of {found.config.subject} minus that of"
    return Table(title, ["arm", "difference", *JUDGED], rows)


def best_sheet(found: Findings, task: Task) -> Table:
    """Lay out the same for the peers that a user would keep."""
    rows = [[arm, *difference_cells(gap)] for arm, gap in task.best_gaps.items()]
    title = f"{task.env}: mean return of {found.config.subject}'s best peers minus that of"
    return Table(title, ["arm", "difference", *JUDGED], rows)


def whole_sheets(found: Findings) -> Iterator[Table]:
    """Lay out scores and differences over all tasks, if there are several."""
    whole = found.whole
    if not whole:
        return
    n = len(found.tasks)
    title = f"Over {n} tasks: 0 is uniform actions, 1 the best arm's mean in each"
    rows = [[arm, format_number(w.iqm), format_number(w.interval)] for arm, w in whole.items()]
    yield Table(title, ["arm", "IQM", "95 % interval"], rows)
    title = f"Over {n} tasks: mean of {found.config.subject} minus that of"
    gaps = [[arm, *difference_cells(w.gap)] for arm, w in whole.items() if w.gap is not None]
    yield Table(title, ["arm", "difference", *JUDGED], gaps)


def as_json(found: Findings) -> dict[str, Any]:
    """Return everything measured, raw returns included."""
    config = found.config
    return {
        "dpd": __version__,
        "algo": config.algo,
        "subject": config.subject,
        "arms": {
            arm: {"asks": a.asks, "flags": a.flags, "words": config.words(config.envs[0], arm)[1:]}
            for arm, a in config.chosen.items()
        },
        "seeds": config.seeds,
        "seed": config.seed,
        "total_steps": config.total_steps,
        "episodes": config.episodes,
        "confidence": CONFIDENCE,
        "tasks": [task_json(found, task) for task in found.tasks],
        "whole": {arm: whole_json(w) for arm, w in found.whole.items()},
        "notes": found.notes,
    }


def task_json(found: Findings, task: Task) -> dict[str, Any]:
    """Return a task's figures and the returns behind them."""
    seed = found.config.seed
    arms = {}
    for arm, result in task.results.items():
        scores = list(result.scores.values())
        known = {member.policy.meta.provenance.get("git") for member in result.run.members}
        arms[arm] = result_json(result, seed) | {
            "worst_quarter": worst_quarter(scores),
            "git": sorted(commit for commit in known if commit is not None),
        }
        if arm in found.others:
            gap, best = task.gaps[arm], task.best_gaps.get(arm)
            arms[arm] |= {"gap": gap._asdict(), "best_gap": best and best._asdict()}
    return {"env": task.env, "random": task.random, "arms": arms}


def whole_json(whole: Whole) -> dict[str, Any]:
    """Return an arm's figures over all tasks."""
    return whole._asdict() | {"gap": whole.gap and whole.gap._asdict()}


PER_ROW = 3
GREY = "#8a8a8a"  # readable on both of the page's colours
MEANINGS = {
    "score": "of a seed: the mean return of its peers' last policies in fresh deterministic "
    "episodes, the same for all arms; a seed is one replicate, as its peers are not independent",
    "steps": "every arm gets as many environment steps per seed, all of its peers together; "
    "evaluations use none of them",
    "IQM": "interquartile mean over seeds, with a 95 % bootstrap interval, which is too narrow for "
    f"fewer than {BOOTSTRAP_SEEDS} seeds; over all tasks seeds are drawn within each task (Agarwal "
    "et al. 2021)",
    "difference": "mean of the differences seed by seed, with the 95 % t interval of this "
    "difference alone; over all tasks the mean of the tasks' means, with the variance within each",
    "p": "how often a mean at least as far from 0 comes up when the sign of every seed's "
    "difference is drawn by a coin (an exact test for up to 13 seeds)",
    "p adj.": "p adjusted by Holm for all arms of its table, which is one family",
    "verdict": "follows p adj., not the interval: higher or lower at 0.05 or less, otherwise "
    "undecided; too few seeds where no result could decide: one difference needs "
    f"{least_seeds(1)} seeds, seven need {least_seeds(7)}",
    "worst ¼": "mean of the lowest quarter of the seeds",
    "best peer": "of each seed the peer of the best last evaluation in training: what a user would "
    "keep, chosen without the episodes of the table",
}


def page(found: Findings) -> str:
    """Return the page."""
    config = found.config
    parts = [
        *notes(found.notes),
        answers(found),
        *map(table, whole_sheets(found)),
        *(part for task in found.tasks for part in task_parts(found, task)),
        f"<h2>What the numbers mean</h2>{definitions(MEANINGS)}",
        f"<h2>Where it comes from</h2>{commands(found)}",
    ]
    return document(f"Does {config.subject} help, and why? {config.algo.upper()}", parts)


def answers(found: Findings) -> str:
    """Answer every arm's question, over all tasks and in each."""
    whole, subject = found.whole, found.config.subject
    lines = {}
    for arm in found.others:
        said = [(task.env, task.gaps[arm]) for task in found.tasks]
        over_all = whole[arm].gap if whole else None
        said = ([("all tasks", over_all)] if over_all is not None else []) + said
        asked = found.config.chosen[arm].asks
        given = "; ".join(f"{where}: {worded(gap)}" for where, gap in said)
        lines[asked.capitalize()] = f"{subject} − {arm}: {given}"
    return definitions(lines)


def worded(gap: Difference) -> str:
    """Write a difference in words."""
    within = "" if gap.interval is None else f" ({format_number(gap.interval)})"
    p = (
        f", p {format_number(gap.p)}, adjusted {format_number(gap.p_adjusted)}"
        if gap.p is not None
        else ""
    )
    return f"{format_number(gap.mean)}{within}{p}: {gap.verdict}"


def task_parts(found: Findings, task: Task) -> list[str]:
    """Lay out one task."""
    return [
        f"<h2>{escape(task.env)}</h2>",
        intervals(found, task),
        *map(table, task_sheets(found, task)),
        curves(found, task),
    ]


def intervals(found: Findings, task: Task) -> str:
    """Draw every arm's seeds, and the interval of their interquartile mean."""
    n = len(task.results)
    figure = new_figure(8.4, 0.9 + 0.36 * n)
    axes = figure.add_subplot()
    for k, result in enumerate(task.results.values()):
        scores, colour = list(result.scores.values()), look(k)["color"]
        axes.plot(scores, np.full(len(scores), k), "o", color=colour, alpha=0.35, markersize=4)
        if (interval := result.interval(found.config.seed)) is not None:
            axes.plot(interval, [k, k], color=colour, linewidth=2.4, solid_capstyle="butt")
        axes.plot(result.iqm, k, "|", color=colour, markersize=14, markeredgewidth=2.4)
    axes.set_yticks(range(n), list(task.results))
    axes.set_ylim(n - 0.5, -0.5)
    plain(axes, "return: seeds, interquartile mean and its 95 % interval")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", linewidth=0.4)
    return svg(figure, f"intervals {task.env}")


def curves(found: Findings, task: Task) -> str:
    """Draw the subject's learning curve beside every other arm's."""
    subject, *others = (line_of(r, found.config.seed) for r in task.results.values())
    rows = -(-len(others) // PER_ROW)
    figure = new_figure(8.4, 0.3 + 2.1 * rows)
    shared: Axes | None = None
    for k, (arm, line) in enumerate(zip(found.others, others, strict=True)):
        axes = figure.add_subplot(rows, PER_ROW, k + 1, sharex=shared, sharey=shared)
        shared = shared or axes
        for each, shade in ((line, GREY), (subject, COLOURS[0])):
            if each.band:
                low, high = zip(*each.band, strict=True)
                axes.fill_between(each.steps, low, high, color=shade, alpha=0.18, linewidth=0)
            axes.plot(each.steps, each.middle, color=shade, linewidth=1.8)
        plain(axes, f"{found.config.subject} and {arm} (grey)")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.locator_params(axis="x", nbins=4)
        format_steps(axes, subject.steps[-1])
    return svg(figure, f"curves {task.env}")


def commands(found: Findings) -> str:
    """Write the command of every run, and what it is."""
    config = found.config
    made = {arm: shlex.join(config.words(config.envs[0], arm)) for arm in config.chosen}
    lines = (
        f"<dt>{escape(arm)}</dt><dd><code>dpd train {escape(words)}</code></dd>"
        for arm, words in made.items()
    )
    others = f", and so in {', '.join(config.envs[1:])}" if config.envs[1:] else ""
    return (
        f"<p>Evaluations of training draw the curves{escape(others)}.</p><dl>{''.join(lines)}</dl>"
    )
