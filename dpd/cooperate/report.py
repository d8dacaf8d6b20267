"""Report of a cooperation: a line per round, tables, HTML page, policies and TensorBoard events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from dpd import __version__
from dpd.cooperate.outcome import Cooperation, cooperation_text, gain_verdict
from dpd.cooperate.rounds import Round
from dpd.files import replacing
from dpd.policies import policyfile
from dpd.report.figures import new_figure
from dpd.report.page import (
    INK,
    Block,
    Section,
    legend,
    page_line_style,
    render_page,
    style_axes,
    svg,
)
from dpd.report.stats import mean_interval
from dpd.report.tables import Table, format_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch.utils.tensorboard import SummaryWriter


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


def cooperation_tables(outcome: Cooperation) -> Iterator[Table]:
    """Yield the tables, the most important one first."""
    yield before_after_table(outcome)
    if outcome.gains:
        yield gains_table(outcome)
    yield pairs_table(outcome)
    if any(record.trials for record in outcome.rounds):
        yield trials_table(outcome)


def before_after_table(outcome: Cooperation) -> Table:
    """Tabulate the returns of every policy before and after."""
    title = (
        f"{outcome.env_id}: the same {outcome.config.episodes} deterministic episodes before and "
        "after"
    )
    rows = []
    for k in range(len(outcome.subjects)):
        row = [f"{k} {outcome.name(k)}"]
        for returns in (outcome.before, outcome.after):
            row.append(format_number(None if returns is None else float(returns[k].mean())))
            row.append(format_number(None if returns is None else mean_interval(returns[k])))
        rows.append(row)
    return Table(title, ["policy", "before", "95 %", "after", "95 %"], rows)


def gains_table(outcome: Cooperation) -> Table:
    """Tabulate every policy's gain and its verdict."""
    rows = [
        [
            f"{k} {outcome.name(k)}",
            *map(format_number, (gain.mean, gain.interval, gain.p, gain.p_adjusted)),
            gain_verdict(gain),
        ]
        for k, gain in enumerate(outcome.gains)
    ]
    columns = ["policy", "gain", "95 %", "p", "p adj.", "verdict"]
    return Table("After minus before, episode by episode", columns, rows)


def pairs_table(outcome: Cooperation) -> Table:
    """Tabulate every pair's figures in every round."""
    rows = []
    for record in outcome.rounds:
        for p in record.pairs:
            figures = [p.cf_success, p.cf_gap_up, p.gap_before, p.gap_after, p.proxy_r2]
            counts = [f"{p.n_deficient:,}", f"{p.n_counterfactuals:,}"]
            drift = format_number(record.drift[p.student])
            rows.append([f"{record.number} {p.teacher}→{p.student}", *counts])
            rows[-1] += [*map(format_number, figures), drift]
    columns = ["round, pair", "states", "new", "success", "gap up", "gap", "left", "R²", "drift"]
    return Table("Lessons by pair (teacher→student)", columns, rows)


def trials_table(outcome: Cooperation) -> Table:
    """Tabulate the trials of every round."""
    rows = [
        [
            f"{record.number} {outcome.name(k)}",
            format_number(t.before),
            format_number(t.after),
            trial_result(t.passed),
        ]
        for record in outcome.rounds
        for k, t in enumerate(record.trials or ())
    ]
    title = f"Trial in {outcome.config.trial_episodes} other episodes after each round"
    return Table(title, ["round, policy", "before", "after", "lessons"], rows)


def trial_result(passed: bool) -> str:
    """Return what a trial decides about the lessons, as text."""
    return "kept" if passed else "rolled back"


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


def cooperation_page(outcome: Cooperation) -> str:
    """Return the HTML page."""
    tables = list(cooperation_tables(outcome))
    n = 1 + bool(outcome.gains)  # the tables of returns
    remarks = [f"{line}." for line in outcome.remarks()]
    sections = [
        Section("", [gains_sentence(outcome), *remarks, *tables[:n], returns_chart(outcome)]),
        Section("Lessons", [gaps_chart(outcome), *tables[n:]]),
        Section("Simulator steps", [steps_table(outcome)]),
        Section("What the numbers mean", [COOPERATION_MEANINGS.items()]),
        Section("Files and settings", source_blocks(outcome)),
    ]
    return render_page(f"Cooperation in {outcome.env_id}", sections)


def gains_sentence(outcome: Cooperation) -> str:
    """Return a sentence with the verdict on every policy."""
    if not outcome.gains:
        return "The policies were not evaluated after the last round."
    words: dict[str, list[str]] = {"higher": [], "lower": []}
    for k, gain in enumerate(outcome.gains):
        words.setdefault(gain_verdict(gain), []).append(outcome.name(k))
    verdicts = (f"{what} ({', '.join(names)})" for what, names in words.items() if names)
    return f"Gains by adjusted p: {', '.join(verdicts)}."


def returns_chart(outcome: Cooperation) -> str:
    """Draw the returns of every policy before and after, with intervals."""
    k = len(outcome.subjects)
    figure = new_figure(8.4, 1.1 + 0.5 * k)
    axes = figure.add_subplot()
    for turn, (name, returns) in enumerate((("before", outcome.before), ("after", outcome.after))):
        if returns is not None:
            marks = {"color": page_line_style(turn)["color"], "label": name}
            draw_intervals(axes, returns, (0.12, -0.12)[turn], marks)
    axes.set_yticks(range(k), [f"{j} {outcome.name(j)}" for j in range(k)])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)  # a file may have dollars in its name
    axes.set_ylim(k - 0.5, -0.5)
    style_axes(axes, "return per episode, mean and 95 % interval")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", linewidth=0.4)
    legend(figure)
    return svg(figure, "returns")


