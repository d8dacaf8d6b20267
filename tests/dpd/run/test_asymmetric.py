"""`dpd train` with policies that see a view, from the command line to the policy file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import dpd
from dpd.agents.config import View
from dpd.agents.offpolicy import OffPolicy
from dpd.cli import main, parse_train
from dpd.config import TrainConfig
from dpd.run.train import iterate, make_training
from dpd.run.updates import update_plan
from tests.toy.runs import ENDS, ROLLOUT, STUDENT, TEACHER, distil, train_teacher

POSITIONS = ["--actor-obs", "qpos,prev_action", "--history", "2", "--actor-noise", "qpos=0.1"]
POSITIONS += ["--actor-delay", "1"]
SMALL = ["--minibatch-size", "32", "--epochs", "2"]
SEEN = View(
    obs_dim=8,
    act_dim=2,
    columns=(0, 1, 2),
    groups=("qpos", "prev_action"),
    prev_action=True,
    history=2,
    delay=1,
    noise=(0.1, 0.1, 0.1),
)
PEERS = {
    "alone": [*TEACHER, "--critic-obs", "all"],
    "alone, value of the view": TEACHER,
    "dpd": ["--hidden", "8", "8", *ROLLOUT, "--critic-obs", "all"],
    "dpd, modern": ["--hidden", "8", "8", "--preset", "modern", *ROLLOUT, "--critic-obs", "all"],
    "shared experience": [*TEACHER, "--peers", "2", "--share-experience", "--critic-obs", "all"],
}
REPLAY = ["--hidden", "8", "8", "--n-envs", "2", "--n-steps", "8", "--learning-starts", "8"]
REPLAY += ["--capacity", "400", "--minibatch-size", "8"]
ALONE = ["--method", "none", "--peers", "1"]
REPLAYED = {
    "td3": ["--algo", "td3", *ALONE],
    "ddpg": ["--algo", "ddpg", *ALONE, "--exploration", "param", "--critic-obs", "qvel"],
    "sac": ["--algo", "sac", *ALONE, "--norm-obs"],
    "sac, dpd": ["--algo", "sac", "--distill.ruler", "lcb"],
    "sac, pool": ["--algo", "sac", "--method", "none", "--share-experience"],
    "td3, shared replay": ["--algo", "td3", "--method", "none", "--share-replay"],
    "td3, acting by turns": ["--algo", "td3", "--method", "none", "--act", "hybrid"],
}


def configured(*flags: str) -> TrainConfig:
    return parse_train(["Swimmer-v5", *flags, *POSITIONS, *SMALL, "--total-steps", "1024"])


@pytest.mark.parametrize("flags", PEERS.values(), ids=PEERS)
def test_an_interrupted_run_continues_with_the_same_numbers(flags: list[str]) -> None:
    config = configured(*flags)
    straight, resumed = make_training(config), make_training(config)
    iterate(straight)
    resumed.load_state({k: x.clone() for k, x in straight.state().items()})
    for training in (straight, resumed):
        iterate(training)
    for k, x in straight.state().items():
        y = resumed.state()[k]
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True, msg=k)


def test_a_policy_file_tells_what_the_policy_sees(tmp_path: Path, no_report: None) -> None:
    argv = ["train", "Swimmer-v5", *PEERS["alone"], *POSITIONS, *SMALL, *ENDS]
    assert main([*argv, "--total-steps", "256", "--out", str(tmp_path / "run")]) == 0
    policy = dpd.load(tmp_path / "run/policies/seed0-peer0.safetensors")
    assert policy.meta.view == SEEN
    assert not any("critic" in name for name in policy.tensors)
    # a run resumes by its saved settings alone
    assert main(["train", "--resume", str(tmp_path / "run"), "--total-steps", "512"]) == 0


@pytest.mark.parametrize("flags", REPLAYED.values(), ids=REPLAYED)
def test_learners_with_a_replay_go_on_with_the_same_numbers(flags: list[str]) -> None:
    argv = ["Swimmer-v5", *REPLAY, *POSITIONS, "--critic-obs", "all", *flags]
    config = parse_train([*argv, "--total-steps", "640"])
    straight, resumed = make_training(config), make_training(config)
    first = straight.stacks[0].agent.nets.flat.detach().clone()
    for _ in range(2):
        iterate(straight)
    resumed.load_state({k: x.clone() for k, x in straight.state().items()})
    for old, new in zip(straight.journals, resumed.journals, strict=True):
        assert old is not None and new is not None
        new.extend(old.since(0))
    for training in (straight, resumed):
        iterate(training)
    for k, x in straight.state().items():
        y = resumed.state()[k]
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True, msg=k)
    agent = straight.stacks[0].agent
    assert isinstance(agent, OffPolicy) and not torch.equal(agent.nets.flat, first)
    # two frames of 3 positions and 2 actions; critics read 8 observations, or 5 velocities
    assert agent.in_dim == 10 and agent.critic_dim == (5 if "qvel" in flags else 8)


def test_a_policy_with_a_replay_is_tuned_after_its_critics_have_warmed_up(
    tmp_path: Path, no_report: None
) -> None:
    argv = ["train", "Swimmer-v5", *REPLAYED["sac"], *REPLAY, *ENDS]
    assert main([*argv, *POSITIONS, "--total-steps", "64", "--out", str(tmp_path / "first")]) == 0
    start = tmp_path / "first/policies/seed0-peer0.safetensors"
    argv += ["--critic-obs", "all", "--critic-warmup", "2", "--keep-checkpoints", "--evals", "3"]
    out = tmp_path / "tuned"
    argv += ["--init-from", str(start), "--total-steps", "48", "--out", str(out)]
    assert main(argv) == 0
    one, two, three = (
        dpd.load(file).tensors for file in sorted((out / "policies/history").iterdir())
    )
    for name, x in dpd.load(start).tensors.items():
        assert torch.equal(one[name], x) or name.startswith("obs_")
        if name.startswith(("actor", "log_std")):
            assert torch.equal(two[name], x) and not torch.equal(three[name], x)
    assert dpd.load(out / "policies/seed0-peer0.safetensors").meta.view == SEEN


def test_kernels_update_a_value_function_that_sees_more() -> None:
    assert update_plan(configured(*PEERS["alone"])) == "fused kernels"


def test_settings_without_a_view_do_not_name_one() -> None:
    config = parse_train(["Swimmer-v5", *TEACHER, *SMALL])
    assert not {"history", "actor_obs"} & config.as_json().keys()


# --- Distil, then fine-tune ---


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Distil a student that sees the view, for a moment."""
    folder = tmp_path_factory.mktemp("student")
    views = [word.replace("--actor", "--student") for word in POSITIONS]
    flags = [*STUDENT, "--hidden", "8", "8", *views]
    run = distil(folder / "run", train_teacher(folder / "teacher"), *flags, steps=128)
    return run / "policies/seed0-peer0.safetensors"


