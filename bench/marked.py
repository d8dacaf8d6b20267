"""Markdown tables, for the terminal and for pages, where marks name their benchmark."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

from timing import Record, fastest, machine, median_ratio, write_json


def fill(page: str, name: str, lines: Sequence[str]) -> str:
    """Replace the lines between a benchmark's marks. Raises ValueError if the page has no marks."""
    begin, end = (f"<!-- {name}: {word} -->" for word in ("begin", "end"))
    before, has_begin, rest = page.partition(begin)
    _, has_end, after = rest.partition(end)
    if not has_begin or not has_end:
        raise ValueError(f"the page lacks the lines {begin} and {end}")
    return "\n".join([before + begin, "", *lines, "", end + after])


def report(path: Path | None, data: Record, *tables: Sequence[str]) -> None:
    """Print tables and the goals of data; write data, with machine and versions, into `path`."""
    parts = [*tables]
    if "goals" in data:
        met = {True: "met", False: "NOT MET"}
        parts.append([f"{met[g['met']]}: {g['goal']}: {g['measured']:.2f}" for g in data["goals"]])
    sys.stdout.write("\n\n".join("\n".join(part) for part in parts if part) + "\n")
    write_json(path, {"machine": machine()} | data)


def table(head: Sequence[str], rule: str, rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a Markdown table; `rule` has a letter per column: l for text, r for numbers."""
    lines = [f"| {' | '.join(head)} |"]
    lines.append("|" + "".join({"l": "---|", "r": "---:|"}[side] for side in rule))
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def ratio_rows(
    learners: Mapping[str, str],
    rates: Mapping[str, list[float]],
    default: str,
    rivals: Collection[str],
) -> list[list[str]]:
    """Return a row per set-up: its learners, median rate, and ratios to the default and best rival.

    `learners` names those of every set-up, in the order of the table.
    """
    best = fastest(rates, rivals)
    marks = {default: " (*default*)"}
    marks[best] = marks.get(best, "") + " (*best*)"
    rows = []
    for name in (name for name in learners if name in rates):
        ratios = [f"{median_ratio(rates, name, base):.2f}" for base in (default, best)]
        shown = f"**{name}**" if name not in rivals else name + marks.get(name, "")
        rows.append([learners[name], shown, f"{median(rates[name]):,.0f}", *ratios])
    return rows


RATIO_RULE = "llrrr"


def ratio_head(unit: str) -> list[str]:
    """Return the head of `ratio_rows`."""
    return ["learners", "set-up", f"{unit}/s", "× default", "× best"]
