from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor

from dpd.agents.norm import ObsNorm, ReturnNorm, RunningMoments

T, E, O, GAMMA = 12, 3, 4, 0.9  # noqa: E741
RNG = np.random.default_rng(0)
OBS = 3 * RNG.normal(size=(T + 1, E, O)) + 5  # far from mean 0, deviation 1
OBS[6, 1, 2] = 300.0  # an outlier that the clip catches
REWARD = 20 * RNG.normal(size=(T, E)) - 4
DONE = RNG.random((T, E)) < 0.25


class Scripted(VecEnv):
    """Plays OBS, REWARD and DONE, whatever is done."""

    def __init__(self) -> None:
        super().__init__(
            E, spaces.Box(-np.inf, np.inf, (O,), np.float64), spaces.Box(-1, 1, (1,), np.float64)
        )
        self.t = 0

    def reset(self) -> np.ndarray:
        self.t = 0
        return OBS[0].copy()

    def step_async(self, actions: np.ndarray) -> None:
        pass

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        t, self.t = self.t, self.t + 1
        infos: list[dict[str, Any]] = [{"terminal_observation": OBS[t + 1, e]} for e in range(E)]
        return OBS[t + 1].copy(), REWARD[t].copy(), DONE[t].copy(), infos

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * E

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, **kwargs: Any) -> list[Any]:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * E


def played() -> VecNormalize:
    """Return Stable-Baselines3's normaliser after the whole script."""
    vec = VecNormalize(Scripted(), gamma=GAMMA)
    vec.reset()
    for _ in range(T):
        vec.step(np.zeros((E, 1)))
    return vec


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, generator=generator, dtype=torch.float64) + 2


def test_running_moments_are_those_of_stable_baselines3() -> None:
    ours, theirs = RunningMoments(1, O), RunningMeanStd(shape=(O,))
    for batch in (OBS[:1].reshape(-1, O), OBS[1:5].reshape(-1, O), OBS[5:].reshape(-1, O)):
        ours.update(torch.tensor(batch).unsqueeze(0))
        theirs.update(batch)
        np.testing.assert_allclose(ours.mean[0], theirs.mean, rtol=1e-12)
        np.testing.assert_allclose(ours.var[0], theirs.var, rtol=1e-12)
        np.testing.assert_allclose(ours.count[0], theirs.count, rtol=1e-12)


def test_observations_are_normalised_as_vecnormalize_does() -> None:
    norm = ObsNorm(1, O, torch.float64)
    norm.update(torch.tensor(OBS[:7].reshape(1, -1, O)))  # two iterations
    norm.update(torch.tensor(OBS[7:].reshape(1, -1, O)))
    x = np.concatenate([OBS.reshape(-1, O), [[1e6, -1e6, 0.0, 1.0]]])  # the clip at 10 as well
    expected = np.asarray(played().normalize_obs(x))
    assert np.abs(expected).max() == 10
    np.testing.assert_allclose(norm(torch.tensor(x).unsqueeze(0))[0], expected, rtol=1e-6)


def test_rewards_are_scaled_as_vecnormalize_does_across_iterations_and_episode_ends() -> None:
    norm = ReturnNorm(1, E, torch.tensor([[GAMMA]], dtype=torch.float64))
    assert DONE[:5].any() and not DONE[4].all()  # ends inside, and an episode goes on
    for part in (slice(0, 5), slice(5, T)):
        reward, done = torch.tensor(REWARD[part])[None], torch.tensor(DONE[part])[None]
        norm.update(reward, done, torch.ones_like(done))
    theirs = played()
    np.testing.assert_allclose(norm.moments.var.item(), theirs.ret_rms.var, rtol=1e-12)
    np.testing.assert_allclose(norm.ret[0], theirs.returns, rtol=1e-12)
    x = np.append(REWARD, 1e4)  # the last is clipped
    expected = theirs.normalize_reward(x)
    assert expected[-1] == 10
    np.testing.assert_allclose(norm(torch.tensor(x)[None])[0], expected, rtol=1e-6)


def test_the_reward_scale_turns_scaled_rewards_back_into_raw_ones() -> None:
    norm = ReturnNorm(1, E, torch.tensor([[GAMMA]], dtype=torch.float64))
    reward, done = torch.tensor(REWARD)[None], torch.tensor(DONE)[None]
    norm.update(reward, done, torch.ones_like(done))
    small = reward.clamp(-5, 5)  # nothing for the clip to take
    torch.testing.assert_close(norm(small) * norm.scale.view(1, 1, 1), small)


def test_rows_of_a_stack_have_statistics_of_their_own() -> None:
    x = numbers(3, 20, O) * torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1)
    together = RunningMoments(3, O)
    together.update(x)
    for n in range(3):
        alone = RunningMoments(1, O)
        alone.update(x[n : n + 1])
        torch.testing.assert_close(together.mean[n], alone.mean[0], rtol=1e-14, atol=0)
        torch.testing.assert_close(together.var[n], alone.var[0], rtol=1e-14, atol=0)


def test_observations_may_be_normalised_by_the_statistics_of_other_rows() -> None:
    norm = ObsNorm(2, 3, torch.float64)
    norm.update(torch.stack([numbers(50, 3), 2 * numbers(50, 3, seed=1) + 1]))
    obs = numbers(2, 4, 3, seed=2)
    found = norm(obs, torch.tensor([1, 0]))
    assert torch.equal(found, norm(obs.flip(0)).flip(0))
    assert not torch.equal(found, norm(obs))


def test_invalid_samples_do_not_count() -> None:
    x = numbers(2, 10, O)
    valid = torch.ones(2, 10, dtype=torch.bool)
    valid[0, 3:6] = False
    x[0, 3:6] = 1e9
    masked, kept = RunningMoments(2, O), RunningMoments(1, O)
    masked.update(x, valid)
    kept.update(x[:1, [0, 1, 2, 6, 7, 8, 9]])
    torch.testing.assert_close(masked.mean[0], kept.mean[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(masked.var[0], kept.var[0], rtol=1e-12, atol=0)
    assert masked.count.flatten().tolist() == [7 + 1e-4, 10 + 1e-4]


def test_a_row_without_valid_samples_keeps_its_statistics() -> None:
    moments = RunningMoments(1, O)
    moments.update(numbers(1, 10, O))
    mean, var = moments.mean.clone(), moments.var.clone()
    moments.update(numbers(1, 10, O, seed=1), torch.zeros(1, 10, dtype=torch.bool))
    torch.testing.assert_close(moments.mean, mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.var, var, rtol=1e-12, atol=0)


def test_switched_off_normalisers_change_nothing() -> None:
    obs_norm = ObsNorm(1, O, torch.float64, enabled=False)
    return_norm = ReturnNorm(1, E, torch.tensor([[GAMMA]]), enabled=False)
    x, done = 1e3 * numbers(1, T, E), torch.zeros(1, T, E, dtype=torch.bool)
    obs_norm.update(numbers(1, 10, O))
    return_norm.update(x, done, ~done)
    assert torch.equal(obs_norm(1e3 * numbers(1, 10, O)), 1e3 * numbers(1, 10, O))
    assert torch.equal(return_norm(x), x)
    assert return_norm.scale.item() == 1
