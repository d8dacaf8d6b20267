"""Kill and resume runs, or train for long and measure growth.

python bench/reliability.py kill --json kill.json         about 5 minutes
python bench/reliability.py kill --algo sac               learners with a replay that wraps around
python bench/reliability.py long --json long.json         about 15 minutes

`kill`: every try is a new run on a native task. It gets SIGKILL at a moment drawn uniformly from
the duration of an undisturbed run (with start-up, checkpoint writing and the last evaluation), and
is then resumed to its end. Parameters, moments, normalisers, generators, simulators, policies and
the log without its times must equal those of the undisturbed run byte for byte.

`long`: every set-up runs `dpd train` in a separate process. Memory is read four times a second:
early is the median over the second tenth of the run, late over the last tenth.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from rich.progress import track
from rich.table import Table
from timing import machine, write_json

from dpd.log.csv import read_rows
from dpd.log.terminal import make_console
from dpd.run.checkpoint import Checkpoints, digest, read

DPD = [sys.executable, "-m", "dpd", "train"]
FLAGS = ["--n-envs", "4", "--n-steps", "64", "--evals", "4", "--eval-episodes", "1"]
FLAGS += ["--final-episodes", "1", "--seeds", "2"]
REPLAY = ["--hidden", "32", "32", "--minibatch-size", "32", "--updates-per-step", "0.05"]
REPLAY += ["--learning-starts", "1000", "--capacity", "4000"]
PAPER = ["--preset", "paper"]
SETUPS = {
    "2 peers, 2M steps": "--preset paper --total-steps 2000000 --evals 4",
    "10 seeds x 2 peers, 200k steps each": "--preset paper --seeds 10 --total-steps 200000 "
    "--evals 4",
}
MB = 2**20


def command(out: Path, args: argparse.Namespace) -> list[str]:
    """Return the command of a new run; an iteration is 2 peers x 4 envs x 64 steps."""
    flags = ["--algo", args.algo, *FLAGS, *(REPLAY if args.algo != "ppo" else PAPER)]
    flags += ["--total-steps", str(args.iterations * 512), "--checkpoint-every", "0.2"]
    return [*DPD, args.env, *flags, "--out", str(out)]


def run(argv: list[str], kill_after: float | None = None) -> tuple[int, float]:
    """Run a command, and kill it after a time if given; return its status and seconds."""
    begin, quiet = time.perf_counter(), subprocess.DEVNULL
    # Outside the repository: policy files record its commit, which may change meanwhile.
    elsewhere = tempfile.gettempdir()
    with subprocess.Popen(argv, cwd=elsewhere, stdout=quiet, stderr=quiet) as process:
        try:
            process.wait(kill_after)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.returncode, time.perf_counter() - begin


def fingerprint(run_dir: Path) -> dict[str, str]:
    """Return digests of the final state, log and policies of a run, without times."""

    def sha(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()[:16]

    state, facts = read(Checkpoints(run_dir, keep=1).files()[0])
    logged = read_rows(run_dir / "metrics.csv")
    rows = [row for row in logged if not row["metric"].startswith("time/")]
    digests = {
        "step": str(facts.step),
        "state": digest(state),
        "log": sha(json.dumps(rows).encode()),
    }
    for policy in sorted((run_dir / "policies").iterdir()):
        digests[policy.name] = sha(policy.read_bytes())
    return digests


def attempt(folder: Path, args: argparse.Namespace, after: float) -> dict[str, Any]:
    """Kill a new run after a time and resume it to its end; return its fingerprint."""
    status, _ = run(command(folder, args), after)
    files = Checkpoints(folder, keep=1).files()
    killed_at = int(files[0].stem.removeprefix("step-")) if files else None
    if not (folder / "config.json").exists():  # killed before the run had a directory
        again = command(folder, args)
    else:
        again = [*DPD, "--resume", str(folder)]
    resumed, _ = run(again)
    return {
        "after_s": after,
        "killed": status == -9,
        "checkpoint": killed_at,
        "status": resumed,
        "end": fingerprint(folder),
    }


def kill(args: argparse.Namespace) -> int:
    """Compare killed and resumed runs with an undisturbed one; return 1 unless all are exact."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rng, console = random.Random(args.seed), make_console()
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        status, seconds = run(command(whole, args))
        if status:
            raise RuntimeError(f"the undisturbed run exited with {status}")
        expected = fingerprint(whole)
        moments = [rng.uniform(0, seconds) for _ in range(args.kills)]
        tries = [
            attempt(Path(folder) / f"try{i}", args, after)
            for i, after in enumerate(track(moments, description="kill and resume"))
        ]
    exact = [t["status"] == 0 and t["end"] == expected for t in tries]
    for t, same in zip(tries, exact, strict=True):
        t["exact"] = same
        what = "killed" if t["killed"] else "had ended"
        console.print(f"{t['after_s']:6.2f} s  {what}, checkpoint {t['checkpoint']}, exact: {same}")
    console.print(f"{sum(exact)} of {len(exact)} resumes exact; a whole run takes {seconds:.1f} s")
    results = {"seconds": seconds, "expected": expected, "tries": tries, "machine": machine()}
    write_json(args.json, results)
    return 0 if all(exact) else 1


