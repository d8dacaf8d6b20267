"""Kill runs at random moments and resume them: each must end like an undisturbed run.

python bench/kill.py --kills 20 --json kill.json        about 5 minutes
python bench/kill.py --algo sac                         learners with a replay that wraps around

Every try is a new run on a native task. It gets SIGKILL at a moment drawn uniformly from the
duration of an undisturbed run (with start-up, checkpoint writing and the last evaluation), and is
then resumed to its end. Parameters, moments, normalisers, generators, simulators, policies and the
log without its times must equal those of the undisturbed run byte for byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.progress import track
from timing import machine, write_json

from dpd.log.csv import read_rows
from dpd.log.terminal import make_console
from dpd.run.checkpoint import Checkpoints, digest, read

FLAGS = ["--n-envs", "4", "--n-steps", "64", "--evals", "4", "--eval-episodes", "1"]
FLAGS += ["--final-episodes", "1", "--seeds", "2"]
REPLAY = ["--hidden", "32", "32", "--minibatch-size", "32", "--updates-per-step", "0.05"]
REPLAY += ["--learning-starts", "1000", "--capacity", "4000"]


def command(out: Path, args: argparse.Namespace) -> list[str]:
    """Return the command of a new run; an iteration is 2 peers x 4 envs x 64 steps."""
    flags = ["--algo", args.algo, *FLAGS, *(REPLAY if args.algo != "ppo" else [])]
    flags += ["--total-steps", str(args.iterations * 512), "--checkpoint-every", "0.2"]
    return [sys.executable, "-m", "dpd", "train", args.env, *flags, "--out", str(out)]


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


def sha(data: bytes) -> str:
    """Return a short hash."""
    return hashlib.sha256(data).hexdigest()[:16]


def attempt(folder: Path, args: argparse.Namespace, after: float) -> dict[str, Any]:
    """Kill a new run after a time and resume it to its end; return its fingerprint."""
    status, _ = run(command(folder, args), after)
    files = Checkpoints(folder, keep=1).files()
    killed_at = int(files[0].stem.removeprefix("step-")) if files else None
    if not (folder / "config.json").exists():  # killed before the run had a directory
        again = command(folder, args)
    else:
        again = [sys.executable, "-m", "dpd", "train", "--resume", str(folder)]
    resumed, _ = run(again)
    return {
        "after_s": after,
        "killed": status == -9,
        "checkpoint": killed_at,
        "status": resumed,
        "end": fingerprint(folder),
    }


def main() -> None:
    """Measure and report; exit with 1 unless all resumed runs were exact."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--algo", choices=("ppo", "td3", "ddpg", "sac"), default="ppo")
    parser.add_argument("--env", default="Hopper-v5")
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
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
    sys.exit(0 if all(exact) else 1)


if __name__ == "__main__":
    main()
