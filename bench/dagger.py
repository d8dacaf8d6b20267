"""Time teacher-student distillation: a default run of DAgger, and the phases of all methods.

python bench/dagger.py --teacher runs/teacher --json bench/results/dagger.json

The default run is the whole command, with the teacher's measurement, evaluations and final tables.
Shares are those of collecting, learning, distilling and evaluating in short runs of all methods at
equal steps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from distill import METHODS, ROLLOUT
from timing import machine, require_quiet, write_json

from dpd.log.csv import read_rows
from dpd.log.terminal import make_console
from dpd.run.summary import time_shares

ENOUGH = 0.9  # of the teacher's return
TIMED = ("bc", "dagger", "on-policy", "scaffold", "retrieval", "kickstart", "ppd", "n-distill")


def distil(args: argparse.Namespace, out: Path, *flags: str) -> float:
    """Distil into a directory; return the seconds it took."""
    command = [sys.executable, "-m", "dpd", "distill", args.env, "--teacher", str(args.teacher)]
    begin = time.perf_counter()
    subprocess.run([*command, *flags, "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def default_run(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Distil with the defaults; return seconds, returns, and the steps until ENOUGH is reached."""
    seconds = distil(args, out)
    fidelity = json.loads((out / "fidelity.json").read_text())
    (size,), returns = fidelity["sizes"], fidelity["teachers"][0]["returns"]
    goal = ENOUGH * sum(returns) / len(returns)
    rows = [row for row in read_rows(out / "metrics.csv") if row["metric"] == "eval/return"]
    return {
        "seconds": seconds,
        "teacher": sum(returns) / len(returns),
        "return": size["return"],
        "agree": size["agree"],
        "steps": int(rows[-1]["step"]),
        "steps_to_90": next((int(r["step"]) for r in rows if float(r["value"]) >= goal), None),
        "shares": time_shares(out),
    }


def shares(args: argparse.Namespace, out: Path, name: str) -> dict[str, float]:
    """Return the time shares of a short run."""
    method, *flags = METHODS[name]
    short = ["--total-steps", str(args.steps), "--evals", "1", "--eval-episodes", "1"]
    distil(args, out, "--method", method, *flags, *ROLLOUT, *short, "--final-episodes", "1")
    return time_shares(out)


def parse() -> argparse.Namespace:
    """Parse the flags."""
    parser = argparse.ArgumentParser(description="Time teacher-student distillation.")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--steps", type=int, default=20_480, help="of the runs for the shares")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--force", action="store_true", help="measure on a busy machine")
    return parser.parse_args()


def main() -> int:
    """Measure, print and write."""
    args, console = parse(), make_console()
    load, percent = require_quiet(args.force)
    with tempfile.TemporaryDirectory() as folder:
        default = default_run(args, Path(folder) / "default")
        console.print(default)
        by_method = {name: shares(args, Path(folder) / name, name) for name in TIMED}
    console.print(by_method)
    host: dict[str, object] = machine() | {"load": load, "cpu_percent": percent}
    data: dict[str, object] = {"machine": host}
    settings = {"env": args.env, "steps": args.steps, "rollout": ROLLOUT}
    data |= {"settings": settings, "default": default, "shares": by_method}
    write_json(args.json, data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
