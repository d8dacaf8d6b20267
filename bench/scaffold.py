"""Distil a teacher into very small students, with a guide that censors hard states and without.

python bench/scaffold.py --teacher runs/teacher --json bench/results/scaffold.json
python bench/scaffold.py --json bench/results/scaffold.json --docs docs/results.md

The first adds the task to the file, the second writes the file's tables into the page.

Without a guide it is the same method with g = 0: plain Gaussian likelihood on the same number of
states, with as many gradient steps of the students. Final policies act without noise in the same
fresh episodes; the seed is the unit, differences are seed by seed, and the sizes of a task are one
family.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from marked import fill
from timing import machine

from dpd.log.csv import read_rows
from dpd.report.stats import Difference, bootstrap_interval, difference, family, trimmed

ROLLOUT = ("--n-envs", "8", "--n-steps", "256", "--minibatch-size", "256")
VARIANTS = {"without": ("--distill.warm-up", "1"), "with": ()}
"""A guide or none -> flags."""
FIGURES = ("return", "agree", "own_error")
GUIDES = ("coverage", "responsibility", "g_mean", "mse_kept", "mse_censored")

Row = dict[str, Any]


def run(name: str, args: argparse.Namespace, out: Path) -> None:
    """Distil into all sizes and seeds side by side."""
    command = [sys.executable, "-m", "dpd", "distill", args.env, "--method", "scaffold"]
    command += [*VARIANTS[name], *ROLLOUT, "--teacher", str(args.teacher), "--out", str(out)]
    command += ["--student-sizes", ",".join(args.sizes), "--seeds", str(args.seeds)]
    command += ["--total-steps", str(args.steps * len(args.sizes)), "--evals", "1"]
    command += ["--final-episodes", str(args.episodes)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def rows_of(name: str, args: argparse.Namespace, out: Path) -> tuple[list[Row], Row]:
    """Return a row per size, and what teacher and random actions get."""
    found = json.loads((out / "fidelity.json").read_text())
    baselines = {
        "teacher": float(np.mean([x for each in found["teachers"] for x in each["returns"]])),
        "random": found["random"]["return"],
    }
    rows = []
    for peer, size in enumerate(args.sizes):
        (students,) = (s["students"] for s in found["sizes"] if s["name"].split("x")[0] == size)
        figures = {k: [student[k] for student in students] for k in FIGURES}
        rows.append({"guide": name, "size": size, **figures, **last(out, peer)})
    return rows, baselines


def last(out: Path, peer: int) -> Row:
    """Return the means over seeds of what the guide last did to students of one size."""
    found: dict[str, dict[str, float]] = {}
    for row in read_rows(out / "metrics.csv"):
        if row["metric"].startswith("distill/") and row["peer"] == str(peer):
            found.setdefault(row["metric"], {})[row["seed"]] = float(row["value"])
    return {k: float(np.mean(list(found[f"distill/{k}"].values()))) for k in GUIDES}


def distil(args: argparse.Namespace) -> None:
    """Run both variants in a task, and add them to the file."""
    rows: list[Row] = []
    for name in VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            run(name, args, out := Path(folder) / "run")
            found, baselines = rows_of(name, args, out)
        rows += found
    names = ("sizes", "seeds", "steps", "episodes")
    settings = {name: getattr(args, name) for name in names}
    data = json.loads(args.json.read_text()) if args.json.exists() else {"tasks": {}}
    data["machine"] = machine()
    data["tasks"][args.env] = {"settings": settings, **baselines, "rows": rows}
    args.json.write_text(json.dumps(data, indent=1) + "\n")


def centre(values: Sequence[float]) -> str:
    """Word the interquartile mean of returns, and its bootstrap interval over seeds."""
    middle, found = float(trimmed(np.asarray(values), 0)), bootstrap_interval(trimmed, [values], 0)
    return f"{middle:,.0f}" + ("" if found is None else f" ({found.low:,.0f} to {found.high:,.0f})")


def gain(without: Row, with_it: Row) -> Difference:
    """Return what the guide brings, seed by seed."""
    first, other = (dict(enumerate(row["return"])) for row in (without, with_it))
    return difference(first, other)


def judged(d: Difference) -> list[str]:
    """Word a difference, its p values and its verdict."""
    ends = "" if d.interval is None else " ({:+,.0f} to {:+,.0f})".format(*d.interval)
    p = ["-" if p is None else f"{p:.2g}" for p in (d.p, d.p_adjusted)]
    return [f"{d.mean:+,.0f}{ends}", *p, d.verdict]


def table(env: str, task: Row) -> list[str]:
    """Lay out a line per size."""
    said, rows = task["settings"], {(row["guide"], row["size"]): row for row in task["rows"]}
    lines = [
        f"{env}, {said['steps']:,} environment steps per student, {said['seeds']} seeds, "
        f"{said['episodes']} episodes per policy. The teacher gets {task['teacher']:,.0f}, uniform "
        f"actions {task['random']:,.0f}.",
        "",
        "| units | without a guide | with | difference | p | p adj. | verdict "
        "| within 0.1, without | with | coverage |",
        "|---:|---:|---:|---:|---:|---:|---|---:|---:|---:|",
    ]
    gains = family({s: gain(rows["without", s], rows["with", s]) for s in said["sizes"]})
    for size in said["sizes"]:
        pair = rows["without", size], rows["with", size]
        cells = [size, *(centre(row["return"]) for row in pair), *judged(gains[size])]
        cells += [f"{np.mean(row['agree']):.0%}" for row in pair]
        cells.append(f"{pair[1]['coverage']:.0%}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def parse() -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(description="Scaffolded distillation, with and without guide.")
    parser.add_argument("--teacher", type=Path, help="a policy file or a run")
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--sizes", nargs="+", default=["4", "8", "16"], help="units of both layers")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=61_440, help="environment steps per student")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--json", type=Path, required=True, help="all figures of all students")
    parser.add_argument("--docs", type=Path, help="write the tables of --json into this page")
    return parser.parse_args()


def main() -> int:
    """Distil, or write the tables; print them."""
    args = parse()
    if args.teacher is not None:
        distil(args)
    tasks = json.loads(args.json.read_text())["tasks"]
    lines = [line for env in tasks for line in ("", *table(env, tasks[env]))][1:]
    if args.docs is not None:
        fill(args.docs, "bench/scaffold.py", lines)
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
