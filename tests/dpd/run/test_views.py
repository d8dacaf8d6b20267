"""Students that see less than their teacher, from the command line to the policy file."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dpd
from dpd.agents.config import View
from dpd.cli import main, parse_run
from dpd.config import StackConfig, TrainConfig
from dpd.envs.base import EnvSpec
from dpd.policies import policyfile
from dpd.run.episodes import evaluate_policy
from dpd.run.train import iterate, make_training
from tests.toy.blind_env import ENV, played_returns, saved_teacher
from tests.toy.dict_env import CART
from tests.toy.runs import ENDS, ROLLOUT, STUDENT, run, train_teacher
from tests.toy.students import linear

POSITION = ["--student-obs", "0"]
SENSORS = ["--student-obs", "qpos,prev_action", "--student-noise", "qpos=0.1"]
SENSORS += ["--student-delay", "1"]
LEARN = ["--n-envs", "8", "--n-steps", "40", "--minibatch-size", "64", "--lr", "3e-3"]
LEARN += ["--hidden", "32", "32"]


def blind(out: Path, teacher: Path, *flags: str, steps: int = 20_480) -> Path:
    argv = [ENV, "--teacher", str(teacher), *POSITION, *LEARN, "--threads", "1", "--evals", "1"]
    assert main(["distill", *argv, "--total-steps", str(steps), "--out", str(out), *flags]) == 0
    return out


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def by_history(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    """Distil students of the position alone, with one, two and four frames."""
    folder = tmp_path_factory.mktemp("blind")
    return blind(folder / "run", teacher, "--history", "1,2,4", steps=61_440)


# --- A mass whose velocity is hidden ---


def test_two_frames_of_positions_retain_what_one_cannot(by_history: Path) -> None:
    found = json.loads((by_history / "fidelity.json").read_text())["sizes"]
    kept = {size["students"][0].get("history", 1): size["retained"] for size in found}
    assert kept[1] < 0.5
    assert kept[2] > 0.95 and kept[4] > 0.95


def test_students_are_named_by_their_history_and_drawn_over_it(by_history: Path) -> None:
    names = {path.stem for path in (by_history / "policies").glob("*[0-9].safetensors")}
    assert names == {"seed0-h1", "seed0-h2", "seed0-h4"}
    assert (by_history / "students.png").is_file()


def test_a_policy_file_tells_what_the_student_sees(by_history: Path) -> None:
    meta = dpd.load(by_history / "policies/seed0-h4.safetensors").meta
    expected = View(obs_dim=2, act_dim=1, columns=(0,), groups=("0",), history=4)
    assert (meta.obs_dim, meta.in_dim, meta.frame_dim) == (2, 4, 1)
    assert meta.view == expected


def test_a_loaded_policy_needs_no_more_than_observations(by_history: Path) -> None:
    # the return of `dpd evaluate` is that of `act` and `reset` in the environment itself
    policy = dpd.load(by_history / "policies/seed0-h2.safetensors")
    evaluated = evaluate_policy(policy, ENV, 20, 0).returns.mean()
    assert np.mean(played_returns(policy, 3)) == pytest.approx(evaluated, rel=0.1)


def test_what_is_late_and_noisy_is_evaluated_so(
    by_history: Path, teacher: Path, tmp_path: Path
) -> None:
    sensors = ["--history", "2", "--student-noise", "0=0.3", "--student-delay", "2"]
    out = blind(tmp_path / "run", teacher, *sensors)
    policy = dpd.load(out / "policies/seed0-peer0.safetensors")
    assert policy.meta.view is not None
    assert (policy.meta.view.noise, policy.meta.view.delay) == ((0.3,), 2)
    bad = evaluate_policy(policy, ENV, 20, 0).returns.mean()
    good = evaluate_policy(dpd.load(by_history / "policies/seed0-h2.safetensors"), ENV, 20, 0)
    assert bad < 0.5 * good.returns.mean()
    again = evaluate_policy(dpd.load(out / "policies/seed0-peer0.safetensors"), ENV, 20, 0)
    assert again.returns.mean() == bad


def test_fidelity_asks_a_student_what_it_saw_in_the_episode(
    by_history: Path, teacher: Path, tmp_path: Path
) -> None:
    students = [str(by_history / f"policies/seed0-h{h}.safetensors") for h in (1, 4)]
    argv = ["fidelity", str(teacher), *students, "--episodes", "2", "--states", "60"]
    assert main([*argv, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "fidelity.json").read_text())["students"]
    one, four = (student["sets"] for student in found)
    for states in ("heldout", "mixed", "student"):
        assert four[states]["action_error"] < 0.05 < one[states]["action_error"]


def test_a_run_with_views_is_resumed_to_the_end_of_the_whole(swimmer: Path, tmp_path: Path) -> None:
    argv = ["Swimmer-v5", "--teacher", str(swimmer), *STUDENT, *ENDS, *SENSORS]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run(*argv, "--history", "1,3", "--total-steps", "1024", "--out", str(whole))
    run(*argv, "--history", "1,3", "--total-steps", "512", "--out", str(resumed))
    run("--resume", str(resumed), "--total-steps", "1024")
    for h in (1, 3):
        one, other = (dpd.load(x / f"policies/seed0-h{h}.safetensors") for x in (whole, resumed))
        assert one.acts_as(other) and one.meta.view == other.meta.view


def test_one_more_evaluation_leaves_training_as_it_is(swimmer: Path, tmp_path: Path) -> None:
    argv = ["Swimmer-v5", "--teacher", str(swimmer), *STUDENT, *ENDS, *SENSORS]
    for evals in ("1", "4"):
        run(*argv, "--total-steps", "512", "--evals", evals, "--out", str(tmp_path / evals))
    last = [dpd.load(tmp_path / x / "policies/seed0-peer0.safetensors") for x in ("1", "4")]
    assert last[0].acts_as(last[1])


# --- Nothing changes without a view ---

PPO = [*ROLLOUT, "--minibatch-size", "64", "--epochs", "1"]
REPLAY = ["--n-steps", "64", "--hidden", "8", "--learning-starts", "64", "--minibatch-size", "16"]
REPLAY += ["--capacity", "300", "--updates-per-step", "0.1", "--method", "kickstart"]
METHODS = {
    "dagger": STUDENT,
    "on-policy": ["--method", "on-policy", *STUDENT],
    "progressive": ["--method", "progressive", "--distill.spacing", "one-shot", *STUDENT],
    "scaffold": ["--method", "scaffold", "--distill.warm-up", "0.2", *STUDENT],
    "retrieval": [
        *["--method", "retrieval", "--distill.check-every", "2", "--distill.entries", "200"],
        *["--distill.embed-steps", "20", *STUDENT],
    ],
    "kickstart": ["--method", "kickstart", *PPO],
    "ppd": ["--method", "ppd", *PPO],
    "n-distill": ["--method", "n-distill", *PPO],
    "kickstart sac": ["--algo", "sac", *REPLAY, "--distill.divergence", "nll"],
    "kickstart td3": ["--algo", "td3", *REPLAY, "--distill.divergence", "mse"],
    "kickstart td3, parameter noise": [
        *["--algo", "td3", *REPLAY, "--distill.divergence", "mse", "--exploration", "param"]
    ],
}


@pytest.fixture(scope="module")
def swimmer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_teacher(tmp_path_factory.mktemp("swimmer") / "run")


def see_everything(self: TrainConfig, stack: StackConfig, spec: EnvSpec) -> list[View]:
    """Return a view of all columns for each peer, which the command line refuses."""
    columns = tuple(range(spec.obs_dim))
    view = View(obs_dim=spec.obs_dim, act_dim=spec.act_dim, columns=columns)
    return [view] * len(stack.peers)


TORCH = ["--kernels", "torch"]
WITH_CODE = {f"{name}, torch": [*flags, *TORCH] for name, flags in METHODS.items()}
WITH_CODE |= {name: METHODS[name] for name in ("dagger", "kickstart", "ppd", "n-distill")}


@pytest.mark.parametrize("flags", WITH_CODE.values(), ids=WITH_CODE)
def test_a_view_of_everything_changes_no_bit(
    flags: list[str], swimmer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["Swimmer-v5", "--teacher", str(swimmer), *flags, *ENDS, "--total-steps", "512"]
    config = parse_run(argv, "distill")
    plain = make_training(config)
    monkeypatch.setattr(TrainConfig, "views_of", see_everything)
    viewed = make_training(config)
    assert viewed.stacks[0].agent.views and not plain.stacks[0].agent.views
    for _ in range(3):
        assert str(iterate(plain)) == str(iterate(viewed))
        returns = [each.evaluate()["eval/return"] for each in (plain, viewed)]
        assert torch.equal(*returns)
        plain.iteration += 1
        viewed.iteration += 1
    assert torch.equal(plain.stacks[0].agent.nets.flat, viewed.stacks[0].agent.nets.flat)


@pytest.mark.parametrize("flags", METHODS.values(), ids=METHODS)
def test_every_method_teaches_students_of_several_histories(
    flags: list[str], swimmer: Path, tmp_path: Path
) -> None:
    argv = ["Swimmer-v5", "--teacher", str(swimmer), *flags, *ENDS, "--total-steps", "1024"]
    views = ["--student-obs", "qpos,prev_action", "--history", "1,3", "--student-delay", "1"]
    run(*argv, *views, "--out", str(tmp_path / "run"))
    for h in (1, 3):
        policy = dpd.load(tmp_path / f"run/policies/seed0-h{h}.safetensors")
        assert policy.meta.in_dim == h * (3 + 2)
        assert np.isfinite(policy.act(np.zeros((4, 8), np.float32))).all()


# --- The teacher's own view ---


def test_a_teacher_of_some_columns_answers_about_whole_observations(
    swimmer: Path, tmp_path: Path
) -> None:
    # a student that sees the velocities alone becomes the teacher of one that sees all
    argv = ["Swimmer-v5", *STUDENT, *ENDS, "--total-steps", "256"]
    first, second = tmp_path / "first", tmp_path / "second"
    run(*argv, "--teacher", str(swimmer), "--student-obs", "qvel", "--out", str(first))
    run(*argv, "--teacher", str(first), "--out", str(second))
    kept = dpd.load(second / "teachers/teacher00000.safetensors")
    assert kept.meta.view is not None and kept.meta.view.columns == (3, 4, 5, 6, 7)
    assert dpd.load(second / "policies/seed0-peer0.safetensors").meta.view is None


def test_teacher_obs_names_the_columns_that_an_older_teacher_reads(
    teacher: Path, tmp_path: Path
) -> None:
    # the teacher reads two numbers, and this environment shows a third between them
    policy, env = dpd.load(teacher), "tests.toy.payload_env:Payload-v0"
    meta = replace(policy.meta, env_id=env, act_dim=2)
    policyfile.save(tmp_path / "t.safetensors", widened(policy.tensors), meta)
    argv = [env, "--teacher", str(tmp_path / "t.safetensors"), *STUDENT, *ENDS]
    argv += ["--total-steps", "128", "--out", str(tmp_path / "run"), "--env-kwargs", '{"dims": 3}']
    run(*argv, "--teacher-obs", "0,2")
    kept = dpd.load(tmp_path / "run/teachers/teacher00000.safetensors")
    obs = np.array([[1.0, 50.0, -0.5]], np.float32)
    # -0.8 * 1 - 1.2 * -0.5 = -0.2
    assert kept.act(obs)[0, 0] == pytest.approx(-0.2, abs=1e-6)


def widened(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a policy's tensors with a second action that is always 0."""
    zero = {k: torch.cat([tensors[k], torch.zeros_like(tensors[k])], -1) for k in tensors}
    same = ("obs_mean", "obs_scale", "obs_count")
    ends = {"act_low": -torch.ones(2), "act_high": torch.ones(2)}
    return zero | {k: tensors[k] for k in same} | ends


