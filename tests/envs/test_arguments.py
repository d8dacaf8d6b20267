"""Arguments of native tasks: Gymnasium's, all of them, with Gymnasium's meaning."""

import inspect
import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.envs.registration import load_env_creator

from dpd.envs.arguments import gymnasium_defaults, native_task
from dpd.envs.base import UnsupportedEnv
from dpd.envs.make import check, choose_backend, make
from dpd.envs.native import Simulation
from dpd.envs.task import VIEW_ONLY
from dpd.envs.tasks import TASKS

N_STEPS = 25


def drawn(rng: np.random.Generator, name: str, default: Any) -> Any:
    """Draw a value of the kind of an argument's default."""
    if name == "frame_skip":
        return int(rng.integers(1, 7))
    if name == "main_body":
        return (1, 3, "front_left_leg")[rng.integers(3)]
    if isinstance(default, bool):
        return bool(rng.integers(2))
    if isinstance(default, tuple):  # wider or narrower, and still in order
        return tuple(x if math.isinf(x) else float(x * rng.uniform(0.8, 1.2)) for x in default)
    return float(default * rng.uniform(0.2, 3.0))


def drawn_arguments(env_id: str, seed: int) -> dict[str, Any]:
    """Draw about two thirds of a task's arguments."""
    rng = np.random.default_rng([seed, *env_id.encode()])
    defaults = {k: v for k, v in gymnasium_defaults(env_id).items() if k != "xml_file"}
    return {k: drawn(rng, k, v) for k, v in defaults.items() if rng.random() < 0.67}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("env_id", TASKS)
def test_any_arguments_give_gymnasiums_steps_bit_for_bit(env_id: str, seed: int) -> None:
    kwargs = drawn_arguments(env_id, seed)
    theirs = gymnasium.make(env_id, **kwargs, max_episode_steps=20)
    ours = Simulation(native_task(env_id, {**kwargs, "max_episode_steps": 20}), 1, [5])
    np.testing.assert_array_equal(ours.reset()[0], theirs.reset(seed=5)[0], err_msg=str(kwargs))
    theirs.action_space.seed(seed)
    for _ in range(N_STEPS):
        act = theirs.action_space.sample()
        obs, reward, terminated, truncated, _ = theirs.step(act)
        step = ours.step(act[None])
        np.testing.assert_array_equal(step.next_obs[0], obs, err_msg=str(kwargs))
        got = (step.reward[0], step.terminated[0], step.truncated[0])
        assert got == (reward, terminated, truncated), kwargs
        if terminated or truncated:
            np.testing.assert_array_equal(step.obs[0], theirs.reset()[0], err_msg=str(kwargs))
    theirs.close()


@pytest.mark.parametrize("env_id", TASKS)
def test_every_argument_of_gymnasiums_constructor_is_taken(env_id: str) -> None:
    entry: Any = gymnasium.spec(env_id).entry_point
    named = set(inspect.signature(load_env_creator(entry)).parameters) - {"kwargs"}
    assert named - VIEW_ONLY == set(gymnasium_defaults(env_id))
    # a value of each is understood, and changes no other argument's meaning
    for name, default in gymnasium_defaults(env_id).items():
        assert native_task(env_id, {name: default}).env_id == env_id


def test_arguments_of_images_are_those_of_gymnasiums_base_class_and_change_no_number() -> None:
    named = set(inspect.signature(MujocoEnv.__init__).parameters)
    simulated = {"self", "model_path", "frame_skip", "observation_space", "render_mode"}
    assert named - simulated == VIEW_ONLY
    kwargs = {"width": 64, "camera_name": "track", "default_camera_config": {"distance": 2.0}}
    assert native_task("Hopper-v5", kwargs) == TASKS["Hopper-v5"]


@pytest.mark.parametrize(
    ("env_id", "kwargs", "message"),
    [
        ("Hopper-v5", {"ctrl_cost": 1.0}, "Hopper-v5 takes no 'ctrl_cost'; it takes xml_file, fra"),
        ("Reacher-v5", {"reset_noise_scale": 1.0}, "Reacher-v5 takes no 'reset_noise_scale'"),
        ("Hopper-v5", {"render_mode": "human"}, "Hopper-v5 takes no 'render_mode'"),
        (
            "Hopper-v5",
            {"ctrl_cost_weight": "1"},
            "ctrl_cost_weight='1' must be a number",
        ),
        ("Hopper-v5", {"frame_skip": 2.5}, "Hopper-v5: frame_skip=2.5 must be a whole number"),
        ("Hopper-v5", {"frame_skip": 0}, "Hopper-v5: frame_skip=0 must be at least 1"),
        ("Hopper-v5", {"healthy_z_range": [1]}, "healthy_z_range=[1] must be two numbers"),
        ("Hopper-v5", {"terminate_when_unhealthy": 1}, "terminate_when_unhealthy=1 must be true"),
        ("Hopper-v5", {"max_episode_steps": 0}, "max_episode_steps=0 must be a whole number, at"),
        ("Hopper-v5", {"max_episode_steps": True}, "max_episode_steps=True must be a whole numb"),
        ("Hopper-v5", {"xml_file": "./gone.xml"}, "gone.xml is no model: "),
        ("Hopper-v5", {"xml_file": 3}, "xml_file=3 must be text"),
        ("Ant-v5", {"main_body": "head"}, "Ant-v5: main_body='head' is not a body of the model"),
        ("Ant-v5", {"main_body": [1]}, "Ant-v5: main_body=[1] must be an index or a name"),
        ("Reacher-v5", {"xml_file": "ant.xml"}, "the model ant.xml has no body called fingertip"),
    ],
)
def test_what_a_task_does_not_take_is_refused_by_name(
    env_id: str, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedEnv) as error:
        check(env_id, env_kwargs=kwargs)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_task_with_arguments_is_native_with_its_time_limit_and_its_groups() -> None:
    kwargs = {
        "max_episode_steps": 3,
        "exclude_current_positions_from_observation": False,
        "healthy_z_range": [0.1, 9.0],  # a list, as JSON has it
        "healthy_angle_range": [-9.0, 9.0],
        "healthy_state_range": [-1e3, 1e3],
    }
    assert choose_backend("Hopper-v5", env_kwargs=kwargs) == "native"
    env = make("Hopper-v5", 2, [0, 1], env_kwargs=kwargs)
    assert env.spec.max_steps == 3 and env.spec.groups == {"qpos": range(6), "qvel": range(6, 12)}
    first = env.reset()
    steps = [env.step(torch.zeros(2, 3)) for _ in range(3)]
    assert first.shape == (2, 12)
    assert [step.truncated.tolist() for step in steps] == [[False] * 2] * 2 + [[True] * 2]


def test_an_argument_that_gymnasium_ignores_is_remarked_on() -> None:
    assert check("HumanoidStandup-v5").notes == ()
    spec = check("HumanoidStandup-v5", env_kwargs={"uph_cost_weight": 2.0})
    assert spec.notes == ("HumanoidStandup-v5's reward does not use uph_cost_weight",)