def draw_intervals(axes: Axes, returns: np.ndarray, shift: float, marks: dict[str, str]) -> None:
    """Draw a dot and an interval for the returns of every policy [k, K]."""
    means = returns.mean(1)
    ends = np.array([mean_interval(row) or (m, m) for row, m in zip(returns, means, strict=True)])
    spread = np.abs(ends.T - means)
    at = np.arange(len(returns)) - shift
    axes.errorbar(means, at, xerr=spread, fmt="o", markersize=5, linewidth=1.6, **marks)  # type: ignore[arg-type]


def gaps_chart(outcome: Cooperation) -> str:
    """Draw the gap of every pair before and after each round's lessons."""
    taught = [(r.number, p) for r in outcome.rounds for p in r.pairs if p.gap_before is not None]
    if not taught:
        return "No state excluded from learning had another policy that was better."
    figure = new_figure(8.4, 2.7)
    axes = figure.add_subplot()
    for turn, name in enumerate(("before", "after")):
        heights = [(p.gap_before, p.gap_after)[turn] or 0.0 for _, p in taught]
        at = np.arange(len(taught)) + (turn - 0.5) * 0.38
        axes.bar(at, heights, 0.36, color=page_line_style(turn)["color"], label=name)
    axes.axhline(0, color=INK, linewidth=0.8)
    names = [f"{p.teacher}→{p.student}\n{number}" for number, p in taught]
    axes.set_xticks(range(len(taught)), names)
    style_axes(
        axes, "gap on deficient states excluded from learning; below: teacher→student, round"
    )
    legend(figure)
    return svg(figure, "gaps")


def steps_table(outcome: Cooperation) -> Table:
    """Tabulate the simulator steps by purpose."""
    used = outcome.budget.used
    rows = [[f"{what}: {PURPOSE_MEANINGS[what]}", f"{n:,}"] for what, n in used.items()]
    total = [f"all, of {outcome.budget.total:,}", f"{outcome.budget.spent:,}"]
    return Table("Simulator steps", ["purpose", "steps"], [*rows, total])


def source_blocks(outcome: Cooperation) -> list[Block]:
    """Return the policy files with their digests, and the settings."""
    settings = ", ".join(f"{k} {v}" for k, v in outcome.settings.items())
    files = {
        f"{k} {s.name}": Markup("{}<br><code>{}</code>").format(s.file, json.dumps(s.origin))
        for k, s in enumerate(outcome.subjects)
    }
    return [files.items(), f"{settings}."]


def write_cooperation(outcome: Cooperation) -> None:
    """Write the policies of the last round and the report."""
    out = outcome.config.out
    for k in range(len(outcome.subjects)):
        write_improved_policy(outcome, k, out / "policies" / f"peer{k}.safetensors")
    for name, text in (("json", cooperation_text(outcome)), ("html", cooperation_page(outcome))):
        with replacing(out / f"cooperative.{name}") as draft:
            draft.write_text(text, encoding="utf-8")
    write_cooperation_events(outcome, out / "tb")


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


def write_cooperation_events(outcome: Cooperation, folder: Path) -> None:
    """Write TensorBoard events; those written after an earlier round are replaced.

    Every policy and every pair has its own run. The tags are the same, so that runs share charts.
    """
    from torch.utils.tensorboard import SummaryWriter

    from dpd.log.log import add_scalars

    for within in ("", "peer*/"):
        for old in folder.glob(f"{within}events.out.tfevents.*"):
            old.unlink()
    records = [
        *zip(map(round_tags, outcome.rounds), outcome.steps, strict=True),
        (return_tags(outcome), outcome.steps[-1]),
    ]
    with ExitStack() as opened:
        writers: dict[str, SummaryWriter] = {}
        for runs, steps in records:
            for run, values in runs.items():
                if run not in writers:
                    writers[run] = opened.enter_context(SummaryWriter(folder / run))
                add_scalars(writers[run], values, steps)


TaggedRuns = dict[str, dict[str, float | None]]
"""Figures by TensorBoard run and tag."""


def round_tags(record: Round) -> TaggedRuns:
    """Return a round's figures: pairs in runs peer<teacher>-to-peer<student>, others in peer<k>."""
    runs: TaggedRuns = {}
    for pair in record.pairs:
        i, j, *values = pair
        tags = {f"coop/{k}": v for k, v in zip(pair._fields[2:], values, strict=True)}
        runs[f"peer{i}-to-peer{j}"] = tags
    for j, trial in enumerate(record.trials or ()):
        own = runs.setdefault(f"peer{j}", {})
        own |= {f"coop/trial_{k}": v for k, v in trial._asdict().items()}
        own["coop/passed"] = float(trial.passed)
    for j, drift in enumerate(record.drift):
        runs.setdefault(f"peer{j}", {})["coop/drift_competent"] = drift
    return runs


def return_tags(outcome: Cooperation) -> TaggedRuns:
    """Return the mean returns before and after, by run and tag."""
    runs: TaggedRuns = {}
    for name, returns in (("before", outcome.before), ("after", outcome.after)):
        for j, mine in enumerate(() if returns is None else returns):
            runs.setdefault(f"peer{j}", {})[f"coop/return_{name}"] = float(mine.mean())
    return runs
