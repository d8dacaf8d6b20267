"""Markdown tables, written into a page between marks that name their benchmark."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpd.report.stats import bootstrap_interval, iqm


def fill(page: Path, name: str, lines: Sequence[str]) -> None:
    """Replace the lines between a benchmark's marks. Raises ValueError if the page has no marks."""
    begin, end = (f"<!-- {name}: {word} -->" for word in ("begin", "end"))
    before, has_begin, rest = page.read_text().partition(begin)
    _, has_end, after = rest.partition(end)
    if not has_begin or not has_end:
        raise ValueError(f"{page} lacks the lines {begin} and {end}")
    page.write_text("\n".join([before + begin, "", *lines, "", end + after]))


def publish(lines: Sequence[str], page: Path | None, name: str) -> None:
    """Print lines, and write them into a page if one is given."""
    if page is not None:
        fill(page, name, lines)
    sys.stdout.write("\n".join(lines) + "\n")


def table(head: Sequence[str], rule: str, rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a Markdown table; `rule` has a letter per column: l for text, r for numbers."""
    lines = [f"| {' | '.join(head)} |"]
    lines.append("|" + "".join({"l": "---|", "r": "---:|"}[side] for side in rule))
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def centre(values: Sequence[float], places: int = 0) -> str:
    """Format the interquartile mean and its bootstrap interval over seeds."""
    middle, interval = float(iqm(values)), bootstrap_interval(iqm, [values], 0)
    text = f"{middle:,.{places}f}"
    if interval is None:
        return text
    return f"{text} ({interval.low:,.{places}f} to {interval.high:,.{places}f})"


def students_lead(env: str, settings: dict[str, Any], baselines: dict[str, Any]) -> str:
    """Return the sentence above a table of distilled students."""
    return (
        f"{env}, {settings['steps']:,} environment steps per student, {settings['seeds']} seeds, "
        f"{settings['episodes']} episodes per policy. The teacher gets "
        f"{baselines['teacher']:,.0f}, uniform actions {baselines['random']:,.0f}."
    )


def baselines_of(fidelity: dict[str, Any]) -> dict[str, float]:
    """Return the returns of teacher and random actions in a run's fidelity.json."""
    returns = [x for teacher in fidelity["teachers"] for x in teacher["returns"]]
    return {"teacher": float(np.mean(returns)), "random": fidelity["random"]["return"]}


def add_outputs(parser: argparse.ArgumentParser, contents: str) -> None:
    """Add the flags --json and --docs."""
    parser.add_argument("--json", type=Path, required=True, help=contents)
    parser.add_argument("--docs", type=Path, help="write the tables of --json into this page")
