"""A distillation that was interrupted ends bit for bit where the whole one does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dpd.cli import parse_run
from dpd.policies import policyfile
from dpd.run.train import iterate, make_training
from tests.toy import policies as made
from tests.toy.runs import ROLLOUT, STUDENT

ITERATIONS, STOP = 8, 3
PPO = [*ROLLOUT, "--minibatch-size", "64", "--epochs", "1"]
SAC = ["--algo", "sac", "--n-steps", "64", "--hidden", "8", "--learning-starts", "64"]
SAC += ["--minibatch-size", "16", "--capacity", "300", "--updates-per-step", "0.1"]
VIEW = ["--student-obs", "qpos,prev_action", "--student-noise", "qpos=0.1"]
VIEW += ["--student-delay", "1"]
CASES = {
    "dagger": [*STUDENT, "--distill.beta-schedule", "linear"],
    "dagger of samples": [*STUDENT, "--distill.divergence", "nll"],
    "progressive": ["--method", "progressive", *STUDENT],
    "progressive, saturate": [
        *["--method", "progressive", "--distill.switch", "saturate", *STUDENT],
        *["--distill.final-share", "0.1", "--lr", "1e-9"],  # what learns nothing settles
    ],
    "scaffold": ["--method", "scaffold", "--distill.warm-up", "0.2", *STUDENT],
    "retrieval": [
        *["--method", "retrieval", "--distill.check-every", "2", "--distill.entries", "200"],
        *["--distill.embed-steps", "20", "--student-sizes", "8,6", *STUDENT],
    ],
    "kickstart": ["--method", "kickstart", *PPO],
    "kickstart sac": ["--method", "kickstart", *SAC, "--distill.divergence", "nll"],
    "n-distill": ["--method", "n-distill", "--distill.schedule", "linear", *PPO],
    "sizes": ["--student-sizes", "4x4,8,6", *STUDENT],
    "views": [*VIEW, "--history", "1,3", *STUDENT],
    "kickstart with views": ["--method", "kickstart", *VIEW, "--history", "1,3", *PPO],
    "kickstart sac with a view": [
        *["--method", "kickstart", *SAC, "--distill.divergence", "nll"],
        *[*VIEW, "--history", "2"],
    ],
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a run's policy and its history, of random weights."""
    folder = tmp_path_factory.mktemp("resumed")
    policy = made.saved(folder / "run", "ppo", "Swimmer-v5")
    last = folder / "run/policies/seed0-peer0.safetensors"
    for k in range(1, 11):
        said = {"eval_return": 10.0 * k, "steps": 100 * k}
        path = last.parent / f"history/{last.stem}-{100 * k:012d}.safetensors"
        policyfile.save(path, policy.tensors, replace(policy.meta, provenance=said))
    return last


@pytest.mark.parametrize("flags", CASES.values(), ids=CASES)
def test_what_is_resumed_ends_where_the_whole_ends(flags: list[str], teacher: Path) -> None:
    argv = ["Swimmer-v5", "--teacher", str(teacher), *flags, "--seeds", "2", "--threads", "1"]

    once = parse_run(argv, "distill").steps_per_iteration
    config = parse_run([*argv, "--total-steps", str(ITERATIONS * once)], "distill")
    whole, resumed = make_training(config), make_training(config)
    for _ in range(STOP):
        iterate(whole)
    before = float(whole.state().get("stack0.method.stage", 0))
    for old, new in zip(whole.journals, resumed.journals, strict=True):
        if old is not None and new is not None:
            new.extend(old.since(0))
    resumed.load_state({name: x.clone() for name, x in whole.state().items()})
    for _ in range(ITERATIONS - STOP):
        expected, found = iterate(whole), iterate(resumed)
        assert str(expected) == str(found)  # what is logged is the same too
    if "progressive" in flags:
        assert expected["distill/stage"].min() > before  # type: ignore[union-attr]
    state = resumed.state()
    torch.testing.assert_close(state, whole.state(), rtol=0, atol=0, equal_nan=True)
