"""What a study found, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from dpd import __version__
from dpd.compare import JUDGED, Result, difference_cells, result_json
from dpd.intervals import CONFIDENCE
from dpd.sheets import Sheet, shown
from dpd.study.findings import Findings, Task, Whole, worst_quarter


def sheets(found: Findings) -> list[Sheet]:
    """Return the terminal's tables: those over all tasks last, where one looks."""
    by_task = [s for task in found.tasks for s in task_sheets(found, task)]
    return [*by_task, *whole_sheets(found)]


def task_sheets(found: Findings, task: Task) -> list[Sheet]:
    """Return the tables of one task."""
    best = [best_sheet(found, task)] if task.best_gaps else []
    return [scores_sheet(found, task), gaps_sheet(found, task), *best]


def scores_sheet(found: Findings, task: Task) -> Sheet:
    """Lay out every arm's returns over seeds."""
    config = found.config
    title = (
        f"{task.env}, {config.total_steps:,} steps and {config.episodes} fresh episodes; "
        f"{config.seeds} seeds, mean of a seed's peers"
    )
    rows = [[arm, *map(shown, figures(r, config.seed))] for arm, r in task.results.items()]
    rows.append(["uniform actions", shown(task.random), *["-"] * 4])
    return Sheet(title, ["arm", "mean", "IQM", "95 % interval", "worst ¼", "best peer"], rows)


def figures(result: Result, seed: int) -> list[Any]:
    """Return what is shown of an arm."""
    scores = list(result.scores.values())
    interval = result.interval(seed)
    return [np.mean(scores), result.iqm, interval, worst_quarter(scores), result.best_peers]


def gaps_sheet(found: Findings, task: Task) -> Sheet:
    """Lay out how far the subject lies above every other arm."""
    rows = []
    for arm in found.others:
        rows.append([arm, *difference_cells(task.gaps[arm])])
    title = f"{task.env}: mean return of {found.config.subject} minus that of"
    return Sheet(title, ["arm", "difference", *JUDGED], rows)


def best_sheet(found: Findings, task: Task) -> Sheet:
    """Lay out the same for the peers that a user would keep."""
    rows = [[arm, *difference_cells(gap)] for arm, gap in task.best_gaps.items()]
    title = f"{task.env}: mean return of {found.config.subject}'s best peers minus that of"
    return Sheet(title, ["arm", "difference", *JUDGED], rows)


def whole_sheets(found: Findings) -> Iterator[Sheet]:
    """Lay out scores and differences over all tasks, if there are several."""
    whole = found.whole
    if not whole:
        return
    n = len(found.tasks)
    title = f"Over {n} tasks: 0 is uniform actions, 1 the best arm's mean in each"
    rows = [[arm, shown(w.iqm), shown(w.interval)] for arm, w in whole.items()]
    yield Sheet(title, ["arm", "IQM", "95 % interval"], rows)
    title = f"Over {n} tasks: mean of {found.config.subject} minus that of"
    gaps = [[arm, *difference_cells(w.gap)] for arm, w in whole.items() if w.gap is not None]
    yield Sheet(title, ["arm", "difference", *JUDGED], gaps)


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
