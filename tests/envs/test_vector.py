"""The registered vector environment against Gymnasium's own, and under Gymnasium's wrappers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import vector as wrappers

import dpd.envs.vector
from dpd.envs.tasks import TASKS

MODES = list(AutoresetMode)
N_STEPS = 120
UNHEALTHY = {"healthy_z_range": (0.9, 1.3), "terminate_when_unhealthy": False}
XML = Path(gymnasium.__file__).parent / "envs/mujoco/assets/half_cheetah.xml"


def pair(
    env_id: str, n_envs: int, mode: AutoresetMode = AutoresetMode.SAME_STEP, **kwargs: Any
) -> tuple[Any, Any]:
    theirs = gymnasium.make_vec(
        env_id,
        num_envs=n_envs,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode},
        **kwargs,
    )
    ours = gymnasium.make_vec(f"dpd/{env_id}", num_envs=n_envs, autoreset_mode=mode, **kwargs)
    return ours, theirs


def assert_same(ours: Any, theirs: Any, where: str = "") -> None:
    """Equal in type, shape, dtype and every bit, through tuples and dictionaries."""
    assert type(ours) is type(theirs), where
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{where}[{key!r}]")
    elif isinstance(theirs, tuple | list) or (
        isinstance(theirs, np.ndarray) and theirs.dtype == object
    ):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    elif isinstance(theirs, np.ndarray):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), where
        np.testing.assert_array_equal(ours, theirs, err_msg=where)
    else:
        assert ours == theirs, where


def play(ours: Any, theirs: Any, mode: AutoresetMode, n_steps: int = N_STEPS) -> tuple[int, int]:
    """Step both alike, demanding the same of each -> how many episodes terminated, were cut."""
    assert_same(ours.reset(seed=9), theirs.reset(seed=9))
    theirs.action_space.seed(0)
    n_terminated = n_truncated = 0
    for k in range(n_steps):
        act = theirs.action_space.sample()
        step, expected = ours.step(act), theirs.step(act)
        assert_same(step, expected, f"step {k}")
        terminated, truncated = step[2:4]
        n_terminated, n_truncated = n_terminated + terminated.sum(), n_truncated + truncated.sum()
        over = terminated | truncated
        if mode is AutoresetMode.DISABLED and over.any():
            options = [{"reset_mask": over.copy()} for _ in range(2)]
            assert_same(ours.reset(options=options[0]), theirs.reset(options=options[1]))
    return n_terminated, n_truncated


@pytest.mark.parametrize("env_id", TASKS)
def test_every_task_is_registered_with_gymnasiums_spaces(env_id: str) -> None:
    ours, theirs = pair(env_id, 2)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.single_action_space == theirs.single_action_space
    assert ours.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert ours.metadata["render_fps"] == theirs.metadata["render_fps"]
    assert ours.spec is not None and ours.spec.id == f"dpd/{env_id}"
    assert ours.spec.max_episode_steps == theirs.spec.max_episode_steps
    ours.close()
    theirs.close()


def test_without_a_mode_it_resets_in_the_next_step_as_gymnasium_does() -> None:
    ours = gymnasium.make_vec("dpd/Swimmer-v5", num_envs=1)
    theirs = gymnasium.make_vec("Swimmer-v5", num_envs=1, vectorization_mode="sync")
    assert ours.metadata["autoreset_mode"] is theirs.metadata["autoreset_mode"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "env_id",
    [
        *("Walker2d-v5", "Hopper-v5", "Ant-v5", "Humanoid-v5"),
        *("InvertedPendulum-v5", "InvertedDoublePendulum-v5"),
    ],
)
def test_episodes_that_terminate_and_that_are_cut_are_bitwise_gymnasiums(
    env_id: str, mode: AutoresetMode
) -> None:
    # a random Hopper falls within about 20 steps; 17 cuts some and lets others fall
    limits = {"Hopper-v5": 17, "Walker2d-v5": 17, "Humanoid-v5": 20}
    limit = limits.get(env_id, 7 if "Pendulum" in env_id else 50)
    ours, theirs = pair(env_id, 3, mode, max_episode_steps=limit)
    n_terminated, n_truncated = play(ours, theirs, mode)
    assert n_truncated and (n_terminated or env_id == "Ant-v5")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "env_id", ["HalfCheetah-v5", "Swimmer-v5", "Reacher-v5", "Pusher-v5", "HumanoidStandup-v5"]
)
def test_tasks_that_only_end_by_time_are_bitwise_gymnasiums(
    env_id: str, mode: AutoresetMode
) -> None:
    ours, theirs = pair(env_id, 2, mode, max_episode_steps=50)
    # 120 steps hold two episodes of 50; a reset in the next step takes one step more
    assert play(ours, theirs, mode) == (0, 4)


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("HalfCheetah-v5", {"forward_reward_weight": 2.0, "ctrl_cost_weight": 0.5}),
        ("HalfCheetah-v5", {"frame_skip": 2, "reset_noise_scale": 0.3, "xml_file": str(XML)}),
        ("Swimmer-v5", {"exclude_current_positions_from_observation": False}),
        ("Hopper-v5", {"healthy_reward": 2, "healthy_state_range": (-3.0, 5.0)}),
        ("Walker2d-v5", {"healthy_z_range": (1.0, 1.5), "healthy_angle_range": (-0.5, 0.2)}),
        ("Walker2d-v5", UNHEALTHY),
        ("Ant-v5", {"contact_cost_weight": 0.0, "include_cfrc_ext_in_observation": False}),
        ("Ant-v5", {"main_body": "front_left_leg", "contact_force_range": (-0.2, 0.3)}),
        ("Humanoid-v5", {"contact_cost_range": (0.25, 0.3), "contact_cost_weight": 1e-3}),
        ("Humanoid-v5", {f"include_{x}_in_observation": False for x in ("cinert", "cvel")}),
        ("Humanoid-v5", {f"include_{x}_in_observation": False for x in ("qfrc_actuator",)}),
        ("HumanoidStandup-v5", {"impact_cost_weight": 1e-3, "impact_cost_range": (0.1, 0.2)}),
        ("HumanoidStandup-v5", {"uph_cost_weight": 3.0, "include_cfrc_ext_in_observation": False}),
        ("Reacher-v5", {"reward_dist_weight": 2, "reward_control_weight": 0.3, "frame_skip": 3}),
        ("Pusher-v5", {"reward_near_weight": 0.7, "reward_dist_weight": 2.0}),
        ("InvertedPendulum-v5", {"reset_noise_scale": 0.19, "width": 64}),
        ("InvertedDoublePendulum-v5", {"healthy_reward": 2, "reset_noise_scale": 0.3}),
    ],
)
def test_arguments_of_a_task_mean_what_they_mean_in_gymnasium(
    env_id: str, kwargs: dict[str, Any]
) -> None:
    ours, theirs = pair(env_id, 2, AutoresetMode.NEXT_STEP, max_episode_steps=40, **kwargs)
    assert ours.single_observation_space == theirs.single_observation_space
    play(ours, theirs, AutoresetMode.NEXT_STEP, 60)


def test_a_model_beside_the_script_is_found(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.xml").write_text(XML.read_text().replace('gravity="0 0 -9.81"', ""))
    ours, theirs = pair("HalfCheetah-v5", 1, AutoresetMode.NEXT_STEP, xml_file="./mine.xml")
    play(ours, theirs, AutoresetMode.NEXT_STEP, 5)


def test_a_limit_of_minus_one_is_none() -> None:
    envs = gymnasium.make_vec("dpd/Swimmer-v5", num_envs=1, max_episode_steps=-1)
    envs.reset(seed=0)
    act = np.zeros((1, 2), np.float32)
    assert not any(envs.step(act)[3].any() for _ in range(1001))


@pytest.mark.parametrize("mode", MODES)
def test_seeds_and_masks_mean_what_they_mean_in_gymnasium(mode: AutoresetMode) -> None:
    ours, theirs = pair("Hopper-v5", 3, mode)
    seeds = [5, 1, 5]
    first = ours.reset(seed=seeds)
    assert_same(first, theirs.reset(seed=seeds))
    np.testing.assert_array_equal(first[0][0], first[0][2])
    mask = np.array([False, True, False])
    options: list[dict[str, Any]] = [{"reset_mask": mask.copy()} for _ in range(4)]
    again = ours.reset(seed=[1, 2, 3], options=options[0])
    assert_same(again, theirs.reset(seed=[1, 2, 3], options=options[1]))
    np.testing.assert_array_equal(again[0][[0, 2]], first[0][[0, 2]])
    # unmasked environments kept their generators, the masked one has its new one
    assert_same(ours.reset(), theirs.reset())
    assert_same(ours.reset(seed=[None, 4, None]), theirs.reset(seed=[None, 4, None]))
    assert_same(ours.reset(seed=7), theirs.reset(seed=7))
    assert ours.np_random_seed == theirs.np_random_seed == (7, 8, 9)
    assert [g.random() for g in ours.np_random] == [g.random() for g in theirs.np_random]


def test_a_mask_in_the_middle_of_an_episode_begins_only_that_one_anew() -> None:
    ours, theirs = pair("Walker2d-v5", 3, AutoresetMode.NEXT_STEP, max_episode_steps=10)
    ours.reset(seed=0)
    theirs.reset(seed=0)
    for k in range(40):
        act = np.full((3, 6), 0.1 * np.sin(k), np.float32)
        assert_same(ours.step(act), theirs.step(act), f"step {k}")
        if k in (3, 9, 24):  # 9 and 24: some are waiting to be reset
            mask = np.array([k == 3, True, False])
            options: list[dict[str, Any]] = [{"reset_mask": mask.copy()} for _ in range(2)]
            assert_same(ours.reset(options=options[0]), theirs.reset(options=options[1]))


def test_disabled_refuses_to_step_an_episode_that_has_ended() -> None:
    envs = gymnasium.make_vec(
        "dpd/Swimmer-v5", num_envs=2, autoreset_mode=AutoresetMode.DISABLED, max_episode_steps=1
    )
    envs.reset(seed=0)
    act = np.zeros((2, 2), np.float32)
    envs.step(act)
    with pytest.raises(RuntimeError, match=r"environments \[0, 1\] have ended.*reset_mask"):
        envs.step(act)
    envs.reset()
    envs.step(act)


def test_writing_to_what_was_handed_out_changes_nothing() -> None:
    for mode in MODES:
        ours, theirs = pair("Hopper-v5", 2, mode)
        act = np.zeros((2, 3), np.float32)
        for env in (ours, theirs):
            first, infos = env.reset(seed=0)
            first[:] = infos["x_position"][:] = 1
        *arrays, infos = ours.step(act)
        for array in (*arrays, *infos.values()):
            array[:] = 1
        theirs.step(act)
        assert_same(ours.step(act), theirs.step(act))


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "NormalizeObservation": wrappers.NormalizeObservation,
    "NormalizeReward": wrappers.NormalizeReward,
    "RecordEpisodeStatistics": wrappers.RecordEpisodeStatistics,
    "ClipReward": lambda env: wrappers.ClipReward(env, -0.5, 0.5),
    "ClipAction": wrappers.ClipAction,
    "RescaleAction": lambda env: wrappers.RescaleAction(env, -2.0, 2.0),
    "FlattenObservation": wrappers.FlattenObservation,
    "DtypeObservation": lambda env: wrappers.DtypeObservation(env, np.float32),
    "DictInfoToList": wrappers.DictInfoToList,
}


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_gymnasiums_wrappers_do_the_same_on_both(name: str, mode: AutoresetMode) -> None:
    if mode is AutoresetMode.SAME_STEP and "Observation" in name:
        pytest.skip("Gymnasium's wrappers of observations do not take SAME_STEP")
    ours, theirs = map(WRAPPERS[name], pair("Walker2d-v5", 2, mode, max_episode_steps=15))
    ours.reset(seed=0)
    theirs.reset(seed=0)
    theirs.action_space.seed(0)
    n_ended = 0
    for k in range(80):
        act = theirs.action_space.sample()
        step, expected = ours.step(act), theirs.step(act)
        n_ended += int((step[2] | step[3]).sum())
        if name == "RecordEpisodeStatistics":  # it also measures the time
            for infos in (step[4], expected[4]):
                infos.get("episode", {}).pop("t", None)
        assert_same(step, expected, f"step {k}")
    assert n_ended


def test_a_module_before_the_colon_is_enough() -> None:
    envs = gymnasium.make_vec("dpd.envs.vector:dpd/Swimmer-v5", num_envs=1)
    assert isinstance(envs.unwrapped, dpd.envs.vector.NativeVectorEnv)


def test_wrong_shapes_seeds_arguments_and_rendering_are_refused() -> None:
    envs: Any = gymnasium.make_vec("dpd/Swimmer-v5", num_envs=2)
    with pytest.raises(ValueError, match="3 seeds"):
        envs.reset(seed=[1, 2, 3])
    with pytest.raises(ValueError, match="reset_mask"):
        envs.reset(options={"reset_mask": np.array([False, False])})
    with pytest.raises(TypeError, match="reset_mask must be a NumPy array, got list"):
        envs.reset(options={"reset_mask": [True, False]})
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"\(2,\)"):
        envs.step(np.zeros(2, np.float32))
    for kwargs, error, match in (
        ({"render_mode": "rgb_array"}, ValueError, "do not render"),
        ({"healthy_reward": 1.0}, TypeError, "takes no 'healthy_reward'; it takes xml_file"),
        ({"max_episode_steps": 0}, ValueError, "max_episode_steps=0"),
        ({"autoreset_mode": "never"}, ValueError, "never"),
    ):
        with pytest.raises(error, match=match):
            gymnasium.make_vec("dpd/Swimmer-v5", num_envs=2, **kwargs)
    with pytest.raises(ValueError, match="main_body='tail'"):
        gymnasium.make_vec("dpd/Ant-v5", num_envs=1, main_body="tail")
