"""The registered vector environment against Gymnasium's own, and under Gymnasium's wrappers."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import dpd.envs.vector
from dpd.envs.make import native_ids


def pair(env_id: str, n_envs: int) -> tuple[Any, Any]:
    same_step = {"autoreset_mode": AutoresetMode.SAME_STEP}
    theirs = gymnasium.make_vec(
        env_id, num_envs=n_envs, vectorization_mode="sync", vector_kwargs=same_step
    )
    return gymnasium.make_vec(f"dpd/{env_id}", num_envs=n_envs), theirs


@pytest.mark.parametrize("env_id", native_ids())
def test_every_task_is_registered_with_gymnasiums_spaces(env_id: str) -> None:
    ours, theirs = pair(env_id, 2)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.single_action_space == theirs.single_action_space
    assert ours.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert ours.spec is not None and ours.spec.id == f"dpd/{env_id}"
    ours.close()
    theirs.close()


@pytest.mark.parametrize("env_id", ["Walker2d-v5", "Humanoid-v5"])
def test_steps_and_final_observations_are_bitwise_gymnasiums(env_id: str) -> None:
    ours, theirs = pair(env_id, 3)
    np.testing.assert_array_equal(ours.reset(seed=9)[0], theirs.reset(seed=9)[0])
    theirs.action_space.seed(0)
    n_ended = 0
    for _ in range(120):
        act = theirs.action_space.sample()
        *arrays, infos = ours.step(act)
        *their_arrays, their_infos = theirs.step(act)
        for name, a, b in zip(("obs", "reward", "end", "cut"), arrays, their_arrays, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 if name == "reward" else 0)
        assert ("final_obs" in infos) == ("final_obs" in their_infos)
        if "final_obs" in infos:
            n_ended += 1
            for key in ("_final_obs", "_final_info"):
                np.testing.assert_array_equal(infos[key], their_infos[key])
            for a, b in zip(infos["final_obs"], their_infos["final_obs"], strict=True):
                assert a is b is None or np.array_equal(a, b)
    assert n_ended
    assert ours.observation_space.contains(arrays[0])


def test_a_list_of_seeds_and_a_mask_mean_what_they_mean_in_gymnasium() -> None:
    ours, theirs = pair("Hopper-v5", 3)
    seeds = [5, 1, 5]
    obs, _ = ours.reset(seed=seeds)
    np.testing.assert_array_equal(obs, theirs.reset(seed=seeds)[0])
    np.testing.assert_array_equal(obs[0], obs[2])
    mask = np.array([False, True, False])
    again, _ = ours.reset(seed=[1, 2, 3], options={"reset_mask": mask})
    expected, _ = theirs.reset(seed=[1, 2, 3], options={"reset_mask": mask})
    np.testing.assert_array_equal(again, expected)
    np.testing.assert_array_equal(again[[0, 2]], obs[[0, 2]])
    # unmasked environments kept their generators, the masked one has its new one
    np.testing.assert_array_equal(ours.reset()[0], theirs.reset()[0])


def test_writing_to_what_was_handed_out_changes_nothing() -> None:
    ours, theirs = pair("Hopper-v5", 2)
    for env in (ours, theirs):
        env.reset(seed=0)
    act = np.zeros((2, 3), np.float32)
    for array in ours.step(act)[:4]:
        array[:] = 1
    theirs.step(act)
    np.testing.assert_array_equal(ours.step(act)[0], theirs.step(act)[0])


def test_gymnasiums_wrappers_see_whole_episodes() -> None:
    envs = gymnasium.wrappers.vector.RecordEpisodeStatistics(
        gymnasium.make_vec("dpd/Walker2d-v5", num_envs=2)
    )
    envs.reset(seed=0)
    lengths = []
    for _ in range(150):
        *_, infos = envs.step(np.zeros((2, 6), np.float32))
        if "episode" in infos:
            lengths += infos["episode"]["l"][infos["_episode"]].tolist()
    assert lengths and all(1 < length < 1000 for length in lengths)


def test_a_module_before_the_colon_is_enough() -> None:
    envs = gymnasium.make_vec("dpd.envs.vector:dpd/Swimmer-v5", num_envs=1)
    assert isinstance(envs.unwrapped, dpd.envs.vector.NativeVectorEnv)


def test_wrong_shapes_seeds_and_rendering_are_refused() -> None:
    envs: Any = gymnasium.make_vec("dpd/Swimmer-v5", num_envs=2)
    with pytest.raises(ValueError, match="3 seeds"):
        envs.reset(seed=[1, 2, 3])
    with pytest.raises(ValueError, match="reset_mask"):
        envs.reset(options={"reset_mask": np.array([False, False])})
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"\(2,\)"):
        envs.step(np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="do not render"):
        gymnasium.make_vec("dpd/Swimmer-v5", num_envs=2, render_mode="rgb_array")