def test_a_student_is_tuned_with_the_view_in_its_file(
    student: Path, tmp_path: Path, no_report: None
) -> None:
    argv = ["train", "Swimmer-v5", *PEERS["alone"], *SMALL, *ENDS, "--init-from", str(student)]
    argv += ["--critic-warmup", "2", "--init-std", "0.2", "--keep-checkpoints", "--evals", "3"]
    out = tmp_path / "run"
    assert main([*argv, "--total-steps", "384", "--out", str(out)]) == 0
    first, second, third = (
        dpd.load(file).tensors for file in sorted((out / "policies/history").iterdir())
    )
    for name, x in dpd.load(student).tensors.items():
        if name == "log_std":
            torch.testing.assert_close(first[name], torch.full_like(x, 0.2).log())
        elif name.startswith("actor"):
            assert torch.equal(first[name], x) and not torch.equal(third[name], x)
        assert torch.equal(first[name], second[name]) == (not name.startswith("obs_"))
    assert dpd.load(out / "policies/seed0-peer0.safetensors").meta.view == SEEN
    # the settings name the view: a run resumes without the student
    assert '"actor_obs": "qpos,prev_action"' in (out / "config.json").read_text()
    assert main(["train", "--resume", str(out), "--total-steps", "512"]) == 0


def test_a_kickstarted_student_may_have_a_value_function_that_sees_everything(
    student: Path, tmp_path: Path
) -> None:
    teacher = next(student.parents[2].glob("teacher/policies/*peer0.safetensors"))
    flags = ["--method", "kickstart", "--algo", "ppo", "--hidden", "8", "8", *ROLLOUT, *SMALL]
    views = ["--student-obs", "qpos", "--critic-obs", "all"]
    out = distil(tmp_path / "run", teacher, *flags, *views, steps=256)
    view = dpd.load(out / "policies/seed0-peer0.safetensors").meta.view
    assert view is not None and view.columns == (0, 1, 2)


