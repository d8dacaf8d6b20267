"""Peers with a replay share it, and their critics judge as one pool; nothing else is shared."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dpd.agents.base import State
from dpd.agents.config import View
from dpd.agents.offpolicy import Sample
from dpd.agents.offpolicy_config import DDPGConfig, OffPolicyConfig, SACConfig, TD3Config
from dpd.agents.pool import Pool
from dpd.agents.replay import Transitions
from dpd.agents.sac import SAC
from dpd.agents.td3 import TD3
from tests.agents.parity import A, O, filled
from tests.agents.test_offpolicy import SIZES

F64 = torch.float64
PAIR = [(0, 0), (0, 1)]
SHARE: dict[str, Any] = SIZES | {"share_experience": True}
CONFIGS: dict[str, OffPolicyConfig] = {
    "td3": TD3Config(**SHARE),
    "ddpg": DDPGConfig(**SHARE),
    "sac": SACConfig(**SHARE),
    "td3, three steps, in targets": TD3Config(**SHARE, n_step=3, share_critics="targets"),
    "sac, normalised": SACConfig(**SHARE, norm_obs=True),
    "sac, in the policy": SACConfig(**SHARE, share_critics="policy"),
}
KINDS = ["td3", "ddpg", "sac"]


def group(config: OffPolicyConfig, ids: list[tuple[int, int]] = PAIR) -> TD3 | SAC:
    kind = SAC if isinstance(config, SACConfig) else TD3
    agent = kind(config, O, A, ids, F64)
    for n, (_, peer) in enumerate(ids):
        agent.obs_norm.moments.mean[n] += 0.2 * peer
    agent.obs_norm._refresh()
    return agent


def iterate(agent: TD3 | SAC, row_seeds: list[int], iterations: range = range(3)) -> State:
    for i in iterations:
        rollout = filled(agent, [s + i for s in row_seeds])
        agent.update(agent.prepare(rollout), 0.0)
        agent.observe(rollout)
    return {name: x.clone() for name, x in agent.state().items()}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> OffPolicyConfig:
    return CONFIGS[request.param]


def line(agent: TD3 | SAC, slopes: list[float], offsets: list[float]) -> None:
    """Let critic m and its target be slopes[m] * act[0] + offsets[m] while act is in [-1, 1]."""
    for nets in (agent.critics, agent.target_critics):
        nets.flat.detach().zero_()
        views = nets.views
        views["critic.0.weight"][:, O, 0] = 1  # a hidden unit act[0] + 2, which is positive
        views["critic.0.bias"][:, 0, 0] = 2
        views["critic.1.weight"][:, 0, 0] = torch.tensor(slopes, dtype=F64)
        rest = [b - 2 * a for a, b in zip(slopes, offsets, strict=True)]
        views["critic.1.bias"][:, 0, 0] = torch.tensor(rest, dtype=F64)


def constant_policy(agent: TD3 | SAC, means: list[float]) -> None:
    """Let policies have these means before the tanh in every state, and SAC deviation 1."""
    for nets in (agent.nets, *([agent.target_nets] if isinstance(agent, TD3) else [])):
        nets.flat.detach().zero_()
        nets.views["actor.1.bias"][:, 0, :A] = torch.tensor(means, dtype=F64).unsqueeze(1)


def transition(n: int, reward: float, act: float = 0.0) -> Sample:
    """Return one transition per learner, from an action of these numbers; the discount is 1/2."""
    obs, wide = torch.randn(n, 1, O, dtype=F64), torch.full((n, 1, A), act, dtype=F64)
    given = (torch.full((n, 1), x, dtype=F64) for x in (reward, 0.5))
    raw = Transitions(torch.cat([obs, wide], -1), obs, *given)
    return Sample(raw, raw, raw)


ONE_LAYER: dict[str, Any] = SHARE | {"hidden": (4,), "minibatch_size": 1}
SLOPES, OFFSETS = [1.0, 2.0, 3.0, -4.0], [10.0, 11.0, 9.0, 12.0]


def test_sac_targets_worked_by_hand() -> None:
    agent = group(SACConfig(**ONE_LAYER, alpha=0.5))
    line(agent, SLOPES, OFFSETS)
    constant_policy(agent, [0.3, -0.2])
    noise = torch.zeros(2, 2, 1, A, dtype=F64)
    judges = torch.tensor([[0, 3], [1, 2]])
    metrics, _ = agent._step(transition(2, reward=7.0), noise, judges)
    expected = []
    for i, (u, pair) in enumerate(((0.3, (0, 3)), (-0.2, (1, 2)))):
        act = math.tanh(u)
        # a squashed Gaussian of deviation 1 at its mean, in A dimensions
        logp = A * (-0.5 * math.log(2 * math.pi) - math.log(1 - act**2))
        least = min(SLOPES[m] * act + OFFSETS[m] for m in pair)
        y = 7 + 0.5 * (least - 0.5 * logp)
        own = OFFSETS[2 * i : 2 * i + 2]  # of the action 0 that was taken
        expected.append(0.5 * sum((q - y) ** 2 for q in own))
    assert metrics["loss/critic"].tolist() == pytest.approx(expected, rel=1e-12)


def test_td3_targets_and_ascent_worked_by_hand() -> None:
    agent = group(TD3Config(**ONE_LAYER))
    assert isinstance(agent, TD3)
    line(agent, SLOPES, OFFSETS)
    constant_policy(agent, [0.3, -0.2])
    noise = torch.full((2, 1, A), 0.1, dtype=F64)
    sample = transition(2, reward=7.0)
    value = agent._next_value(sample, noise, torch.tensor([[1, 3], [0, 2]]))
    first, second = math.tanh(0.3) + 0.1, math.tanh(-0.2) + 0.1
    expected = [
        [min(2 * first + 11, -4 * first + 12)],
        [min(1 * second + 10, 3 * second + 9)],
    ]
    torch.testing.assert_close(value, torch.tensor(expected, dtype=F64), rtol=1e-12, atol=0)
    # the mean of all four: slope (1 + 2 + 3 - 4) / 4 = 0.5, offset 42 / 4 = 10.5
    ascent = agent._improve(sample, noise)
    acts = torch.tensor([[0.3], [-0.2]], dtype=F64).tanh()
    torch.testing.assert_close(ascent.q, 0.5 * acts + 10.5, rtol=1e-12, atol=0)
    of_u = torch.zeros(2, 1, A, dtype=F64)
    of_u[:, 0, :1] = -0.5 * (1 - acts**2)
    torch.testing.assert_close(ascent.of_output, of_u, rtol=1e-12, atol=1e-15)


def test_the_policys_gradient_is_that_of_the_mean_of_all_critics() -> None:
    # finite differences of the mean over critics, each asked by its own learner's `q`
    agent = group(SACConfig(**SHARE, norm_obs=True), [(0, 0), (0, 1), (0, 2)])
    obs, act = torch.randn(3, 5, O, dtype=F64), torch.rand(3, 5, A, dtype=F64) - 0.5

    def mean_value(act: Tensor) -> Tensor:
        total = torch.zeros(3, 5, dtype=F64)
        for away in range(3):  # learner n's samples go to the critics of learner n + away
            judged = agent.q(obs.roll(away, 0), act.roll(away, 0)).mean(1)
            total += judged.roll(-away, 0)
        return total / 3

    value, of_act = agent.policy_pool.ascent(agent.critics, obs, act)
    torch.testing.assert_close(value, mean_value(act), rtol=1e-12, atol=1e-12)
    for k in range(A):
        step = torch.zeros_like(act)
        step[..., k] = 1e-6
        slope = (mean_value(act + step) - mean_value(act - step)) / 2e-6
        torch.testing.assert_close(of_act[..., k], -slope / 5, rtol=1e-5, atol=1e-8)


def test_drawn_critics_see_observations_as_their_own_learners_do() -> None:
    agent = group(SACConfig(**SHARE, norm_obs=True))
    obs, act = torch.randn(2, 5, O, dtype=F64), torch.rand(2, 5, A, dtype=F64) - 0.5
    pool = agent.target_pool
    every, _ = pool.values(agent.target_critics, obs, act)  # [2, 4, 5]
    judges = torch.tensor([[0, 3], [2, 1]])
    for n in range(2):
        expected = every[n, judges[n]].amin(0)
        found = pool.least(agent.target_critics, obs, act, judges)[n]
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    swapped = agent.q(obs.flip(0), act.flip(0))  # learner 1's samples by learner 0's critics
    torch.testing.assert_close(every[1, :2], swapped[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(every[0, 2:], swapped[1], rtol=1e-12, atol=1e-12)
    assert (every[0, 2:] - agent.q(obs, act)[1]).abs().max() > 1e-3


def test_every_pair_of_the_pool_is_drawn_as_often_by_the_learners_own_numbers() -> None:
    agent = group(SACConfig(**SHARE), [(0, 0), (0, 1), (7, 0), (7, 1)])
    drawn = agent._draw_judges(6000)
    assert drawn.shape == (4, 6000, 2)
    low, high = drawn.amin(-1), drawn.amax(-1)
    assert bool((low < high).all()) and int(low.min()) == 0 and int(high.max()) == 3
    for row in (low * 4 + high).tolist():
        counts = [row.count(a * 4 + b) for a in range(4) for b in range(a + 1, 4)]
        # 1,000 of each of the 6 pairs; the deviation is (6000 * 1/6 * 5/6)^0.5 = 29
        assert all(abs(count - 1000) < 5 * 29 for count in counts)
    alone = group(SACConfig(**SHARE), [(7, 0), (7, 1)])
    assert torch.equal(alone._draw_judges(6000), drawn[2:])


@pytest.mark.parametrize(
    ("config", "count"),
    [(CONFIGS["sac"], 2), (CONFIGS["ddpg"], 1), (TD3Config(**SHARE, target_critics=3), 3)],
)
def test_as_many_critics_are_drawn_as_asked_for(config: OffPolicyConfig, count: int) -> None:
    assert group(config)._draw_judges(4).shape == (2, 4, count)


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("kind", [TD3Config, DDPGConfig, SACConfig])
def test_equal_peers_are_one_learner_with_all_critics_and_the_joint_replay(
    kind: Any, n_step: int
) -> None:
    sizes = {"n_envs": 1, "n_steps": 12, "n_step": n_step, "n_critics": 2, "target_critics": 2}
    config = kind(**SHARE | sizes)
    pair = group(config)
    # the one learner's two environments are those of the two peers
    one = group(
        replace(config, share_experience=False, n_critics=4, n_envs=2, capacity=80), [(0, 0)]
    )
    pair.nets.flat.detach()[1] = pair.nets.flat.detach()[0]
    one.nets.flat.detach()[0] = pair.nets.flat.detach()[0]
    for ours, theirs in ((one.critics, pair.critics), (one.target_critics, pair.target_critics)):
        ours.flat.detach().copy_(theirs.flat.detach())
    if isinstance(pair, TD3) and isinstance(one, TD3):
        for each in (pair, one):
            each.target_nets.flat.detach().copy_(each.nets.flat.detach())
    rollout = filled(pair, [1, 2])
    pair.replay.push(rollout)
    one.replay.extend(pair.replay.since(0).transpose(0, 2))
    start = one.nets.flat.detach().clone()
    with torch.no_grad():
        for _ in range(6):
            drawn = pair.replay.draw(pair.batches, 16)[:1]  # peer 0's; both learn from the same
            samples = torch.cat([drawn, drawn - 40])
            joint = drawn % 40 * 2 + drawn // 40
            noise = pair._draw(1)[:1, 0]
            judges = pair._draw_judges(1)[:1, 0]
            for agent, at, n in ((pair, samples, 2), (one, joint, 1)):
                raw = agent.replay.take(at, agent.gamma)
                agent.n_updates += 1
                agent._learn(raw, noise.expand(n, *noise.shape[1:]), judges.expand(n, -1), None)
    assert (one.nets.flat - start).abs().max() > 1e-3
    for peer in range(2):
        torch.testing.assert_close(pair.nets.flat[peer], one.nets.flat[0], rtol=0, atol=1e-10)
    for name in ("critics", "target_critics"):
        ours, theirs = (getattr(agent, name).flat for agent in (one, pair))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_groups_in_one_stack_equal_groups_alone(config: OffPolicyConfig) -> None:
    ids = [(s, p) for s in (0, 7) for p in range(3)]
    seeds = [100 * n for n in range(6)]
    together = group(config, ids)
    iterate(together, seeds)
    for g in range(2):
        rows = slice(3 * g, 3 * g + 3)
        alone = group(config, ids[rows])
        start = alone.nets.flat.detach().clone()
        iterate(alone, seeds[rows])
        assert (alone.nets.flat - start).abs().max() > 1e-3
        critics = slice(rows.start * config.n_critics, rows.stop * config.n_critics)
        assert (alone.nets.flat - together.nets.flat[rows]).abs().max() <= 1e-10
        assert (alone.critics.flat - together.critics.flat[critics]).abs().max() <= 1e-10


def test_going_on_from_a_state_equals_never_having_stopped(config: OffPolicyConfig) -> None:
    straight, first, second = (group(config) for _ in range(3))
    expected = iterate(straight, [1, 50], range(5))
    second.load_state(iterate(first, [1, 50], range(3)))
    second.replay.extend(first.replay.since(0))
    found = iterate(second, [1, 50], range(3, 5))
    assert expected.keys() == found.keys()
    for name, x in expected.items():
        assert torch.equal(x, found[name]), name


def one_update(agent: TD3 | SAC) -> State:
    """Run one update that moves the policies too; return the state."""
    agent.replay.push(filled(agent, [1, 2]))
    agent.n_updates = 2
    agent._set_rates()
    with torch.no_grad():
        raw = agent.replay.take(agent.replay.draw(agent.batches, 16), agent.gamma)
        agent._learn(raw, agent._draw(1)[:, 0], agent._draw_judges(1)[:, 0], None)
    return agent.state()


def of_peer(state: State, peer: int, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Return a peer's rows of the tensors of a pair whose names begin so."""
    chosen = {k: x for k, x in state.items() if k.startswith(names)}
    assert chosen
    return {k: x.tensor_split(2)[peer] for k, x in chosen.items()}


