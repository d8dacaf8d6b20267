"""Recurrent students from the command line to the policy file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dpd
from dpd.agents.config import Encoder
from dpd.cli import main
from dpd.policies.playing import Playing
from dpd.run.episodes import evaluate_policy
from tests.toy.blind_env import ENV, played_returns, saved_teacher
from tests.toy.runs import ENDS, STUDENT, run, train_teacher

SMALL = ["--encoder-size", "8", "--gradient-length", "8"]
SENSORS = ["--student-obs", "qpos,prev_action", "--student-noise", "qpos=0.1"]
SENSORS += ["--student-delay", "1"]
KINDS = pytest.mark.parametrize("kind", ["gru", "lstm"])


@pytest.fixture(scope="module")
def swimmer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_teacher(tmp_path_factory.mktemp("swimmer") / "run")


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Distil a student that sees one position, the present one, and remembers."""
    folder = tmp_path_factory.mktemp("blind")
    argv = [ENV, "--teacher", str(saved_teacher(folder)), "--student-obs", "0", "--encoder", "gru"]
    argv += ["--encoder-size", "16", "--hidden", "32", "32", "--n-envs", "8", "--n-steps", "40"]
    argv += ["--minibatch-size", "64", "--lr", "3e-3", "--distill.steps", "30", "--threads", "1"]
    argv += ["--evals", "1", "--total-steps", "4800", "--out", str(folder / "run")]
    assert main(["distill", *argv]) == 0
    return folder / "run"


def test_a_student_that_remembers_retains_what_one_frame_cannot(blind: Path) -> None:
    # `test_views.py` holds that a student of this one position retains less than 0.5
    (size,) = json.loads((blind / "fidelity.json").read_text())["sizes"]
    assert size["name"] == "32x32, gru 16"
    assert size["retained"] > 0.95
    meta = dpd.load(blind / "policies/seed0-peer0.safetensors").meta
    assert meta.encoder == Encoder(kind="gru", size=16)
    assert meta.view is not None and (meta.view.columns, meta.view.history) == ((0,), 1)


def test_a_loaded_policy_remembers_each_episode(blind: Path) -> None:
    policy = dpd.load(blind / "policies/seed0-peer0.safetensors")
    evaluated = evaluate_policy(policy, ENV, 20, 0).returns.mean()
    assert np.mean(played_returns(policy, 3)) == pytest.approx(evaluated, rel=0.1)


def test_fidelity_knows_what_a_student_remembers_at_every_state(
    blind: Path, tmp_path: Path
) -> None:
    files = [
        blind / "teachers/teacher00000.safetensors",
        blind / "policies/seed0-peer0.safetensors",
    ]
    argv = ["fidelity", *map(str, files), "--episodes", "3", "--states", "100"]
    assert main([*argv, "--threads", "1", "--out", str(tmp_path)]) == 0
    (student,) = json.loads((tmp_path / "fidelity.json").read_text())["students"]
    for states in ("heldout", "mixed", "student"):
        assert student["sets"][states]["action_error"] < 0.1
    # a memory that is lost makes it the student of one frame, whose error is 0.47
    policy = dpd.load(files[1])
    playing = Playing(policy)
    seen = [playing(torch.tensor([[x, 0.0]])).item() for x in (0.9, 0.5)]
    assert playing.watch is not None
    playing.begin()
    assert playing(torch.tensor([[0.5, 0.0]])).item() != pytest.approx(seen[1], abs=0.1)


# --- Runs ---