def watch(argv: list[str], run_dir: Path) -> list[tuple[int, int]]:
    """Run a command to its end; return samples of (environment steps, resident bytes)."""
    samples: list[tuple[int, int]] = []
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as process:
        own = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                samples.append((last_step(run_dir / "metrics.csv"), own.memory_info().rss))
            except psutil.NoSuchProcess:
                break
            time.sleep(0.25)
    if process.returncode:
        raise RuntimeError(f"{shlex.join(argv)} exited with {process.returncode}")
    return samples


def last_step(metrics: Path) -> int:
    """Return the step of the last complete record in a log that is still written."""
    if not metrics.exists():
        return 0
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 4096))
        lines = file.read().split(b"\n")[:-1]
    first = lines[-1].split(b",")[0] if lines else b""
    return int(first) if first.isdigit() else 0


def measure(flags: str) -> dict[str, Any]:
    """Train once and return memory, file sizes and times."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [*DPD, "HalfCheetah-v5", *shlex.split(flags)]
        begin = time.perf_counter()
        samples = watch([*command, "--out", str(out)], out)
        seconds = time.perf_counter() - begin
        end = max(step for step, _ in samples)
        tenths = [[rss for s, rss in samples if min(10 * s // end, 9) == k] for k in range(10)]
        return {
            "flags": flags,
            "seconds": seconds,
            "early_mb": median(tenths[1]) / MB,
            "late_mb": median(tenths[9]) / MB,
            "peak_mb": max(rss for _, rss in samples) / MB,
            "files_mb": sizes(out),
            "tensorboard": read_tensorboard(out / "tb"),
            "records": len({row["step"] for row in read_rows(out / "metrics.csv")}),
        }


def sizes(run_dir: Path) -> dict[str, float]:
    """Return the megabytes of each file and folder of a run."""
    return {
        entry.name: sum(f.stat().st_size for f in [entry, *entry.rglob("*")] if f.is_file()) / MB
        for entry in sorted(run_dir.iterdir())
    }


def read_tensorboard(folder: Path) -> dict[str, float]:
    """Read all of a run's sub-runs as TensorBoard does; return seconds, tags and points."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    begin, tags, points = time.perf_counter(), 0, 0
    for run in sorted(folder.iterdir()):
        events = EventAccumulator(str(run), size_guidance={"scalars": 0})
        events.Reload()
        names = events.Tags()["scalars"]
        tags += len(names)
        points += sum(len(events.Scalars(name)) for name in names)
    return {"seconds": time.perf_counter() - begin, "tags": tags, "points": points}


def grow(args: argparse.Namespace) -> int:
    """Measure memory, files and TensorBoard's reading time of long runs."""
    table = Table("set-up", "MB early", "MB late", "growth", "csv MB", "tb MB", "tb read s")
    results = {}
    for name, flags in SETUPS.items():
        words = flags.split()
        i = words.index("--total-steps") + 1
        words[i] = str(int(words[i]) // args.shorter)
        m = results[name] = measure(shlex.join(words))
        growth = f"{m['late_mb'] / m['early_mb'] - 1:+.1%}"
        files, read = m["files_mb"], m["tensorboard"]
        figures = [m["early_mb"], m["late_mb"], growth, files["metrics.csv"], files["tb"]]
        cells = [f if isinstance(f, str) else f"{f:.1f}" for f in [*figures, read["seconds"]]]
        table.add_row(name, *cells)
    make_console().print(table)
    write_json(args.json, {"setups": results, "machine": machine()})
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Reliability of runs: kill them, or train long.")
    commands = parser.add_subparsers(required=True)
    killing = commands.add_parser("kill", help="kill runs and resume them")
    killing.set_defaults(work=kill)
    killing.add_argument("--kills", type=int, default=20)
    killing.add_argument("--algo", choices=("ppo", "td3", "ddpg", "sac"), default="ppo")
    killing.add_argument("--env", default="Hopper-v5")
    killing.add_argument("--iterations", type=int, default=100)
    killing.add_argument("--seed", type=int, default=0)
    growth = commands.add_parser("long", help="measure growth of memory and files")
    growth.set_defaults(work=grow)
    growth.add_argument("--shorter", type=int, default=1, help="divide all budgets by this")
    for command in (killing, growth):
        command.add_argument("--json", type=Path)
    args = parser.parse_args()
    status: int = args.work(args)
    return status


if __name__ == "__main__":
    sys.exit(main())