LEARNT = ("nets", "optimizer", "critics", "target_critics", "critic_optimizer")


def test_a_peers_policy_update_changes_no_tensor_of_another_learner() -> None:
    # TD3's targets come from the target policy, so that the policy itself matters to its own
    # ascent alone, which differentiates the critics of both
    states = []
    for moved in (0.0, 0.5):
        agent = group(CONFIGS["td3"])
        agent.nets.flat.detach()[1] += moved
        states.append(one_update(agent))
    own, other = ([of_peer(s, peer, LEARNT) for s in states] for peer in (0, 1))
    assert all(torch.equal(x, own[1][name]) for name, x in own[0].items())
    assert all(torch.equal(x, other[1][name]) for name, x in other[0].items() if "critic" in name)
    assert not torch.equal(other[0]["optimizer.exp_avg"], other[1]["optimizer.exp_avg"])


@pytest.mark.parametrize("kind", KINDS)
def test_critics_learn_from_their_own_learners_targets_alone(kind: str) -> None:
    # a peer's samples and temperature move its own critics, never those of the others
    states = []
    for reward in (0.0, 100.0):
        agent = group(replace(CONFIGS[kind], share_critics="targets"))
        take = agent.replay.take

        def spoilt(samples: Tensor, gamma: Tensor, take: Any = take, r: float = reward) -> Any:
            raw = take(samples, gamma)
            raw.reward[1] += r
            return raw

        agent.replay.take = spoilt  # type: ignore[method-assign]
        states.append(one_update(agent))
    own, other = ([of_peer(s, peer, LEARNT) for s in states] for peer in (0, 1))
    assert all(torch.equal(x, own[1][name]) for name, x in own[0].items())
    assert not torch.equal(other[0]["critics.flat"], other[1]["critics.flat"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("place", "in_targets", "in_policy"),
    [("both", True, True), ("targets", True, False), ("policy", False, True)],
)
def test_peers_critics_count_where_they_are_asked_to(
    kind: str, place: Any, in_targets: bool, in_policy: bool
) -> None:
    def after(target_offset: float, offset: float) -> dict[str, Tensor]:
        every = 4 if in_targets else 2  # all that may be drawn are
        settings = {"share_critics": place, "n_critics": 2, "target_critics": every}
        agent = group(replace(CONFIGS[kind], **settings))
        for nets, by in ((agent.target_critics, target_offset), (agent.critics, offset)):
            nets.flat.detach()[2:] -= by  # the other peer's
        return of_peer(one_update(agent), 0, LEARNT)

    plain, other_targets, other_critics = after(0, 0), after(0.3, 0), after(0, 0.3)
    same = torch.equal(plain["critic_optimizer.exp_avg"], other_targets["critic_optimizer.exp_avg"])
    assert same != in_targets
    same = torch.equal(plain["optimizer.exp_avg"], other_critics["optimizer.exp_avg"])
    assert same != in_policy


@pytest.mark.parametrize("shared", ["share_replay", "share_experience"])
@pytest.mark.parametrize("kind", [TD3Config, DDPGConfig, SACConfig])
def test_random_steps_are_counted_over_all_peers_that_share_replays(kind: Any, shared: str) -> None:
    # 24 steps: two iterations of 12 alone, one of two peers, and of three with 12 to spare
    settings = SIZES | {"learning_starts": 24, "capacity": 60}
    for peers, is_shared, iterations in ((1, False, 2), (2, False, 2), (2, True, 1), (3, True, 1)):
        agent = group(kind(**settings, **{shared: is_shared}), [(0, p) for p in range(peers)])
        for i in range(iterations):
            assert agent.warming_up
            agent.replay.push(filled(agent, [10 * p + i for p in range(peers)]))
        assert not agent.warming_up


@pytest.mark.parametrize("peers", [2, 3])
def test_every_peer_takes_an_update_for_every_step_of_its_group(peers: int) -> None:
    agent = group(TD3Config(**SHARE), [(0, p) for p in range(peers)])
    agent.update(agent.prepare(filled(agent, list(range(peers)))), 0.0)
    assert agent.critic_optimizer.steps.tolist() == [12 * peers] * 2 * peers
    assert agent.optimizer.steps.tolist() == [6 * peers] * peers  # every second one


@pytest.mark.parametrize("peers", [2, 3, 5])
def test_half_of_the_samples_are_own_and_the_others_are_of_all_peers_alike(peers: int) -> None:
    agent = group(TD3Config(**SHARE), [(s, p) for s in (0, 7) for p in range(peers)])
    rollout = filled(agent, list(range(2 * peers)))
    rollout.obs[..., 0] = torch.arange(2 * peers).view(-1, 1, 1)
    agent.replay.push(rollout)
    sample = agent.replay.take(agent.replay.draw(agent.batches, 4000), agent.gamma)
    source = sample.obs_act[..., 0].long()
    for n in range(2 * peers):
        counts = source[n].bincount(minlength=2 * peers).tolist()
        first = n // peers * peers
        for j, count in enumerate(counts):
            in_group = first <= j < first + peers
            expected = 2000 if j == n else 2000 / (peers - 1) if in_group else 0
            assert abs(count - expected) <= 5 * (expected * (1 - expected / 4000)) ** 0.5


def test_the_values_of_own_and_of_peers_critics_are_logged_at_own_actions() -> None:
    agent = group(TD3Config(**ONE_LAYER))
    line(agent, SLOPES, OFFSETS)
    constant_policy(agent, [0.3, -0.2])
    obs = torch.randn(2, 7, O, dtype=F64)
    found = agent.all_critics.bias(agent.critics, obs, agent.mode(obs))
    first, second = math.tanh(0.3), math.tanh(-0.2)
    # the means of critics 0 and 1 are 1.5 a + 10.5, those of critics 2 and 3 are -0.5 a + 10.5
    own, peers = (
        [1.5 * first + 10.5, -0.5 * second + 10.5],
        [-0.5 * first + 10.5, 1.5 * second + 10.5],
    )
    assert found["share/q_own"].tolist() == pytest.approx(own, rel=1e-12)
    assert found["share/q_peers"].tolist() == pytest.approx(peers, rel=1e-12)


def test_they_are_logged_by_learners_that_share_and_by_no_others() -> None:
    for config in (CONFIGS["sac"], SACConfig(**SIZES)):
        agent = group(config)
        metrics = agent.update(agent.prepare(filled(agent, [1, 2])), 0.0)
        assert ("share/q_own" in metrics) == ("share/q_peers" in metrics)
        assert ("share/q_own" in metrics) == config.share_experience


def test_drawn_critics_of_one_learner_are_its_own() -> None:
    agent = group(SACConfig(**SIZES, n_critics=4, target_critics=2))
    assert agent.target_pool.size == agent.policy_pool.size == 4
    drawn = agent._draw_judges(200)
    assert int(drawn.max()) == 3 and agent.updates == 12
    obs, act = torch.randn(2, 5, O, dtype=F64), torch.rand(2, 5, A, dtype=F64)
    q = agent.q(obs, act)
    judges = torch.tensor([[0, 3], [1, 2]])
    found = agent.target_pool.least(agent.critics, obs, act, judges)
    expected = torch.stack([q[0, [0, 3]].amin(0), q[1, [1, 2]].amin(0)])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    mean, _ = agent.policy_pool.ascent(agent.critics, obs, act)
    torch.testing.assert_close(mean, q.mean(1), rtol=1e-12, atol=1e-12)


def test_a_pool_of_one_peer_begins_at_the_learners_own_critics() -> None:
    norm = group(CONFIGS["sac"]).obs_norm
    assert Pool(2, 1, 3, norm).first.flatten().tolist() == [0, 3]
    assert Pool(2, 2, 3, norm).first.flatten().tolist() == [0, 0]
    assert Pool(2, 2, 3, norm).is_own.tolist() == [
        [True] * 3 + [False] * 3,
        [False] * 3 + [True] * 3,
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share_experience": True, "share_replay": True}, "includes a shared replay; leave"),
        ({"share_critics": "targets"}, "share_critics does nothing without --share-experience"),
        ({"target_critics": 3}, "target_critics 3 is more than the 2 critics to draw from"),
        (
            {"target_critics": 3, "share_experience": True, "share_critics": "policy"},
            "target_critics 3 is more than the 2 critics to draw from",
        ),
        ({"target_critics": 0}, "target_critics must be positive, not 0"),
    ],
)
def test_sharing_that_would_do_nothing_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TD3Config(**SIZES | settings)


