"""Distil one teacher into small students by every method, at equal steps, labels and updates.

python bench/distill.py --teacher runs/teacher --json bench/results/distill.json
python bench/distill.py --json bench/results/distill.json --docs docs/results.md

The first adds what is missing in the file, the second writes its table into the page.

Every student takes as many environment steps, has the teacher's answer to as many states (each that
it collects, once), and takes as many gradient steps on as many samples (80 of 256 in an iteration
of 8 x 256 steps). Methods that learn from all they remember ask again about remembered states,
which tells them nothing new. What is trained beside the students comes on top: scaffold's guide and
retrieval's embedding. Final policies act without noise in the same fresh episodes; the seed is the
unit.
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
from rich.console import Console
from timing import machine

from dpd.log.terminal import make_console
from dpd.policies import policyfile
from dpd.report.stats import bootstrap_interval, trimmed
from dpd.run.episodes import evaluate_together
from dpd.run.teachers import LAST_EPISODES

ROLLOUT = ("--n-envs", "8", "--n-steps", "256", "--minibatch-size", "256")
ALONE = "PPO without a teacher"
METHODS: dict[str, tuple[str, ...]] = {
    "bc": ("bc",),
    "dagger": ("dagger",),
    "on-policy": ("on-policy",),
    "scaffold": ("scaffold",),
    "retrieval": ("retrieval",),
    "progressive": ("progressive",),
    "progressive, one-shot": ("progressive", "--distill.spacing", "one-shot"),
    "progressive, two-shot": ("progressive", "--distill.spacing", "two-shot"),
    "progressive, shuffled": ("progressive", "--distill.spacing", "shuffled"),
    "progressive, random": ("progressive", "--distill.spacing", "random"),
    "kickstart": ("kickstart",),
    "ppd": ("ppd",),
    "n-distill": ("n-distill",),
    "reverse-kl": ("reverse-kl",),
    ALONE: ("none",),
}
"""What the table says -> method and its own flags."""
FIGURES = ("return", "retained", "agree", "own_error")

Row = dict[str, Any]


def common(args: argparse.Namespace) -> list[str]:
    """Return the flags of all runs."""
    flags = ["--seeds", str(args.seeds), "--total-steps", str(args.steps * len(args.sizes))]
    return [*flags, "--evals", "1", "--final-episodes", str(args.episodes)]


def run(name: str, args: argparse.Namespace, out: Path) -> None:
    """Distil into all sizes and seeds side by side."""
    method, *flags = METHODS[name]
    command = [sys.executable, "-m", "dpd", "train" if name == ALONE else "distill", args.env]
    command += ["--method", method, *flags, *common(args), "--out", str(out)]
    if name != ALONE:
        command += [*ROLLOUT, "--student-sizes", ",".join(args.sizes)]
        command += ["--teacher", str(args.teacher)]
    else:
        command += ["--algo", ",".join("ppo" for _ in args.sizes)]
        for k, size in enumerate(args.sizes):  # each peer has flags of its own
            words = [f"--peer{k}.{w[2:]}" if w.startswith("--") else w for w in ROLLOUT]
            command += [*words, f"--peer{k}.hidden", size, size]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def rows_of(name: str, args: argparse.Namespace, out: Path) -> tuple[list[Row], dict[str, Any]]:
    """Return a row per size, and what is the same for all methods."""
    found = json.loads((out / "fidelity.json").read_text())
    baselines = {
        "teacher": float(np.mean([x for each in found["teachers"] for x in each["returns"]])),
        "random": found["random"]["return"],
    }
    rows = []
    for size in found["sizes"]:
        figures = {k: [student[k] for student in size["students"]] for k in FIGURES}
        units = size["name"].split("x")[0]
        rows.append({"method": name, "size": units, "parameters": size["parameters"], **figures})
    return rows, baselines


def rows_alone(args: argparse.Namespace, out: Path) -> list[Row]:
    """Return a row per size of learners without a teacher, in the same episodes."""
    rows = []
    for peer, size in enumerate(args.sizes):
        names = [f"seed{k}-peer{peer}-{size}x{size}" for k in range(args.seeds)]
        files = [out / "policies" / f"{name}.safetensors" for name in names]
        policies = [policyfile.load(file) for file in files]
        played = evaluate_together(policies, args.env, args.episodes, LAST_EPISODES)
        scores = [float(outcome.returns.mean()) for outcome in played]
        rows.append({"method": ALONE, "size": size, "return": scores})
    return rows


def distil_all(args: argparse.Namespace, console: Console) -> None:
    """Run every method that the file does not hold yet, and add it there."""
    for name in args.methods:
        data = known(args)
        if any(row["method"] == name for row in data["rows"]):
            continue
        with tempfile.TemporaryDirectory() as folder:
            run(name, args, out := Path(folder) / "run")
            rows, baselines = (
                (rows_alone(args, out), {}) if name == ALONE else rows_of(name, args, out)
            )
        for row in rows:
            console.print(f"{name} {row['size']}: {np.mean(row['return']):,.0f}")
        data = known(args)  # another process may have added to it meanwhile
        made = [row | {"commit": machine()["commit"]} for row in rows]  # some may be added later
        data |= baselines | {"rows": data["rows"] + made}
        args.json.write_text(json.dumps(data, indent=1) + "\n")


def known(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the file holds, or the beginning of it. Exits where it is of other settings."""
    names = ("env", "sizes", "seeds", "steps", "episodes")
    settings = {name: getattr(args, name) for name in names}
    if not args.json.exists():
        return {"machine": machine(), "settings": settings, "rows": []}
    data: dict[str, Any] = json.loads(args.json.read_text())
    if data["settings"] != settings:
        sys.exit(f"{args.json} is of {data['settings']}, not {settings}; give another --json")
    return data


