"""Report of a study, and `dpd study --plan`: the number of seeds that an effect needs."""

from __future__ import annotations

import json
import shlex
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dpd import __version__
from dpd.envs.physics import n_cores
from dpd.errors import BadInput
from dpd.report.figures import (
    GREY,
    draw_line,
    format_steps,
    line_style,
    new_figure,
    style_axes,
    style_rows,
    thousands,
)
from dpd.report.report import Report, Section, Table, format_number, table_row
from dpd.report.stats import ALPHA, BOOTSTRAP_SEEDS, CONFIDENCE, Difference, least_seeds
from dpd.study.compare import TEST_COLUMNS, curve_line, difference_cells, result_json
from dpd.study.config import StudyConfig
from dpd.study.learning import LEARNING_TERMS, learning_json, learning_table
from dpd.study.study import Aggregate, Findings, TaskResult, worst_quarter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS_PER_ROW = 3
TERMS = {
    "score": "mean return of a seed: the average over its peers' last policies in fresh "
    "deterministic episodes, which all arms share. Statistics are over seeds, because the peers of "
    "a seed are not independent",
    "steps": "every arm takes the same number of environment steps per seed, summed over its "
    "peers; evaluation episodes are not counted",
    "IQM": "interquartile mean over seeds, with a 95 % bootstrap interval, which is too narrow for "
    f"fewer than {BOOTSTRAP_SEEDS} seeds. Over all tasks, seeds are resampled within each task "
    "(Agarwal et al. 2021)",
    "difference": "mean of the differences seed by seed, with an unadjusted 95 % t interval. Over "
    "all tasks, it is the mean of the tasks' means, with the variance within each task",
    "p": "probability of a mean at least this far from 0 if the sign of each seed's difference "
    "were random (sign-flip test, exact for up to 13 seeds)",
    "p adj.": "p adjusted by Holm's method for all arms of the table",
    "verdict": "higher or lower if p adj. is at most 0.05, otherwise undecided; it does not follow "
    "the interval. It is 'too few seeds' if no result could be significant: one difference needs "
    f"{least_seeds(1)} seeds, seven need {least_seeds(7)}",
    "worst ¼": "mean of the lowest quarter of the seeds",
    "best peer": "mean over seeds of the peer with the best last evaluation in training, which a "
    "user would keep; the episodes of this table have no part in the choice",
}
POWER = 0.8
MAX_SEEDS = 100_000
PLAN_NOTES = [
    "seeds: number that detects the difference with a probability of 80 %. Each arm is tested at "
    "5 % divided by the number of arms, which Holm's method never falls below (noncentral t)",
    "range: the same at both ends of the spread's 95 % interval (chi-squared)",
]


def study_report(findings: Findings) -> Report:
    """Report on all tasks together, then on each; the data include raw returns."""
    config, data = findings.config, study_json(findings)
    env, *others = config.envs
    where = f"{env}, and likewise in {', '.join(others)}" if others else env
    tasks = [
        task_section(findings, task, task_data)
        for task, task_data in zip(findings.tasks, data["tasks"], strict=True)
    ]
    sections = [
        Section(terms=answer_questions(findings).items(), tables=list(aggregate_tables(findings))),
        *tasks,
        Section(heading="What the numbers mean", terms=(TERMS | LEARNING_TERMS).items()),
        Section(
            heading="How to reproduce",
            prose=[
                "The curves show the evaluations during training. The commands below train the "
                f"arms in {where}.{shares_text(config)}"
            ],
            terms=[(a, f"`dpd train {shlex.join(config.words(env, a))}`") for a in config.chosen],
        ),
    ]
    return Report(
        title=f"Does {config.subject} help, and why? {config.algo.upper()}",
        sections=sections,
        data=data,
        notes=findings.notes,
        summary_last=True,
    )


def shares_text(config: StudyConfig) -> str:
    """Say how the seeds of an arm were divided, if they were."""
    if config.shares == 1:
        return ""
    env, arm = config.envs[0], config.subject
    parts = [f"--seed {s.seeds[0]} --seeds {len(s.seeds)}" for s in config.shares_of(env, arm)]
    return f" Each arm's seeds trained as {config.shares} runs: {', '.join(parts)}."


