"""Distil one teacher into small students by every method, at equal steps, queries and updates.

python bench/distill.py --teacher runs/teacher --json bench/results/distill.json
python bench/distill.py --teacher runs/teacher --seeds 2 --steps 10240 --methods bc dagger

Every student takes as many environment steps, asks the teacher about as many states of its own and
takes as many gradient steps on as many samples (80 of 256 in an iteration of 2,048 steps). Final
policies act without noise in the same fresh episodes; the seed is the unit.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from timing import machine

from dpd import policyfile
from dpd.evaluate import evaluate_together
from dpd.intervals import bootstrap_interval, trimmed
from dpd.sources import one_policy

SUPERVISED = ("--n-envs", "8", "--n-steps", "256")
IN_LOSS = ("--n-envs", "16", "--n-steps", "128", "--minibatch-size", "256")
METHODS: dict[str, tuple[str, ...]] = {
    "bc": ("bc", *SUPERVISED),
    "dagger": ("dagger", *SUPERVISED),
    "on-policy": ("on-policy", *SUPERVISED),
    "progressive": ("progressive", *SUPERVISED),
    "progressive, one-shot": ("progressive", "--distill.spacing", "one-shot", *SUPERVISED),
    "kickstart": ("kickstart", *IN_LOSS),
    "ppd": ("ppd", *IN_LOSS),
    "n-distill": ("n-distill", *IN_LOSS),
    "reverse-kl": ("reverse-kl", *IN_LOSS),
}
"""What the table says -> method and flags."""
EVAL_SEED, MEASURED = 1_000_000, ("distill/action_error", "distill/agree_0.1")

Row = dict[str, Any]


def run(name: str, args: argparse.Namespace, out: Path) -> float:
    """Distil with all sizes and seeds side by side; return the seconds it took."""
    method, *flags = METHODS[name]
    command = [sys.executable, "-m", "dpd", "distill", args.env, "--method", method, *flags]
    command += ["--student-sizes", ",".join(args.sizes), "--seeds", str(args.seeds)]
    command += ["--total-steps", str(args.steps * len(args.sizes)), "--evals", "2"]
    command += ["--final-episodes", "1", "--out", str(out), "--teacher", str(args.teacher)]
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def returns_of(out: Path, peer: int, args: argparse.Namespace) -> list[float]:
    """Return the mean final return of every seed's student of one size."""
    files = [out / "policies" / f"seed{k}-peer{peer}.safetensors" for k in range(args.seeds)]
    policies = [policyfile.load(file) for file in files]
    outcomes = evaluate_together(policies, args.env, args.episodes, EVAL_SEED)
    return [float(outcome.returns.mean()) for outcome in outcomes]


def last_measures(out: Path, peer: int) -> dict[str, float]:
    """Return the means over seeds of what was last measured of one size."""
    found: dict[tuple[str, str], float] = {}
    with (out / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["metric"] in MEASURED and row["peer"] == str(peer):
                found[row["metric"], row["seed"]] = float(row["value"])
    return {
        name: float(np.mean([v for (metric, _), v in found.items() if metric == name]))
        for name in MEASURED
    }


def distil_all(args: argparse.Namespace, console: Console) -> list[Row]:
    """Run every method; return a row per method and size."""
    rows: list[Row] = []
    for name in args.methods:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            seconds = run(name, args, out)
            for peer, size in enumerate(args.sizes):
                scores = returns_of(out, peer, args)
                row = {"method": name, "size": size, "returns": scores, "seconds": seconds}
                rows.append(row | last_measures(out, peer))
                console.print(f"{name} {size}: {np.mean(scores):,.0f}, {seconds:.0f} s")
    return rows


def interval(scores: Sequence[float]) -> str:
    """Word the bootstrap interval of the interquartile mean."""
    found = bootstrap_interval(trimmed, [scores], 0)
    return "-" if found is None else f"{found.low:,.0f}…{found.high:,.0f}"


def table(rows: Sequence[Row], teacher: float, title: str) -> Table:
    """Lay out a row per method and size."""
    result = Table(title=title, title_justify="left")
    for name in ("method", "units", "IQM", "95 % interval", "of teacher", "error", "within 0.1"):
        result.add_column(name, justify="left" if name == "method" else "right")
    for row in rows:
        iqm = float(trimmed(np.asarray(row["returns"]), 0))
        error, agree = (row[name] for name in MEASURED)
        numbers = [f"{iqm:,.0f}", interval(row["returns"]), f"{iqm / teacher:.0%}"]
        result.add_row(row["method"], row["size"], *numbers, f"{error:.3f}", f"{agree:.0%}")
    return result


def parse() -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(description="Compare methods of teacher-student distillation.")
    parser.add_argument("--teacher", type=Path, required=True, help="a run with a history")
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sizes", nargs="+", default=["16", "32"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=102_400, help="environment steps per student")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write all returns and versions here")
    return parser.parse_args()


def main() -> int:
    """Distil, print, write."""
    args, console = parse(), Console()
    teacher = policyfile.load(one_policy(args.teacher))
    score = float(
        evaluate_together([teacher], args.env, args.episodes, EVAL_SEED)[0].returns.mean()
    )
    rows = distil_all(args, console)
    title = f"{args.env}: a teacher of {score:,.0f} into students, {args.steps:,} steps each"
    console.print(table(rows, score, title))
    if args.json:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        data = {"machine": machine(), "settings": settings, "teacher": score, "rows": rows}
        args.json.write_text(json.dumps(data, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
