"""Sets of states: from whole episodes, reproducible, and disjoint."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dpd.envs.make import make
from dpd.fidelity.states import (
    HELD_OUT,
    TEST,
    AuditSettings,
    CoinFlip,
    draw_rows,
    episodes_of_states,
    perturbed_states,
    random_returns,
    states_within_episodes,
    visit,
)
from dpd.run.episodes import episode_seeds, run_episodes, uniform_policy

SETTING = AuditSettings(env_id="Hopper-v5", episodes=3, n_states=40, threads=1)


def still(obs: torch.Tensor) -> torch.Tensor:
    """Do nothing; a Hopper falls."""
    return torch.zeros(len(obs), 3)


def rows(obs: torch.Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in obs.tolist()}


def test_states_within_their_episodes_count() -> None:
    steps = [torch.tensor([[[10.0 * t], [10.0 * t + 1]]]) for t in range(3)]  # one policy's
    # the first episode has one step, the second three; the rest is of further episodes
    (own,) = states_within_episodes(steps, np.array([[1, 3]]))
    assert own.flatten().tolist() == [0, 1, 11, 21]
    assert episodes_of_states(np.array([1, 3])).tolist() == [0, 1, 1, 1]


def test_every_state_knows_its_episode_also_after_the_draw() -> None:
    env_id = "tests.toy.blind_env:Blind-v0"  # a thrust of 0 leaves x where the episode began
    setting = AuditSettings(env_id=env_id, episodes=3, threads=1)
    found = visit(setting, lambda obs: torch.zeros(len(obs), 1), 200)  # of 3 * 40 and as many more
    assert found.obs.shape == (200, 2) and set(found.episodes.tolist()) == set(range(6))
    places = {(int(k), float(x)) for k, x in zip(found.episodes, found.obs[:, 0], strict=True)}
    assert len(places) == 6 and len({x for _, x in places}) == 6


def test_the_states_are_those_of_whole_episodes() -> None:
    env = make("Hopper-v5", 3, episode_seeds(SETTING.seed_of(TEST), 3))
    outcome = run_episodes(env, lambda obs: still(obs[0]).unsqueeze(0), 1)
    env.close()
    n = int(outcome.lengths.sum())
    every = visit(SETTING, still, n)
    assert every.returns.tolist() == outcome.returns[0].tolist()
    assert len(every.obs) == len(rows(every.obs)) == n
    assert rows(visit(SETTING, still, n - 9).obs) < rows(every.obs)
    # more than these episodes have: others follow, whose returns do not count
    more = visit(SETTING, still, n + 100)
    assert len(more.obs) == n + 100 and rows(more.obs) - rows(every.obs)
    assert more.returns.tolist() == every.returns.tolist()


def test_no_states_are_kept_where_none_are_asked_for() -> None:
    found = visit(SETTING, still)
    assert found.returns.shape == (3,) and found.obs.shape == (0, 11)
    assert random_returns(SETTING, 3).shape == (3,)


def test_the_same_setting_gives_the_same_states_and_another_seed_others() -> None:
    first = visit(SETTING, still, 40)
    assert torch.equal(first.obs, visit(SETTING, still, 40).obs)
    held_out, other = (
        visit(SETTING, still, 40, HELD_OUT),
        visit(replace(SETTING, seed=1), still, 40),
    )
    assert not rows(first.obs) & (rows(held_out.obs) | rows(other.obs))


def test_drawn_states_are_different_ones() -> None:
    obs = torch.arange(10.0).unsqueeze(1)
    found = draw_rows(obs, 4, torch.Generator().manual_seed(0))
    assert len(rows(found)) == 4 and rows(found) < rows(obs)
    assert rows(draw_rows(obs, 20, torch.Generator().manual_seed(0))) == rows(obs)


def test_random_actions_fill_the_range() -> None:
    acts = uniform_policy(3, SETTING.generator(0))(torch.zeros(10_000, 11))
    assert acts.shape == (10_000, 3) and -1 <= acts.min() < -0.99 and 0.99 < acts.max() <= 1
    # uniform on [-1, 1]: mean 0, variance 1/3
    assert acts.mean() == pytest.approx(0, abs=0.02) and acts.var() == pytest.approx(
        1 / 3, abs=0.01
    )


def test_the_coin_is_tossed_for_each_state_and_falls_evenly() -> None:
    act = CoinFlip(SETTING, lambda obs: obs, lambda obs: -obs)
    first, second = act(torch.ones(4_000, 2)), act(torch.ones(4_000, 2))
    assert (first[:, 0] == first[:, 1]).all()  # one policy acts at a time
    assert first.mean() == pytest.approx(0, abs=0.06)
    assert not torch.equal(first, second)


def test_mixed_up_states_lie_between_two_and_noise_is_a_tenth_of_the_deviation() -> None:
    torch.manual_seed(0)
    obs = torch.randn(20_000, 2) * torch.tensor([1.0, 50.0]) + torch.tensor([0.0, 300.0])
    found = perturbed_states(SETTING, obs)
    assert (found["mixup"] >= obs.amin(0)).all() and (found["mixup"] <= obs.amax(0)).all()
    # variance of λx + (1 - λ)y with λ uniform: σ² E[λ² + (1 - λ)²] = 2/3 σ²
    assert (found["mixup"].var(0) / obs.var(0)).tolist() == pytest.approx([2 / 3] * 2, rel=0.05)
    noise = found["noise"] - obs
    assert (noise.std(0) / obs.std(0)).tolist() == pytest.approx([0.1] * 2, rel=0.03)
    # on one line between two states: of two, everything lies there
    two = perturbed_states(SETTING, torch.tensor([[0.0, 0.0], [1.0, 2.0]]))["mixup"]
    assert torch.allclose(two[:, 1], 2 * two[:, 0])
