"""What a command found: tables of text for terminal and page, a page and JSON."""

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

from dpd.errors import BadInput
from dpd.files import replacing
from dpd.log.terminal import make_console
from dpd.report.stats import Interval

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
    print_sheets(report.sheets, report.notes, make_console(highlight=False))
    where = f"report  {out / report.name}.html"
    make_console(markup=False, highlight=False).print(where, soft_wrap=True)


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
