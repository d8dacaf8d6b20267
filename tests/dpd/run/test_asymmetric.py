"""`dpd train` with policies that see a view, from the command line to the policy file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import dpd
import dpd.run.train
from dpd.agents.config import View
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


def test_a_policy_file_tells_what_the_policy_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dpd.run.train, "report_end", lambda *given: None)
    argv = ["train", "Swimmer-v5", *PEERS["alone"], *POSITIONS, *SMALL, *ENDS]
    assert main([*argv, "--total-steps", "256", "--out", str(tmp_path / "run")]) == 0
    policy = dpd.load(tmp_path / "run/policies/seed0-peer0.safetensors")
    assert policy.meta.view == SEEN
    assert not any("critic" in name for name in policy.tensors)
    # a run resumes by its saved settings alone
    assert main(["train", "--resume", str(tmp_path / "run"), "--total-steps", "512"]) == 0


def test_learners_with_a_replay_see_the_view_too() -> None:
    argv = ["Swimmer-v5", "--algo", "td3", "--method", "none", "--peers", "1", *POSITIONS]
    argv += ["--hidden", "8", "8", "--learning-starts", "8", "--n-envs", "2", "--n-steps", "8"]
    training = make_training(parse_train([*argv, "--total-steps", "64"]))
    first = training.stacks[0].agent.nets.flat.detach().clone()
    for _ in range(2):
        iterate(training)
    (stack,) = training.stacks
    assert stack.agent.in_dims == [2 * (3 + 2)]
    assert not torch.equal(stack.agent.nets.flat, first)


def test_torch_updates_a_value_function_that_sees_more_and_says_so() -> None:
    assert "sees more than the policy" in update_plan(configured(*PEERS["alone"]))


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
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dpd.run.train, "report_end", lambda *given: None)
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
    "td3": (["--algo", "td3", "--critic-obs", "all"], "--critic-obs is for --algo ppo, not td3"),
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
