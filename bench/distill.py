"""Distil one teacher into small students by every method, at equal steps, labels and updates.

python bench/distill.py --teacher runs/teacher --json bench/results/distill.json
python bench/distill.py --json bench/results/distill.json --docs docs/results.md

The first command adds the methods that the file lacks, the second writes its table into the page.

Every student gets the same number of environment steps, teacher labels (one for each state that it
collects) and gradient steps on the same number of samples (80 of 256 per iteration of 8 x 256
steps). Methods with a replay also query the teacher again at stored states, which gives no new
labels. The training of scaffold's guide and retrieval's embedding is extra. Final policies act
without noise in the same fresh episodes; the seed is the unit of the statistics.
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
from rich.console import Console
from timing import machine, write_json

from dpd.log.terminal import make_console
from dpd.policies import policyfile
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
"""Names in the table -> method and its flags."""
FIGURES = ("return", "retained", "agree", "own_error")

Row = dict[str, Any]


def common(args: argparse.Namespace) -> list[str]:
    """Return the flags that all runs share."""
    flags = ["--seeds", str(args.seeds), "--total-steps", str(args.steps * len(args.sizes))]
    return [*flags, "--evals", "1", "--final-episodes", str(args.episodes)]


def run(name: str, args: argparse.Namespace, out: Path) -> None:
    """Distil into all sizes and seeds in one run."""
    method, *flags = METHODS[name]
    command = [sys.executable, "-m", "dpd", "train" if name == ALONE else "distill", args.env]
    command += ["--method", method, *flags, *common(args), "--out", str(out)]
    if name != ALONE:
        command += [*ROLLOUT, "--student-sizes", ",".join(args.sizes)]
        command += ["--teacher", str(args.teacher)]
    else:
        command += ["--algo", ",".join("ppo" for _ in args.sizes)]
        for k, size in enumerate(args.sizes):  # peers take separate flags
            words = [f"--peer{k}.{w[2:]}" if w.startswith("--") else w for w in ROLLOUT]
            command += [*words, f"--peer{k}.hidden", size, size]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def rows_of(name: str, args: argparse.Namespace, out: Path) -> tuple[list[Row], dict[str, Any]]:
    """Return a row per size, and the returns of teacher and random actions."""
    fidelity = json.loads((out / "fidelity.json").read_text())
    rows = []
    for size in fidelity["sizes"]:
        figures = {k: [student[k] for student in size["students"]] for k in FIGURES}
        units = size["name"].split("x")[0]
        rows.append({"method": name, "size": units, "parameters": size["parameters"], **figures})
    return rows, baselines_of(fidelity)


def rows_alone(args: argparse.Namespace, out: Path) -> list[Row]:
    """Return a row per size for learners without a teacher, in the same episodes."""
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
    """Run every method that the file lacks, and add it to the file."""
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
        data = known(args)  # again: another process may have added a method meanwhile
        commit = machine()["commit"]  # stored by row: later rows may come from another commit
        data |= baselines | {"rows": data["rows"] + [row | {"commit": commit} for row in rows]}
        write_json(args.json, data)


def known(args: argparse.Namespace) -> dict[str, Any]:
    """Return the contents of the file, or empty results. Exits if its settings differ."""
    names = ("env", "sizes", "seeds", "steps", "episodes")
    settings = {name: getattr(args, name) for name in names}
    if not args.json.exists():
        return {"machine": machine(), "settings": settings, "rows": []}
    data: dict[str, Any] = json.loads(args.json.read_text())
    if data["settings"] != settings:
        sys.exit(
            f"{args.json} has settings {data['settings']}, not {settings}; give another --json"
        )
    return data


def lines_of(data: dict[str, Any]) -> list[str]:
    """Lay out a row per method and size, in the order of METHODS."""
    settings, span = data["settings"], data["teacher"] - data["random"]
    by_key = {(row["size"], row["method"]): row for row in data["rows"]}
    rows = []
    for key in ((size, name) for size in settings["sizes"] for name in METHODS):
        if (row := by_key.get(key)) is None:
            continue
        retained = [(x - data["random"]) / span for x in row["return"]]
        cells = [row["method"], row["size"], centre(row["return"]), centre(retained, 2)]
        rows.append(cells + [centre(row[k], 2) if k in row else "" for k in ("agree", "own_error")])
    head = ["method", "units", "return", "retained", "held-out within 0.1", "error on own states"]
    return [students_lead(settings["env"], settings, data), "", *table(head, "lrrrrr", rows)]


def parse() -> argparse.Namespace:
    """Parse the flags."""
    parser = argparse.ArgumentParser(description="Compare methods of teacher-student distillation.")
    parser.add_argument("--teacher", type=Path, help="a run with a history")
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sizes", nargs="+", default=["16", "32"], help="units of both layers")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=102_400, help="environment steps per student")
    parser.add_argument("--episodes", type=int, default=10)
    add_outputs(parser, "all figures of all students")
    return parser.parse_args()


def main() -> int:
    """Run the methods that the file lacks, and print or publish the table."""
    args = parse()
    if args.teacher is not None:
        distil_all(args, make_console())
    publish(lines_of(json.loads(args.json.read_text())), args.docs, "bench/distill.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
