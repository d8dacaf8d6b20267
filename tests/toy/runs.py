"""A teacher to distil from end to end, and runs of a moment."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import dpd.run.train
from dpd.cli import main

ENDS = ["--evals", "1", "--eval-episodes", "1", "--final-episodes", "1", "--threads", "1"]
ROLLOUT = ["--n-envs", "2", "--n-steps", "64"]
TEACHER = ["--method", "none", "--peers", "1", "--hidden", "8", "8", *ROLLOUT]
STUDENT = [*ROLLOUT, "--minibatch-size", "32", "--distill.steps", "4"]


def train_teacher(out: Path) -> Path:
    """Train three iterations of 128 steps, with an evaluation after each."""
    argv = ["train", "Swimmer-v5", *TEACHER, *ENDS, "--evals", "3", "--total-steps", "384"]
    assert main([*argv, "--keep-checkpoints", "--out", str(out)]) == 0
    return out


@contextmanager
def unreported() -> Iterator[None]:
    """Leave out the table and the picture at the end of runs, which take most of a short one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dpd.run.train, "report_end", lambda *given: None)
        yield


def run(*argv: str) -> None:
    """Run `dpd distill` without the report at its end."""
    with unreported():
        assert main(["distill", *argv]) == 0


def distil(out: Path, teacher: Path | str, *flags: str, steps: int = 512) -> Path:
    """Distil on Swimmer-v5."""
    argv = ["Swimmer-v5", "--teacher", str(teacher), *ENDS, "--total-steps", str(steps)]
    run(*argv, "--out", str(out), *flags)
    return out


def logged(run_dir: Path, metric: str, peer: int = 0) -> list[float]:
    """Return all values of a learner's metric, in the order of the run."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == metric]
    return [float(row["value"]) for row in rows if row["peer"] == str(peer)]
