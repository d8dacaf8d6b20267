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
from tests.toy.runs import ENDS, ROLLOUT, TEACHER

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


BAD = {
    "everything twice": (["--critic-obs", "all"], "--critic-obs all does nothing"),
    "td3": (["--algo", "td3", "--critic-obs", "all"], "--critic-obs is for --algo ppo, not td3"),
    "unknown group": (["--actor-obs", "qpso"], "--actor-obs: no group is called 'qpso', did"),
    "all": (["--actor-obs", "0:8"], "which policies see without these flags"),
    "unseen": (["--actor-obs", "qpos", "--actor-noise", "qvel=1"], "--actor-noise qvel: policies"),
    "negative": (["--actor-delay", "-1"], "--actor-delay must not be negative"),
    "several": (["--history", "1,2"], "dpd train takes one number of --history"),
}


@pytest.mark.parametrize(("flags", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_in_one_line(
    flags: list[str], message: str, tmp_path: Path, capsys: Any
) -> None:
    argv = ["train", "Swimmer-v5", "--method", "none", "--out", str(tmp_path / "run"), *flags]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
