"""Rulers: by hand on answers of critics, and on learners whose critics are linear in the action."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dpd.agents.ppo_config import PPOConfig
from dpd.distill.exchange import PeerExchange
from dpd.distill.peers_config import DPDConfig
from dpd.distill.rulers import (
    action_gaps,
    best_other,
    centred_gaps,
    critic_gaps,
    lcb_gaps,
    played_gaps,
    value_gaps,
)
from tests.toy.peers import ALGO, F64, LOSS, REPLAYED, O, Setup, vary

# What one student's group says at one state, [N=1, judging P=2, C=2, acting P=2, K=1]: peer 0's
# critics give the own action 1 and 3, the peer's 4 and 2; peer 1's give 0 and 5, and 7 and 1.
Q = torch.tensor([[[1.0, 4.0], [3.0, 2.0]], [[0.0, 7.0], [5.0, 1.0]]], dtype=F64).view(
    1, 2, 2, 2, 1
)
FIRST, SECOND = torch.tensor([[0]]), torch.tensor([[1]])


def test_the_value_ruler_is_the_gap_of_value_functions() -> None:
    value = torch.tensor([[[1.0], [4.0]]])
    assert value_gaps(value, FIRST).flatten().tolist() == [0, 3]
    assert value_gaps(value, SECOND).flatten().tolist() == [-3, 0]


def test_the_centred_ruler_takes_the_mean_gap_of_each_peer_away() -> None:
    # own values 1, 2, 3; peer 1's 11, 15, 10: gaps 10, 13, 7, their mean 10; peer 2's are the own
    # plus 100: no state where it is better than elsewhere
    value = torch.tensor([[[1.0, 2.0, 3.0], [11.0, 15.0, 10.0], [101.0, 102.0, 103.0]]])
    own = torch.zeros(1, 3, dtype=torch.int64)
    assert centred_gaps(value, own).tolist() == [[[0, 0, 0], [0, 3, -3], [0, 0, 0]]]


def test_what_was_played_is_found_by_peer_and_position() -> None:
    # of learner 1 in a group of three: its own samples 10, 11, then peer 2's, then peer 0's
    adv = torch.tensor([[[10.0, 11.0], [20.0, 21.0], [0.0, 1.0]]])
    source, position = torch.tensor([[2, 0, 0, 1]]), torch.tensor([[1, 0, 1, 0]])
    own = torch.ones(1, 4, dtype=torch.int64)
    assert played_gaps(adv, own, source, position).tolist() == [[21, 0, 1, 10]]


def test_the_action_ruler_asks_the_same_critics_about_both_actions() -> None:
    # own action: least of (1, 3) and of (0, 5), mean 0.5; the peer's: least of (4, 2) and of
    # (7, 1), mean 1.5
    assert action_gaps(Q, FIRST).flatten().tolist() == [0, 1]
    assert action_gaps(Q, SECOND).flatten().tolist() == [-1, 0]


def test_the_lcb_ruler_subtracts_how_far_the_critics_disagree() -> None:
    # peer minus own by critic: 3, -1, 7, -4; mean 1.25, mean square 75 / 4 = 18.75, so the
    # variance is 18.75 - 1.5625 = 17.1875
    spread = 17.1875**0.5
    assert lcb_gaps(Q, FIRST, 1.0).flatten().tolist() == pytest.approx([0, 1.25 - spread])
    assert lcb_gaps(Q, FIRST, 0.5).flatten().tolist() == pytest.approx([0, 1.25 - spread / 2])
    # the other way round the mean turns its sign, and the doubt stays
    assert lcb_gaps(Q, SECOND, 1.0).flatten().tolist() == pytest.approx([-1.25 - spread, 0])


def test_the_critics_ruler_compares_two_critics_on_the_peers_action() -> None:
    # the peer's action: its critics say least(7, 1) = 1, the own least(4, 2) = 2
    assert critic_gaps(Q, FIRST).flatten().tolist() == [0, -1]
    # of the second student: peer 0's action, by its critics least(1, 3) = 1, by the own 0
    assert critic_gaps(Q, SECOND).flatten().tolist() == [1, 0]


def test_the_best_other_peer_is_never_oneself() -> None:
    gaps = torch.tensor([[[0.0, 0.0], [-2.0, 5.0], [-1.0, 6.0]]])  # [N=1, P=3, K=2]
    xi, who = best_other(gaps, torch.zeros(1, 2, dtype=torch.int64))
    assert xi.tolist() == [[-1, 6]]
    assert who.tolist() == [[2, 2]]


# --- Of learners ---


def linear_critics(setup: Setup, slopes: list[float], offsets: list[float]) -> None:
    """Let critic c say slope_c * (first action) + offset_c everywhere.

    relu(a) - relu(-a) = a, carried through the hidden layers by two units.
    """
    views = setup.agent.critics.views
    for view in views.values():
        view.zero_()
    act = views["critic.0.weight"][:, O]
    act[:, 0], act[:, 1] = 1, -1
    views["critic.1.weight"][:, 0, 0] = views["critic.1.weight"][:, 1, 1] = 1
    slope = torch.tensor(slopes, dtype=F64)
    views["critic.2.weight"][:, 0, 0] = slope
    views["critic.2.weight"][:, 1, 0] = -slope
    views["critic.2.bias"][:, 0, 0] = torch.tensor(offsets, dtype=F64)


def always(setup: Setup, actions: list[float]) -> None:
    """Let learner n always act with actions[n], in all dimensions."""
    setup.agent.nets.views["actor.2.weight"].zero_()
    bias = torch.tensor(actions, dtype=F64).atanh().view(-1, 1, 1)
    setup.agent.nets.views["actor.2.bias"].copy_(bias)


def xi(ruler: str, actions: list[float]) -> list[float]:
    """Return the mean gap of two TD3 learners that act so, by critics 4a, 2a + 1 and a + 5, 8a.

    With actions a_0, a_1: peer 0's critics say 4a and 2a + 1, peer 1's a + 5 and 8a.
    """
    setup = Setup(vary(LOSS, ruler=ruler), algo="td3")
    linear_critics(setup, [4, 2, 1, 8], [0, 1, 5, 0])
    always(setup, actions)
    setup.choose()
    found: Tensor = setup.method.metrics["distill/xi_mean"]
    return found.tolist()


@pytest.mark.parametrize(
    ("ruler", "expected"),
    [
        # a_0 = 0.25: peer 0 says 1 and 1.5, peer 1 says 5.25 and 2. a_1 = 0.75: 3 and 2.5, 5.75
        # and 6. Values: least own 1 and least of the peer 5.75.
        ("value", [4.75, -4.75]),
        # a_0: mean of 1 and 2 = 1.5; a_1: mean of 2.5 and 5.75 = 4.125
        ("action", [2.625, -2.625]),
        # by critic 2, 1, 0.5, 4: mean 1.875, mean square 5.3125, variance 5.3125 - 3.515625 =
        # 1.796875; the other way round -1.875
        ("lcb", [1.875 - 1.796875**0.5, -1.875 - 1.796875**0.5]),
        # a_1 by its own critics 5.75, by peer 0's 2.5; a_0 by its own 1, by peer 1's 2
        ("critics", [3.25, -1]),
    ],
)
def test_rulers_of_learners_worked_by_hand(ruler: str, expected: list[float]) -> None:
    assert xi(ruler, [0.25, 0.75]) == pytest.approx(expected)


def test_critics_on_one_action_differ_where_the_actions_are_the_same() -> None:
    # D2: two learners that act alike have nothing to teach each other, and the 2020 code's ruler
    # says 2 - 1 all the same; the same critics for both actions say 0.
    assert xi("critics", [0.25, 0.25]) == pytest.approx([1, -1])
    assert xi("action", [0.25, 0.25]) == pytest.approx([0, 0], abs=1e-12)
    assert xi("lcb", [0.25, 0.25]) == pytest.approx([0, 0], abs=1e-12)


@pytest.mark.parametrize("chunk", [7, 1024])
def test_all_critics_of_a_group_judge_all_its_actions(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpd.distill.exchange.CHUNK", chunk)
    setup = Setup(LOSS, groups=2, peers=3, algo="td3")
    exchange: PeerExchange = setup.method.exchange
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(6, 20, O, generator=generator, dtype=F64)
    act = torch.rand(6, 3, 20, 2, generator=generator, dtype=F64)
    (q,) = exchange.judge(obs, act)
    assert q.shape == (6, 3, 2, 3, 20)
    for n in range(6):
        for acting in range(3):
            said = setup.agent.q(obs[n].expand(6, -1, -1), act[n, acting].expand(6, -1, -1))
            group = said[n - n % 3 : n - n % 3 + 3]
            torch.testing.assert_close(q[n, :, :, acting], group, rtol=1e-12, atol=1e-12)


def test_of_three_peers_the_one_with_the_best_action_is_followed() -> None:
    # critics grow with the action: the others of 0.1, 0.9, 0.5 follow 0.9, and it follows 0.5
    setup = Setup(vary(LOSS, ruler="action", gate="hard"), peers=3, algo="ddpg")
    linear_critics(setup, [1, 1, 1], [0, 0, 0])
    always(setup, [0.1, 0.9, 0.5])
    targets = setup.choose()
    for row, (target, weight) in enumerate(((0.9, 1), (0.5, 0), (0.9, 1))):
        assert targets.mean[row].unique().tolist() == pytest.approx([target])
        assert targets.weight[row].unique().tolist() == [weight]


def by_ruler(ruler: str, offset: float = 0.0, algo: PPOConfig = ALGO) -> Setup:
    """Let PPO's peers be compared, where peer 1's critic says so much more everywhere."""
    setup = Setup(vary(LOSS, ruler=ruler, gate="hard"), algo=algo)
    raw = offset / setup.agent.return_norm.scale[1, 0]
    setup.agent.nets.views["critic.2.bias"][1] += raw
    setup.choose()
    return setup


def test_an_offset_between_two_critics_decides_by_value_and_not_where_it_cancels() -> None:
    ahead = {r: by_ruler(r, 1e3).method.metrics["distill/peer_ahead"] for r in ("value", "centred")}
    assert ahead["value"].tolist() == [1, 0]
    assert ((ahead["centred"] > 0.1) & (ahead["centred"] < 0.9)).all()
    far, near = by_ruler("centred", 1e3), by_ruler("centred")
    for name in ("distill/peer_ahead", "distill/xi_rms"):
        torch.testing.assert_close(far.method.metrics[name], near.method.metrics[name])
    assert near.method.metrics["distill/xi_mean"].tolist() == pytest.approx([0, 0], abs=1e-12)


def test_what_was_played_is_judged_without_the_peers_critic() -> None:
    near, far = by_ruler("advantage"), by_ruler("advantage", 1e3)
    weight, other = near.choose().weight, far.choose().weight
    assert torch.equal(weight[0], other[0]) and 0.1 < weight[0].mean() < 0.9
    assert not torch.equal(weight[1], other[1])


@pytest.mark.parametrize(
    ("ruler", "values", "expected"),
    [
        # Of T = 16 steps that pay 1 without an end, by critics that say nothing; gamma lambda =
        # 0.72: the mean over t of (1 - 0.72^(16 - t)) / 0.28
        ("advantage", (0, 0), lambda t: (1 - 0.72 ** (16 - t)) / 0.28),
        # Peer 0's critic says 5 everywhere: each step's error is 1 + 0.9 * 5 - 5 = 0.5
        ("advantage", (5, 0), lambda t: 0.5 * (1 - 0.72 ** (16 - t)) / 0.28),
        # The mean critic says (5 - 1) / 2 = 2: each step's error is 1 - 0.2 = 0.8
        ("common", (5, -1), lambda t: 0.8 * (1 - 0.72 ** (16 - t)) / 0.28),
    ],
)
def test_what_a_peer_played_worked_by_hand(
    ruler: str, values: tuple[float, float], expected: Callable[[int], float]
) -> None:
    setup = Setup(vary(LOSS, ruler=ruler), algo=replace(ALGO, gamma=0.9, lam=0.8))
    setup.put_ahead(*values)
    setup.rollout.terminated[:] = False
    setup.rollout.reward[1] = 1.0
    setup.choose()  # the rewards of the batch are not read again
    mean = sum(expected(t) for t in range(16)) / 16
    assert setup.method.metrics["distill/xi_mean"][0].item() == pytest.approx(mean)


# --- Refused ---


@pytest.mark.parametrize("ruler", ["value", "critics"])
def test_values_of_unlike_discounts_are_not_compared(ruler: str) -> None:
    alike, unlike = (replace(REPLAYED["td3"], peer_gamma=(0.9, gamma)) for gamma in (0.9, 0.95))
    Setup(vary(LOSS, ruler=ruler), algo=alike)
    with pytest.raises(ValueError, match=f"ruler {ruler} compares values of peers whose gamma"):
        Setup(vary(LOSS, ruler=ruler), algo=unlike)
    for same_critics in ("action", "lcb"):
        Setup(vary(LOSS, ruler=same_critics), algo=unlike)


@pytest.mark.parametrize(
    ("algo", "settings", "message"),
    [
        ("ppo", {"ruler": "action"}, "ruler action needs critics of actions"),
        ("ppo", {"ruler": "lcb"}, "ruler lcb needs critics of actions"),
        ("ppo", {"ruler": "critics"}, "ruler critics needs critics of actions"),
        ("td3", {"ruler": "advantage"}, "ruler advantage needs the returns of PPO"),
        ("sac", {"ruler": "common"}, "ruler common needs the returns of PPO"),
        ("td3", {"ruler": "return"}, "ruler return needs the returns of PPO"),
        ("sac", {"ruler": "return"}, "ruler return needs the returns of PPO"),
        ("td3", {"divergence": "kl_forward"}, "divergence kl_forward needs a spread"),
        ("ddpg", {"divergence": "nll"}, "divergence nll needs a spread"),
        ("ddpg", {"target": "sample"}, "target sample needs a spread"),
        ("sac", {"memory": 401}, "memory is more than the replay's --capacity"),
    ],
)
def test_what_learners_lack_is_refused(algo: str, settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Setup(vary(LOSS, **settings), algo=algo)


@pytest.mark.parametrize("ruler", ["return", "advantage", "common"])
def test_rulers_of_what_was_played_need_the_peers_states(ruler: Any) -> None:
    for settings in ({"states": "own"}, {"memory": 100}):
        with pytest.raises(ValueError, match=f"ruler {ruler} needs the peer's own states"):
            DPDConfig(ruler=ruler, **settings)


def test_unlike_peers_are_compared_by_what_they_know() -> None:
    wide = replace(ALGO, hidden=(32, 32))
    for ruler in ("advantage", "common"):
        with pytest.raises(ValueError, match=f"ruler {ruler} judges rollouts of peers that"):
            DPDConfig(ruler=ruler).refuse_unfit(ALGO, wide)
    with pytest.raises(ValueError, match="ruler centred compares value functions of unlike"):
        DPDConfig(ruler="centred").refuse_unfit(ALGO, REPLAYED["sac"])
    bold = replace(ALGO, peer_gamma=(0.9, 0.99))
    DPDConfig(ruler="advantage").refuse_unfit(bold)
    with pytest.raises(ValueError, match="ruler common compares values of peers whose gamma"):
        DPDConfig(ruler="common").refuse_unfit(bold)


def test_settings_of_a_ruler_are_refused_without_it() -> None:
    with pytest.raises(ValueError, match="lcb_k does nothing with ruler value"):
        DPDConfig(lcb_k=2.0)
    with pytest.raises(ValueError, match="lcb_k must not be negative"):
        DPDConfig(ruler="lcb", lcb_k=-1.0)


def test_unlike_discounts_are_refused_before_there_are_learners() -> None:
    unlike = replace(REPLAYED["sac"], peer_gamma=(0.9, 0.99))
    with pytest.raises(ValueError, match="ruler value compares values of peers whose gamma"):
        DPDConfig().refuse_unfit(unlike)
    DPDConfig(ruler="action").refuse_unfit(unlike)
    DPDConfig().refuse_unfit(replace(unlike, peer_gamma=(0.9, 0.9)))