@KINDS
def test_a_run_is_resumed_to_the_end_of_the_whole(kind: str, swimmer: Path, tmp_path: Path) -> None:
    # Swimmer's episodes have 1,000 steps: the checkpoint is in the middle of all of them
    argv = ["Swimmer-v5", "--teacher", str(swimmer), *STUDENT, *ENDS, *SENSORS, *SMALL]
    argv += ["--encoder", kind, "--history", "1,2"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run(*argv, "--total-steps", "1024", "--out", str(whole))
    run(*argv, "--total-steps", "512", "--out", str(resumed))
    run("--resume", str(resumed), "--total-steps", "1024")
    for h in (1, 2):
        one, other = (dpd.load(x / f"policies/seed0-h{h}.safetensors") for x in (whole, resumed))
        assert one.acts_as(other) and one.meta.memory_dim == (8 if kind == "gru" else 16)


def test_one_more_evaluation_leaves_training_as_it_is(swimmer: Path, tmp_path: Path) -> None:
    argv = ["Swimmer-v5", "--teacher", str(swimmer), *STUDENT, *ENDS, *SENSORS, *SMALL]
    for evals in ("1", "4"):
        out = ["--evals", evals, "--out", str(tmp_path / evals)]
        run(*argv, "--encoder", "gru", "--total-steps", "512", *out)
    last = [dpd.load(tmp_path / x / "policies/seed0-peer0.safetensors") for x in ("1", "4")]
    assert last[0].acts_as(last[1])


METHODS = {
    "bc": ["--method", "bc"],
    "on-policy": ["--method", "on-policy", "--distill.divergence", "nll"],
    "progressive": ["--method", "progressive", "--distill.spacing", "one-shot"],
    "one step": ["--gradient-length", "1"],
    "sizes": ["--student-sizes", "4,8x8"],
}


@pytest.mark.parametrize("flags", METHODS.values(), ids=METHODS)
def test_supervised_methods_teach_students_that_see_all_and_remember(
    flags: list[str], swimmer: Path, tmp_path: Path
) -> None:
    argv = ["Swimmer-v5", "--teacher", str(swimmer), *STUDENT, *ENDS, *SMALL, *flags]
    run(*argv, "--encoder", "lstm", "--total-steps", "512", "--out", str(tmp_path / "run"))
    for file in (tmp_path / "run/policies").glob("*[0-9].safetensors"):
        policy = dpd.load(file)
        assert policy.meta.view is not None and policy.meta.view.dim == policy.meta.obs_dim == 8
        assert np.isfinite(policy.act(np.zeros((4, 8), np.float32))).all()


def test_convolutions_over_frames_are_learned_and_resumed(swimmer: Path, tmp_path: Path) -> None:
    argv = ["Swimmer-v5", "--teacher", str(swimmer), *STUDENT, *ENDS, *SENSORS]
    argv += ["--encoder", "tcn", "--encoder-size", "6", "--history", "2,5"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run(*argv, "--total-steps", "1024", "--out", str(whole))
    run(*argv, "--total-steps", "512", "--out", str(resumed))
    run("--resume", str(resumed), "--total-steps", "1024")
    for h in (2, 5):
        one, other = (dpd.load(x / f"policies/seed0-h{h}.safetensors") for x in (whole, resumed))
        assert one.acts_as(other) and one.meta.encoder == Encoder(kind="tcn", size=6)
        assert np.isfinite(one.act(np.zeros((3, 8), np.float32))).all()


def test_a_student_begins_as_one_with_the_same_layers(
    swimmer: Path, tmp_path: Path, capsys: Any
) -> None:
    argv = ["Swimmer-v5", "--teacher", str(swimmer), *STUDENT, *ENDS, *SMALL]
    run(*argv, "--encoder", "gru", "--total-steps", "256", "--out", str(tmp_path / "first"))
    first = tmp_path / "first/policies/seed0-peer0.safetensors"
    argv += ["--init-from", str(first), "--lr", "1e-9", "--total-steps", "128"]
    run(*argv, "--encoder", "gru", "--out", str(tmp_path / "same"))
    same, before = dpd.load(tmp_path / "same/policies/seed0-peer0.safetensors"), dpd.load(first)
    for name in ("encoder.input.weight", "encoder.state.bias", "actor.0.weight"):
        torch.testing.assert_close(same.tensors[name], before.tensors[name], rtol=0, atol=1e-6)
    assert main(["distill", *argv, "--encoder", "lstm", "--out", str(tmp_path / "other")]) == 2
    assert "has encoder gru of 8; these learners have lstm of 8" in capsys.readouterr().err


# --- Bad input ---

BAD = {
    "retrieval": (
        ["--encoder", "gru", "--method", "retrieval"],
        "this method learns from single states, by hidden layers alone: give --method dagger, bc",
    ),
    "scaffold": (["--encoder", "lstm", "--method", "scaffold"], "learns from single states"),
    "kickstart": (
        ["--encoder", "gru", "--method", "kickstart"],
        "--encoder is for students that learn from a teacher alone",
    ),
    "sac": (
        ["--gradient-length", "4", "--method", "kickstart", "--algo", "sac"],
        "--gradient-length is for students that learn from a teacher alone",
    ),
    "no layer": (["--encoder-size", "4"], "encoder_size does nothing without --encoder gru"),
    "one frame": (["--encoder", "tcn"], "tcn convolves over the frames of a history; give --hist"),
    "no memory": (
        ["--encoder", "tcn", "--history", "4", "--gradient-length", "4"],
        "gradient_length does nothing without --encoder gru or lstm",
    ),
    "frames of guides": (
        ["--encoder", "tcn", "--history", "4", "--method", "scaffold"],
        "by hidden layers alone",
    ),
    "no gradient": (["--gradient-length", "4"], "gradient_length does nothing without --encoder"),
    "unknown": (["--encoder", "rnn"], "--encoder"),
    "long": (
        ["--encoder", "gru", "--gradient-length", "300"],
        "gradient_length 300 is more than n_steps 256; lower it, or raise n_steps",
    ),
}


@pytest.mark.parametrize(("flags", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_in_one_line(
    flags: list[str], message: str, swimmer: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "run"
    argv = ["distill", "Swimmer-v5", "--teacher", str(swimmer), "--out", str(out), *flags]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not out.exists()


def test_dpd_train_has_no_recurrent_policies(tmp_path: Path, capsys: Any) -> None:
    assert main(["train", "Swimmer-v5", "--encoder", "gru", "--out", str(tmp_path / "run")]) == 2
    assert "(--algo student of dpd distill), not ppo" in capsys.readouterr().err


# --- What needs policies that answer about single observations ---


def test_a_recurrent_teacher_is_refused(blind: Path, tmp_path: Path, capsys: Any) -> None:
    file = blind / "policies/seed0-peer0.safetensors"
    argv = ["distill", ENV, "--teacher", str(file), *STUDENT, "--out", str(tmp_path / "run")]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert "remembers its episode" in error and error.count("\n") == 1


@pytest.mark.parametrize("command", ["cooperate", "sweep"])
def test_commands_on_single_states_refuse_them(
    command: str, blind: Path, tmp_path: Path, capsys: Any
) -> None:
    file = str(blind / "policies/seed0-peer0.safetensors")
    both = [file, str(blind / "policies/seed0-peer0-best.safetensors")]
    argv = [command, *(both if command == "cooperate" else [file]), "--out", str(tmp_path / "x")]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert "remembers its episode (gru of 16)" in error and error.count("\n") == 1


def test_evaluate_plays_them(blind: Path, capsys: Any) -> None:
    file = str(blind / "policies/seed0-peer0.safetensors")
    assert main(["evaluate", file, "--episodes", "5", "--json"]) == 0
    (policy,) = json.loads(capsys.readouterr().out)
    assert policy["mean"] > 34
