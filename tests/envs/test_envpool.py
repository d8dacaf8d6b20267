"""The EnvPool backend, against Gymnasium's environments; skipped where EnvPool is missing.

Tested with EnvPool 1.2.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import dpd
from dpd.cli import main
from dpd.envs.base import Step, UnsupportedEnv
from dpd.envs.make import check, choose_backend, refuse_unplayable

pytest.importorskip("envpool")
from dpd.envs.envpool import EnvpoolEnv

QUICK = ["--n-envs", "2", "--n-steps", "32", "--total-steps", "256", "--hidden", "8"]
QUICK += ["--evals", "1", "--eval-episodes", "1", "--final-episodes", "1", "--threads", "1"]
DICT = "CheetahRun-v1"
"""A task of the DeepMind Control Suite that Gymnasium does not know; it observes a Dict."""


def pool(env_id: str, seeds: Sequence[int] = (0, 1, 2), **kwargs: Any) -> EnvpoolEnv:
    return EnvpoolEnv(env_id, len(seeds), seeds, kwargs, threads=1)


def acts(env: EnvpoolEnv, n_steps: int) -> torch.Tensor:
    shape = n_steps, env.n_envs, env.spec.act_dim
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_pendulum_moves_as_gymnasiums_does() -> None:
    env, theirs = pool("Pendulum-v1"), gymnasium.make("Pendulum-v1").unwrapped
    theirs.reset()
    obs = env.reset()
    for act in acts(env, 20):
        step = env.step(act)
        for row in range(3):  # the observation is cos, sin and velocity of the angle
            cos, sin, velocity = obs[row].double().tolist()
            theirs.state = np.array([np.arctan2(sin, cos), velocity])  # type: ignore[attr-defined]
            next_obs, reward, _, _, _ = theirs.step(2 * act[row].numpy())  # bounds are -2 and 2
            np.testing.assert_allclose(step.next_obs[row], next_obs, atol=1e-5)
            assert step.reward[row].item() == pytest.approx(float(reward), abs=1e-5)
        obs = step.obs


def test_a_mujoco_task_steps_and_terminates_as_gymnasiums_does() -> None:
    env, theirs = pool("InvertedPendulum-v5"), gymnasium.make("InvertedPendulum-v5").unwrapped
    theirs.reset()
    obs, ends = env.reset(), 0
    for act in acts(env, 60):
        step = env.step(act)
        for row in range(3):  # it observes its whole state: two positions and two velocities
            state = obs[row].double().numpy()
            theirs.set_state(state[:2], state[2:])  # type: ignore[attr-defined]
            bound = theirs.action_space.high[0]  # type: ignore[attr-defined]
            next_obs, reward, terminated, _, _ = theirs.step(bound * act[row].numpy())
            np.testing.assert_allclose(step.next_obs[row], next_obs, atol=1e-5)
            assert step.reward[row].item() == float(reward)
            assert bool(step.terminated[row]) == terminated and not step.truncated[row]
            if terminated:  # a fresh pendulum stands within 0.01 of its pose
                assert step.obs[row].abs().max() <= 0.01 < step.next_obs[row].abs().max()
        ends, obs = ends + int(step.terminated.sum()), step.obs
    assert ends > 3 and bool(step.valid.all())


def test_the_time_limit_truncates_and_staggering_shortens_the_first_episodes() -> None:
    env = pool("Pendulum-v1", max_episode_steps=5)
    assert env.spec.max_steps == 5
    env.reset()
    env.stagger(np.array([0.0, 0.6, 0.8]))  # 0, 3 and 4 steps of 5 are taken away
    cut = torch.stack([env.step(act).truncated for act in acts(env, 10)])
    # every later episode has 5 steps again
    assert [torch.nonzero(cut[:, row]).flatten().tolist() for row in range(3)] == [
        *([4, 9], [1, 6], [0, 5]),
    ]
    env.reset()
    assert not env.step(acts(env, 1)[0]).truncated.any()  # a reset forgets the staggering


def test_rows_do_not_depend_on_their_neighbours() -> None:
    def rows(seeds: Sequence[int], columns: slice) -> list[Step]:
        env = pool("Hopper-v5", seeds)
        env.reset()
        return [env.step(act[columns]) for act in acts(pool("Hopper-v5"), 60)]

    for both, alone in zip(rows([7, 8, 9], slice(3)), rows([8], slice(1, 2)), strict=True):
        for name, value in both._asdict().items():
            torch.testing.assert_close(value[1:2], getattr(alone, name), rtol=0, atol=0)


def test_a_dict_becomes_a_vector_of_its_sorted_keys() -> None:
    env = pool(DICT)
    assert env.spec.groups == {"position": range(8), "velocity": range(8, 17)}
    assert env.reset().shape == (3, 17) == (3, env.spec.obs_dim)
    step = env.step(torch.zeros(3, 6))
    assert step.reward.shape == (3,) and step.next_obs.dtype == torch.float32


def test_native_tasks_keep_the_names_of_their_groups() -> None:
    assert pool("Hopper-v5").spec.groups == check("Hopper-v5").groups
    assert pool("Hopper-v5", exclude_current_positions_from_observation=False).spec.groups == {}


def test_auto_takes_envpool_only_for_ids_that_gymnasium_does_not_know() -> None:
    assert choose_backend(DICT) == "envpool"
    assert choose_backend("Pendulum-v1") == "gymnasium"
    assert choose_backend("Hopper-v5") == "native"
    assert choose_backend("NoSuchTask-v1") == "gymnasium"  # whose message suggests ids
    assert check("Pendulum-v1", "envpool").backend == "envpool"


@pytest.mark.parametrize(
    ("env_id", "kwargs", "words"),
    [
        ("NoSuchTask-v1", {}, "EnvPool has no NoSuchTask-v1; use --backend gymnasium"),
        ("Hopper-v5", {"mass": 2}, "takes no mass; it takes max_episode_steps, .*healthy_z_min"),
        ("Hopper-v5", {"batch_size": 1}, "takes no batch_size"),
        ("Hopper-v5", {"frame_skip": "no"}, "can't be made with"),
        ("CartPole-v1", {}, "takes Discrete actions"),
        ("Pong-v5", {}, "observes images"),
    ],
)
def test_what_it_cannot_make_is_refused_in_a_line(
    env_id: str, kwargs: dict[str, Any], words: str
) -> None:
    with pytest.raises(UnsupportedEnv, match=words):
        pool(env_id, **kwargs)


def test_what_could_not_be_evaluated_later_is_refused_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = check("InvertedPendulum-v5", "envpool")
    narrow = replace(spec, obs_dim=3, backend="native")
    monkeypatch.setattr("dpd.envs.make.check", lambda *_: narrow)
    with pytest.raises(UnsupportedEnv, match="4 observations and 1 actions, and the native"):
        refuse_unplayable(spec, None)
    monkeypatch.undo()
    registered = gymnasium.registry["Pendulum-v1"]
    monkeypatch.setitem(gymnasium.registry, "Pendulum-v1", replace(registered, entry_point=missing))
    with pytest.raises(UnsupportedEnv, match=r"Pendulum-v1 can't be made: .*pip install pendulum"):
        check("Pendulum-v1", "envpool")
    argv = ["train", "Pendulum-v1", "--backend", "envpool", *QUICK, "--out", str(tmp_path / "run")]
    assert main(argv) == 2 and not list(tmp_path.iterdir())


def missing(**_: Any) -> gymnasium.Env[Any, Any]:
    raise gymnasium.error.DependencyNotInstalled("pip install pendulum")


def test_a_task_trains_resumes_and_is_evaluated_but_not_filmed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", DICT, *QUICK, "--out", str(run)]) == 0
    assert main(["train", "--resume", str(run), "--total-steps", "512"]) == 0
    assert "the envpool backend cannot copy its simulators" in capsys.readouterr().out
    policy = run / "policies" / "seed0-peer0.safetensors"
    assert dpd.load(policy).meta.env_id == DICT
    assert main(["evaluate", str(policy), "--episodes", "1"]) == 0
    film = ["--episodes", "1", "--video", str(tmp_path / "it.mp4")]
    assert main(["evaluate", str(policy), *film]) != 0
    assert f"no video: {DICT} is EnvPool's alone" in capsys.readouterr().err