def test_flags_for_a_view_take_precedence_and_must_fit(
    student: Path, tmp_path: Path, capsys: Any
) -> None:
    argv = ["train", "Swimmer-v5", *TEACHER, *SMALL, "--init-from", str(student)]
    assert main([*argv, "--actor-obs", "qvel", "--out", str(tmp_path / "run")]) == 2
    assert "these learners see qvel" in capsys.readouterr().err


# --- Bad input ---

BAD = {
    "everything twice": (["--critic-obs", "all"], "--critic-obs all does nothing"),
    "td3": (["--algo", "td3", "--critic-obs", "all"], "--critic-obs all does nothing if policies"),
    "unknown to critics": (
        ["--actor-obs", "qpos", "--critic-obs", "qvle"],
        "--critic-obs: no group",
    ),
    "hidden from values": (["--critic-obs", "qpos"], "would hide something from values alone"),
    "new": (["--algo", "td3", "--critic-warmup", "2"], "--critic-warmup is for runs that start"),
    "unknown group": (["--actor-obs", "qpso"], "--actor-obs: no group is called 'qpso', did"),
    "all": (["--actor-obs", "0:8"], "which policies see without these flags"),
    "unseen": (["--actor-obs", "qpos", "--actor-noise", "qvel=1"], "--actor-noise qvel: policies"),
    "negative": (["--actor-delay", "-1"], "--actor-delay must not be negative"),
    "no start": (["--critic-warmup", "2"], "--critic-warmup is for runs that start from a policy"),
    "no policy": (["--init-std", "0.2"], "--init-std is for runs that start from a policy"),
    "no spread": (["--init-std", "0"], "init_std must be positive"),
    "sac": (["--algo", "sac", "--init-std", "0.2"], "--init-std is for --algo ppo, not sac"),
    "several": (["--history", "1,2"], "dpd train takes one number of --history"),
}


@pytest.mark.parametrize(("flags", "message"), BAD.values(), ids=BAD)
def test_bad_input_of_a_view_is_refused_in_one_line(
    flags: list[str], message: str, tmp_path: Path, capsys: Any
) -> None:
    argv = ["train", "Swimmer-v5", "--method", "none", "--out", str(tmp_path / "run"), *flags]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_workers_refuse_a_bad_view_before_anything_is_written(tmp_path: Path, capsys: Any) -> None:
    argv = [
        "train",
        "Swimmer-v5",
        *TEACHER,
        "--seeds",
        "2",
        "--workers",
        "2",
        "--total-steps",
        "256",
    ]
    assert main([*argv, "--actor-obs", "qpso", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "--actor-obs: no group is called 'qpso'" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_warm_up_of_peers_that_teach_each_other_or_of_a_whole_run_is_refused(
    student: Path, capsys: Any
) -> None:
    argv = ["train", "Swimmer-v5", "--init-from", str(student), "--critic-warmup", "2"]
    assert main(argv) == 2
    assert "--method dpd teaches them from the first iteration on" in capsys.readouterr().err
    alone = [*TEACHER, *SMALL, "--total-steps", "256"]  # two iterations of 2 x 64 steps
    assert main([*argv, *alone]) == 2
    assert "--critic-warmup 2 leaves no iteration to the policy: the run has 2" in (
        capsys.readouterr().err
    )
    # 64 steps are 4 iterations of 2 x 8, of which 48 steps of learning starts leave 2 with updates
    replay = ["--algo", "td3", *ALONE, *REPLAY, "--learning-starts", "48", "--total-steps", "64"]
    assert main([*argv, *replay]) == 2
    assert "the run has 2 with updates; lower it" in capsys.readouterr().err


def test_a_student_is_no_policy_of_sac_and_the_refusal_names_what_it_is(
    student: Path, tmp_path: Path, capsys: Any
) -> None:
    argv = ["train", "Swimmer-v5", "--algo", "sac", *ALONE, *REPLAY, "--total-steps", "64"]
    argv += ["--init-from", str(student), "--critic-warmup", "1", "--out", str(tmp_path / "run")]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert "is no policy as those of --algo sac" in error and "give --algo ppo" in error
    assert error.count("\n") == 1 and not (tmp_path / "run").exists()
