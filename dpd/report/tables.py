"""Tables and reports of the analysis commands: terminal, JSON and HTML."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rich.table
from rich import box
from rich.console import Console
from rich.markup import escape

from dpd.errors import BadInput
from dpd.files import replacing
from dpd.log.terminal import make_console
from dpd.report.stats import Interval

ROUNDING = 1e-9


class Table(NamedTuple):
    """A table of text; the first column names the rows."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def print_tables(tables: Sequence[Table], notes: Sequence[str], console: Console) -> None:
    """Print tables and, below them, the notes."""
    for table in tables:
        printed = rich.table.Table(
            title=escape(table.title),
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        printed.add_column(table.columns[0], overflow="fold", min_width=8)
        for name in table.columns[1:]:
            printed.add_column(name, justify="right", no_wrap=True)
        for row in table.rows:
            printed.add_row(*map(escape, row))
        console.print(printed)
    for note in notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)


class Report(NamedTuple):
    """The results of a command, in every output format."""

    name: str
    """Base name of the output files."""
    data: dict[str, Any]
    page: str
    tables: Sequence[Table]
    notes: Sequence[str]


def write_report(report: Report, out: Path, as_json: bool) -> None:
    """Write the JSON file and the page into a directory; print the JSON or the tables."""
    text = json.dumps(report.data, indent=2, allow_nan=False) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    for suffix, content in (("json", text), ("html", report.page)):
        with replacing(out / f"{report.name}.{suffix}") as draft:
            draft.write_text(content, encoding="utf-8")
    if as_json:
        sys.stdout.write(text)
        return
    print_tables(report.tables, report.notes, make_console(highlight=False))
    line = f"report  {out / report.name}.html"
    make_console(markup=False, highlight=False).print(line, soft_wrap=True)


def require_writable(out: Path) -> None:
    """Raise BadInput unless a directory exists and is writable, or can be created."""
    nearest = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise BadInput(f"cannot write {out}: not a directory, or not writable; see --out")


def describe_returns(returns: np.ndarray) -> dict[str, Any]:
    """Return the mean and all values of returns [K] for a JSON file."""
    return {"return": float(returns.mean()), "returns": returns.tolist()}


def format_number(value: float | Interval | None) -> str:
    """Format a number with 1 to 3 significant digits, an interval, or a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, Interval):
        return f"{format_number(value.low)}…{format_number(value.high)}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 1 if abs(value) < 0.001 else 2 if abs(value) < 0.1 else 3
    text = f"{value:.{digits}g}"
    # A share of 0.9996 must not read as "all of them".
    is_less = value < 1 - ROUNDING
    return "<1" if text == "1" and is_less else text
