"""`dpd study --plan`: the number of seeds that an effect needs, from a stored study's spread."""

from __future__ import annotations

import json
from bisect import bisect_left
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpd.errors import BadInput
from dpd.report.report import Report, Section, Table, format_number, print_report
from dpd.report.stats import ALPHA, CONFIDENCE, least_seeds

POWER = 0.8
MAX_SEEDS = 100_000
PLAN_NOTES = [
    "seeds: number that detects the difference with a probability of 80 %. Each arm is tested at "
    "5 % divided by the number of arms, which Holm's method never falls below (noncentral t)",
    "range: the same at both ends of the spread's 95 % interval (chi-squared)",
]


class Plan(NamedTuple):
    """The number of seeds that an arm of a task needs."""

    env: str
    arm: str
    spread: float
    """Standard deviation over seeds of the subject's score minus the arm's."""
    seeds: int
    """At most MAX_SEEDS, which means that many or more."""
    range: tuple[int, int]
    """Seeds at the ends of the spread's 95 % interval."""


def plan_study(out: Path, effect: float, as_json: bool) -> None:
    """Print how many seeds each arm of a stored study needs to show a difference of `effect`."""
    stored, plans = read_plans(out, effect)
    rows = [
        [
            f"{p.env} {p.arm}",
            format_number(p.spread),
            seeds_text(p.seeds),
            " to ".join(map(seeds_text, p.range)),
        ]
        for p in plans
    ]
    title = (
        f"Seeds that would show {stored['subject']} {effect:,g} above or below an arm\n"
        f"spread: of the differences over {stored['seeds']} seeds in {out / 'study.json'}"
    )
    data = {"effect": effect, "alpha": ALPHA, "power": POWER, "stored_seeds": stored["seeds"]}
    data |= {"plans": [plan._asdict() for plan in plans], "notes": PLAN_NOTES}
    table = Table(title, ["task, arm", "spread", "seeds", "range"], rows)
    report = Report(sections=[Section(tables=[table])], data=data, notes=PLAN_NOTES)
    print_report(report, as_json)


def read_plans(out: Path, effect: float) -> tuple[dict[str, Any], list[Plan]]:
    """Read a stored study and plan each arm of each task.

    Raises BadInput if there is no finished study of at least two seeds.
    """
    path = out / "study.json"
    if not path.is_file():
        raise BadInput(
            f"{path} does not exist: --plan needs the spread of a finished study; run one on a "
            f"few seeds first, as in: dpd study --seeds {least_seeds(1)} --out {out}"
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        gaps = [arm for task in data["tasks"] for arm in task_gaps(task, data["subject"])]
        arms = len(data["arms"]) - 1
        if data["seeds"] < 2:
            raise BadInput(f"{path} has one seed; a spread needs two or more: dpd study --seeds")
        return data, [plan_arm(env, arm, gap, effect, arms) for env, arm, gap in gaps]
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"{path} is no file of dpd study ({error!r})") from error


def task_gaps(task: dict[str, Any], subject: str) -> list[tuple[str, str, np.ndarray]]:
    """Return (task, arm, the subject's scores minus the arm's by seed) for each arm."""
    scores = {
        arm: {s["seed"]: float(s["score"]) for s in result["seeds"]}
        for arm, result in task["arms"].items()
    }
    ours = scores.pop(subject)
    return [(task["env"], a, np.array([ours[s] - x[s] for s in ours])) for a, x in scores.items()]


def plan_arm(env: str, arm: str, gaps: np.ndarray, effect: float, arms: int) -> Plan:
    """Plan one arm from its stored differences [n]."""
    from scipy.stats import chi2

    spread, freedom = float(gaps.std(ddof=1)), len(gaps) - 1
    tails = ((1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2)
    ends = [spread * float(np.sqrt(freedom / chi2.ppf(tail, freedom))) for tail in tails]
    seeds, low, high = (seeds_for(effect / s if s else np.inf, arms) for s in (spread, *ends))
    return Plan(env, arm, spread, seeds, (low, high))


def seeds_for(effect: float, arms: int) -> int:
    """Return the fewest seeds that show an effect, in standard deviations, if `arms` are tested.

    At least `least_seeds(arms)`, below which no result is significant, and at most MAX_SEEDS.
    """
    seeds = range(MAX_SEEDS)
    return bisect_left(  # power grows with the seeds
        seeds, True, lo=least_seeds(arms), key=lambda n: power(effect, n, arms) >= POWER
    )


def power(effect: float, seeds: int, arms: int) -> float:
    """Return the power of a two-sided t test for an effect, in standard deviations.

    From the noncentral t distribution at level ALPHA / arms, not counting the wrong sign.
    """
    from scipy.stats import nct, t

    freedom, shift = seeds - 1, effect * np.sqrt(seeds)
    limit = t.ppf(1 - ALPHA / arms / 2, freedom)
    if shift > limit + 20:  # certain; scipy's distribution is NaN far out
        return 1.0
    return float(nct.sf(limit, freedom, shift))


def seeds_text(seeds: int) -> str:
    """Format a number of seeds."""
    return f"{seeds:,}" if seeds < MAX_SEEDS else f"{MAX_SEEDS:,} or more"