def task_section(findings: Findings, task: TaskResult, data: Mapping[str, Any]) -> Section:
    """Report on one task from its JSON: scores, and differences of all and of the best peers."""
    config, arms = findings.config, data["arms"]
    title = (
        f"{task.env}, {config.total_steps:,} steps and {config.episodes} fresh episodes; "
        f"{config.seeds} seeds, mean of a seed's peers"
    )
    figures = ("mean", "iqm", "iqm_interval", "worst_quarter", "best_peer")
    rows = [table_row(arm, *(of_arm[k] for k in figures)) for arm, of_arm in arms.items()]
    rows.append(table_row("uniform actions", task.random, *[None] * 4))
    tables = [
        Table(title, ["arm", "mean", "IQM", "95 % interval", "worst ¼", "best peer"], rows),
        gaps_table(f"{task.env}: mean return of {config.subject} minus that of", task.gaps),
    ]
    if task.best_gaps:
        title = f"{task.env}: mean return of {config.subject}'s best peers minus that of"
        tables.append(gaps_table(title, task.best_gaps))
    if any(arm["area"] is not None for arm in arms.values()):
        tables += learning_tables(findings, task, arms)
    drawn = [partial(draw_scores, task, arms), partial(draw_curve_panels, findings, task)]
    return Section(heading=task.env, figures=drawn, tables=tables)


def learning_tables(
    findings: Findings, task: TaskResult, arms: Mapping[str, Any]
) -> Iterator[Table]:
    """Yield the tables of the arms' learning, and of the differences of their areas."""
    where = machine_text(findings.config)
    yield learning_table(f"{task.env}: learning; seconds of training on {where}", arms)
    if task.area_gaps:
        title = f"{task.env}: mean return over the steps of {findings.config.subject} minus that of"
        yield gaps_table(title, task.area_gaps)
    if task.time_gaps:
        subject = findings.config.subject
        title = f"{task.env}: after equal seconds of training, return of {subject} minus that of"
        yield gaps_table(title, task.time_gaps)


def machine_text(config: StudyConfig) -> str:
    """Say what the seconds of training were measured on."""
    cores, jobs = n_cores(), config.at_once
    if config.where.is_ray:
        cpus = config.where.cpus
        return f"a Ray cluster, {cpus} CPU{'s' * (cpus > 1)} per run"
    return f"{cores} core{'s' * (cores > 1)}" + (f", {jobs} runs at once" if jobs != 1 else "")


def gaps_table(title: str, gaps: Mapping[str, Difference]) -> Table:
    """Return a table of the subject's difference from each arm."""
    rows = [[arm, *difference_cells(gap)] for arm, gap in gaps.items()]
    return Table(title, ["arm", "difference", *TEST_COLUMNS], rows)


def aggregate_tables(findings: Findings) -> Iterator[Table]:
    """Return the tables over all tasks, if there are several."""
    if not (arms := findings.aggregates):
        return
    over = f"Over {len(findings.tasks)} tasks"
    rows = [table_row(arm, a.iqm, a.interval) for arm, a in arms.items()]
    title = f"{over}: 0 is uniform actions, 1 the best arm's mean in each"
    yield Table(title, ["arm", "IQM", "95 % interval"], rows)
    gaps = {arm: a.gap for arm, a in arms.items() if a.gap is not None}
    yield gaps_table(f"{over}: mean of {findings.config.subject} minus that of", gaps)


def study_json(findings: Findings) -> dict[str, Any]:
    """Return all results, including raw returns."""
    config = findings.config
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
        **({"shares": config.shares} if config.shares > 1 else {}),
        "engine": config.where.engine,
        "jobs": config.at_once,
        "cores": n_cores(),
        "confidence": CONFIDENCE,
        "tasks": [task_json(findings, task) for task in findings.tasks],
        "whole": {arm: aggregate_json(a) for arm, a in findings.aggregates.items()},
        "notes": findings.notes,
    }


