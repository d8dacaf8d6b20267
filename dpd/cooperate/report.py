"""What terminal and page show of cooperation: a line per round, and tables."""

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
from dpd.cooperate.outcome import Outcome, as_text, worded
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


def round_line(outcome: Outcome) -> str:
    """Say in one line what came of the last round."""
    found, total = outcome.rounds[-1], outcome.budget.total
    words = [f"round {found.number}/{outcome.config.rounds}"]
    for p in found.pairs:
        gap = (
            f", gap {format_number(p.gap_before)} → {format_number(p.gap_after)}"
            if p.n_deficient
            else ""
        )
        words.append(f"{p.teacher}→{p.student}: {p.n_deficient}+{p.n_counterfactuals} states{gap}")
    for k, trial in enumerate(found.trials or ()):
        kept = "" if trial.passed else ", not kept"
        words.append(
            f"trial {k}: {format_number(trial.before)} → {format_number(trial.after)}{kept}"
        )
    return "  ".join([*words, f"{outcome.budget.spent:,}/{total:,} steps"])


def sheets(outcome: Outcome) -> Iterator[Table]:
    """Return the tables, the most important one first."""
    yield returns_sheet(outcome)
    if outcome.gains:
        yield gains_sheet(outcome)
    yield pairs_sheet(outcome)
    if any(found.trials for found in outcome.rounds):
        yield trials_sheet(outcome)


def returns_sheet(outcome: Outcome) -> Table:
    """Lay out every policy's returns, before and after."""
    title = (
        f"{outcome.env_id}: the same {outcome.config.episodes} deterministic episodes before and "
        "after"
    )
    rows = []
    for k in range(len(outcome.subjects)):
        row = [f"{k} {outcome.name(k)}"]
        for found in (outcome.before, outcome.after):
            row.append(format_number(None if found is None else float(found[k].mean())))
            row.append(format_number(None if found is None else mean_interval(found[k])))
        rows.append(row)
    return Table(title, ["policy", "before", "95 %", "after", "95 %"], rows)


def gains_sheet(outcome: Outcome) -> Table:
    """Lay out every policy's gain and what it decides."""
    rows = [
        [
            f"{k} {outcome.name(k)}",
            *map(format_number, (gain.mean, gain.interval, gain.p, gain.p_adjusted)),
            worded(gain),
        ]
        for k, gain in enumerate(outcome.gains)
    ]
    columns = ["policy", "gain", "95 %", "p", "p adj.", "verdict"]
    return Table("After minus before, episode by episode", columns, rows)


def pairs_sheet(outcome: Outcome) -> Table:
    """Lay out every pair's figures in every round."""
    rows = []
    for found in outcome.rounds:
        for p in found.pairs:
            figures = [p.cf_success, p.cf_gap_up, p.gap_before, p.gap_after, p.proxy_r2]
            counts = [f"{p.n_deficient:,}", f"{p.n_counterfactuals:,}"]
            drift = format_number(found.drift[p.student])
            rows.append([f"{found.number} {p.teacher}→{p.student}", *counts])
            rows[-1] += [*map(format_number, figures), drift]
    columns = ["round, pair", "states", "new", "success", "gap up", "gap", "left", "R²", "drift"]
    return Table("Who taught whom (teacher→student)", columns, rows)


def trials_sheet(outcome: Outcome) -> Table:
    """Lay out what the trials of every round decided."""
    rows = [
        [
            f"{found.number} {outcome.name(k)}",
            format_number(t.before),
            format_number(t.after),
            kept(t.passed),
        ]
        for found in outcome.rounds
        for k, t in enumerate(found.trials or ())
    ]
    title = f"On trial in {outcome.config.trial_episodes} other episodes, after each round"
    return Table(title, ["round, policy", "before", "after", "lessons"], rows)


def kept(passed: bool) -> str:
    """Word what a trial decides."""
    return "kept" if passed else "given up"


MEANINGS = {
    "before, after, gain": "mean return of whole deterministic episodes, the same ones; 95 % t "
    "interval over episodes, of the gain paired by episode: of these very policies, whatever "
    "another seed would have made of them",
    "p": "how often a mean gain at least as far from 0 comes up when the sign of every episode's "
    "gain is drawn by a coin (an exact test for up to 13 episodes)",
    "p adj.": "p adjusted by Holm for all policies; the verdict follows it, not the interval: "
    "higher or lower at 0.05 or less",
    "states": "where the student is deficient: the teacher gets more from there, over the horizon, "
    "by more than the margin, and of several the most",
    "new": "counterfactuals: states found near those where the played gap is above the threshold",
    "success": "share of the searches that gave one",
    "gap up": "share of the states found whose played gap is larger than where the search began",
    "gap, left": "how much more the teacher gets over the horizon than the student, at deficient "
    "states that nothing learned from: before the lessons, and after them",
    "R²": "of the network that predicts the gap, on such states",
    "drift": "mean |change| of the student's actions, in halves of their range, at such states "
    "where no other was better",
    "trial": "whole episodes, others than those of the first table: who got worse in them stays "
    "as it was",
}
PURPOSES = {
    "probe": "episodes that give the states",
    "competence": "playing every policy from every state",
    "counterfactual": "playing teacher and student from states that were found",
    "trial": "whole episodes after each round",
    "evaluation": "whole episodes of the first table",
}


