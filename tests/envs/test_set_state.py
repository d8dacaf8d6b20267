"""Putting positions and velocities into running simulations."""

from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
import torch

from dpd.envs.locomotion import Locomotion
from dpd.envs.native import NativeEnv
from dpd.envs.physics import STATE, positions
from dpd.envs.task import load_model
from dpd.envs.tasks import TASKS

CONTACT = ("Ant-v5", "Humanoid-v5", "HumanoidStandup-v5", "Humanoid-v4", "HumanoidStandup-v4")
# observe places of bodies, which lag one frame after a step
PLACED = ("Reacher-v5", "Pusher-v5", "Reacher-v4")
TURNED = ("Ant-v4",)  # MuJoCo makes the quaternion of its body unit, which moves the last bit
EXACT = sorted(TASKS.keys() - {*CONTACT, *PLACED, *TURNED})
N_STEPS = 60  # long enough for random Ants and Humanoids to touch the floor


def running(env_id: str, n_envs: int = 3, seed: int = 0) -> NativeEnv:
    env = NativeEnv(env_id, n_envs, range(seed, seed + n_envs))
    env.reset()
    for act in unit_actions(env, N_STEPS):
        env.step(act)
    return env


def unit_actions(env: NativeEnv, n_steps: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n_steps, env.n_envs, env.spec.act_dim, generator=generator) * 2 - 1


@pytest.mark.parametrize("env_id", EXACT)
def test_a_states_own_positions_and_velocities_change_nothing_at_all(env_id: str) -> None:
    env, model = running(env_id), load_model(TASKS[env_id])
    before = env.snapshot()
    obs = env.set_state(range(3), *positions(model, before["physics"]))
    np.testing.assert_array_equal(obs.numpy(), before["obs"].astype(np.float32))
    for name, array in env.snapshot().items():  # warm start and clock too: it goes on bitwise
        np.testing.assert_array_equal(array, before[name], err_msg=name)


@pytest.mark.parametrize("env_id", EXACT)
def test_another_states_positions_and_velocities_show_what_it_shows(env_id: str) -> None:
    model = load_model(TASKS[env_id])
    source, env = running(env_id), running(env_id, seed=7)
    snapshot, untouched = source.snapshot(), env.snapshot()
    qpos, qvel = positions(model, snapshot["physics"])
    obs = env.set_state([2, 0], qpos[[1, 2]], qvel[[1, 2]])
    wanted = snapshot["obs"].astype(np.float32)
    np.testing.assert_array_equal(obs[[2, 0]].numpy(), wanted[[1, 2]])
    np.testing.assert_array_equal(obs[1].numpy(), untouched["obs"][1].astype(np.float32))
    np.testing.assert_array_equal(env.snapshot()["physics"][1], untouched["physics"][1])


@pytest.mark.parametrize("env_id", CONTACT)
def test_contact_forces_are_those_of_the_state_itself(env_id: str) -> None:
    task, model = TASKS[env_id], load_model(TASKS[env_id])
    assert isinstance(task, Locomotion)
    env = running(env_id)
    snapshot = env.snapshot()
    qpos, qvel = positions(model, snapshot["physics"])
    obs = env.set_state(range(3), qpos, qvel)
    free = model.nq - task.skip_qpos + model.nv
    np.testing.assert_array_equal(obs[:, :free], snapshot["obs"][:, :free].astype(np.float32))
    data = mujoco.MjData(model)
    for row in range(3):
        mujoco.mj_setState(model, data, snapshot["physics"][row], STATE)
        mujoco.mj_forward(model, data)
        mujoco.mj_rnePostConstraint(model, data)
        force = data.cfrc_ext[1:].ravel().clip(*task.contact_range)
        np.testing.assert_array_equal(obs[row, -force.size :], force.astype(np.float32))
    again = env.set_state(range(3), qpos, qvel)
    assert torch.equal(again, obs)


@pytest.mark.parametrize("env_id", PLACED)
def test_places_of_bodies_are_those_of_the_state_itself(env_id: str) -> None:
    env, theirs = running(env_id), gymnasium.make(env_id)
    qpos, qvel = positions(load_model(TASKS[env_id]), env.snapshot()["physics"])
    obs = env.set_state(range(3), qpos, qvel)
    inner: Any = theirs.unwrapped
    for row in range(3):
        inner.set_state(qpos[row], qvel[row])
        np.testing.assert_array_equal(obs[row], inner._get_obs().astype(np.float32))
    theirs.close()


def test_the_forward_velocity_is_measured_from_where_it_was_put() -> None:
    env, model = running("Swimmer-v5"), load_model(TASKS["Swimmer-v5"])
    qpos, qvel = positions(model, env.snapshot()["physics"])
    qpos[:, 0] += 1000.0  # would be 25,000 a second, were the old place remembered
    env.set_state(range(3), qpos, qvel)
    assert env.step(torch.zeros(3, 2)).reward.abs().max() < 10


def test_what_does_not_fit_is_refused() -> None:
    env = running("Swimmer-v5")
    qpos, qvel = np.zeros((2, 5)), np.zeros((2, 5))
    cases = [
        (([0, 0], qpos, qvel), "distinct"),
        (([0, 3], qpos, qvel), "distinct"),
        (([0], qpos, qvel), r"qpos must be finite and of shape \(1, 5\)"),
        (([0, 1], qpos, qvel[:, :4]), r"qvel must be finite and of shape \(2, 5\)"),
        (([0, 1], qpos + np.nan, qvel), "qpos must be finite"),
    ]
    for args, says in cases:
        with pytest.raises(ValueError, match=says):
            env.set_state(*args)
