"""Tabulate students that see less than their teacher, and learners by reward with the same view.

python bench/views.py runs/frames runs/gru runs/scratch --json bench/results/views.json

Runs of `dpd distill --student-obs ...` give a row per history or memory, runs of `dpd train
--actor-obs ...` one. docs/results.md has the runs' commands. Intervals are t intervals over seeds.
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
from dpd.run.sources import is_best

Record = dict[str, Any]
BY_SEED = ("return", "retained", "own_error")
STUDENT = ("total_steps", "seed", "student_obs", "hidden", "encoder", "distill")
LEARNER = ("total_steps", "seed", "actor_obs", "hidden", "history", "critic_obs", "critic_warmup")


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


def learner(run: Path) -> Record:
    """Return the record of a run of `dpd train`, from its last policies' fresh episodes."""
    config, evaluated = contents(run / "config.json"), contents(run / "evaluation.json")
    last = [policy["mean"] for policy in evaluated if not is_best(Path(policy["policy"]))]
    return {
        "env": config["env"],
        "steps": config["total_steps"],
        "starts_from_student": bool(config["init_from"]),
        "settings": {name: config[name] for name in LEARNER},
        "return": last,
    }


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


def learner_lines(data: Record) -> list[str]:
    """Lay out a row per run by reward."""
    rows = [
        [
            row["env"],
            "distilled, then fine-tuned" if row["starts_from_student"] else "from scratch",
            f"{row['steps']:,}",
            str(len(row["return"])),
            centre(row["return"]),
        ]
        for row in data["learners"]
    ]
    return table(["task", "policy", "steps by reward", "seeds", "return"], "llrrr", rows)


def main() -> int:
    """Collect the runs, and print and write their tables."""
    parser = argparse.ArgumentParser(description="Tabulate runs with views.")
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    distilled = [run for run in args.runs if (run / "fidelity.json").exists()]
    data = {
        "students": [row for run in distilled for row in students(run)],
        "learners": [learner(run) for run in args.runs if run not in distilled],
    }
    report(args.json, data, lines(data), learner_lines(data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
