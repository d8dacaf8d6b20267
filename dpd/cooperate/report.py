"""Report of a cooperation: a line per round, tables, a page, policies and TensorBoard events."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dpd import __version__
from dpd.cooperate.cooperation import Cooperation, cooperation_json, gain_verdict
from dpd.cooperate.rounds import Pair
from dpd.policies import policyfile
from dpd.report.figures import INK, add_legend, line_style, new_figure, style_axes, style_rows
from dpd.report.report import (
    Report,
    Section,
    Table,
    format_number,
    save_report,
    table_row,
    write_events,
)
from dpd.report.stats import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COOPERATION_MEANINGS = {
    "before, after, gain": "mean return of the same whole deterministic episodes, with a 95 % t "
    "interval over episodes, paired by episode for the gain; it describes these policies only, not "
    "what other training seeds would give",
    "p": "probability of a mean gain at least as far from 0 if the sign of every episode's gain is "
    "random (sign-flip test, exact for up to 13 episodes)",
    "p adj.": "p with Holm's correction over all policies; the verdict uses it, not the interval: "
    "higher or lower at 0.05 or less",
    "states": "states where the student is deficient: from there the teacher's return over the "
    "horizon is higher by more than the margin, and the highest of all policies",
    "new": "counterfactuals: new states near these at which the measured gap exceeds the margin",
    "success": "share of the searches that gave a new state",
    "gap up": "share of the states reached whose measured gap is larger than at the start",
    "gap, left": "teacher's return over the horizon minus the student's, on deficient states "
    "excluded from learning: before the lessons, and after them",
    "R²": "R² of the network that predicts the gap, on probe states excluded from learning",
    "drift": "mean |change| of the student's actions, in units of half their range, on states "
    "excluded from learning where no other policy was better",
    "trial": "whole episodes, different from those of the first table: a student that got worse in "
    "them is rolled back",
}
PURPOSE_MEANINGS = {
    "probe": "episodes that provide the probe states",
    "competence": "every policy played from every probe state",
    "counterfactual": "teacher and student played from new states",
    "trial": "whole episodes after each round",
    "evaluation": "whole episodes of the first table",
}


def round_line(outcome: Cooperation) -> str:
    """Summarise the last round in one line."""
    last, total = outcome.rounds[-1], outcome.budget.total
    words = [f"round {last.number}/{outcome.config.rounds}"]
    for p in last.pairs:
        gap = (
            f", gap {format_number(p.gap_before)} → {format_number(p.gap_after)}"
            if p.n_deficient
            else ""
        )
        words.append(f"{p.teacher}→{p.student}: {p.n_deficient}+{p.n_counterfactuals} states{gap}")
    for k, trial in enumerate(last.trials or ()):
        kept = "" if trial.passed else ", rolled back"
        words.append(
            f"trial {k}: {format_number(trial.before)} → {format_number(trial.after)}{kept}"
        )
    return "  ".join([*words, f"{outcome.budget.spent:,}/{total:,} steps"])


def write_cooperation(outcome: Cooperation) -> None:
    """Write the policies of the last round and the report."""
    out = outcome.config.out
    for k in range(len(outcome.subjects)):
        write_improved_policy(outcome, k, out / "policies" / f"peer{k}.safetensors")
    save_report(cooperation_report(outcome), out, "cooperative")
    write_events(out / "tb", cooperation_events(outcome))


def write_improved_policy(outcome: Cooperation, k: int, path: Path) -> None:
    """Write policy k, with its origin in the provenance."""
    policy, rounds = outcome.rounds[-1].policies[k], len(outcome.rounds)
    config = outcome.config
    provenance = {
        "dpd": __version__,
        "method": "cooperative",
        "control": config.control,
        "rounds": rounds,
        "seed": config.seed,
        "simulator_steps": outcome.budget.spent,
        "eval_return": None if outcome.after is None else float(outcome.after[k].mean()),
        "source": outcome.subjects[k].origin,
        "peers": [s.origin for s in outcome.subjects if s is not outcome.subjects[k]],
    }
    meta = replace(policy.meta, env_id=outcome.env_id, provenance=provenance)
    policyfile.save(path, policy.tensors, meta)


def cooperation_report(outcome: Cooperation) -> Report:
    """Report on the returns before and after, then on every round's lessons."""
    taught = [(r.number, p) for r in outcome.rounds for p in r.pairs if p.gap_before is not None]
    no_gap = "No state excluded from learning had another policy that was better."
    lessons = [pairs_table(outcome)]
    if any(record.trials for record in outcome.rounds):
        lessons.append(trials_table(outcome))
    settings = ", ".join(f"{k} {v}" for k, v in outcome.settings.items())
    sections = [
        Section(
            prose=[gains_sentence(outcome), *(f"{line}." for line in outcome.remarks())],
            figures=[partial(draw_before_after, outcome)],
            tables=[before_after_table(outcome), *([gains_table(outcome)] * bool(outcome.gains))],
        ),
        Section(
            heading="Lessons",
            prose=[] if taught else [no_gap],
            figures=[partial(draw_gaps, taught)] if taught else [],
            tables=lessons,
        ),
        Section(heading="Simulator steps", tables=[steps_table(outcome)]),
        Section(heading="What the numbers mean", terms=COOPERATION_MEANINGS.items()),
        Section(
            heading="Files and settings",
            prose=[f"{settings}."],
            terms=[
                (f"{k} {s.name}", f"{s.file}\n`{json.dumps(s.origin)}`")
                for k, s in enumerate(outcome.subjects)
            ],
        ),
    ]
    data, title = cooperation_json(outcome), f"Cooperation in {outcome.env_id}"
    return Report(title=title, sections=sections, data=data)