def task_json(findings: Findings, task: TaskResult) -> dict[str, Any]:
    """Return a task's statistics and the returns they are computed from."""
    arms = {}
    for arm, result in task.results.items():
        commits = {member.policy.meta.provenance.get("git") for member in result.run.members}
        arms[arm] = result_json(result, findings.config.seed) | {
            "worst_quarter": worst_quarter(list(result.scores.values())),
            "git": sorted(commit for commit in commits if commit is not None),
            **learning_json(task, arm, findings.config.seed),
        }
        if arm in findings.others:
            families = (task.best_gaps, task.area_gaps, task.time_gaps)
            best, area, time = (family.get(arm) for family in families)
            arms[arm] |= {
                "gap": task.gaps[arm]._asdict(),
                "best_gap": best and best._asdict(),
                "area_gap": area and area._asdict(),
                "time_gap": time and time._asdict(),
            }
    return {"env": task.env, "random": task.random, "level": task.level, "arms": arms}


def aggregate_json(aggregate: Aggregate) -> dict[str, Any]:
    """Return an arm's statistics over all tasks."""
    return aggregate._asdict() | {"gap": aggregate.gap and aggregate.gap._asdict()}


def answer_questions(findings: Findings) -> dict[str, str]:
    """Return each arm's question with the differences that answer it, over all tasks first."""
    answers = {}
    for arm in findings.others:
        gaps = [(task.env, task.gaps[arm]) for task in findings.tasks]
        if findings.aggregates and (gap := findings.aggregates[arm].gap) is not None:
            gaps.insert(0, ("all tasks", gap))
        text = "; ".join(f"{where}: {difference_text(gap)}" for where, gap in gaps)
        question = findings.config.chosen[arm].asks.capitalize()
        answers[question] = f"{findings.config.subject} − {arm}: {text}"
    return answers


def difference_text(gap: Difference) -> str:
    """Return a difference with its interval, p and verdict in words."""
    text = format_number(gap.mean)
    if gap.interval is not None:
        text += f" ({format_number(gap.interval)})"
    if gap.p is not None:
        text += f", p {format_number(gap.p)}, adjusted {format_number(gap.p_adjusted)}"
    return f"{text}: {gap.verdict}"


def draw_scores(task: TaskResult, arms: Mapping[str, Any]) -> Figure:
    """Draw every arm's seeds, and the interval of their interquartile mean."""
    figure = new_figure(8.4, 0.9 + 0.36 * len(arms))
    axes = figure.add_subplot()
    for k, (arm, data) in enumerate(arms.items()):
        scores, colour = list(task.results[arm].scores.values()), line_style(k)["color"]
        axes.plot(scores, np.full(len(scores), k), "o", color=colour, alpha=0.35, markersize=4)
        if (interval := data["iqm_interval"]) is not None:
            axes.plot(interval, [k, k], color=colour, linewidth=2.4, solid_capstyle="butt")
        axes.plot(data["iqm"], k, "|", color=colour, markersize=14, markeredgewidth=2.4)
    style_rows(axes, list(arms), "return: seeds, interquartile mean and its 95 % interval")
    return figure


def draw_curve_panels(findings: Findings, task: TaskResult) -> Figure:
    """Draw the learning curves of the subject and each other arm, one panel for each arm."""
    subject, *others = (curve_line(r, findings.config.seed) for r in task.results.values())
    rows = -(-len(others) // PANELS_PER_ROW)
    figure = new_figure(8.4, 0.3 + 2.1 * rows)
    first: Axes | None = None
    for k, (arm, other) in enumerate(zip(findings.others, others, strict=True)):
        axes = figure.add_subplot(rows, PANELS_PER_ROW, k + 1, sharex=first, sharey=first)
        first = first or axes
        draw_line(axes, other, {"color": GREY})
        draw_line(axes, subject, line_style(0))
        style_axes(axes, f"{findings.config.subject} and {arm} (grey)")
        axes.yaxis.set_major_formatter(thousands)
        axes.locator_params(axis="x", nbins=4)
        format_steps(axes, subject.steps[-1])
    return figure


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


def plan_study(out: Path, effect: float) -> Report:
    """Report how many seeds each arm of a stored study needs to show a difference of `effect`."""
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
    return Report(sections=[Section(tables=[table])], data=data, notes=PLAN_NOTES)


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