# --- Bad input ---

BAD = {
    "unknown group": (["--student-obs", "qpso"], "--student-obs: no group is called 'qpso', did"),
    "nothing": (["--student-obs", ","], "--student-obs: no columns are chosen"),
    "only actions": (["--student-obs", "prev_action"], "prev_action shows no observation"),
    "everything": (["--student-obs", "all"], "all that Swimmer-v5 shows, which students see"),
    "everything by name": (["--student-obs", "qpos,qvel", "--history", "1"], "qpos,qvel --history"),
    "history of one": (["--history", "1"], "--history 1: that is all that Swimmer-v5 shows"),
    "no history": (["--history", "0"], "--history must be numbers of frames such as 4 or 1,2,4,8"),
    "a history twice": (["--history", "2,2"], "--history 2,2 names a number twice"),
    "beyond an episode": (["--history", "1001"], "further than an episode of Swimmer-v5"),
    "beyond the memory": (
        ["--history", "900", "--capacity", "2000000000", "--total-steps", "2000000000"],
        "lower --capacity or --seeds, or --history",
    ),
    "noise of nothing": (["--student-noise", "qpos"], "--student-noise qpos: give a positive"),
    "noise of 0": (["--student-noise", "qpos=0"], "give a positive standard deviation"),
    "noise twice": (["--student-noise", "qpos=1,0=1"], "0 repeats columns of another word"),
    "unseen noise": (
        ["--student-obs", "qpos", "--student-noise", "qvel=0.1"],
        "--student-noise qvel: students do not see all of it, but qpos",
    ),
    "a delay before": (["--student-delay", "-1"], "--student-delay must not be negative"),
    "peers": (["--history", "1,2", "--peers", "3"], "--history names 2 students and --peers 3"),
    "two kinds of several": (
        ["--history", "1,2", "--student-sizes", "4,8"],
        "--history and --student-sizes both name students",
    ),
    "teacher lacks": (["--teacher-obs", "cfrc_ext"], "--teacher-obs: no group is called 'cfrc_ext"),
    "teacher reads more": (
        ["--teacher-obs", "qpos"],
        "--teacher-obs qpos has 3 columns of Swimmer-v5, but the teacher reads 8",
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


def test_a_student_begins_as_one_that_sees_the_same(
    by_history: Path, teacher: Path, tmp_path: Path, capsys: Any
) -> None:
    path = by_history / "policies/seed0-h2.safetensors"
    argv = [ENV, "--teacher", str(teacher), *POSITION, *LEARN, *ENDS, "--total-steps", "320"]
    argv += ["--init-from", str(path)]
    run(*argv, "--history", "2", "--lr", "1e-9", "--out", str(tmp_path / "same"))
    same = dpd.load(tmp_path / "same/policies/seed0-peer0.safetensors")
    obs = np.array([[0.3, 0.0], [-0.7, 0.0]], np.float32)
    # the normaliser takes in 320 observations more
    np.testing.assert_allclose(same.act(obs), dpd.load(path).act(obs), atol=0.005)
    assert main(["distill", *argv, "--history", "4", "--out", str(tmp_path / "other")]) == 2
    assert "sees 0; 2 frames; these learners see 0; 4 frames" in capsys.readouterr().err


def test_a_teacher_of_fewer_columns_is_told_to_name_them(
    teacher: Path, tmp_path: Path, capsys: Any
) -> None:
    policy, env = dpd.load(teacher), "tests.toy.payload_env:Payload-v0"
    meta = replace(policy.meta, env_id=env, act_dim=2)
    policyfile.save(tmp_path / "t.safetensors", widened(policy.tensors), meta)
    assert main(["distill", env, "--teacher", str(tmp_path / "t.safetensors")]) == 2
    error = capsys.readouterr().err
    assert "the teacher reads 2 observations, and" in error and "has 3; if it knows" in error


def test_a_teacher_with_a_history_cannot_answer_about_single_states(
    by_history: Path, tmp_path: Path, capsys: Any
) -> None:
    path = by_history / "policies/seed0-h2.safetensors"
    argv = ["distill", ENV, "--teacher", str(path), "--out", str(tmp_path / "run")]
    assert main(argv) == 2
    assert "the teacher sees 0; 2 frames: it must answer about single" in capsys.readouterr().err


def test_settings_of_a_run_without_views_do_not_name_them(swimmer: Path) -> None:
    config = parse_run(["Swimmer-v5", "--teacher", str(swimmer)], "distill")
    assert not {"history", "student_obs", "teacher_obs"} & config.as_json().keys()


def test_metrics_of_a_run_are_logged_for_every_history(by_history: Path) -> None:
    with (by_history / "metrics.csv").open(newline="") as file:
        peers = {row["peer"] for row in csv.DictReader(file) if row["metric"] == "distill/loss"}
    assert peers == {"0", "1", "2"}


def test_keys_of_a_dict_are_groups_that_a_student_may_see(tmp_path: Path) -> None:
    # Cart observes alpha (2), cart.grid (6), cart.place (1) and terrain (1), in this order
    weight = torch.zeros(10, 1)
    weight[8] = -1.0
    policy = linear(weight, torch.zeros(1), env_id=CART)
    policyfile.save(tmp_path / "t.safetensors", policy.tensors, policy.meta)
    argv = [CART, "--teacher", str(tmp_path / "t.safetensors"), *STUDENT, *ENDS]
    argv += ["--student-obs", "cart.place,terrain", "--history", "2", "--total-steps", "256"]
    run(*argv, "--out", str(tmp_path / "run"))
    view = dpd.load(tmp_path / "run/policies/seed0-peer0.safetensors").meta.view
    assert view is not None and view.columns == (8, 9)
