"""A group whose peers are in several stacks exchanges as one whose peers are rows of one stack."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from dpd.agents.base import Batch
from dpd.agents.learners import Learners
from dpd.distill.exchange import PeerExchange, States
from dpd.distill.method import Context, PeerStack
from dpd.distill.peers import DualDistillation
from dpd.distill.peers_config import DPDConfig
from dpd.distill.targets import Targets
from tests.toy.peers import ALGO, F64, KINDS, REPLAYED, STEP, A, O, Setup, vary

ROWS = [(0, 0), (0, 1), (1, 0), (1, 1)]


class Peers(NamedTuple):
    """The learners of one stack, and the batch of an iteration."""

    agent: Learners
    batch: Batch


def apart(config: DPDConfig, *algos: Any) -> tuple[list[DualDistillation], list[Peers]]:
    """Return the methods of two groups of two peers, each peer in a stack of its own."""
    peers, stacks = [], []
    for peer, algo in enumerate(algos):
        seeds = [row for row in ROWS if row[1] == peer]
        setup = Setup(DPDConfig(), peers=2, algo=algo)  # fills rollouts; its learners are not used
        setup.rows, setup.agent = seeds, KINDS[type(algo)](algo, O, A, seeds, F64)
        setup.agent.nets.views["actor.2.weight"].mul_(20 if algo is ALGO else 3)
        stacks.append(PeerStack(setup.agent, [peer]))
        peers.append(Peers(setup.agent, setup.iterate()))
    methods = []
    for peer, each in enumerate(stacks):
        seeds = [row for row in ROWS if row[1] == peer]
        methods.append(DualDistillation(config, Context(each.agent, 2, 2, seeds, stacks=stacks)))
        for other in peers:
            if other.agent is not each.agent:
                methods[-1].on_peer_batch(*other)
    return methods, peers


def chosen(method: DualDistillation, members: Peers) -> Targets:
    method.on_batch(members.batch, 0.0)
    return method.choose_for_steps()[0]


@pytest.mark.parametrize(
    ("algo", "changes"),
    [
        ("ppo", {}),
        ("ppo", {"ruler": "return"}),
        ("ppo", {"states": "mixed", "memory": 100}),
        ("sac", {"ruler": "action"}),
        ("sac", {"ruler": "lcb", "states": "mixed"}),
        ("td3", {}),
    ],
)
def test_stacks_of_one_kind_teach_each_other_as_rows_of_one_stack_do(
    algo: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = PeerExchange._draw_from

    def with_the_same_numbers(exchange: PeerExchange, i: int, source: Tensor) -> States:
        before = exchange.rng.state()
        found = draw(exchange, i, source)
        if i == 0 < len(exchange.peer_stacks) - 1:
            exchange.rng.load_state(before)  # or the second stack's states would be other draws
        return found

    monkeypatch.setattr(PeerExchange, "_draw_from", with_the_same_numbers)
    config = vary(STEP, **changes)
    together = Setup(config, groups=2, peers=2, algo=algo)
    expected = together.choose()
    kind = REPLAYED.get(algo, ALGO)
    methods, stacks = apart(config, kind, kind)
    for peer, (method, members) in enumerate(zip(methods, stacks, strict=True)):
        found = chosen(method, members)
        for name, value in found._asdict().items():
            same = getattr(expected, name)[peer::2]
            torch.testing.assert_close(value, same, rtol=1e-9, atol=1e-9, msg=name)


def test_every_peer_is_asked_whatever_its_algorithm() -> None:
    config = DPDConfig(ruler="action", gate="hard", steps=4, batch_size=16)
    methods, (ppo, sac) = apart(config, ALGO, REPLAYED["sac"])
    exchange: PeerExchange = methods[0].exchange
    obs = torch.randn(2, 5, O, dtype=F64)
    answers, _ = exchange.ask(obs)
    assert not answers.squashed  # of both kinds: what they do is compared, not how it comes about
    torch.testing.assert_close(answers.mode()[:, 0], ppo.agent.ask(obs).dist.mode())
    torch.testing.assert_close(answers.mode()[:, 1], sac.agent.ask(obs).dist.mode())


def test_the_critics_of_those_who_have_any_judge_the_actions_of_all() -> None:
    config = DPDConfig(ruler="action", gate="hard", steps=4, batch_size=16)
    methods, (ppo, sac) = apart(config, ALGO, REPLAYED["sac"])
    for method in methods:
        method.on_batch((ppo if method.agent is ppo.agent else sac).batch, 0.0)
    for peer, method in enumerate(methods):
        exchange = method.exchange
        states = exchange.draw(7)
        answers, _ = exchange.ask(states.obs)
        (judged,) = exchange.judge(states.obs, answers.mode())
        assert judged.shape == (2, 1, 2, 2, 7)  # students, SAC, twin critics, whose action, states
        for acting in (0, 1):
            said = sac.agent.q(states.obs, answers.mode()[:, acting])  # type: ignore[attr-defined]
            torch.testing.assert_close(judged[:, 0, :, acting], said)
        assert (states.source == 1 - peer).all()


def test_states_come_from_the_peer_they_are_said_to_come_from() -> None:
    config = DPDConfig(ruler="action", gate="hard", states="mixed", steps=4, batch_size=16)
    methods, (ppo, sac) = apart(config, ALGO, REPLAYED["td3"])
    method = methods[1]
    method.on_batch(sac.batch, 0.0)
    states = method.exchange.draw(64)
    for n in (0, 1):
        for peer, members in ((0, ppo), (1, sac)):
            there = {tuple(x) for x in members.batch.raw_obs[n].tolist()}
            mine = states.obs[n][states.source[n] == peer].float().double()
            seen = {tuple(x) for x in members.batch.raw_obs[n].float().double().tolist()} | there
            assert len(mine) and all(tuple(x) in seen for x in mine.tolist())


def test_each_stack_moves_its_own_learners_alone_and_towards_the_other() -> None:
    config = DPDConfig(ruler="action", gate="uniform", lr=1e-3, steps=40, batch_size=32)
    methods, stacks = apart(config, ALGO, REPLAYED["sac"])
    for k, (method, members) in enumerate(zip(methods, stacks, strict=True)):
        before = [each.agent.nets.flat.detach().clone() for each in stacks]
        method.on_batch(members.batch, 0.0)
        first = method.step()["distill/action_distance"].clone()
        for _ in range(5):
            method.on_batch(members.batch, 0.0)
            last = method.step()["distill/action_distance"]
        assert (last < 0.7 * first).all()
        for j, each in enumerate(stacks):
            assert torch.equal(each.agent.nets.flat.detach(), before[j]) == (j != k)


@pytest.mark.parametrize(
    ("changes", "kinds", "says"),
    [
        ({}, ("ppo", "sac"), "ruler value compares value functions of unlike algorithms"),
        ({"ruler": "return"}, ("ppo", "td3"), "ruler return needs the returns of PPO"),
        ({"ruler": "critics"}, ("sac", "sac"), "ruler critics compares critics of unlike peers"),
        ({"ruler": "action"}, ("ppo", "ppo"), "needs critics of actions"),
        (
            {"ruler": "action", "divergence": "kl_forward"},
            ("ppo", "sac"),
            "divergence kl_forward has no meaning between policies that squash",
        ),
        ({"ruler": "action", "target": "sample"}, ("ppo", "sac"), "target sample is for peers of"),
    ],
)
def test_what_has_no_meaning_between_unlike_peers_is_refused(
    changes: dict[str, Any], kinds: tuple[str, str], says: str
) -> None:
    algos = [REPLAYED.get(kind, ALGO) for kind in kinds]
    with pytest.raises(ValueError, match=says):
        DPDConfig(**changes).refuse_unfit(*algos)


def test_peers_of_one_algorithm_and_unlike_size_may_compare_their_values() -> None:
    DPDConfig().refuse_unfit(ALGO, ALGO)
    DPDConfig(divergence="kl_forward").refuse_unfit(REPLAYED["sac"], REPLAYED["sac"])
