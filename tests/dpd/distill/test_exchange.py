from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dpd.agents.base import Batch
from dpd.distill.exchange import PeerExchange, pick
from dpd.distill.method import Context
from tests.toy.peers import ALGO, F64, LOSS, REPLAYED, STEP, O, S, Setup, vary


def holding(obs: Tensor) -> Batch:
    """Return an iteration of raw obs [N, S, O]."""
    return Batch(None, obs, None, torch.ones(obs.shape[:2], dtype=torch.bool))


def test_picking_takes_each_states_peer() -> None:
    answers = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])  # [N=1, P=2, K=2]
    assert pick(answers, torch.tensor([[1, 0]])).tolist() == [[3, 2]]
    deep = torch.stack([answers, -answers], -1)
    assert pick(deep, torch.tensor([[1, 0]])).tolist() == [[[3, -3], [2, -2]]]


@pytest.mark.parametrize("memory", [None, 0, 100])
def test_states_come_from_other_peers_of_the_same_group_only(memory: int | None) -> None:
    setup = Setup(STEP, groups=2, peers=3)
    exchange = PeerExchange(
        Context(setup.agent, 2, 3, setup.rows), states="peer", peer_share=1.0, memory=memory
    )
    tag = torch.arange(6, dtype=F64).view(6, 1, 1).expand(6, 1000, O)
    exchange.remember(setup.agent, holding(tag))
    states = exchange.draw(1000)
    for n in range(6):
        group, own = divmod(n, 3)
        drawn = states.obs[n, :, 0]
        others = {3 * group + p for p in range(3) if p != own}
        assert set(drawn.tolist()) == others
        assert torch.equal(states.source[n] + 3 * group, drawn.long())
        # uniform over two others: 1000 draws, standard error 0.016
        assert float((drawn == min(others)).double().mean()) == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize(("states", "share"), [("own", 0.0), ("mixed", 0.25)])
def test_own_and_mixed_states_have_the_share_asked_for(states: str, share: float) -> None:
    setup = Setup(STEP)
    exchange = PeerExchange(Context(setup.agent, 1, 2, setup.rows), states, share, memory=0)
    exchange.remember(
        setup.agent, holding(torch.arange(2, dtype=F64).view(2, 1, 1).expand(2, 4000, O))
    )
    drawn = exchange.draw(4000).obs[..., 0]
    from_peer = torch.stack([drawn[0] == 1, drawn[1] == 0]).double().mean(1)
    # 4000 draws, standard error 0.007
    assert from_peer.tolist() == pytest.approx([share, share], abs=0.03)


def test_the_states_of_all_samples_are_those_of_the_loss_each_with_its_source() -> None:
    setup = Setup(vary(LOSS, states="samples"), 2, 3, algo=replace(ALGO, share_experience=True))
    raw = setup.batch.raw_obs
    found = setup.method.exchange.at_samples(raw, ALGO.n_steps, is_shared=True)
    assert torch.equal(setup.agent.obs_norm(found.obs), setup.batch.data.obs)
    for n in range(6):
        for peer in range(3):  # of the own group, in the order in which they were taken
            theirs = found.obs[n][found.source[n] == peer]
            assert torch.equal(theirs, raw[n - n % 3 + peer])


def test_without_sharing_the_states_of_all_samples_are_the_learners_own() -> None:
    setup = Setup(vary(LOSS, states="samples"), 2, 3)
    found = setup.method.exchange.at_samples(setup.batch.raw_obs, ALGO.n_steps, is_shared=False)
    assert torch.equal(found.obs, setup.batch.raw_obs)
    assert found.source[:, 0].tolist() == [0, 1, 2, 0, 1, 2]
    assert (found.source == found.source[:, :1]).all()


# --- Where states come from ---


def seen(setup: Setup, memory: int | None, source: int) -> list[float]:
    """Return the numbers that row 0 can draw of a peer's states, in order."""
    exchange = PeerExchange(setup.context, "peer" if source else "own", 1.0, memory)
    return sorted(set(exchange.draw(4000).obs[0, :, 0].tolist()))


def numbered(setup: Setup, iterations: int) -> None:
    """Fill a replay of 100 steps of 4 environments: state s of row n is 1000 n + s, s from 0."""
    setup.agent.replay.restart(0)
    for i in range(iterations):
        rollout = setup.agent.new_rollout()
        number = torch.arange(S, dtype=F64).view(1, -1, 4) + i * S
        rollout.obs[:] = (number + 1000 * torch.arange(2).view(2, 1, 1)).unsqueeze(-1)
        rollout.valid[1, ::2] = False  # of row 1, every second step of 4 states
        setup.agent.prepare(rollout)


@pytest.mark.parametrize("iterations", [3, 9])
def test_a_replay_gives_its_most_recent_valid_states(iterations: int) -> None:
    # 64 states an iteration: 3 are all held, of 9 (576) the last 400
    setup = Setup(STEP, algo="td3")
    numbered(setup, iterations)
    end = iterations * S
    first = max(0, end - 400)
    assert seen(setup, 10, source=0) == list(range(end - 10, end))
    assert seen(setup, 50, source=0) == list(range(end - 50, end))
    assert seen(setup, 0, source=0) == list(range(first, end))
    # the peer's: 4 valid, 4 not, from the end: 10 valid ones reach 20 back
    valid = [1000.0 + s for s in range(first, end) if s // 4 % 2]
    assert seen(setup, 10, source=1) == valid[-10:]
    assert seen(setup, 0, source=1) == valid


def test_by_default_a_replay_gives_the_most_recent_thousand() -> None:
    algo = replace(REPLAYED["td3"], capacity=4000)
    setup = Setup(STEP, algo=algo)
    numbered(setup, 20)  # 1280 states
    assert set(seen(setup, None, source=0)) < set(range(280, 1280))
    assert min(seen(setup, None, source=0)) < 300
    assert min(seen(setup, 0, source=0)) < 20
    assert PeerExchange(setup.context, "peer", 1.0, None).size == 1000


@pytest.mark.parametrize(
    ("memory", "expected"), [(None, {2, 3}), (0, {2, 3}), (3, {1, 2, 3}), (5, {0, 1, 2, 3})]
)
def test_on_policy_states_are_the_current_iterations_or_the_most_recent(
    memory: int | None, expected: set[float]
) -> None:
    # two iterations of two states each, 0 and 1, then 2 and 3
    setup = Setup(STEP)
    exchange = PeerExchange(setup.context, "peer", 1.0, memory)
    for first in (0, 2):
        number = torch.arange(first, first + 2, dtype=F64).view(1, 2, 1)
        exchange.remember(setup.agent, holding(number.expand(2, 2, O)))
    assert set(exchange.draw(200).obs[..., 0].flatten().tolist()) == expected


def test_nobody_exchanges_while_learners_only_collect_or_one_has_nothing_to_show() -> None:
    ready = Setup(STEP, algo="td3")
    assert ready.method.exchange.ready
    waiting = Setup(STEP, algo=replace(REPLAYED["td3"], learning_starts=65))
    assert not waiting.method.exchange.ready
    waiting.iterate(1)  # 128 steps
    assert waiting.method.exchange.ready
    rollout = ready.agent.new_rollout()
    rollout.valid[1] = False
    ready.agent.replay.restart(0)
    ready.agent.prepare(rollout)
    assert not ready.method.exchange.ready
    assert Setup(STEP).method.exchange.size == 0  # on-policy, before the first iteration
