"""TD3, DDPG and SAC with critics that see more than the policy, and their warm-up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dpd.agents.asymmetric import AsymmetricSAC, AsymmetricTD3
from dpd.agents.base import LearnerId, Rollout
from dpd.agents.config import View
from dpd.agents.graphs import Graphs
from dpd.agents.kernels import Kernels
from dpd.agents.offpolicy import OffPolicy
from dpd.agents.offpolicy_config import DDPGConfig, OffPolicyConfig, SACConfig, TD3Config
from dpd.agents.rng import RowRandom, Stream
from dpd.agents.sac import SAC, gaussian
from dpd.agents.td3 import TD3
from dpd.agents.views import Frames
from tests.toy.meta_device import META, Recorded, on_device

O, A, F64 = 3, 2, torch.float64  # noqa: E741
VIEW = View(obs_dim=O, act_dim=A, columns=(0, 2), history=2)
EVERYTHING = View(obs_dim=O, act_dim=A, columns=(0, 1, 2))
IDS: list[LearnerId] = [(0, 0), (0, 1), (7, 0)]
SIZES: dict[str, Any] = {
    "n_envs": 2,
    "n_steps": 6,
    "minibatch_size": 8,
    "capacity": 40,
    "learning_starts": 12,
    "hidden": (8,),
    "lr": 1e-3,
}
CONFIGS: dict[str, OffPolicyConfig] = {
    "td3": TD3Config(**SIZES, critic_obs="all"),
    "ddpg, normalised": DDPGConfig(**SIZES, critic_obs="all", norm_obs=True),
    "sac": SACConfig(**SIZES, critic_obs="all"),
    "sac, normalised, three steps": SACConfig(**SIZES, critic_obs="all", norm_obs=True, n_step=3),
}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> OffPolicyConfig:
    return CONFIGS[request.param]


def built(config: OffPolicyConfig, ids: list[LearnerId] = IDS, view: View = VIEW) -> OffPolicy:
    agent = config.build(O, A, ids, views=[view] * len(ids))
    assert isinstance(agent, OffPolicy)
    return agent


def played(agent: OffPolicy, seed: int, ids: list[LearnerId] = IDS, view: View = VIEW) -> Rollout:
    """Return a wide rollout of random numbers; row n's are those of ids[n] alone."""
    rollout = agent.new_rollout()
    draws = [torch.Generator().manual_seed(100 * seed + 10 * a + b) for a, b in ids]

    def drawn(*shape: int) -> Tensor:
        return torch.stack([torch.randn(*shape, generator=draw) for draw in draws])

    frames = Frames([view] * len(ids), 2, RowRandom(ids, Stream.SENSOR))
    obs, over = frames.begin(drawn(2, O)), torch.zeros(len(ids), 2, dtype=torch.bool)
    for t in range(agent.config.n_steps):
        rollout.obs[:, t], act, raw = obs, drawn(2, A).clamp(-1, 1), drawn(2, O)
        after, obs = frames.advance(raw, raw, act, over, None)
        rollout.act[:, t], rollout.next_obs[:, t] = act, after
    rollout.reward.copy_(drawn(*rollout.reward.shape[1:]))
    return rollout


KERNEL_CASES: dict[str, OffPolicyConfig] = {
    **CONFIGS,
    "sac, critics of the view": replace(CONFIGS["sac"], critic_obs="actor"),
    "td3, critics of the view, normalised": TD3Config(**SIZES, norm_obs=True),
    "sac, three critics": replace(CONFIGS["sac"], n_critics=3, target_critics=2),
    "td3, several blocks": replace(CONFIGS["td3"], minibatch_size=300, capacity=400),
}


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", KERNEL_CASES)
def test_updates_by_the_kernels_are_those_of_torch(name: str, dtype: torch.dtype) -> None:
    config = KERNEL_CASES[name]
    kind = type(built(config))
    plain, fused = (kind(config, O, A, IDS, dtype, views=[VIEW] * 3) for _ in range(2))
    fused.kernels, start = Kernels(1), plain.nets.flat.detach().clone()
    for agent in (plain, fused):
        learn(agent, 0, 4)
    bound = 1e-10 if dtype == F64 else 1e-4
    for networks in ("nets", "critics", "target_critics"):
        ours, theirs = (getattr(agent, networks).flat for agent in (fused, plain))
        torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound)
    assert (fused.nets.flat - start).abs().max() > 1e-3


def test_torch_updates_peers_whose_critics_would_read_a_view() -> None:
    config = replace(CONFIGS["sac"], share_experience=True)
    pair: list[LearnerId] = [(0, 0), (0, 1)]
    plain, fused = built(config, pair), built(config, pair)
    fused.kernels, start = Kernels(1), plain.nets.flat.detach().clone()
    for agent in (plain, fused):
        learn(agent, 0, 3, pair)
    assert not torch.equal(plain.nets.flat, start)
    assert torch.equal(plain.nets.flat, fused.nets.flat)


def learn(agent: OffPolicy, begin: int, end: int, ids: list[LearnerId] = IDS) -> None:
    for seed in range(begin, end):
        rollout = played(agent, seed, ids)
        agent.update(agent.prepare(rollout), 0.0)
        agent.observe(rollout)