def centre(values: Sequence[float], places: int) -> str:
    """Word the interquartile mean and its bootstrap interval over seeds."""
    middle, found = float(trimmed(np.asarray(values), 0)), bootstrap_interval(trimmed, [values], 0)
    ends = "" if found is None else f" ({found.low:,.{places}f} to {found.high:,.{places}f})"
    return f"{middle:,.{places}f}{ends}"


def table(data: dict[str, Any]) -> list[str]:
    """Lay out a line per method and size, in the order of METHODS."""
    head = ["method", "units", "return", "retained", "held-out within 0.1", "error on own states"]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    span = data["teacher"] - data["random"]
    for size in data["settings"]["sizes"]:
        for name in METHODS:
            for row in data["rows"]:
                if (row["method"], row["size"]) != (name, size):
                    continue
                kept = [(got - data["random"]) / span for got in row["return"]]
                cells = [name, size, centre(row["return"], 0), centre(kept, 2)]
                cells += [centre(row[k], 2) if k in row else "" for k in ("agree", "own_error")]
                lines.append(f"| {' | '.join(cells)} |")
    return lines


def write_table(data: dict[str, Any], page: Path) -> None:
    """Put the table between its marks in a page."""
    said = data["settings"]
    lead = (
        f"{said['env']}, {said['steps']:,} environment steps per student, {said['seeds']} seeds, "
        f"{said['episodes']} episodes per policy. The teacher gets {data['teacher']:,.0f}, uniform "
        f"actions {data['random']:,.0f}."
    )
    fill(page, "bench/distill.py", [lead, "", *table(data)])


def parse() -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(description="Compare methods of teacher-student distillation.")
    parser.add_argument("--teacher", type=Path, help="a run with a history")
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sizes", nargs="+", default=["16", "32"], help="units of both layers")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=102_400, help="environment steps per student")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--json", type=Path, required=True, help="all figures of all students")
    parser.add_argument("--docs", type=Path, help="write the table of --json into this page")
    return parser.parse_args()


def main() -> int:
    """Distil what is missing, or write the table; print it."""
    args, console = parse(), make_console()
    if args.teacher is not None:
        distil_all(args, console)
    data = json.loads(args.json.read_text())
    if args.docs is not None:
        write_table(data, args.docs)
    console.print("\n".join(table(data)), soft_wrap=True, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
