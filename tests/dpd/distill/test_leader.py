"""The better half leads: only peers that are ahead in return are imitated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dpd.agents.ppo import PPO
from dpd.distill.leader import Leaders, mean_and_error
from dpd.distill.method import Context, PeerStack
from dpd.distill.peers_config import DPDConfig
from dpd.distill.targets import Targets
from tests.toy.peers import ALGO, F64, LOSS, SHARED, STEP, A, O, Setup, vary

NAN = float("nan")


def returns(*rows: list[float]) -> list[Tensor]:
    return [torch.tensor(rows, dtype=F64)]


def test_mean_and_error_worked_by_hand() -> None:
    # 1 and 5: mean 3, variance (4 + 4) / 1 = 8, squared error 8 / 2; of one return there is none
    mean, error = mean_and_error(torch.tensor([[1.0, NAN, 5.0], [7.0, NAN, NAN], [NAN] * 3]))
    assert mean[:2].tolist() == [3, 7] and bool(mean[2].isnan())
    assert error[0] == 4 and bool(error[1:].isnan().all())


def test_a_peer_leads_from_a_standard_error_ahead_until_it_is_behind() -> None:
    setup = Setup(vary(STEP, leader="return"))
    leaders = setup.method.leaders

    def after(mean: float) -> list[list[bool]]:
        # squared errors 2^2 and 5: the difference has a standard error of 3
        leaders.update(returns([8.0, 12.0, NAN], [mean - 5**0.5, mean + 5**0.5, NAN]))
        ahead: list[list[bool]] = leaders.ahead.tolist()
        return ahead

    nobody = [[False, False], [False, False]]
    first, second = [[False, False], [True, False]], [[False, True], [False, False]]
    for mean, expected in (
        (12.9, nobody),
        (13.1, second),
        (10.1, second),  # it leads until it is behind
        (9.9, nobody),
        (12.9, nobody),
        (6.9, first),
    ):
        assert after(mean) == expected


def test_nobody_leads_before_there_are_two_returns_of_both() -> None:
    setup = Setup(vary(STEP, leader="return"))
    for theirs in ([NAN, NAN], [900.0, NAN]):
        setup.method.on_returns(returns([1.0, 2.0], theirs))
        assert not setup.method.leaders.ahead.any()
        assert bool((setup.distil() == 0).all())


@pytest.mark.parametrize("config", [STEP, SHARED])
def test_only_the_learner_that_is_behind_moves(config: DPDConfig) -> None:
    setup = Setup(vary(config, leader="return"), groups=2)
    setup.method.on_returns(returns([1, 2], [8, 9], [8, 9], [1, 2]))
    moved = setup.distil().abs().amax(1) > 0
    assert moved.tolist() == [True, False, False, True]
    assert setup.method.metrics["distill/student"].tolist() == [1, 0, 0, 1]


def test_in_the_loss_the_leader_has_no_gradient_and_no_moving_leash() -> None:
    held = vary(LOSS, divergence="kl_forward", target_kl=1e9, leader="return")
    setup = Setup(held)
    setup.method.on_returns(returns([1, 2], [8, 9]))
    grad = setup.extra_grad().abs().amax(1)
    assert grad[0] > 0 and grad[1] == 0
    assert setup.method.coef.tolist() == pytest.approx([0.5 / 1.5, 0.5])


@pytest.mark.parametrize("ruler", ["value", "return", "advantage"])
def test_of_three_peers_each_follows_those_that_are_ahead_of_it(ruler: str) -> None:
    setup = Setup(vary(LOSS, ruler=ruler, gate="uniform", leader="return"), peers=3)
    setup.put_ahead(0, 3, 5)  # by value, peer 2 would be followed everywhere
    setup.method.on_returns(returns([4, 5], [8, 9], [1, 2]))

    def followed(targets: Targets) -> list[set[int]]:
        raw = targets.obs / setup.agent.obs_norm.scale + setup.agent.obs_norm.mean
        peers = []
        for n in range(3):
            means = setup.agent.ask(raw[n].expand(3, -1, -1)).dist.mean.clamp(-1, 1)
            off = (means - targets.mean[n]).abs().amax(-1).argmin(0)
            peers.append(set(off[targets.weight[n] > 0].tolist()))
        return peers

    expected = [{1}, set(), {0, 1} if ruler != "value" else {1}]
    assert followed(setup.choose()) == expected
    assert setup.method.metrics["distill/student"].tolist() == [1, 0, 1]


def test_without_the_setting_returns_change_nothing() -> None:
    setup, other = Setup(STEP), Setup(STEP)
    setup.method.on_returns(returns([1, 2], [8, 9]))
    assert torch.equal(setup.distil(), other.distil())
    assert "distill/student" not in setup.method.metrics
    assert not any(name.startswith("leaders") for name in setup.method.state())


def test_peers_of_several_stacks_are_ordered_by_their_numbers() -> None:
    # Two groups of three peers; peers 0 and 2 are in one stack, peer 1 in another one.
    one = PPO(ALGO, O, A, [(0, 0), (0, 2), (1, 0), (1, 2)], F64)
    other = PPO(ALGO, O, A, [(0, 1), (1, 1)], F64)
    stacks = (PeerStack(one, [0, 2]), PeerStack(other, [1]))
    context = Context(other, 2, 3, [(0, 1), (1, 1)], stacks=stacks)
    leaders = Leaders(context, by_return=True)
    first = torch.tensor([[1, 2], [8, 9], [8, 9], [1, 2]], dtype=F64)  # peers 0, 2 of both groups
    leaders.update([first, torch.tensor([[4, 5, NAN], [4, 5, NAN]], dtype=F64)])
    assert leaders.ahead.tolist() == [[False, False, True], [True, False, False]]


def test_a_resumed_group_remembers_who_led() -> None:
    setup, other = (Setup(vary(STEP, leader="return")) for _ in range(2))
    setup.method.on_returns(returns([1, 2], [8, 9]))
    other.method.load_state({name: x.clone() for name, x in setup.method.state().items()})
    close: Any = returns([1.0, 9.0], [1.1, 9.1])  # ahead by less than the error
    for each in (setup, other):
        each.method.on_returns(close)
        assert each.method.leaders.ahead.tolist() == [[False, True], [False, False]]
    fresh = Setup(vary(STEP, leader="return"))
    fresh.method.on_returns(close)
    assert not fresh.method.leaders.ahead.any()
