"""`dpd study --plan`: how many seeds would show a difference, by the spread of a stored study."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpd.errors import BadInput
from dpd.log.terminal import make_console
from dpd.report.stats import ALPHA, CONFIDENCE, least_seeds
from dpd.report.tables import Table, format_number, print_tables

POWER = 0.8
MOST = 100_000
"""Seeds that a plan goes up to."""
NOTES = [
    "seeds: those that show the difference with a probability of 80 % at 5 % after Holm, whatever "
    "the other arms do: each is tested at 5 % divided by their number (noncentral t)",
    "range: the same at the ends of the spread's own 95 % interval (chi-squared)",
]


class Plan(NamedTuple):
    """The seeds that an arm of a task needs."""

    env: str
    arm: str
    spread: float
    """Standard deviation over seeds of the subject's score minus the arm's."""
    seeds: int
    """At most MOST, which stands for as many or more."""
    range: tuple[int, int]
    """Seeds at the ends of the spread's 95 % interval."""


def plan_study(out: Path, effect: float, as_json: bool) -> None:
    """Print how many seeds every arm of a stored study needs to show a difference of `effect`."""
    data, plans = read_plans(out, effect)
    stored = f"{data['seeds']} seeds in {out / 'study.json'}"
    if as_json:
        made = {"effect": effect, "alpha": ALPHA, "power": POWER, "stored_seeds": data["seeds"]}
        made |= {"plans": [plan._asdict() for plan in plans], "notes": NOTES}
        sys.stdout.write(json.dumps(made, indent=2) + "\n")
        return
    title = f"Seeds that would show {data['subject']} {effect:,g} above or below an arm"
    rows = [
        [
            f"{p.env} {p.arm}",
            format_number(p.spread),
            worded(p.seeds),
            " to ".join(map(worded, p.range)),
        ]
        for p in plans
    ]
    columns = ["task, arm", "spread", "seeds", "range"]
    sheet = Table(f"{title}\nspread: of the differences over {stored}", columns, rows)
    print_tables([sheet], NOTES, make_console(highlight=False))


def read_plans(out: Path, effect: float) -> tuple[dict[str, Any], list[Plan]]:
    """Read a stored study and plan for each arm of each task.

    Raises BadInput where there is no finished study of two seeds or more.
    """
    path = out / "study.json"
    if not path.is_file():
        raise BadInput(
            f"{path} does not exist: --plan takes the spread from a finished study; run one on a "
            f"few seeds first, as in: dpd study --seeds {least_seeds(1)} --out {out}"
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        gaps = [each for task in data["tasks"] for each in task_gaps(task, data["subject"])]
        arms = len(data["arms"]) - 1
        if data["seeds"] < 2:
            raise BadInput(f"{path} holds one seed; a spread takes two or more: dpd study --seeds")
        return data, [plan(env, arm, gap, effect, arms) for env, arm, gap in gaps]
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"{path} is not what dpd study writes ({error!r})") from error


def task_gaps(task: dict[str, Any], subject: str) -> list[tuple[str, str, np.ndarray]]:
    """Return task, arm and the differences of the subject's scores from the arm's, seed by seed."""
    scores = {
        arm: {s["seed"]: float(s["score"]) for s in found["seeds"]}
        for arm, found in task["arms"].items()
    }
    own = scores.pop(subject)
    return [(task["env"], a, np.array([own[s] - x[s] for s in own])) for a, x in scores.items()]


def plan(env: str, arm: str, gaps: np.ndarray, effect: float, arms: int) -> Plan:
    """Plan for one arm, from the stored differences [n]."""
    from scipy.stats import chi2

    spread, freedom = float(gaps.std(ddof=1)), len(gaps) - 1
    tails = ((1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2)
    ends = [spread * float(np.sqrt(freedom / chi2.ppf(tail, freedom))) for tail in tails]
    seeds, low, high = (seeds_for(effect / s if s else np.inf, arms) for s in (spread, *ends))
    return Plan(env, arm, spread, seeds, (low, high))


def seeds_for(effect: float, arms: int) -> int:
    """Return the fewest seeds that show an effect, in standard deviations, as one of so many arms.

    At most MOST. No number is returned at which no result could decide.
    """
    low = least_seeds(arms)
    high = low
    while high < MOST and power(effect, high, arms) < POWER:
        low, high = high + 1, min(2 * high, MOST)
    while low < high:  # power grows with the seeds
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, middle, arms) >= POWER else (middle + 1, high)
    return low


def power(effect: float, seeds: int, arms: int) -> float:
    """Return the probability that a two-sided t test shows an effect, in standard deviations.

    By the noncentral t distribution at level ALPHA / arms; the wrong sign does not count.
    """
    from scipy.stats import nct, t

    if effect > 10:  # certain, and so far out the distribution is nan
        return 1.0
    freedom, shift = seeds - 1, effect * np.sqrt(seeds)
    limit = t.ppf(1 - ALPHA / arms / 2, freedom)
    return float(nct.sf(limit, freedom, shift))


def worded(seeds: int) -> str:
    """Write a number of seeds."""
    return f"{seeds:,}" if seeds < MOST else f"{MOST:,} or more"
