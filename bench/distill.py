"""Distil one teacher into small students by several methods, with and without a guide; time it.

python bench/distill.py --teacher runs/teacher --json bench/results/distill.json
python bench/distill.py guide --teacher runs/teacher --json bench/results/scaffold.json
python bench/distill.py time --teacher runs/teacher --json bench/results/dagger.json

The first two commands add what the file lacks for the task.

Every student gets the same number of environment steps, teacher labels (one for each state that it
collects) and gradient steps on the same number of samples (80 of 256 per iteration of 8 x 256
steps). Methods with a replay also query the teacher again at stored states, which gives no new
labels. The training of scaffold's guide and retrieval's embedding is extra. Without a guide, g = 0:
plain Gaussian likelihood on the same number of states. Final policies act without noise in the same
fresh episodes. The seed is the unit of the statistics; differences are paired by seed, and the
sizes of a task form one family of tests.

`time` measures a default run of DAgger, the whole command with the teacher's measurement,
evaluations and final tables; then the shares of collecting, learning, distilling and evaluating in
short runs of all methods at equal steps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from marked import report, table
from timing import machine, require_quiet, write_json

from dpd.log.csv import read_rows
from dpd.log.terminal import make_console
from dpd.policies import policyfile
from dpd.report.stats import Difference, bootstrap_interval, difference, family, iqm
from dpd.run.episodes import evaluate_together
from dpd.run.summary import time_shares
from dpd.run.teachers import LAST_EPISODES

ROLLOUT = ("--n-envs", "8", "--n-steps", "256", "--minibatch-size", "256")
ALONE = "PPO without a teacher"
VARIANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "methods": {
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
    },
    "guide": {"without": ("scaffold", "--distill.warm-up", "1"), "with": ("scaffold",)},
}
"""Experiments -> names in their tables -> method and its flags."""
DEFAULTS = {
    "methods": {"sizes": ["16", "32"], "steps": 102_400},
    "guide": {"sizes": ["4", "8", "16"], "steps": 61_440},
    "time": {"sizes": [], "steps": 20_480},
}
FIGURES = ("return", "retained", "agree", "own_error")
GUIDES = ("coverage", "responsibility", "g_mean", "mse_kept", "mse_censored")
TIMED = ("bc", "dagger", "on-policy", "scaffold", "retrieval", "kickstart", "ppd", "n-distill")
ENOUGH = 0.9  # of the teacher's return

Row = dict[str, Any]


def distil(args: argparse.Namespace, out: Path, *flags: str, command: str = "distill") -> float:
    """Run `dpd distill` with the teacher, or another command; return the seconds it took."""
    argv = [sys.executable, "-m", "dpd", command, args.env, *flags, "--out", str(out)]
    argv += ["--teacher", str(args.teacher)] if command == "distill" else []
    begin = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def rows_of(name: str, args: argparse.Namespace, out: Path) -> tuple[list[Row], Row]:
    """Distil into all sizes and seeds -> a row per size, returns of teacher and random actions."""
    method, *flags = VARIANTS[args.experiment][name]
    flags += ["--method", method, "--seeds", str(args.seeds), "--evals", "1"]
    flags += ["--total-steps", str(args.steps * len(args.sizes))]
    flags += ["--final-episodes", str(args.episodes)]
    if name == ALONE:
        return rows_alone(args, out, flags), {}
    distil(args, out, *flags, *ROLLOUT, "--student-sizes", ",".join(args.sizes))
    fidelity = json.loads((out / "fidelity.json").read_text())
    rows = []
    for peer, units in enumerate(args.sizes):
        (size,) = (s for s in fidelity["sizes"] if s["name"].split("x")[0] == units)
        figures = {k: [student[k] for student in size["students"]] for k in FIGURES}
        row = {"method": name, "size": units, "parameters": size["parameters"], **figures}
        rows.append(row | (guide_metrics(out, peer) if method == "scaffold" else {}))
    return rows, baselines_of(fidelity)


def rows_alone(args: argparse.Namespace, out: Path, flags: list[str]) -> list[Row]:
    """Train learners without a teacher, evaluate them in the same episodes -> a row per size."""
    flags = [*flags, "--algo", ",".join("ppo" for _ in args.sizes)]
    for k, size in enumerate(args.sizes):  # peers take separate flags
        words = [f"--peer{k}.{w[2:]}" if w.startswith("--") else w for w in ROLLOUT]
        flags += [*words, f"--peer{k}.hidden", size, size]
    distil(args, out, *flags, command="train")
    rows = []
    for peer, size in enumerate(args.sizes):
        names = [f"seed{k}-peer{peer}-{size}x{size}" for k in range(args.seeds)]
        files = [out / "policies" / f"{name}.safetensors" for name in names]
        policies = [policyfile.load(file) for file in files]
        played = evaluate_together(policies, args.env, args.episodes, LAST_EPISODES)
        scores = [float(outcome.returns.mean()) for outcome in played]
        rows.append({"method": ALONE, "size": size, "return": scores})
    return rows


def guide_metrics(out: Path, peer: int) -> Row:
    """Return the guide's last metrics for students of one size, means over seeds."""
    values: dict[str, dict[str, float]] = {}
    for row in read_rows(out / "metrics.csv"):
        if row["metric"].startswith("distill/") and row["peer"] == str(peer):
            values.setdefault(row["metric"], {})[row["seed"]] = float(row["value"])
    return {k: float(np.mean(list(values[f"distill/{k}"].values()))) for k in GUIDES}


