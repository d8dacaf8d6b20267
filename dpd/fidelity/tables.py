"""What the terminal and the page lay out as tables."""

from __future__ import annotations

from collections.abc import Sequence

from dpd.fidelity.audit import Audit, Finding
from dpd.fidelity.measures import CLOSE, MEASURES
from dpd.sheets import Sheet, shown


def label(f: Finding) -> str:
    """Name a student; the floor is called so."""
    return f"{f.subject.name} (floor)" if f.subject.is_floor else f.subject.name


def returns_sheet(found: Audit) -> Sheet:
    """Lay out what is left of the teacher's return."""
    columns = ["policy", "return", "ratio", "retained", "95 % interval", "held-out ≤0.05"]
    rows = [
        [f"{found.teacher.name} (teacher)", shown(float(found.returns.mean())), *["-"] * 4],
        ["random actions", shown(float(found.random.mean())), *["-"] * 4],
    ]
    for f in found.findings:
        agree = f.scores["heldout"].values[f"agree_{CLOSE}"]
        figures = [float(f.returns.mean()), f.ratio, f.retained, f.interval, agree]
        rows.append([label(f), *map(shown, figures)])
    title = f"{found.setting.env_id}: returns of {found.setting.episodes} deterministic episodes"
    return Sheet(title, columns, rows)


def costs_sheet(found: Audit) -> Sheet:
    """Lay out what the policies cost."""
    columns = ["policy", "parameters", "× smaller", "bytes", "µs/action", "actions/s"]
    rows = []
    for name, cost, smaller in [
        (f"{found.teacher.name} (teacher)", found.cost, 1.0),
        *((label(f), f.cost, f.compression) for f in found.findings),
    ]:
        figures = [cost.bytes, cost.latency_us, cost.actions_per_s]
        rows.append([name, f"{cost.parameters:,}", shown(smaller), *map(shown, figures)])
    return Sheet("Cost, on one thread; actions/s in batches of 256", columns, rows)


def fidelity_sheet(found: Audit, f: Finding) -> Sheet:
    """Lay out how closely a student follows on every set of states, and the gap."""
    known = {k for row in f.scores.values() for k, v in row.values.items() if v is not None}
    names = [name for name in MEASURES if name in known and name != "action_mse"]
    rows = [[s, *(shown(row.values[n]) for n in names)] for s, row in f.scores.items()]
    rows.append(["gap", *(shown(f.gap.values[n]) for n in names)])
    title = f"{label(f)} against {found.teacher.name}, on states of (gap: heldout − {f.gap.seen})"
    return Sheet(title, ["states", *(MEASURES[n].title for n in names)], rows)


def r2_sheet(f: Finding) -> Sheet:
    """Lay out R² of each action dimension."""
    n_act = len(next(iter(f.scores.values())).r2)
    rows = [[s, *map(shown, row.r2)] for s, row in f.scores.items()]
    columns = ["states", *(f"action {k}" for k in range(n_act))]
    return Sheet(f"{label(f)}: R² of each action dimension", columns, rows)


def sheets(found: Audit) -> Sequence[Sheet]:
    """Return the terminal's tables."""
    by_states = [fidelity_sheet(found, f) for f in found.findings]
    return [*by_states, returns_sheet(found), costs_sheet(found)]
