"""A run that is killed in mid-episode ends, once it is resumed, as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dpd
from dpd.cli import main
from tests.toy.runs import ENDS, STUDENT, train_teacher

# Kill the process at a step of the environments: the last checkpoint is 1.5 iterations old.
CHILD = """
import os, signal, sys
from dpd.agents.views import Frames
from dpd.cli import main
steps, advance = [0], Frames.advance
def advance_or_die(*given):
    steps[0] += 1
    if steps[0] == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return advance(*given)
Frames.advance = advance_or_die
main(sys.argv[2:])
"""
VIEW = ["--student-obs", "qpos,prev_action", "--student-noise", "qpos=0.1", "--student-delay", "1"]
REPLAY = ["--algo", "sac", "--hidden", "8", "8", "--n-envs", "2", "--n-steps", "64"]
REPLAY += ["--learning-starts", "128", "--minibatch-size", "16", "--updates-per-step", "0.05"]
RUNS = {
    "students of two histories": [*STUDENT, "--history", "1,3", "--total-steps", "1536"],
    "sac, by turns with its teacher": [
        *("--method", "kickstart", "--distill.divergence", "mse", "--distill.beta-start", "0.5"),
        *("--distill.rl-coef-points", "0:0,0.3:0,0.9:1", "--distill.coef-points", "0:1"),
        *(*REPLAY, "--critic-obs", "all", "--history", "2", "--total-steps", "768"),
    ],
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_teacher(tmp_path_factory.mktemp("teacher") / "run")


def learned(run: Path) -> list[str]:
    """Return what a run logged, without the time that it took."""
    return [row for row in (run / "metrics.csv").read_text().splitlines() if ",time/" not in row]


@pytest.mark.parametrize("flags", RUNS.values(), ids=RUNS)
def test_a_killed_run_ends_as_one_that_was_not(
    flags: list[str], teacher: Path, tmp_path: Path, no_report: None
) -> None:
    argv = ["distill", "Swimmer-v5", "--teacher", str(teacher), *flags, *VIEW, *ENDS]
    # six iterations of 64 steps, in an episode of 1,000; a checkpoint at every other one
    argv += ["--evals", "3", "--checkpoint-every", "1000000", "--kernels", "torch"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert main([*argv, "--out", str(straight)]) == 0
    died = subprocess.run(
        [sys.executable, "-c", CHILD, str(64 * 3 + 32), *argv, "--out", str(killed)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=False,
        timeout=600,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert len(learned(killed)) < len(learned(straight))
    assert main(["distill", "--resume", str(killed)]) == 0
    assert learned(killed) == learned(straight)
    files = sorted((straight / "policies").glob("*.safetensors"))
    assert files
    for file in files:
        expected, found = (dpd.load(run / "policies" / file.name) for run in (straight, killed))
        assert expected.tensors.keys() == found.tensors.keys()
        assert all(torch.equal(x, found.tensors[k]) for k, x in expected.tensors.items())
