"""Tabulate students that see less than their teacher.

python bench/views.py runs/frames runs/gru --json bench/results/views.json

Runs of `dpd distill --student-obs ...` give a row per history or memory; docs/results.md has their
commands. Intervals are t intervals over seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from marked import report, table

from dpd.report.stats import mean_interval

Record = dict[str, Any]
BY_SEED = ("return", "retained", "own_error")
STUDENT = ("total_steps", "seed", "student_obs", "hidden", "encoder", "distill")


def contents(file: Path) -> Any:
    """Read a run's JSON file."""
    return json.loads(file.read_text())


def students(run: Path) -> list[Record]:
    """Return a record per history or memory of a run of `dpd distill`."""
    config, found = contents(run / "config.json"), contents(run / "fidelity.json")
    common = {
        "env": config["env"],
        "steps": config["total_steps"],
        "teacher": float(np.mean(found["teachers"][0]["returns"])),
        "random": found["random"]["return"],
        "settings": {name: config[name] for name in STUDENT},
    }
    return [
        common
        | {"sees": seen(config, kind["students"][0].get("history", 1))}
        | {name: [student[name] for student in kind["students"]] for name in BY_SEED}
        for kind in found["sizes"]
    ]


def seen(config: Record, history: int) -> str:
    """Say what the students of a run see."""
    groups = config.get("student_obs") or "everything"
    if config["encoder"] != "mlp":
        return f"{groups}, {config['encoder'].upper()}"
    return f"{groups}, {history} frame{'s' if history > 1 else ''}"


def centre(values: Sequence[float], places: int = 0) -> str:
    """Format a mean and its interval over seeds."""
    interval = mean_interval(values)
    text = f"{np.mean(values):,.{places}f}"
    if interval is None:
        return text
    return f"{text} ({interval.low:,.{places}f} to {interval.high:,.{places}f})".replace("-", "−")


def lines(data: Record) -> list[str]:
    """Lay out a row per kind of student."""
    rows = [
        [
            f"{row['env']} ({row['teacher']:,.0f})",
            row["sees"],
            str(len(row["return"])),
            centre(row["return"]),
            centre(row["retained"], 2),
            centre(row["own_error"], 3),
        ]
        for row in data["students"]
    ]
    head = ["task (teacher)", "sees", "seeds", "return", "retained", "error on own states"]
    return table(head, "llrrrr", rows)


def main() -> int:
    """Collect the runs, and print and write their table."""
    parser = argparse.ArgumentParser(description="Tabulate runs with views.")
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    data = {"students": [row for run in args.runs for row in students(run)]}
    report(args.json, data, lines(data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
