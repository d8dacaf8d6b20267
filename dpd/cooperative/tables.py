"""What terminal and page show of cooperation: a line per round, and tables."""

from __future__ import annotations

from collections.abc import Iterator

from dpd.cooperative.outcome import Outcome, worded
from dpd.intervals import mean_interval
from dpd.sheets import Sheet, shown


def round_line(outcome: Outcome) -> str:
    """Say in one line what came of the last round."""
    found, total = outcome.rounds[-1], outcome.budget.total
    words = [f"round {found.number}/{outcome.config.rounds}"]
    for p in found.pairs:
        gap = f", gap {shown(p.gap_before)} → {shown(p.gap_after)}" if p.n_deficient else ""
        words.append(f"{p.teacher}→{p.student}: {p.n_deficient}+{p.n_counterfactuals} states{gap}")
    for k, trial in enumerate(found.trials or ()):
        kept = "" if trial.passed else ", not kept"
        words.append(f"trial {k}: {shown(trial.before)} → {shown(trial.after)}{kept}")
    return "  ".join([*words, f"{outcome.budget.spent:,}/{total:,} steps"])


def sheets(outcome: Outcome) -> Iterator[Sheet]:
    """Return the tables, the most important one first."""
    yield returns_sheet(outcome)
    if outcome.gains:
        yield gains_sheet(outcome)
    yield pairs_sheet(outcome)
    if any(found.trials for found in outcome.rounds):
        yield trials_sheet(outcome)


def returns_sheet(outcome: Outcome) -> Sheet:
    """Lay out every policy's returns, before and after."""
    title = (
        f"{outcome.env_id}: the same {outcome.config.episodes} deterministic episodes before and "
        "after"
    )
    rows = []
    for k in range(len(outcome.subjects)):
        row = [f"{k} {outcome.name(k)}"]
        for found in (outcome.before, outcome.after):
            row.append(shown(None if found is None else float(found[k].mean())))
            row.append(shown(None if found is None else mean_interval(found[k])))
        rows.append(row)
    return Sheet(title, ["policy", "before", "95 %", "after", "95 %"], rows)


def gains_sheet(outcome: Outcome) -> Sheet:
    """Lay out every policy's gain and what it decides."""
    rows = [
        [
            f"{k} {outcome.name(k)}",
            *map(shown, (gain.mean, gain.interval, gain.p, gain.p_adjusted)),
            worded(gain),
        ]
        for k, gain in enumerate(outcome.gains)
    ]
    columns = ["policy", "gain", "95 %", "p", "p adj.", "verdict"]
    return Sheet("After minus before, episode by episode", columns, rows)


def pairs_sheet(outcome: Outcome) -> Sheet:
    """Lay out every pair's figures in every round."""
    rows = []
    for found in outcome.rounds:
        for p in found.pairs:
            figures = [p.cf_success, p.cf_gap_up, p.gap_before, p.gap_after, p.proxy_r2]
            counts = [f"{p.n_deficient:,}", f"{p.n_counterfactuals:,}"]
            drift = shown(found.drift[p.student])
            rows.append([f"{found.number} {p.teacher}→{p.student}", *counts])
            rows[-1] += [*map(shown, figures), drift]
    columns = ["round, pair", "states", "new", "success", "gap up", "gap", "left", "R²", "drift"]
    return Sheet("Who taught whom (teacher→student)", columns, rows)


def trials_sheet(outcome: Outcome) -> Sheet:
    """Lay out what the trials of every round decided."""
    rows = [
        [f"{found.number} {outcome.name(k)}", shown(t.before), shown(t.after), kept(t.passed)]
        for found in outcome.rounds
        for k, t in enumerate(found.trials or ())
    ]
    title = f"On trial in {outcome.config.trial_episodes} other episodes, after each round"
    return Sheet(title, ["round, policy", "before", "after", "lessons"], rows)


def kept(passed: bool) -> str:
    """Word what a trial decides."""
    return "kept" if passed else "given up"
