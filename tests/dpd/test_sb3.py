"""Stable-Baselines3 on the native simulation, against SB3's own DummyVecEnv."""

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from dpd.sb3 import NativeVecEnv

SEED = 3


def float32(obs: Any) -> np.ndarray:
    return obs.astype(np.float32)


def test_steps_are_those_of_sb3s_own_vector_environment() -> None:
    ours = NativeVecEnv("Hopper-v5", 3)
    theirs = DummyVecEnv([lambda: gymnasium.make("Hopper-v5")] * 3)
    assert ours.seed(SEED) == theirs.seed(SEED)
    np.testing.assert_array_equal(ours.reset(), float32(theirs.reset()))
    rng, n_done = np.random.default_rng(0), 0
    for _ in range(100):
        act = rng.uniform(-1, 1, (3, 3)).astype(np.float32)
        obs, reward, done, infos = ours.step(act)
        their_obs, their_reward, their_done, their_infos = theirs.step(act)
        assert isinstance(obs, np.ndarray) and obs.dtype == reward.dtype == np.float32
        np.testing.assert_array_equal(obs, float32(their_obs))
        np.testing.assert_array_equal(reward, their_reward)
        np.testing.assert_array_equal(done, their_done)
        for i in np.flatnonzero(done):
            n_done += 1
            final = np.float32(their_infos[i]["terminal_observation"])
            np.testing.assert_array_equal(infos[i]["terminal_observation"], final)
            assert infos[i]["TimeLimit.truncated"] is their_infos[i]["TimeLimit.truncated"] is False
    assert n_done


def test_the_time_limit_is_told_from_a_fall() -> None:
    envs = NativeVecEnv("Swimmer-v5", 1, seed=SEED)
    envs.reset()
    for k in range(1, 1001):
        *_, done, infos = envs.step(np.zeros((1, 2), np.float32))
        assert done[0] == (k == 1000)
    assert infos[0]["TimeLimit.truncated"] is True


def test_the_seed_given_at_creation_counts() -> None:
    starts = [NativeVecEnv("Hopper-v5", 2, seed=seed).reset() for seed in (1, 1, 2)]
    np.testing.assert_array_equal(starts[0], starts[1])
    np.testing.assert_array_equal(starts[0][1], starts[2][0])  # environment i has seed + i


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small layers on a busy machine: threads would only wait
    yield
    torch.set_num_threads(n_threads)


def test_ppo_trains_and_logs_episodes(one_torch_thread: None) -> None:
    envs = VecMonitor(NativeVecEnv("Hopper-v5", 4, seed=SEED))
    model = PPO("MlpPolicy", envs, n_steps=64, batch_size=64, seed=SEED, device="cpu")
    before = [p.detach().clone() for p in model.policy.parameters()]
    model.learn(512)
    assert model.num_timesteps == 512
    assert len(model.ep_info_buffer or ()) > 4
    after = list(model.policy.parameters())
    assert not all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert all(p.isfinite().all() for p in after)
