"""Distil a teacher into very small students, with and without a guide that censors hard states.

python bench/scaffold.py --teacher runs/teacher --json bench/results/scaffold.json
python bench/scaffold.py --json bench/results/scaffold.json --docs docs/results.md

The first command adds the task to the file, the second writes the file's tables into the page.

Without a guide, g = 0: plain Gaussian likelihood on the same number of states, with the same number
of gradient steps. Final policies act without noise in the same fresh episodes. The unit is the
seed, differences are paired by seed, and the sizes of a task form one family of tests.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from marked import add_outputs, baselines_of, centre, publish, students_lead, table
from timing import machine, write_json

from dpd.log.csv import read_rows
from dpd.report.stats import Difference, difference, family

ROLLOUT = ("--n-envs", "8", "--n-steps", "256", "--minibatch-size", "256")
VARIANTS = {"without": ("--distill.warm-up", "1"), "with": ()}
"""With or without a guide -> flags."""
FIGURES = ("return", "agree", "own_error")
GUIDES = ("coverage", "responsibility", "g_mean", "mse_kept", "mse_censored")

Row = dict[str, Any]


def run(name: str, args: argparse.Namespace, out: Path) -> None:
    """Distil into all sizes and seeds in one run."""
    command = [sys.executable, "-m", "dpd", "distill", args.env, "--method", "scaffold"]
    command += [*VARIANTS[name], *ROLLOUT, "--teacher", str(args.teacher), "--out", str(out)]
    command += ["--student-sizes", ",".join(args.sizes), "--seeds", str(args.seeds)]
    command += ["--total-steps", str(args.steps * len(args.sizes)), "--evals", "1"]
    command += ["--final-episodes", str(args.episodes)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def rows_of(name: str, args: argparse.Namespace, out: Path) -> tuple[list[Row], Row]:
    """Return a row per size, and the returns of teacher and random actions."""
    fidelity = json.loads((out / "fidelity.json").read_text())
    rows = []
    for peer, size in enumerate(args.sizes):
        (students,) = (s["students"] for s in fidelity["sizes"] if s["name"].split("x")[0] == size)
        figures = {k: [student[k] for student in students] for k in FIGURES}
        rows.append({"guide": name, "size": size, **figures, **last(out, peer)})
    return rows, baselines_of(fidelity)


def last(out: Path, peer: int) -> Row:
    """Return the guide's last metrics for students of one size, means over seeds."""
    values: dict[str, dict[str, float]] = {}
    for row in read_rows(out / "metrics.csv"):
        if row["metric"].startswith("distill/") and row["peer"] == str(peer):
            values.setdefault(row["metric"], {})[row["seed"]] = float(row["value"])
    return {k: float(np.mean(list(values[f"distill/{k}"].values()))) for k in GUIDES}


def distil(args: argparse.Namespace) -> None:
    """Run both variants in a task, and add the results to the file."""
    rows: list[Row] = []
    for name in VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            run(name, args, out := Path(folder) / "run")
            variant_rows, baselines = rows_of(name, args, out)
        rows += variant_rows
    names = ("sizes", "seeds", "steps", "episodes")
    settings = {name: getattr(args, name) for name in names}
    data = json.loads(args.json.read_text()) if args.json.exists() else {"tasks": {}}
    data["machine"] = machine()
    data["tasks"][args.env] = {"settings": settings, **baselines, "rows": rows}
    write_json(args.json, data)


def gain(without: Row, with_it: Row) -> Difference:
    """Return the paired difference that the guide makes."""
    first, other = (dict(enumerate(row["return"])) for row in (without, with_it))
    return difference(first, other)


def judged(d: Difference) -> list[str]:
    """Format a difference, its p values and its verdict."""
    ends = "" if d.interval is None else " ({:+,.0f} to {:+,.0f})".format(*d.interval)
    p = ["-" if p is None else f"{p:.2g}" for p in (d.p, d.p_adjusted)]
    return [f"{d.mean:+,.0f}{ends}", *p, d.verdict]


def task_lines(env: str, task: Row) -> list[str]:
    """Lay out a row per size."""
    settings = task["settings"]
    by_key = {(row["guide"], row["size"]): row for row in task["rows"]}
    pairs = {size: (by_key["without", size], by_key["with", size]) for size in settings["sizes"]}
    gains = family({size: gain(*pair) for size, pair in pairs.items()})
    rows = []
    for size, pair in pairs.items():
        cells = [size, *(centre(row["return"]) for row in pair), *judged(gains[size])]
        cells += [f"{np.mean(row['agree']):.0%}" for row in pair]
        rows.append([*cells, f"{pair[1]['coverage']:.0%}"])
    head = ["units", "without a guide", "with", "difference", "p", "p adj.", "verdict"]
    head += ["within 0.1, without", "with", "coverage"]
    return [students_lead(env, settings, task), "", *table(head, "rrrrrrlrrr", rows)]


def parse() -> argparse.Namespace:
    """Parse the flags."""
    parser = argparse.ArgumentParser(description="Scaffolded distillation, with and without guide.")
    parser.add_argument("--teacher", type=Path, help="a policy file or a run")
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--sizes", nargs="+", default=["4", "8", "16"], help="units of both layers")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=61_440, help="environment steps per student")
    parser.add_argument("--episodes", type=int, default=10)
    add_outputs(parser, "all figures of all students")
    return parser.parse_args()


def main() -> int:
    """Distil if a teacher is given, and print or publish the tables."""
    args = parse()
    if args.teacher is not None:
        distil(args)
    tasks = json.loads(args.json.read_text())["tasks"]
    lines = [line for env in tasks for line in ("", *task_lines(env, tasks[env]))][1:]
    publish(lines, args.docs, "bench/scaffold.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
