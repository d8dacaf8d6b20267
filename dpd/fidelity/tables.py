"""What the terminal and the page lay out as tables."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dpd.config import BadInput
from dpd.fidelity.audit import Audit, Finding
from dpd.fidelity.measures import CLOSE, MEASURES
from dpd.files import replacing
from dpd.intervals import Interval

ROUNDING = 1e-9


class Sheet(NamedTuple):
    """A table of text; the first column names the rows."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def print_sheet(sheet: Sheet, console: Console) -> None:
    """Print a sheet."""
    table = Table(
        title=escape(sheet.title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column(sheet.columns[0], overflow="fold", min_width=8)
    for name in sheet.columns[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in sheet.rows:
        table.add_row(*map(escape, row))
    console.print(table)


def print_sheets(sheets: Sequence[Sheet], notes: Sequence[str], console: Console) -> None:
    """Print tables, and what is to be noted below them."""
    for sheet in sheets:
        print_sheet(sheet, console)
    for note in notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)


class Report(NamedTuple):
    """What a command found, in every form it has."""

    name: str
    """Of its files."""
    data: dict[str, Any]
    page: str
    sheets: Sequence[Sheet]
    notes: Sequence[str]


def deliver(report: Report, out: Path, as_json: bool) -> None:
    """Write the JSON and the page into a directory; print the former, or the tables."""
    text = json.dumps(report.data, indent=2, allow_nan=False) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    for ending, content in (("json", text), ("html", report.page)):
        with replacing(out / f"{report.name}.{ending}") as draft:
            draft.write_text(content, encoding="utf-8")
    if as_json:
        sys.stdout.write(text)
        return
    print_sheets(report.sheets, report.notes, Console(highlight=False))
    where = f"report  {out / report.name}.html"
    Console(markup=False, highlight=False).print(where, soft_wrap=True)


def require_writable(out: Path) -> None:
    """Raise BadInput unless a directory is there, or can be made."""
    there = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise BadInput(f"cannot write {out}: no directory, or not writable; see --out")


def mean_and_each(returns: np.ndarray) -> dict[str, Any]:
    """Return returns [K] for a JSON file."""
    return {"return": float(returns.mean()), "returns": returns.tolist()}


def shown(value: float | Interval | None) -> str:
    """Write a figure, an interval, or a dash."""
    if value is None:
        return "-"
    if isinstance(value, Interval):
        return f"{shown(value.low)}…{shown(value.high)}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 1 if abs(value) < 0.001 else 2 if abs(value) < 0.1 else 3
    text = f"{value:.{digits}g}"
    is_less = value < 1 - ROUNDING  # nearly all is not all
    return "<1" if text == "1" and is_less else text


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