def hidden_column_moved(obs: Tensor) -> Tensor:
    """Change column 1 of the raw observation, which is in no frame of the view."""
    other = obs.clone()
    other[..., 1] += 1
    return other


def test_the_settings_choose_the_learners() -> None:
    kinds = [type(built(CONFIGS[name])) for name in ("td3", "ddpg, normalised", "sac")]
    assert kinds == [AsymmetricTD3, AsymmetricTD3, AsymmetricSAC]
    assert type(built(TD3Config(**SIZES))) is TD3 and type(built(SACConfig(**SIZES))) is SAC
    with pytest.raises(ValueError, match="the policies see everything too"):
        SACConfig(critic_obs="all").build(O, A, IDS)


def test_a_hidden_column_changes_what_critics_say_and_not_the_policy(
    config: OffPolicyConfig,
) -> None:
    agent, blind = built(config), built(replace(config, critic_obs="actor"))
    learn(agent, 0, 2)
    obs = played(agent, 9).flat_obs()
    other, act = hidden_column_moved(obs), torch.zeros(3, 12, A)
    assert torch.equal(agent.mode(obs), agent.mode(other))
    assert not torch.isclose(agent.q(obs, act), agent.q(other, act)).any()
    assert torch.equal(blind.q(obs, act), blind.q(other, act))


def test_critics_may_read_some_columns_alone(config: OffPolicyConfig) -> None:
    agent = replace(config, critic_obs="1").build(O, A, IDS, views=[VIEW] * 3, critic_columns=[1])
    assert isinstance(agent, OffPolicy) and agent.critic_dim == 1
    learn(agent, 0, 3)
    obs, act = played(agent, 9).flat_obs(), torch.zeros(3, 12, A)
    seen, other = agent.q(obs, act), obs.clone()
    other[..., [0, 2]] += 1  # of the raw observation
    assert torch.equal(agent.q(other, act), seen)
    assert not torch.isclose(agent.q(hidden_column_moved(obs), act), seen).any()


def by_hand(agent: OffPolicy, row: int, x: Tensor) -> Tensor:
    """Return a target critic's values at its inputs [B, O + A]."""
    p = {name: view[row].detach() for name, view in agent.target_critics.views.items()}
    x = (x @ p["critic.0.weight"] + p["critic.0.bias"]).relu()
    return (x @ p["critic.1.weight"] + p["critic.1.bias"]).squeeze(1)


@pytest.mark.parametrize("name", ["td3", "sac"])
def test_a_target_is_of_the_action_in_the_next_view_and_of_the_whole_next_observation(
    name: str,
) -> None:
    agent = built(CONFIGS[name])
    learn(agent, 0, 3)
    raw = agent.replay.take(agent.replay.draw(agent.batches, 8), agent.gamma)
    none, judges = torch.zeros(3, 8, A), torch.empty(3, 0, dtype=torch.int64)
    # the view's two frames lie behind the raw observation
    seen, whole = raw.next_obs[..., O:], raw.next_obs[..., :O]
    if isinstance(agent, TD3):
        act = agent.target_nets(seen, "actor")[0].tanh()
        found = agent._next_value(agent._read(raw), none, judges)
    else:
        assert isinstance(agent, SAC)
        dist = gaussian(agent.nets(seen, "actor")[0])
        act = dist.mean.tanh()
        alpha = agent.log_alpha.exp()
        found = agent._next_value(agent._read(raw), none, alpha, judges)
        found = found + alpha * dist.logp(dist.mean)
    for n in range(3):
        x = torch.cat([whole[n], act[n].detach()], -1)
        least = torch.min(by_hand(agent, 2 * n, x), by_hand(agent, 2 * n + 1, x))
        torch.testing.assert_close(found[n].detach(), least, rtol=1e-5, atol=1e-5)


def test_stacked_learners_equal_learners_alone(config: OffPolicyConfig) -> None:
    together = built(config)
    learn(together, 0, 4)
    for n, one in enumerate(IDS):
        alone = built(config, [one])
        learn(alone, 0, 4, [one])
        assert (alone.nets.flat[0] - together.nets.flat[n]).abs().max() < 1e-5
        c = config.n_critics
        critics = together.critics.flat[n * c : n * c + c]
        assert (alone.critics.flat - critics).abs().max() < 1e-5
    assert not torch.isclose(together.nets.flat, built(config).nets.flat, atol=1e-4).all()


def test_going_on_from_a_state_equals_never_having_stopped(config: OffPolicyConfig) -> None:
    config = replace(config, critic_warmup=2)
    straight, first, second = (built(config) for _ in range(3))
    learn(straight, 0, 5)
    learn(first, 0, 2)
    second.load_state({name: x.clone() for name, x in first.state().items()})
    second.replay.extend(first.replay.since(0))
    learn(second, 2, 5)
    expected, found = straight.state(), second.state()
    assert "critic_norm.moments.mean" in expected and expected.keys() == found.keys()
    for name, x in expected.items():
        assert torch.equal(x, found[name]), name