def page(outcome: Outcome) -> str:
    """Return the page."""
    tables = list(sheets(outcome))
    n = 1 + bool(outcome.gains)  # the tables of returns
    remarks = [f"{line}." for line in outcome.remarks()]
    sections = [
        Section("", [verdict(outcome), *remarks, *tables[:n], returns(outcome)]),
        Section("What was taught", [gaps(outcome), *tables[n:]]),
        Section("What it cost", [costs_sheet(outcome)]),
        Section("What the numbers mean", [MEANINGS.items()]),
        Section("Where it comes from", provenance(outcome)),
    ]
    return render_page(f"Cooperation in {outcome.env_id}", sections)


def verdict(outcome: Outcome) -> str:
    """Say in a sentence who got better, as far as the episodes tell."""
    if not outcome.gains:
        return "The policies were not evaluated after the last round."
    words: dict[str, list[str]] = {"higher": [], "lower": []}
    for k, gain in enumerate(outcome.gains):
        words.setdefault(worded(gain), []).append(outcome.name(k))
    said = (f"{what}: {', '.join(names)}" for what, names in words.items() if names)
    return f"By the adjusted p of the gain {'; '.join(said)}."


def returns(outcome: Outcome) -> str:
    """Draw every policy's returns before and after, with their intervals."""
    k = len(outcome.subjects)
    figure = new_figure(8.4, 1.1 + 0.5 * k)
    axes = figure.add_subplot()
    for turn, (name, found) in enumerate((("before", outcome.before), ("after", outcome.after))):
        if found is not None:
            marks = {"color": page_line_style(turn)["color"], "label": name}
            draw_returns(axes, found, (0.12, -0.12)[turn], marks)
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


def draw_returns(axes: Axes, found: np.ndarray, shift: float, marks: dict[str, str]) -> None:
    """Draw a dot and an interval for the returns of every policy [k, K]."""
    means = found.mean(1)
    ends = np.array([mean_interval(row) or (m, m) for row, m in zip(found, means, strict=True)])
    spread = np.abs(ends.T - means)
    at = np.arange(len(found)) - shift
    axes.errorbar(means, at, xerr=spread, fmt="o", markersize=5, linewidth=1.6, **marks)  # type: ignore[arg-type]


def gaps(outcome: Outcome) -> str:
    """Draw the gap of every pair before and after each round's lessons."""
    taught = [(r.number, p) for r in outcome.rounds for p in r.pairs if p.gap_before is not None]
    if not taught:
        return "No state was held out at which another policy was better."
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
        axes, "gap at deficient states that nothing learned from; below: teacher→student, round"
    )
    legend(figure)
    return svg(figure, "gaps")


def costs_sheet(outcome: Outcome) -> Table:
    """Lay out the simulator's steps by what they were for."""
    used = outcome.budget.used
    rows = [[f"{what}: {PURPOSES[what]}", f"{n:,}"] for what, n in used.items()]
    total = [f"all, of {outcome.budget.total:,}", f"{outcome.budget.spent:,}"]
    return Table("Simulator steps", ["purpose", "steps"], [*rows, total])


def provenance(outcome: Outcome) -> list[Block]:
    """Name the files with their digests, and the settings."""
    said = ", ".join(f"{k} {v}" for k, v in outcome.settings.items())
    files = {
        f"{k} {s.name}": Markup("{}<br><code>{}</code>").format(s.file, json.dumps(s.origin))
        for k, s in enumerate(outcome.subjects)
    }
    return [files.items(), f"{said}."]


def write(outcome: Outcome) -> None:
    """Write the policies of the last round, and all figures."""
    out = outcome.config.out
    for k in range(len(outcome.subjects)):
        write_policy(outcome, k, out / "policies" / f"peer{k}.safetensors")
    for name, text in (("json", as_text(outcome)), ("html", page(outcome))):
        with replacing(out / f"cooperative.{name}") as draft:
            draft.write_text(text, encoding="utf-8")
    write_events(outcome, out / "tb")


def write_policy(outcome: Outcome, k: int, path: Path) -> None:
    """Write a policy with where it came from."""
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


def write_events(outcome: Outcome, folder: Path) -> None:
    """Write TensorBoard's events, in place of those after an earlier round.

    One run per policy and one per pair of them, with the same tags: they share charts.
    """
    from torch.utils.tensorboard import SummaryWriter

    from dpd.log.tensorboard import add_scalars

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


Runs = dict[str, dict[str, float | None]]
"""Figures by TensorBoard run and tag."""


def round_tags(found: Round) -> Runs:
    """Name a round's figures: of pairs in the runs peer<teacher>-to-peer<student>, else peer<k>."""
    runs: Runs = {}
    for pair in found.pairs:
        i, j, *values = pair
        tags = {f"coop/{k}": v for k, v in zip(pair._fields[2:], values, strict=True)}
        runs[f"peer{i}-to-peer{j}"] = tags
    for j, trial in enumerate(found.trials or ()):
        own = runs.setdefault(f"peer{j}", {})
        own |= {f"coop/trial_{k}": v for k, v in trial._asdict().items()}
        own["coop/passed"] = float(trial.passed)
    for j, drift in enumerate(found.drift):
        runs.setdefault(f"peer{j}", {})["coop/drift_competent"] = drift
    return runs


def return_tags(outcome: Outcome) -> Runs:
    """Name the returns before and after."""
    runs: Runs = {}
    for name, returns in (("before", outcome.before), ("after", outcome.after)):
        for j, mine in enumerate(() if returns is None else returns):
            runs.setdefault(f"peer{j}", {})[f"coop/return_{name}"] = float(mine.mean())
    return runs
