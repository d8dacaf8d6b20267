"""`--randomize`: runs whose episodes draw their model, and everything that reads their policies."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.envs.mujoco import MujocoEnv
from torch import Tensor

from dpd.cli import main, parse_train
from dpd.envs.make import make
from dpd.errors import BadInput
from dpd.policies.policyfile import load
from dpd.run.config import RunConfig
from dpd.run.sources import Place
from dpd.run.video import render_episode
from tests.toy.runs import ENDS, ROLLOUT, STUDENT, TEACHER

RANGES = "gear=0.5:1.5,mass=0.8:1.2"
KWARGS = {"randomize": "mass=0.8:1.2,gear=0.5:1.5"}
POLICY = Path("policies") / "seed0-peer0.safetensors"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two iterations on a randomised task."""
    out = tmp_path_factory.mktemp("randomized") / "run"
    argv = ["train", "Swimmer-v5", *TEACHER, *ENDS, "--total-steps", "256"]
    assert main([*argv, "--randomize", RANGES, "--out", str(out)]) == 0
    return out


def said(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    capsys.readouterr()
    assert main([*map(str, argv)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_a_policy_keeps_the_ranges_and_its_evaluation_draws_from_them(
    teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = load(teacher / POLICY).meta
    assert (meta.obs_dim, meta.env_kwargs) == (8 + 2, KWARGS)
    capsys.readouterr()
    evaluate = ["evaluate", str(teacher / POLICY), "--episodes", "2", "--json"]
    assert main(evaluate) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["env_kwargs"] == KWARGS
    # the same episodes with other ranges: a motor of a third of its strength is another task
    weak = json.dumps({"randomize": "mass=1,gear=0.3"})
    assert main([*evaluate, "--env-kwargs", weak]) == 0
    (other,) = json.loads(capsys.readouterr().out)
    assert other["returns"] != row["returns"]


def test_a_video_shows_the_randomized_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    class Watched:
        """A policy that remembers what it saw."""

        meta = SimpleNamespace(view=None)

        def __init__(self) -> None:
            self.seen: list[np.ndarray] = []

        def repeatable_mode(self, obs: Tensor) -> Tensor:
            self.seen.append(obs[0].numpy().copy())
            return torch.full((1, 2), 0.5)

        def scaled(self, act: Tensor) -> np.ndarray:
            return act.numpy()

    policy: Any = Watched()
    # a machine without a renderer draws nothing
    monkeypatch.setattr(MujocoEnv, "render", lambda _: np.zeros((2, 2, 3), np.uint8))
    frames, _ = render_episode(policy, Place("Swimmer-v5", KWARGS), seed=4)
    assert len(frames) == 1001
    # the native backend's episode with the same seed, bit for bit
    env = make("Swimmer-v5", 1, [4], env_kwargs=KWARGS)
    obs = env.reset()
    for seen in policy.seen:
        np.testing.assert_array_equal(seen, obs[0].numpy())
        obs = env.step(obs.new_full((1, 2), 0.5)).next_obs


def test_a_student_is_distilled_and_compared_in_the_teacher_s_task(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, argv = tmp_path / "student", ["distill", "Swimmer-v5", "--teacher", str(teacher)]
    argv += [*STUDENT, *ENDS, "--total-steps", "256"]
    home = f"--randomize {KWARGS['randomize']}"
    assert home in said(capsys, *argv, "--out", out)  # the flag that keeps the arguments
    one: list[str | Path] = ["--randomize", "mass=1:2", "--out", out]
    assert f"end with other params; give {home}" in said(capsys, *argv, *one)
    start = ["train", "Swimmer-v5", *TEACHER, "--init-from", str(teacher / POLICY)]
    assert f"it was trained with {home}" in said(capsys, *start, "--out", out)
    assert main([*argv, "--randomize", RANGES, "--out", str(out)]) == 0
    assert load(out / POLICY).meta.env_kwargs == KWARGS
    capsys.readouterr()
    fidelity = ["fidelity", str(teacher), str(out), "--episodes", "2", "--json"]
    assert main([*fidelity, "--out", str(tmp_path / "fidelity")]) == 0
    assert json.loads(capsys.readouterr().out)["env_kwargs"] == KWARGS


def test_several_processes_draw_alike(teacher: Path, tmp_path: Path) -> None:
    argv = ["train", "Swimmer-v5", *TEACHER, *ENDS, "--total-steps", "256", "--seeds", "2"]
    argv += ["--randomize", RANGES, "--workers", "2", "--threads", "2"]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 0
    ours, theirs = (load(run / POLICY).tensors for run in (tmp_path / "run", teacher))
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["Pendulum-v1"],
            "--randomize changes the model of HalfCheetah-v5, Hopper-v5, Walker2d-v5",
        ),
        (["--env-kwargs", json.dumps(KWARGS)], "--env-kwargs contains randomize already"),
        (["--backend", "gymnasium"], "randomize needs the native backend, not gymnasium"),
        (["--env-kwargs", '{"frame_skp": 2}'], "HalfCheetah-v5 takes no 'frame_skp'; it takes xm"),
        (
            ["--randomize", "masses=2"],
            "--randomize masses=2: 'masses=2' is no range: did you mean m",
        ),
        (["Hopper-v5", "--randomize", "fluid=2"], "a factor of fluid would change nothing"),
    ],
)
def test_a_flag_that_cannot_hold_is_refused_before_anything_is_written(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    argv = ["train", "--randomize", RANGES, *flags, *ROLLOUT, "--total-steps", "256"]
    assert message in said(capsys, *argv, "--out", out)
    assert not out.exists()


def test_cooperation_which_restores_states_of_one_model_refuses_it(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((teacher / POLICY).read_bytes())
    message = said(capsys, "cooperate", teacher / POLICY, copy, "--out", tmp_path / "out")
    assert "acts in episodes of different models" in message


def test_stable_baselines3_which_makes_gymnasium_s_task_gets_no_such_policy(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("stable_baselines3")
    argv = ["export", str(teacher / POLICY), "--format", "sb3", "--out", str(tmp_path / "zoo")]
    assert "randomize needs the native backend, not gymnasium" in said(capsys, *argv)


def test_settings_keep_the_ranges_as_they_were_written() -> None:
    config = parse_train(["Hopper-v5", "--randomize", "mass=0.8:1.2"])
    assert config.run.randomize == "mass=0.8:1.2" and config.run.env_kwargs == "{}"
    assert config.run.parsed_env_kwargs() == {"randomize": "mass=0.8:1.2"}
    with pytest.raises(BadInput, match="mass has two ranges"):
        RunConfig(env="Hopper-v5", randomize="mass=1,mass=2")