def test_if_the_policy_sees_everything_the_numbers_are_those_without_a_view(
    config: OffPolicyConfig,
) -> None:
    plain = replace(config, critic_obs="actor")
    agents = [built(config, view=EVERYTHING), built(plain, view=EVERYTHING)]
    bare = plain.build(O, A, IDS)
    for seed in range(3):
        rollout = played(agents[0], seed, view=EVERYTHING)
        for agent in (*agents, bare):
            own = agent.new_rollout()
            for name, x in vars(rollout).items():
                wide = name in ("obs", "next_obs") and agent is bare
                getattr(own, name).copy_(x[..., :O] if wide else x)
            agent.update(agent.prepare(own), 0.0)
            agent.observe(own)
    assert isinstance(bare, OffPolicy)
    for agent in agents:
        assert torch.equal(agent.nets.flat, bare.nets.flat)
        assert torch.equal(agent.critics.flat, bare.critics.flat)


def test_critics_have_a_normaliser_of_their_own(config: OffPolicyConfig) -> None:
    agent = built(replace(config, norm_obs=True))
    rollout = played(agent, 0)
    agent.observe(rollout)
    raw = rollout.flat_obs()[..., :O]
    # the weight of the statistics at the start is 1e-4 of a sample
    torch.testing.assert_close(agent.critic_norm.mean[:, 0], raw.mean(1), rtol=1e-3, atol=1e-3)
    assert agent.obs_norm.mean.shape[-1] == VIEW.dim == 4


def test_pooled_critics_see_everything_of_a_peers_states() -> None:
    pair: list[LearnerId] = [(0, 0), (0, 1)]
    agent = built(SACConfig(**SIZES, critic_obs="all", share_experience=True), pair)
    learn(agent, 0, 3, pair)
    obs = played(agent, 9, pair).flat_obs()
    act = torch.zeros(2, 12, A)
    values, _ = agent.all_critics.values(agent.critics, obs, act)
    other, _ = agent.all_critics.values(agent.critics, hidden_column_moved(obs), act)
    assert values.shape == (2, 4, 12) and not torch.isclose(values, other).any()


# --- Warm-up of the critics ---


def frozen_part(agent: OffPolicy) -> dict[str, Tensor]:
    """Return copies of all that the policies depend on."""
    own = agent.state()
    names = ("nets.flat", "obs_norm", "log_alpha", "target_nets", "optimizer", "alpha_optimizer")
    return {k: x.clone() for k, x in own.items() if k.startswith(names)}


@pytest.mark.parametrize("critic_obs", ["actor", "all"])
def test_a_warm_up_leaves_the_policy_as_it_is_and_trains_the_critics(
    config: OffPolicyConfig, critic_obs: str
) -> None:
    sees: Any = {"critic_obs": critic_obs, "critic_warmup": 2}
    agent = built(replace(config, **sees, extra_policy_updates=1))
    first, critics, targets = (
        frozen_part(agent),
        agent.critics.flat.detach().clone(),
        agent.target_critics.flat.detach().clone(),
    )
    for seed, left in enumerate((1, 0)):
        rollout = played(agent, seed)
        agent.observe(rollout)
        agent.update(agent.prepare(rollout), 0.0)
        assert agent.frozen == left
        assert all(torch.equal(x, first[k]) for k, x in frozen_part(agent).items())
    assert not torch.equal(agent.critics.flat, critics)
    assert not torch.equal(agent.target_critics.flat, targets)
    learn(agent, 2, 3)
    moved = frozen_part(agent)
    assert all(not torch.equal(moved[k], first[k]) for k in ("nets.flat", "optimizer.steps"))


def test_iterations_without_updates_are_no_part_of_the_warm_up_and_the_policy_acts_in_them() -> (
    None
):
    agent = built(TD3Config(**SIZES | {"learning_starts": 13}, critic_warmup=1, noise_std=1e-6))
    obs = played(agent, 0).obs[:, 0]
    assert agent.warming_up
    act = agent.act(obs, agent.noise()[:, 0])
    torch.testing.assert_close(act, agent.mode(obs), rtol=0, atol=1e-4)
    learn(agent, 0, 1)
    assert agent.frozen == 1  # 12 steps
    learn(agent, 1, 2)
    assert agent.frozen == 0


@pytest.mark.parametrize("name", ["td3", "sac"])
def test_a_warm_up_is_recorded_apart_from_what_follows_and_waits_for_nothing(name: str) -> None:
    config = replace(CONFIGS[name], critic_warmup=2, learning_starts=0)
    agent = config.build(O, A, IDS, META, [VIEW] * 3)
    agent.graphs = Graphs(torch.device("cuda"), record=Recorded)
    before = Recorded.made
    with on_device():
        for _ in range(4):
            rollout = agent.new_rollout()
            batch = agent.prepare(rollout)
            assert agent.replay is not None
            agent.replay._ready = True
            agent.update(batch, 0.0)
            agent.observe(rollout)
    # of TD3: without targets, with targets, and later also with the policy; of SAC: two kinds
    assert Recorded.made - before == (3 if name == "td3" else 2)