def distil_all(args: argparse.Namespace) -> None:
    """Run every variant that the file lacks, and add it to the file."""
    console = make_console()
    for name in args.methods or VARIANTS[args.experiment]:
        if any(row["method"] == name for row in known(args)["tasks"][args.env]["rows"]):
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows, baselines = rows_of(name, args, Path(folder) / "run")
        for row in rows:
            console.print(f"{name} {row['size']}: {np.mean(row['return']):,.0f}")
        data = known(args)  # again: another process may have added a method meanwhile
        commit = machine()["commit"]  # stored by row: later rows may come from another commit
        task = data["tasks"][args.env]
        task |= baselines | {"rows": task["rows"] + [row | {"commit": commit} for row in rows]}
        write_json(args.json, data)


def known(args: argparse.Namespace) -> dict[str, Any]:
    """Return the contents of the file with the task. Exits if its settings differ."""
    settings = {name: getattr(args, name) for name in ("sizes", "seeds", "steps", "episodes")}
    data: dict[str, Any] = {"machine": machine(), "tasks": {}}
    if args.json.exists():
        data = json.loads(args.json.read_text())
    task = data["tasks"].setdefault(args.env, {"settings": settings, "rows": []})
    if task["settings"] != settings:
        sys.exit(
            f"{args.json} has settings {task['settings']}, not {settings}; give another --json"
        )
    return data


def baselines_of(fidelity: Row) -> dict[str, float]:
    """Return the returns of teacher and random actions in a run's fidelity.json."""
    returns = [x for teacher in fidelity["teachers"] for x in teacher["returns"]]
    return {"teacher": float(np.mean(returns)), "random": fidelity["random"]["return"]}


def centre(values: Sequence[float], places: int = 0) -> str:
    """Format the interquartile mean and its bootstrap interval over seeds."""
    middle, interval = float(iqm(values)), bootstrap_interval(iqm, [values], 0)
    text = f"{middle:,.{places}f}"
    if interval is None:
        return text
    return f"{text} ({interval.low:,.{places}f} to {interval.high:,.{places}f})"


def method_lines(task: Row) -> list[str]:
    """Lay out a row per method and size, in the order of VARIANTS."""
    span = task["teacher"] - task["random"]
    by_key = {(row["size"], row["method"]): row for row in task["rows"]}
    rows = []
    for key in ((size, name) for size in task["settings"]["sizes"] for name in VARIANTS["methods"]):
        if (row := by_key.get(key)) is None:
            continue
        retained = [(x - task["random"]) / span for x in row["return"]]
        cells = [row["method"], row["size"], centre(row["return"]), centre(retained, 2)]
        rows.append(cells + [centre(row[k], 2) if k in row else "" for k in ("agree", "own_error")])
    head = ["method", "units", "return", "retained", "held-out within 0.1", "error on own states"]
    return table(head, "lrrrrr", rows)


def guide_lines(task: Row) -> list[str]:
    """Lay out a row per size, with the paired difference that the guide makes."""
    by_key = {(row["method"], row["size"]): row for row in task["rows"]}
    sizes = task["settings"]["sizes"]
    pairs = {size: (by_key["without", size], by_key["with", size]) for size in sizes}
    gains = family(
        {k: difference(*(dict(enumerate(row["return"])) for row in pairs[k])) for k in pairs}
    )
    rows = []
    for size, pair in pairs.items():
        cells = [size, *(centre(row["return"]) for row in pair), *judged(gains[size])]
        cells += [f"{np.mean(row['agree']):.0%}" for row in pair]
        rows.append([*cells, f"{pair[1]['coverage']:.0%}"])
    head = ["units", "without a guide", "with", "difference", "p", "p adj.", "verdict"]
    head += ["within 0.1, without", "with", "coverage"]
    return table(head, "rrrrrrlrrr", rows)