def test_the_plan_of_an_iteration_says_what_is_shared() -> None:
    plan = "2 envs x 6 steps = 12 per learner, 12 updates of 16"
    assert TD3Config(**SIZES).plan == f"{plan}; the first 12 steps at random"
    assert TD3Config(**SIZES, share_replay=True).plan == (
        f"{plan}; the first 12 steps of all peers at random"
    )
    assert TD3Config(**SHARE).plan == (
        f"{plan} for the steps of each peer; the first 12 steps of all peers at random"
    )


@pytest.mark.parametrize("kind", [TD3, SAC])
def test_a_pool_of_learners_that_see_less_gives_the_gradient_by_the_action(kind: type) -> None:
    config = (SACConfig if kind is SAC else TD3Config)(**SIZES, n_critics=4, target_critics=2)
    view = View(obs_dim=O, act_dim=A, columns=(0, 2), history=2)
    agent = kind(config, O, A, [(0, 0)], F64, views=[view])
    rng = torch.Generator().manual_seed(0)
    wide = torch.randn(1, 5, agent.obs_dim, generator=rng, dtype=F64)
    act = torch.rand(1, 5, A, generator=rng, dtype=F64).requires_grad_()
    value, of_act = agent.policy_pool.ascent(agent.critics, wide, act.detach())
    # by autograd, one critic after the other, at the two frames of two columns behind the raw ones
    seen = torch.cat([wide[..., O:], act], -1).expand(4, -1, -1)
    objective = agent.critics(seen, "critic")[0].squeeze(-1).mean(0)
    torch.testing.assert_close(value[0], objective)
    (expected,) = torch.autograd.grad(-objective.mean(), act)
    torch.testing.assert_close(of_act, expected)
