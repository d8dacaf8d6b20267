"""What TD3, DDPG and SAC have in common."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dpd.agents.base import Metrics, Minibatch
from dpd.agents.offpolicy_config import DDPGConfig, OffPolicyConfig, SACConfig, TD3Config
from dpd.agents.ppo import valid_positions
from dpd.agents.replay import Transitions
from dpd.agents.sac import SAC
from dpd.agents.td3 import TD3
from tests.agents.parity import A, O, filled

SEEDS = [(0, 0), (0, 1), (7, 0)]
ROW_SEEDS = [100, 200, 300]
SIZES: dict[str, Any] = {
    "n_envs": 2,
    "n_steps": 6,
    "minibatch_size": 16,
    "capacity": 40,
    "learning_starts": 12,
    "hidden": (16, 16),
    "lr": 1e-3,
}
CONFIGS: dict[str, OffPolicyConfig] = {
    "td3": TD3Config(**SIZES),
    "ddpg": DDPGConfig(**SIZES, exploration="ou", critic_lr=3e-3),
    "sac": SACConfig(**SIZES),
    "td3, param, three steps": TD3Config(**SIZES, exploration="param", n_step=3, n_critics=3),
    "sac, normalised": SACConfig(**SIZES, norm_obs=True, n_critics=1),
}


def build(config: Any, seeds: list[tuple[int, int]] = SEEDS) -> TD3 | SAC:
    kind = SAC if isinstance(config, SACConfig) else TD3
    return kind(config, O, A, seeds, torch.float64)


def iterate(agent: TD3 | SAC, row_seeds: list[int], iterations: range = range(3)) -> list[Metrics]:
    found = []
    for i in iterations:
        rollout = filled(agent, [s + i for s in row_seeds])
        found.append(agent.update(agent.prepare(rollout), 0.0))
        agent.observe(rollout)
    return found


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> OffPolicyConfig:
    return CONFIGS[request.param]


def test_stacked_learners_equal_learners_alone(config: OffPolicyConfig) -> None:
    # 12 updates an iteration: 36 of each
    together = build(config)
    start = together.nets.flat.detach().clone()
    iterate(together, ROW_SEEDS)
    c = config.n_critics
    assert together.critic_optimizer.steps.tolist() == [36] * 3 * c
    for n, seed in enumerate(SEEDS):
        alone = build(config, [seed])
        assert torch.equal(alone.nets.flat[0], start[n])
        iterate(alone, ROW_SEEDS[n : n + 1])
        moved = (alone.nets.flat[0] - start[n]).abs().max()
        assert (alone.nets.flat[0] - together.nets.flat[n]).abs().max() <= 1e-10 < 1e-3 < moved
        critics = together.critics.flat[n * c : n * c + c]
        assert (alone.critics.flat - critics).abs().max() <= 1e-10


def test_going_on_from_a_state_equals_never_having_stopped(config: OffPolicyConfig) -> None:
    straight, first, second = (build(config) for _ in range(3))
    iterate(straight, ROW_SEEDS, range(5))
    iterate(first, ROW_SEEDS, range(3))
    second.load_state({name: x.clone() for name, x in first.state().items()})
    second.replay.extend(first.replay.since(0))
    iterate(second, ROW_SEEDS, range(3, 5))
    expected, found = straight.state(), second.state()
    assert expected.keys() == found.keys()
    for name, x in expected.items():
        assert torch.equal(x, found[name]), name


def test_a_state_of_other_learners_is_refused(config: OffPolicyConfig) -> None:
    with pytest.raises(ValueError, match="not"):
        build(config, SEEDS[:2]).load_state(build(config).state())


def test_no_one_learns_before_learning_starts() -> None:
    agent = build(TD3Config(**SIZES | {"learning_starts": 13}))
    start = agent.nets.flat.detach().clone()
    assert iterate(agent, ROW_SEEDS, range(1)) == [{}]  # 12 steps
    assert torch.equal(agent.nets.flat, start)
    (metrics,) = iterate(agent, ROW_SEEDS, range(1, 2))
    assert metrics.keys() >= {"loss/critic", "loss/actor", "train/q"}
    assert all(x.shape == (3,) for x in metrics.values())


def test_a_value_is_the_least_critics_of_the_action_without_noise(config: OffPolicyConfig) -> None:
    agent = build(config)
    iterate(agent, ROW_SEEDS)
    obs = 3 * torch.randn(3, 7, O, dtype=torch.float64)
    answer, q = agent.ask(obs), agent.q(obs, agent.mode(obs))
    assert q.shape == (3, config.n_critics, 7)
    assert answer.value is not None
    assert torch.equal(answer.value, q.amin(1))
    # one critic by hand: the last of the last learner
    p = {name: view[-1] for name, view in agent.critics.views.items()}
    x = torch.cat([agent.obs_norm(obs), agent.mode(obs)], -1)[2]
    for i in range(3):
        x = x @ p[f"critic.{i}.weight"] + p[f"critic.{i}.bias"]
        x = x.relu() if i < 2 else x
    torch.testing.assert_close(q[2, -1], x.squeeze(1), rtol=1e-12, atol=1e-12)


def spy(seen: list[Minibatch], loss: Callable[[Minibatch], Tensor]) -> Any:
    def extra(batch: Minibatch) -> tuple[Tensor, Metrics]:
        seen.append(batch)
        return loss(batch), {"distill/loss": loss(batch).detach()}

    return extra


def test_an_extra_loss_of_zero_changes_nothing(config: OffPolicyConfig) -> None:
    alone, constant, joint = (build(config) for _ in range(3))
    seen: list[Minibatch] = []
    extras = (
        None,
        spy([], lambda b: torch.zeros(3, dtype=torch.float64)),
        spy(seen, lambda b: 0 * b.dist.mean.sum((1, 2))),
    )
    for agent, extra in zip((alone, constant, joint), extras, strict=True):
        iterate(agent, ROW_SEEDS, range(1))
        rollout = filled(agent, ROW_SEEDS)
        metrics = agent.update(agent.prepare(rollout), 0.0, extra)
        assert ("distill/loss" in metrics) == (extra is not None)
    assert torch.equal(alone.nets.flat, constant.nets.flat)
    torch.testing.assert_close(alone.nets.flat, joint.nets.flat, rtol=0, atol=1e-14)
    delay = config.policy_delay if isinstance(config, TD3Config) else 1
    assert len(seen) == 12 // delay


def test_an_extra_loss_moves_the_policy_its_way(config: OffPolicyConfig) -> None:
    # a strong pull of the mean action to 0.5 at the chunk's states
    def pull(batch: Minibatch) -> Tensor:
        return 1e4 * (batch.dist.action(batch.dist.mean) - 0.5).square().mean((1, 2))

    agent = build(replace(config, lr=1e-2))
    iterate(agent, ROW_SEEDS, range(1))
    for _ in range(8):
        batch = agent.prepare(filled(agent, ROW_SEEDS))
        agent.update(batch, 0.0, spy([], pull))
    assert (agent.mode(batch.raw_obs) - 0.5).abs().mean() < 0.1


@pytest.mark.parametrize("extra_policy_updates", [0, 2])
def test_an_extra_loss_is_taken_at_the_very_minibatch_of_each_policy_update(
    config: OffPolicyConfig, extra_policy_updates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = build(replace(config, extra_policy_updates=extra_policy_updates))
    iterate(agent, ROW_SEEDS, range(2))
    rollout = filled(agent, [s + 2 for s in ROW_SEEDS])
    rollout.valid[0, 2:5] = False
    batch = agent.prepare(rollout)
    taken: list[Tensor] = []
    take = agent.replay.take

    def noted(samples: Tensor, gamma: Tensor) -> Transitions:
        found = take(samples, gamma)
        taken.append(found.obs_act[..., :O])
        return found

    monkeypatch.setattr(agent.replay, "take", noted)
    seen: list[Minibatch] = []
    agent.update(batch, 0.0, spy(seen, lambda b: b.dist.mean.sum((1, 2))))
    # 12 minibatches; TD3's policy moves with every second one, and each time `extra` times more
    delay = config.policy_delay if isinstance(config, TD3Config) else 1
    cycle = delay + extra_policy_updates
    expected = [x for i, x in enumerate(taken) if i % cycle >= delay - 1]
    assert len(seen) == len(expected) == 12 // delay * (1 + extra_policy_updates)
    for minibatch, raw_obs in zip(seen, expected, strict=True):
        assert torch.equal(minibatch.raw_obs, raw_obs)  # every state once, in its place
        mean = agent.dist(agent.obs_norm(raw_obs)).mean
        assert minibatch.dist.mean.shape == mean.shape
    # they are of the whole replay: 36 steps of each learner, of which row 0 lost 6, not the last 12
    states = torch.cat([m.raw_obs for m in seen], 1)
    for n, valid in enumerate((30, 36, 36)):
        assert 12 < len(states[n].unique(dim=0)) <= valid
    lost = rollout.obs[0, 2:5].flatten(0, 1)
    assert torch.cdist(states[0], lost).min() > 1e-6


def test_rows_with_an_extra_loss_equal_learners_alone(config: OffPolicyConfig) -> None:
    def train(agent: TD3 | SAC, row_seeds: list[int]) -> Tensor:
        pull = spy([], lambda b: (b.dist.mean - 0.5).square().mean((1, 2)))
        for i in range(3):
            rollout = filled(agent, [s + i for s in row_seeds])
            agent.update(agent.prepare(rollout), 0.0, pull)
            agent.observe(rollout)
        return agent.nets.flat.detach()

    together = train(build(config), ROW_SEEDS)
    for n, seed in enumerate(SEEDS):
        alone = train(build(config, [seed]), ROW_SEEDS[n : n + 1])
        assert (alone[0] - together[n]).abs().max() <= 1e-10


def test_numbers_turn_into_valid_positions() -> None:
    valid = torch.tensor([[True, False, True], [False, False, False]])
    pick = torch.tensor([[[0, 1], [2, 3]]] * 2)
    assert valid_positions(valid, pick).tolist() == [[[0, 2], [0, 2]], [[0, 0], [0, 0]]]


def test_a_diverged_row_alone_gets_new_numbers_and_half_the_rates() -> None:
    agent = build(DDPGConfig(**SIZES, critic_lr=4e-3))
    other = build(DDPGConfig(**SIZES, critic_lr=4e-3))
    agent.retry([1], 1)
    assert agent.lr.tolist() == [1e-3, 0.5e-3, 1e-3]
    assert agent.critic_lr.tolist() == [4e-3, 2e-3, 4e-3]
    same = (agent.noise() == other.noise()).flatten(1).all(1)
    assert same.tolist() == [True, False, True]
    iterate(agent, ROW_SEEDS)
    assert agent.critic_optimizer.lr == [4e-3, 2e-3, 4e-3]


def test_discounts_and_rates_may_differ_by_row() -> None:
    # row 1 alone, with its own discount and rate, is row 1 of the stack
    together, alone = build(CONFIGS["sac"]), build(replace(CONFIGS["sac"], gamma=0.5, lr=1e-4))
    together.gamma[1], together.lr[1], together.critic_lr[1] = 0.5, 1e-4, 1e-4
    for agent in (together, alone):
        iterate(agent, ROW_SEEDS)
    torch.testing.assert_close(together.nets.flat[1], alone.nets.flat[1], rtol=0, atol=1e-10)
    assert (together.nets.flat[0] - alone.nets.flat[0]).abs().max() > 1e-3


def test_an_exported_policy_holds_the_deterministic_action(config: OffPolicyConfig) -> None:
    agent = build(config)
    iterate(agent, ROW_SEEDS)
    obs = 3 * torch.randn(3, 7, O, dtype=torch.float64)
    p = agent.export(2)
    x = obs[2]
    if config.norm_obs:
        x = ((x - p["obs_mean"]) * p["obs_scale"]).clamp(-10, 10)
    for i in range(3):
        features, x = x, x @ p[f"actor.{i}.weight"] + p[f"actor.{i}.bias"]
        x = x.relu() if i < 2 else x
    assert config.squashed or config.tanh_mean
    torch.testing.assert_close(x.tanh(), agent.mode(obs)[2], rtol=0, atol=1e-12)
    if isinstance(config, SACConfig):
        log_std = features @ p["log_std_head.0.weight"] + p["log_std_head.0.bias"]
        expected = agent.dist(agent.obs_norm(obs)).log_std[2]
        torch.testing.assert_close(log_std.clamp(-20, 2), expected.detach(), rtol=0, atol=1e-12)
    else:
        assert p["log_std"].shape == (1, A)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"capacity": 100}, "capacity 100 is less than minibatch_size = 256"),
        ({"capacity": 5000}, "capacity 5000 is less than learning_starts = 10000"),
        ({"updates_per_step": 0}, "updates_per_step must be positive, not 0"),
        ({"updates_per_step": 0.01}, "updates_per_step 0.01 makes less than one update"),
        ({"updates_per_step": 0.02}, "1 updates an iteration are fewer than policy_delay 2"),
        ({"tau": 0.0}, r"tau must lie in \(0, 1\], not 0.0"),
        ({"gamma": 1.1}, r"gamma must lie in \[0, 1\], not 1.1"),
        ({"n_step": 0}, "n_step must be positive, not 0"),
        ({"hidden": ()}, "hidden must name positive layer sizes"),
        ({"critic_lr": 0.0}, "critic_lr must be positive, not 0.0"),
        ({"learning_starts": -1}, "learning_starts must not be negative, not -1"),
        ({"noise_std": 0.0}, "noise_std must be positive, not 0.0"),
        ({"target_noise": -0.1}, "target_noise must not be negative, not -0.1"),
        ({"ou_theta": 0.3}, "ou_theta does nothing with exploration gaussian"),
        ({"target_noise": 0.0, "target_noise_clip": 0.1}, "nothing if target_noise is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TD3Config(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "alpha must not be negative, not -1.0"),
        ({"alpha_init": 0.0}, "alpha_init must be positive, not 0.0"),
        ({"alpha": 0.1, "alpha_init": 0.5}, "alpha_init applies to a learned temperature"),
        ({"alpha": 0.1, "target_entropy": -3.0}, "target_entropy applies to a learned temperature"),
    ],
)
def test_temperatures_that_make_no_sense_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SACConfig(**settings)


@pytest.mark.parametrize("n_step", [1, 3])
def test_a_shared_replay_is_drawn_from_evenly_and_by_its_own_group_alone(n_step: int) -> None:
    # two groups of two peers; every stored reward says whose it is
    settings = SIZES | {"share_replay": True, "n_step": n_step, "gamma": 1.0}
    agent = build(TD3Config(**settings), [(0, 0), (0, 1), (7, 0), (7, 1)])
    for _ in range(2):
        rollout = filled(agent, [1, 2, 3, 4])
        rollout.terminated[:], rollout.truncated[:] = True, False
        rollout.reward[:] = torch.arange(1.0, 5.0).view(4, 1, 1)
        rollout.obs[..., 0] = rollout.reward
        agent.replay.push(rollout)
    sample = agent.replay.take(agent.replay.draw(agent.batches, 4000), agent.gamma)
    assert torch.equal(sample.obs_act[..., 0], sample.reward)  # episodes last a step
    for n, group in enumerate(({1.0, 2.0}, {1.0, 2.0}, {3.0, 4.0}, {3.0, 4.0})):
        assert set(sample.reward[n].tolist()) == group
        # a fair coin 4000 times: five deviations are 158
        assert abs(int((sample.reward[n] == max(group)).sum()) - 2000) < 158


def test_sums_over_steps_stay_with_the_peer_they_began_with() -> None:
    settings = SIZES | {"share_replay": True, "n_step": 3, "gamma": 1.0, "n_envs": 1}
    agent = build(TD3Config(**settings), [(0, 0), (0, 1)])
    rollout = filled(agent, [1, 2])
    rollout.terminated[:], rollout.truncated[:] = False, False
    rollout.reward[:] = torch.tensor([1.0, 10.0]).view(2, 1, 1)
    agent.replay.push(rollout)
    reward = agent.replay.take(agent.replay.draw(agent.batches, 500), agent.gamma).reward
    # one, two or three rewards of one peer, the fewer at the newest end
    assert set(reward.flatten().tolist()) == {1.0, 2.0, 3.0, 10.0, 20.0, 30.0}


@pytest.mark.parametrize("kind", [TD3Config, DDPGConfig, SACConfig])
def test_extra_updates_move_the_policy_alone(kind: Any) -> None:
    # 12 updates in the second iteration; TD3's policy moves in every other one
    counts = {}
    for extra in (0, 2):
        agent = build(kind(**SIZES, extra_policy_updates=extra))
        iterate(agent, ROW_SEEDS, range(2))
        counts[extra] = agent.optimizer.steps[0], agent.critic_optimizer.steps[0]
    assert counts[2][0] == 3 * counts[0][0]
    assert counts[2][1] == counts[0][1]