def before_after_table(outcome: Cooperation) -> Table:
    """Tabulate the returns of every policy before and after."""
    rows = []
    for k in range(len(outcome.subjects)):
        played = [None if r is None else r[k] for r in (outcome.before, outcome.after)]
        pairs = [(None, None) if r is None else (float(r.mean()), mean_interval(r)) for r in played]
        rows.append(table_row(f"{k} {outcome.name(k)}", *pairs[0], *pairs[1]))
    episodes = f"the same {outcome.config.episodes} deterministic episodes before and after"
    columns = ["policy", "before", "95 %", "after", "95 %"]
    return Table(f"{outcome.env_id}: {episodes}", columns, rows)


def gains_table(outcome: Cooperation) -> Table:
    """Tabulate every policy's gain and its verdict."""
    rows = []
    for k, gain in enumerate(outcome.gains):
        figures = (gain.mean, gain.interval, gain.p, gain.p_adjusted)
        rows.append([*table_row(f"{k} {outcome.name(k)}", *figures), gain_verdict(gain)])
    columns = ["policy", "gain", "95 %", "p", "p adj.", "verdict"]
    return Table("After minus before, episode by episode", columns, rows)


def pairs_table(outcome: Cooperation) -> Table:
    """Tabulate every pair's figures in every round."""
    rows = []
    for record in outcome.rounds:
        for p in record.pairs:
            figures = (p.cf_success, p.cf_gap_up, p.gap_before, p.gap_after, p.proxy_r2)
            counts = [f"{p.n_deficient:,}", f"{p.n_counterfactuals:,}"]
            measured = map(format_number, (*figures, record.drift[p.student]))
            rows.append([f"{record.number} {p.teacher}→{p.student}", *counts, *measured])
    columns = ["round, pair", "states", "new", "success", "gap up", "gap", "left", "R²", "drift"]
    return Table("Lessons by pair (teacher→student)", columns, rows)


def trials_table(outcome: Cooperation) -> Table:
    """Tabulate the trials of every round."""
    rows = []
    for record in outcome.rounds:
        for k, trial in enumerate(record.trials or ()):
            returns = table_row(f"{record.number} {outcome.name(k)}", *trial)
            rows.append([*returns, "kept" if trial.passed else "rolled back"])
    title = f"Trial in {outcome.config.trial_episodes} other episodes after each round"
    return Table(title, ["round, policy", "before", "after", "lessons"], rows)


