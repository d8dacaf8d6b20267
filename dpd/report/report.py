"""The report of a command: one object, written to the terminal, JSON, Markdown and HTML."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import rich.table
from rich import box, markup
from rich.console import Console

from dpd.errors import BadInput
from dpd.files import replacing
from dpd.log.terminal import make_console
from dpd.report.figures import svg
from dpd.report.stats import Interval

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup
    from matplotlib.figure import Figure

ROUNDING = 1e-9


class Table(NamedTuple):
    """A table of text; the first column names the rows."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    detail: bool = False
    """Leave the table out of the terminal."""


class Video(NamedTuple):
    """A video inside a page."""

    title: str
    mp4: bytes

    @property
    def url(self) -> str:
        """The video itself as an address."""
        return f"data:video/mp4;base64,{base64.b64encode(self.mp4).decode()}"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a report; a page shows its fields in this order, and words in backticks as code."""

    heading: str = ""
    prose: Sequence[str] = ()
    """Paragraphs."""
    terms: Collection[tuple[str, str]] = ()
    """Terms with their definitions."""
    figures: Sequence[Callable[[], Figure]] = ()
    """Functions that draw a figure; only a page calls them."""
    narrow_figures: Sequence[Callable[[], Figure]] = ()
    """The same figures for a narrow screen; by default, it scrolls those above."""
    panels: Sequence[Callable[[], Figure]] = ()
    """Functions that draw small figures, which a page lays out side by side."""
    videos: Sequence[Video] = ()
    facts: Collection[tuple[str, str]] = ()
    """Short values by name, which a page shows as tiles."""
    tables: Sequence[Table] = ()
    is_folded: bool = False
    """Show the heading alone until a reader opens the section."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The results of a command. Names of files and runs in it may be any text."""

    title: str = ""
    sections: Sequence[Section]
    data: Any
    """Contents of the JSON file."""
    notes: Sequence[str] = ()
    """Warnings, without a full stop."""
    summary_last: bool = False
    """Print the first section last in the terminal, where a reader looks first."""
    framed: bool = False
    """Print lines between all cells in the terminal."""


def save_report(report: Report, out: Path, name: str) -> Path:
    """Write `name`.json, .md and .html into a directory; return the path of the page."""
    out.mkdir(parents=True, exist_ok=True)
    writers = {"json": json_text, "md": markdown_text, "html": html_text}
    for suffix, write in writers.items():
        with replacing(out / f"{name}.{suffix}") as draft:
            draft.write_text(write(report), encoding="utf-8")
    return out / f"{name}.html"


def print_report(report: Report, as_json: bool = False, console: Console | None = None) -> None:
    """Print the JSON, or the tables and below them the notes."""
    if as_json:
        sys.stdout.write(json_text(report))
        return
    console = console or make_console(highlight=False)
    first, others = report.sections[:1], report.sections[1:]
    for section in [*others, *first] if report.summary_last else report.sections:
        for table in section.tables:
            if not table.detail:
                console.print(rich_table(table, report.framed))
    for note in report.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)


def rich_table(table: Table, is_framed: bool) -> rich.table.Table:
    """Return a table for the terminal: names of rows may wrap, numbers may not."""
    style: dict[str, Any] = {"box": box.SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True}
    title = markup.escape(table.title)
    printed = rich.table.Table(title=title, title_justify="left", **({} if is_framed else style))
    printed.add_column(table.columns[0], overflow="fold", min_width=None if is_framed else 8)
    for name in table.columns[1:]:
        printed.add_column(name, justify="right", no_wrap=True)
    for row in table.rows:
        printed.add_row(*map(markup.escape, row))
    return printed


def print_line(line: str) -> None:
    """Print a line without markup or wrapping."""
    make_console(markup=False, highlight=False).print(line, soft_wrap=True)


def json_text(report: Report) -> str:
    """Return the data as JSON."""
    return indented_json(report.data) + "\n"


def indented_json(data: Any, indent: int = 2) -> str:
    """Return indented JSON with lists of numbers on one line, which makes it half as long."""
    text = json.dumps(data, indent=indent, allow_nan=False)
    # A line break inside a string is escaped, so these brackets are those of a list.
    return re.sub(r'\[\n([^\[\]{}"]*)\]', lambda found: f"[{' '.join(found[1].split())}]", text)


def markdown_text(report: Report) -> str:
    """Return everything but the figures as Markdown."""
    blocks = [f"# {report.title}", *(f"Note: {note}." for note in report.notes)]
    for section in report.sections:
        blocks += [f"## {section.heading}"] * bool(section.heading)
        blocks += section.prose
        blocks += ["\n".join(f"* **{k}**: {v}" for k, v in (*section.facts, *section.terms))]
        blocks += map(markdown_table, section.tables)
    # HTML in the name of a file must stay text.
    return "\n\n".join(filter(None, blocks)).replace("<", "&lt;") + "\n"


def markdown_table(table: Table) -> str:
    """Return a table as Markdown, below its title."""
    rule = ["---", *["---:"] * (len(table.columns) - 1)]
    rows = [[cell.replace("|", r"\|") for cell in row] for row in (table.columns, *table.rows)]
    lines = [f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:])]
    return "\n".join([f"{table.title}:", "", *lines])


def html_text(report: Report) -> str:
    """Return a page that loads nothing from elsewhere."""
    figures, narrow, panels = (
        [
            [svg(draw(), f"{i} {kind}{k}") for k, draw in enumerate(getattr(section, name))]
            for i, section in enumerate(report.sections)
        ]
        for name, kind in (("figures", ""), ("narrow_figures", "n"), ("panels", "p"))
    )
    drawn = {"figures": figures, "narrow": narrow, "panels": panels}
    return page_template().render(report=report, **drawn) + "\n"


@cache
def page_template() -> jinja2.Template:
    """Load the template next to this module. It escapes all text but the SVG of figures."""
    import jinja2  # here, like markupsafe: a run needs neither before it ends

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dpd.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["code"] = mark_code
    return environment.get_template("report.html.j2")


def mark_code(text: str) -> Markup:
    """Escape a text, and show what is in backticks as code."""
    from markupsafe import Markup

    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text)))


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


def table_row(name: str, *values: float | Interval | None) -> list[str]:
    """Return the row of a table: its name and its formatted numbers."""
    return [name, *map(format_number, values)]


Events = Sequence[tuple[int, Mapping[str, float | None]]]
"""Steps, and the numbers of each by TensorBoard tag."""


def write_events(folder: Path, runs: Mapping[str, Events]) -> None:
    """Write TensorBoard runs by their folder's name; the events that these held are replaced."""
    from torch.utils.tensorboard import SummaryWriter

    from dpd.log.log import add_scalars

    for run, events in runs.items():
        for old in (folder / run).glob("events.out.tfevents.*"):
            old.unlink()
        with SummaryWriter(folder / run) as writer:
            for step, values in events:
                add_scalars(writer, values, step)
