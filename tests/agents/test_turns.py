"""Acting as the hybrid: peers act in each other's environments, drawn by their critics."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from dpd.agents.offpolicy import OffPolicy
from dpd.agents.table import ALGORITHMS
from dpd.agents.turns import HybridTurns
from dpd.cli import parse_train
from dpd.errors import BadInput
from dpd.policies.hybrid import make_hybrid
from tests.toy.hybrids import critics_of, group, policy_of

IDS = [(seed, peer) for seed in (0, 1) for peer in (0, 1)]


def explore(obs: Tensor, noise: Tensor) -> Tensor:
    """Return actions that say which row acted: 100 times its number, plus obs and noise."""
    return 100 * torch.arange(len(obs)).view(-1, 1, 1) + obs + noise


def mode(obs: Tensor) -> Tensor:
    """Return the row's number as its action."""
    return torch.arange(len(obs)).view(-1, 1, 1).expand_as(obs).float()


def prefers_odd(obs: Tensor, act: Tensor) -> Tensor:
    """Return two critics, the least of which gives odd peers the higher value."""
    q = (act % 2).squeeze(-1)
    return torch.stack([q + 5, q], 1)


def test_a_peer_acts_at_the_observation_and_with_the_noise_of_the_environment() -> None:
    turns = HybridTurns(IDS, n_envs=3, every=10)
    obs = torch.arange(12.0).view(4, 3, 1)
    turns.age = 1  # nothing is drawn in this step
    turns.who.copy_(torch.tensor([[0, 1, 0], [0, 1, 1], [1, 1, 0], [0, 0, 1]]))
    act = turns.act(obs, obs / 100, explore, mode, prefers_odd)
    # rows 0 and 1 are the peers of the first seed, 2 and 3 those of the second
    row = torch.tensor([[0, 1, 0], [0, 1, 1], [3, 3, 2], [2, 2, 3]]).unsqueeze(-1)
    torch.testing.assert_close(act, 100 * row + 1.01 * obs)
    # foreign: 1 of 3, 1 of 3, 2 of 3, 2 of 3
    share = turns.metrics()["act/foreign"]
    torch.testing.assert_close(share, torch.tensor([1, 1, 2, 2]) / 3)
    assert turns.metrics()["act/foreign"].tolist() == [0, 0, 0, 0]


def test_peers_are_drawn_by_the_softmax_of_standardised_values_and_stay_at_times() -> None:
    turns = HybridTurns(IDS, n_envs=5000, every=10)
    obs = torch.zeros(4, 5000, 1)
    turns.act(obs, obs, explore, mode, prefers_odd)
    # Of two values, the standardised ones are -1 and 1: the better is drawn with probability
    # 1 / (1 + exp(-2)) = 0.881. Peer 0 is behind: foreign in 0.8 * 0.881 = 0.705; peer 1 is
    # ahead: foreign in 0.8 * 0.119 = 0.095. The standard deviation is at most 0.0065.
    share = turns.metrics()["act/foreign"].tolist()
    assert share == pytest.approx([0.705, 0.095, 0.705, 0.095], abs=0.025)


def test_equal_values_draw_every_peer_alike() -> None:
    turns = HybridTurns(IDS, n_envs=5000, every=10)
    obs = torch.zeros(4, 5000, 1)
    turns.act(obs, obs, explore, mode, lambda obs, act: torch.full((4, 1, obs.shape[1]), 7.0))
    assert turns.metrics()["act/foreign"].tolist() == pytest.approx([0.4] * 4, abs=0.03)


def test_the_actor_is_drawn_anew_every_so_many_steps() -> None:
    turns, seen = HybridTurns(IDS, n_envs=50, every=4), []
    obs = torch.zeros(4, 50, 1)
    for _ in range(12):
        turns.act(obs, obs, explore, mode, prefers_odd)
        seen.append(turns.who.clone())
    changed = [not torch.equal(a, b) for a, b in pairwise(seen)]
    assert changed == [step % 4 == 0 for step in range(1, 12)]


def test_a_group_draws_alike_whichever_groups_share_its_stack() -> None:
    both, alone = HybridTurns(IDS, 20, 10), HybridTurns(IDS[2:], 20, 10)
    obs = torch.randn(4, 20, 1)
    both.act(obs, obs, explore, mode, prefers_odd)
    alone.act(obs[2:], obs[2:], explore, mode, prefers_odd)
    assert torch.equal(both.who[2:], alone.who)


@pytest.mark.parametrize("algo", ["td3", "ddpg", "sac"])
def test_values_are_those_of_the_deployed_hybrid(algo: str) -> None:
    agent = group(algo, 3)
    hybrid = make_hybrid(
        [policy_of(algo, agent, n) for n in range(3)], [critics_of(agent, n) for n in range(3)], {}
    )
    assert isinstance(agent, OffPolicy)
    turns = HybridTurns([(0, 0), (0, 1), (0, 2)], n_envs=4, every=10)
    obs = torch.randn(3, 4, 5) * 3 + 1
    values = turns.values(obs, agent.mode, agent.q)
    for n in range(3):
        expected = hybrid.judge(obs[n]).values.float()
        torch.testing.assert_close(values[n], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("algo", ["td3", "sac"])
def test_learners_act_by_turns_once_they_learn(algo: str) -> None:
    agent = group(algo, 2, act="hybrid", n_envs=3, learning_starts=0)
    obs, noise = torch.randn(2, 3, 5), torch.zeros(2, 3, 2)
    assert isinstance(agent, OffPolicy) and isinstance(agent.turns, HybridTurns)
    agent.turns.age = 1
    agent.turns.who.copy_(torch.tensor([[1, 0, 1], [1, 0, 0]]))
    at_all = obs.reshape(1, 6, 5).expand(2, -1, -1)
    each = agent.mode(at_all)  # [2, 6, A]; without noise, SAC's sample is its mode
    expected = torch.stack(
        [each[1, 0], each[0, 1], each[1, 2], each[1, 3], each[0, 4], each[0, 5]]
    ).view(2, 3, 2)
    torch.testing.assert_close(agent.act(obs, noise), expected)


def test_settings_that_would_do_nothing_are_refused() -> None:
    def refused(*flags: str) -> str:
        with pytest.raises((BadInput, ValueError)) as error:
            parse_train(["Hopper-v5", "--algo", "td3", *flags])
        return str(error.value)

    assert "act_every does nothing without" in refused("--act-every", "5")
    assert "act_every must be at least 1" in refused("--act", "hybrid", "--act-every", "0")
    assert "each perturbed policy belongs to one" in refused(
        "--act", "hybrid", "--exploration", "param"
    )
    one = ("--act", "hybrid", "--peers", "1", "--method", "none")
    assert "does nothing with one peer" in refused(*one)
    with pytest.raises(BadInput, match="--act hybrid needs peers of one algorithm"):
        parse_train(["Hopper-v5", "--algo", "td3,sac", "--method", "none", "--peer0.act", "hybrid"])
    assert not hasattr(ALGORITHMS["ppo"].settings(), "act")
