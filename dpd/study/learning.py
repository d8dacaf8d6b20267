"""Speed of learning in a study: mean return over the steps, steps to a level, and seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dpd.report.report import Table, format_number
from dpd.report.stats import Reach, mean_interval, reach
from dpd.study.study import LEVEL_ARM, LEVEL_SHARE, TaskResult

LEVEL = f"{LEVEL_SHARE:.0%}".replace("%", " %")
LEARNING_TERMS = {
    "area": "area under the learning curve, as the mean return over the steps: evaluations during "
    "training, averaged over a seed's peers and joined by straight lines, with a 95 % t interval "
    "over seeds. The first evaluation counts for the steps before it too",
    f"to {LEVEL}": f"steps at which the mean learning curve reaches {LEVEL} of the way from "
    f"uniform actions to the mean of the arm `{LEVEL_ARM}`, with a 95 % bootstrap interval over "
    "seeds; a dash if there is no such arm. seeds: those whose own curve gets there",
    "seconds": "time that the training of all seeds took, without evaluations. It depends on what "
    "else the machine does",
    "equal seconds": "the evaluations during training, joined by straight lines, at the time when "
    "the faster of two arms has finished. The learning rate of the slower one falls until its own "
    "end, so that a shorter run, planned for this time, might do better",
}


def learning_json(task: TaskResult, arm: str, seed: int) -> dict[str, Any]:
    """Return the statistics of an arm's learning; `seed` is that of the bootstrap."""
    result, areas, level = task.results[arm], task.results[arm].areas, task.level
    means = None if areas is None else list(areas.values())
    reached = None
    if means is not None and level is not None:
        reached = reach_json(reach(*result.curves, level, seed))
    return {
        "area": None if means is None else float(np.mean(means)),
        "area_interval": None if means is None else mean_interval(means),
        "reach": reached,
    }


def reach_json(reached: Reach) -> dict[str, Any]:
    """Return the steps to a level for a JSON file: null where it is not reached."""
    ends = reached.interval and [known(end) for end in reached.interval]
    return {"steps": known(reached.steps), "interval": ends, "seeds": reached.seeds}


def known(steps: float) -> float | None:
    """Return finite steps, or None."""
    return steps if math.isfinite(steps) else None


def learning_table(title: str, arms: Mapping[str, Any]) -> Table:
    """Return a table of the arms' learning from their JSON."""
    columns = ["arm", "area", "95 % interval", f"to {LEVEL}", "95 % interval", "seeds", "seconds"]
    rows = []
    for arm, of_arm in arms.items():
        cells = [format_number(of_arm[k]) for k in ("area", "area_interval")]
        cells += reach_cells(of_arm["reach"], len(of_arm["seeds"]))
        rows.append([arm, *cells, format_number(of_arm["seconds"])])
    return Table(title, columns, rows)


def reach_cells(reached: Mapping[str, Any] | None, n_seeds: int) -> list[str]:
    """Return the cells of the steps to a level: steps, interval and seeds."""
    if reached is None:
        return ["-"] * 3
    ends = reached["interval"]
    interval = "-" if ends is None else "…".join(map(short_steps, ends))
    return [short_steps(reached["steps"]), interval, f"{reached['seeds']} of {n_seeds}"]


def short_steps(steps: float | None) -> str:
    """Format steps in thousands; None: the level is never reached."""
    if steps is None:
        return "never"
    return f"{steps / 1000:,.0f}k" if steps >= 10_000 else f"{steps:,.0f}"