def judged(d: Difference) -> list[str]:
    """Format a difference, its p values and its verdict."""
    ends = "" if d.interval is None else " ({:+,.0f} to {:+,.0f})".format(*d.interval)
    p = ["-" if p is None else f"{p:.2g}" for p in (d.p, d.p_adjusted)]
    return [f"{d.mean:+,.0f}{ends}", *p, d.verdict]


def lines(data: Row) -> list[str]:
    """Lay out the students of every task."""
    laid_out: list[str] = []
    for env, task in data["tasks"].items():
        settings = task["settings"]
        lead = (
            f"{env}, {settings['steps']:,} environment steps per student, {settings['seeds']} "
            f"seeds, {settings['episodes']} episodes per policy. The teacher gets "
            f"{task['teacher']:,.0f}, uniform actions {task['random']:,.0f}."
        )
        is_guide = any(row["method"] == "without" for row in task["rows"])
        laid_out += [lead, "", *(guide_lines if is_guide else method_lines)(task), ""]
    return laid_out[:-1]


def share_lines(data: Row) -> list[str]:
    """Lay out the shares of a run's time, a row per method."""
    rows = [
        [f"`{name}`", *(f"{share:.0%}".replace("%", " %") for share in shares.values())]
        for name, shares in data["shares"].items()
    ]
    return table(["", *next(iter(data["shares"].values()))], "lrrrr", rows)


def default_run(args: argparse.Namespace, out: Path) -> Row:
    """Distil with the defaults; return seconds, returns, and the steps until ENOUGH is reached."""
    seconds = distil(args, out)
    fidelity = json.loads((out / "fidelity.json").read_text())
    (size,), teacher = fidelity["sizes"], baselines_of(fidelity)["teacher"]
    rows = [row for row in read_rows(out / "metrics.csv") if row["metric"] == "eval/return"]
    enough = (int(r["step"]) for r in rows if float(r["value"]) >= ENOUGH * teacher)
    return {
        "seconds": seconds,
        "teacher": teacher,
        "return": size["return"],
        "agree": size["agree"],
        "steps": int(rows[-1]["step"]),
        "steps_to_90": next(enough, None),
        "shares": time_shares(out),
    }


def time_all(args: argparse.Namespace) -> None:
    """Time a default run and the phases of all methods, and write the file."""
    busy = require_quiet(args.force)
    short = ["--total-steps", str(args.steps), "--evals", "1", "--eval-episodes", "1"]
    short += [*ROLLOUT, "--final-episodes", "1"]
    shares = {}
    with tempfile.TemporaryDirectory() as folder:
        default = default_run(args, Path(folder) / "default")
        for name in TIMED:
            distil(args, Path(folder) / name, "--method", name, *short)
            shares[name] = time_shares(Path(folder) / name)
    make_console().print(default)
    settings = {"env": args.env, "steps": args.steps, "rollout": ROLLOUT}
    data = {**busy, "settings": settings, "default": default, "shares": shares}
    report(args.json, data, share_lines(data))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare and time teacher-student distillation.")
    parser.add_argument("experiment", nargs="?", choices=DEFAULTS, default="methods")
    parser.add_argument("--teacher", type=Path, required=True, help="a run with a history")
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--methods", nargs="+", help="names in the table; default: all")
    parser.add_argument("--sizes", nargs="+", help="units of both layers")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="environment steps per student")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--force", action="store_true", help="time on a busy machine too")
    parser.add_argument("--json", type=Path, required=True, help="all figures of all students")
    args = parser.parse_args()
    for name, default in DEFAULTS[args.experiment].items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    if unknown := set(args.methods or ()) - VARIANTS.get(args.experiment, {}).keys():
        parser.error(f"--methods: no {', '.join(sorted(unknown))} in {args.experiment}")
    return args


def main() -> int:
    """Run what the file lacks, and print its tables."""
    args = parse()
    if args.experiment == "time":
        time_all(args)
    else:
        distil_all(args)
        report(None, {}, lines(json.loads(args.json.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
