"""Train two PPO peers on a GPU for minutes, and evaluate them with the CPU's physics."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_parity import Measure, Record

from dpd.policies import policyfile
from dpd.run.episodes import evaluate_together
from dpd.run.sources import find_policies, is_best

SEEDS, STEPS, EPISODES, EVAL_SEED = 5, 20_000_000, 10, 1_000_000
BOX_S = {"HalfCheetah-v5": 300.0, "Ant-v5": 90.0, "Hopper-v5": 60.0, "Walker2d-v5": 60.0}
"""Maximum seconds per run; HalfCheetah's is its goal."""
CONTROL_S = 60.0
JUDGED_S, LEAST_S = 15.0, 20.0


def learn(env_id: str, flags: list[str], device: torch.device, box: float, quick: bool) -> Record:
    """Train within a time limit, and evaluate the last policies of every seed and peer."""
    steps, seeds = (20_000, 1) if quick else (STEPS, SEEDS)
    small = ["--n-envs", "4", "--n-steps", "64", "--minibatch-size", "64"] if quick else []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        argv = [sys.executable, "-m", "dpd", "train", env_id, "--device", str(device), *flags]
        argv += ["--seeds", str(seeds), "--total-steps", str(steps), "--evals", "4", *small]
        argv += ["--final-episodes", "1", "--out", str(out)]
        begin = time.perf_counter()
        status = boxed(argv, box)
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "status": status, **judged(out, env_id)}


def boxed(argv: list[str], box: float) -> int:
    """Run a command; after `box` seconds, ask it to save and stop."""
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    try:
        return process.wait(box)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        return process.wait(60)
    finally:
        process.kill()


def judged(run_dir: Path, env_id: str) -> Record:
    """Return the mean return of each learner's last policy, on the CPU."""
    files = [file for file in find_policies(run_dir) if not is_best(file)]
    policies = [policyfile.load(file) for file in files]
    outcomes = evaluate_together(policies, env_id, EPISODES, EVAL_SEED)
    return {
        "steps_of_both_peers": policies[0].meta.provenance["steps"],
        "returns": {f.stem: float(o.returns.mean()) for f, o in zip(files, outcomes, strict=True)},
    }


def measures(device: torch.device, quick: bool, seconds: float) -> Iterator[tuple[str, Measure]]:
    """Yield the runs, the most important first; all of them share `seconds`."""

    end = time.perf_counter() + seconds - JUDGED_S

    def boxed_run(env_id: str, flags: list[str], box: float) -> Measure:
        def run() -> Record:
            left = max(end - time.perf_counter(), LEAST_S)
            return learn(env_id, flags, device, min(box, left), quick)

        return run

    for env_id, box in BOX_S.items():
        yield f"{env_id}/paper", boxed_run(env_id, ["--preset", "paper,large"], box)
    alone = ["--preset", "large", "--method", "none"]
    yield "HalfCheetah-v5/no distillation", boxed_run("HalfCheetah-v5", alone, CONTROL_S)


def goals(found: dict[str, Any]) -> list[Record]:
    """Return the goal, 2 peers x 10M steps x 5 seeds in five minutes, and its measurement."""
    run = found.get("HalfCheetah-v5/paper", {})
    finished = run.get("status") == 0
    return [
        {
            "goal": "two peers x 10M steps x 5 seeds on HalfCheetah, seconds, at most",
            "most": 300,
            "measured": run.get("seconds") if finished else None,
        }
    ]