def steps_table(outcome: Cooperation) -> Table:
    """Tabulate the simulator steps by purpose."""
    used = outcome.budget.used
    rows = [[f"{what}: {PURPOSE_MEANINGS[what]}", f"{n:,}"] for what, n in used.items()]
    rows.append([f"all, of {outcome.budget.total:,}", f"{outcome.budget.spent:,}"])
    return Table("Simulator steps", ["purpose", "steps"], rows, detail=True)


def gains_sentence(outcome: Cooperation) -> str:
    """Return a sentence with the verdict on every policy."""
    if not outcome.gains:
        return "The policies were not evaluated after the last round."
    words: dict[str, list[str]] = {"higher": [], "lower": []}
    for k, gain in enumerate(outcome.gains):
        words.setdefault(gain_verdict(gain), []).append(outcome.name(k))
    verdicts = (f"{what} ({', '.join(names)})" for what, names in words.items() if names)
    return f"Gains by adjusted p: {', '.join(verdicts)}."


def draw_before_after(outcome: Cooperation) -> Figure:
    """Draw the returns of every policy before and after, with intervals."""
    names = [f"{k} {outcome.name(k)}" for k in range(len(outcome.subjects))]
    figure = new_figure(8.4, 1.1 + 0.5 * len(names))
    axes = figure.add_subplot()
    for turn, (name, returns) in enumerate((("before", outcome.before), ("after", outcome.after))):
        if returns is not None:
            marks = {"color": line_style(turn)["color"], "label": name}
            draw_intervals(axes, returns, (0.12, -0.12)[turn], marks)
    style_rows(axes, names, "return per episode, mean and 95 % interval")
    add_legend(figure)
    return figure


def draw_intervals(axes: Axes, returns: np.ndarray, shift: float, marks: dict[str, str]) -> None:
    """Draw a dot and an interval for the returns of every policy [k, K]."""
    means = returns.mean(1)
    ends = np.array([mean_interval(row) or (m, m) for row, m in zip(returns, means, strict=True)])
    spread = np.abs(ends.T - means)
    at = np.arange(len(returns)) - shift
    axes.errorbar(means, at, xerr=spread, fmt="o", markersize=5, linewidth=1.6, **marks)  # type: ignore[arg-type]


def draw_gaps(taught: list[tuple[int, Pair]]) -> Figure:
    """Draw the gap of every pair before and after each round's lessons."""
    figure = new_figure(8.4, 2.7)
    axes = figure.add_subplot()
    at = np.arange(len(taught))
    before, after = ([getattr(p, k) or 0.0 for _, p in taught] for k in ("gap_before", "gap_after"))
    axes.bar(at - 0.19, before, 0.36, color=line_style(0)["color"], label="before")
    axes.bar(at + 0.19, after, 0.36, color=line_style(1)["color"], label="after")
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xticks(at, [f"{p.teacher}→{p.student}\n{number}" for number, p in taught])
    style_axes(
        axes, "gap on deficient states excluded from learning; below: teacher→student, round"
    )
    add_legend(figure)
    return figure


def cooperation_events(
    outcome: Cooperation,
) -> dict[str, list[tuple[int, dict[str, float | None]]]]:
    """Return TensorBoard events by run: peer<k>, and peer<teacher>-to-peer<student> for a pair.

    The tags of all runs are the same, so that they share charts.
    """
    runs: dict[str, list[tuple[int, dict[str, float | None]]]] = defaultdict(list)
    for record, step in zip(outcome.rounds, outcome.steps, strict=True):
        for pair in record.pairs:
            figures = {f"coop/{k}": v for k, v in list(pair._asdict().items())[2:]}
            runs[f"peer{pair.teacher}-to-peer{pair.student}"].append((step, figures))
        for k, trial in enumerate(record.trials or ()):
            figures = {f"coop/trial_{k}": v for k, v in trial._asdict().items()}
            runs[f"peer{k}"].append((step, figures | {"coop/passed": float(trial.passed)}))
        for k, drift in enumerate(record.drift):
            runs[f"peer{k}"].append((step, {"coop/drift_competent": drift}))
    for name, returns in (("before", outcome.before), ("after", outcome.after)):
        for k, mine in enumerate(() if returns is None else returns):
            tag, step = f"coop/return_{name}", outcome.steps[-1]
            runs[f"peer{k}"].append((step, {tag: float(mine.mean())}))
    return runs
