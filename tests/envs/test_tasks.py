"""The task table: the same answers from NumPy and torch, at the limits Gymnasium states."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from dpd.envs.arguments import native_task
from dpd.envs.locomotion import Locomotion
from dpd.envs.task import SimState, Task, load_model
from dpd.envs.tasks import TASKS

STANDING = 1.25  # a height at which Hopper, Walker2d and Humanoid are healthy


def random_state(task: Task, n_envs: int = 5) -> dict[str, np.ndarray]:
    model = load_model(task)
    rng = np.random.default_rng(0)
    body = (n_envs, model.nbody)
    shapes = {
        "qpos": (n_envs, model.nq),
        "qvel": (n_envs, model.nv),
        "ctrl": (n_envs, model.nu),
        "qfrc_actuator": (n_envs, model.nv),
        "xpos": (*body, 3),
        "xipos": (*body, 3),
        "cinert": (*body, 10),
        "cvel": (*body, 6),
        "cfrc_ext": (*body, 6),
        "site_xpos": (n_envs, model.nsite, 3),
        "qfrc_constraint": (n_envs, model.nv),
    }
    return {name: rng.normal(0, 5, shape) for name, shape in shapes.items()}


def standing(task: Task, state: SimState) -> Any:
    """Return the mask [M] of a task that has one."""
    return task.healthy(state)


def paid(task: Task, state: SimState, before: Any, after: Any, act: Any, up: Any) -> Any:
    """Return the reward [M] of the step to a state; before and after are its markers."""
    return task.total(task.reward_terms(before, after, state, act, up))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_numpy_and_torch_agree(task: Task) -> None:
    state = random_state(task)
    torch_state = {name: torch.from_numpy(field) for name, field in state.items()}
    mass = load_model(task).body_mass
    np.testing.assert_array_equal(task.observe(state), task.observe(torch_state))
    ours, theirs = (
        task.marker(state, mass),
        task.marker(torch_state, torch.tensor(mass)),
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-13)
    up, torch_up = task.healthy(state), task.healthy(torch_state)
    assert (up is None) == (torch_up is None)
    if up is not None:
        np.testing.assert_array_equal(up, torch_up)
    reward = paid(task, state, 0 * ours, ours, state["ctrl"], up)
    torch_reward = paid(task, torch_state, 0 * theirs, theirs, torch_state["ctrl"], torch_up)
    np.testing.assert_allclose(reward, torch_reward, rtol=1e-12)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_observations_have_the_size_gymnasium_declares(task: Task) -> None:
    env = gymnasium.make(task.env_id)
    assert env.observation_space.shape == task.observe(random_state(task)).shape[1:]
    assert env.spec is not None and env.spec.max_episode_steps == task.max_steps
    env.close()


@pytest.mark.parametrize(
    ("env_id", "coordinate", "value", "expected"),
    [
        ("Hopper-v5", 1, 0.7, False),
        ("Hopper-v5", 1, 0.71, True),
        ("Hopper-v5", 2, 0.2, False),
        ("Hopper-v5", 2, -0.19, True),
        ("Hopper-v5", 4, 100.0, False),
        ("Hopper-v5", 0, 500.0, True),  # how far it came doesn't count
        ("Walker2d-v5", 1, 2.0, False),
        ("Walker2d-v5", 1, 0.81, True),
        ("Walker2d-v5", 2, 1.0, False),
        ("Walker2d-v5", 4, 100.0, True),
        ("Ant-v5", 2, 0.2, True),  # the only task whose limits belong to it
        ("Ant-v5", 2, 1.0, True),
        ("Ant-v5", 2, 1.01, False),
        ("Ant-v5", 0, np.inf, False),
        ("Ant-v5", 0, np.nan, False),
        ("Humanoid-v5", 2, 1.0, False),
        ("Humanoid-v5", 2, 1.99, True),
        ("Humanoid-v5", 2, np.nan, False),
    ],
)
def test_health_ends_where_gymnasium_says(
    env_id: str, coordinate: int, value: float, expected: bool
) -> None:
    task = TASKS[env_id]
    assert isinstance(task, Locomotion)
    model = load_model(task)
    state = {"qpos": np.zeros((1, model.nq)), "qvel": np.zeros((1, model.nv))}
    state["qpos"][0, task.ranges[0].qpos] = 1.0 if env_id == "Ant-v5" else STANDING
    state["qpos"][0, coordinate] = value
    assert standing(task, state).tolist() == [expected]


def test_the_velocity_clip_is_in_the_observation_only() -> None:
    task = TASKS["Hopper-v5"]
    state = {"qpos": np.zeros((1, 6)), "qvel": np.full((1, 6), 50.0)}
    state["qpos"][0, 1] = STANDING
    assert task.observe(state)[0, 5:].tolist() == [10.0] * 6
    assert standing(task, state).all()  # 50 < 100, though beyond the clip
    state["qvel"][0, 3] = -100.0
    assert not standing(task, state).any()


@pytest.mark.parametrize(("env_id", "bonus"), [("Hopper-v5", 0.0), ("Hopper-v4", 1.0)])
def test_version_4_pays_the_bonus_for_the_step_that_ends_an_episode_too(
    env_id: str, bonus: float
) -> None:
    task, still = TASKS[env_id], np.zeros(1)
    state = {"qpos": np.zeros((1, 6)), "qvel": np.zeros((1, 6))}  # at height 0: fallen
    up = task.healthy(state)
    assert not standing(task, state).any()
    assert paid(task, state, still, still, np.zeros((1, 3)), up).tolist() == [bonus]
    # Gymnasium pays an episode that goes on only while the body stands
    goes_on = native_task(env_id, {"terminate_when_unhealthy": False})
    assert paid(goes_on, state, still, still, np.zeros((1, 3)), up).tolist() == [0.0]


def test_version_4_of_reacher_pays_for_the_distance_before_the_step() -> None:
    old, new = TASKS["Reacher-v4"], TASKS["Reacher-v5"]
    place = np.zeros((1, old.model.nbody, 3))
    place[0, old.body("fingertip"), :2] = 0.3, 0.4  # 0.5 from the target at 0
    before, after = {"qpos": np.zeros((1, 4)), "xpos": place}, {"xpos": 2 * place}
    far = old.marker(before, old.model.body_mass)
    act = np.array([[0.2, 0.0]])  # costs 0.04
    assert paid(old, after, far, far, act, None).tolist() == pytest.approx([-0.54])
    assert paid(new, after, far, far, act, None).tolist() == pytest.approx([-1.04])


def test_only_pusher_has_no_version_4_because_gymnasium_cannot_make_it() -> None:
    names = {env_id.partition("-")[0] for env_id in TASKS}
    assert {name for name in names if f"{name}-v4" not in TASKS} == {"Pusher"}
    with pytest.raises(ImportError, match="only supported on `mujoco<3`"):
        gymnasium.make("Pusher-v4")


def test_a_walker_that_falls_gets_no_bonus_for_its_last_step() -> None:
    # 1.0 * velocity 2 + 1.0 * healthy - 1e-3 * (3 * 0.5^2 = 0.75)
    state = random_state(TASKS["Hopper-v5"], n_envs=2)
    up, act = np.array([True, False]), np.full((2, 3), 0.5)
    task = TASKS["Hopper-v5"]
    got = paid(task, state, np.zeros(2), np.full(2, 2 * task.dt), act, up)
    np.testing.assert_allclose(got, [3 - 0.00075, 2 - 0.00075], rtol=1e-14)


def test_humanoid_pays_at_most_ten_for_contact() -> None:
    state = random_state(TASKS["Humanoid-v5"], n_envs=2)
    state["ctrl"][:] = 0.0
    state["cfrc_ext"][:] = 0.0
    state["cfrc_ext"][0, 1, 0] = 1e4  # 5e-7 * 1e8 = 50, paid as 10
    state["cfrc_ext"][1, 1, 0] = 1e3  # 5e-7 * 1e6 = 0.5
    nowhere, up = np.zeros(2), np.full(2, True)
    got = paid(TASKS["Humanoid-v5"], state, nowhere, nowhere, state["ctrl"], up)
    np.testing.assert_allclose(got, [5 - 10, 5 - 0.5], rtol=1e-14)


def test_ant_pays_for_the_world_body_which_it_does_not_see() -> None:
    task = TASKS["Ant-v5"]
    state = random_state(task, n_envs=1)
    state["cfrc_ext"][:] = 0.0
    blind = task.observe(state)
    state["cfrc_ext"][0, 0, 2] = -7.0  # clipped to -1: costs 5e-4
    np.testing.assert_array_equal(task.observe(state), blind)
    got = paid(task, state, np.zeros(1), np.zeros(1), np.zeros((1, 8)), np.full(1, False))
    np.testing.assert_allclose(got, [-5e-4], rtol=1e-14)
