"""PPO with a value function that sees more than the policy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dpd.agents.asymmetric import AsymmetricPPO
from dpd.agents.base import Rollout
from dpd.agents.config import View
from dpd.agents.kernels import Kernels
from dpd.agents.ppo import PPO
from dpd.agents.ppo_config import PPOConfig
from dpd.agents.rng import RowRandom, Stream
from dpd.agents.views import Frames
from tests.toy.terms import nothing

VIEW = View(obs_dim=3, act_dim=2, columns=(0, 2), history=2)
IDS = [(0, 0), (0, 1)]


def made(view: View = VIEW, **changes: Any) -> PPO:
    settings: dict[str, Any] = {"n_envs": 4, "n_steps": 8, "minibatch_size": 16, "hidden": (8,)}
    config = PPOConfig(**settings | changes)
    agent = config.build(3, 2, IDS, views=[view] * 2)
    assert isinstance(agent, PPO)
    return agent


def filled(agent: PPO, view: View = VIEW) -> Rollout:
    """Return a rollout of random numbers, whose observations are as `Frames` makes them."""
    rollout, draw = agent.new_rollout(), torch.Generator().manual_seed(0)
    n = agent.config.n_envs
    frames = Frames([view] * 2, n, RowRandom(IDS, Stream.SENSOR))
    obs = frames.begin(torch.randn(2, n, 3, generator=draw))
    over = torch.zeros(2, n, dtype=torch.bool)
    for t in range(8):
        rollout.obs[:, t], act = obs, torch.randn(2, n, 2, generator=draw)
        raw = torch.randn(2, n, 3, generator=draw)
        after, obs = frames.advance(raw, raw, act, over, None)
        rollout.act[:, t], rollout.next_obs[:, t] = act, after
    rollout.reward.copy_(torch.randn(2, 8, n, generator=draw))
    return rollout


def test_a_hidden_column_changes_the_value_and_not_the_policy() -> None:
    agent = made(critic_obs="all")
    rollout = filled(agent)
    agent.observe(rollout)
    obs = rollout.flat_obs()
    other = obs.clone()
    other[..., 1] += 1  # of the raw observation: column 1 is in no frame of the view
    before, after = agent.ask(obs), agent.ask(other)
    assert torch.equal(before.dist.mean, after.dist.mean)
    assert before.value is not None and after.value is not None
    assert not torch.isclose(before.value, after.value).any()


def test_a_value_that_sees_what_the_policy_sees_is_blind_to_a_hidden_column() -> None:
    agent = made()
    obs = filled(agent).flat_obs()
    other = obs.clone()
    other[..., 1] += 1
    before, after = agent.ask(obs).value, agent.ask(other).value
    assert before is not None and after is not None and torch.equal(before, after)


def test_the_value_has_a_normaliser_of_its_own_with_statistics_of_whole_observations() -> None:
    agent = made(critic_obs="all")
    assert isinstance(agent, AsymmetricPPO)
    rollout = filled(agent)
    agent.observe(rollout)
    raw = rollout.flat_obs()[..., :3]
    # the weight of the statistics at the start is 1e-4 of a sample
    torch.testing.assert_close(agent.critic_norm.mean[:, 0], raw.mean(1), rtol=1e-3, atol=1e-3)
    assert {"critic_norm.moments.mean", "obs_norm.moments.mean"} <= agent.state().keys()


def test_the_value_may_read_some_columns_alone() -> None:
    settings: dict[str, Any] = {"n_envs": 4, "n_steps": 8, "minibatch_size": 16, "hidden": (8,)}
    config = PPOConfig(**settings, critic_obs="1")
    agent = config.build(3, 2, IDS, views=[VIEW] * 2, critic_columns=[1])
    rollout = filled(agent)  # type: ignore[arg-type]
    agent.observe(rollout)
    agent.update(agent.prepare(rollout), 0.0)
    obs = rollout.flat_obs()
    of = [obs.clone() for _ in range(3)]
    for column, other in enumerate(of):
        other[..., column] += 1
    value = agent.ask(obs).value
    assert value is not None
    for column, other in enumerate(of):
        moved = agent.ask(other).value
        assert moved is not None and torch.equal(moved, value) == (column != 1)


def test_the_gradient_by_hand_is_autograds() -> None:
    agent = made(critic_obs="all", epochs=1, norm_reward=False)
    twin = made(critic_obs="all", epochs=1, norm_reward=False)
    rollout = filled(agent)

    agent.update(agent.prepare(rollout), 0.0)
    twin.update(twin.prepare(rollout), 0.0, nothing(twin))  # with a term, autograd is used
    # Adam's first steps are signs of the gradient, so a gradient near 0 may differ in all of it
    torch.testing.assert_close(agent.nets.flat, twin.nets.flat, rtol=1e-3, atol=1e-5)
    assert not torch.equal(agent.nets.flat, made(critic_obs="all").nets.flat)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"share_experience": True},
        {"hidden": (20, 9)},
        {"n_envs": 80, "minibatch_size": 320},  # more rows than a block of the kernels
        {"critic_obs": "1"},  # fewer columns than the policy's
    ],
    ids=str,
)
def test_an_update_by_the_kernels_is_that_of_torch(
    changes: dict[str, Any], dtype: torch.dtype
) -> None:
    config = made(epochs=3, **{"critic_obs": "all"} | changes).config
    columns = [1] if config.critic_obs == "1" else []

    def of_dtype() -> PPO:
        return AsymmetricPPO(config, 3, 2, IDS, dtype, views=[VIEW] * 2, critic_columns=columns)

    plain, fused = of_dtype(), of_dtype()
    fused.kernels, start = Kernels(1), plain.nets.flat.detach().clone()
    rollout = filled(plain)
    for progress in (0.0, 0.5):
        for agent in (plain, fused):
            agent.observe(rollout)
            agent.update(agent.prepare(rollout), progress)
        bound = 1e-10 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(fused.nets.flat, plain.nets.flat, rtol=bound, atol=bound)
    assert (fused.nets.flat - start).abs().max() > 1e-3


def test_if_the_policy_sees_everything_its_numbers_are_those_without_a_view() -> None:
    everything = View(obs_dim=3, act_dim=2, columns=(0, 1, 2))
    plain = PPOConfig(n_envs=4, n_steps=8, minibatch_size=16, hidden=(8,)).build(3, 2, IDS)
    agents = [made(everything), made(everything, critic_obs="all"), plain]
    rollout = filled(agents[0], everything)  # type: ignore[arg-type]
    for agent in agents:
        own = rollout
        if agent is plain:
            own = agent.new_rollout()
            for name, x in vars(rollout).items():
                wide = name in ("obs", "next_obs")
                getattr(own, name).copy_(x[..., :3] if wide else x)
        agent.update(agent.prepare(own), 0.0)
        agent.observe(own)
        assert torch.equal(agent.nets.flat, agents[0].nets.flat)
        assert torch.equal(agent.obs_norm.mean, agents[0].obs_norm.mean)


def test_without_a_view_there_is_nothing_more_to_see() -> None:
    with pytest.raises(ValueError, match="the policies see everything too"):
        PPOConfig(critic_obs="all").build(3, 2, IDS)


def policy_of(agent: PPO) -> dict[str, torch.Tensor]:
    """Return copies of all that the policy of learner 1 depends on."""
    return {k: x.clone() for k, x in agent.export(1).items()}


@pytest.mark.parametrize("critic_obs", ["actor", "all"])
@pytest.mark.parametrize("norm_adv", [True, False])
def test_a_warm_up_leaves_the_policy_as_it_is_and_trains_the_value(
    critic_obs: str, norm_adv: bool
) -> None:
    agent = made(critic_obs=critic_obs, critic_warmup=2, norm_adv=norm_adv, entropy_coef=0.1)
    rollout = filled(agent)
    first = policy_of(agent)
    critic = agent.nets.views["critic.0.weight"].clone()
    for left in (1, 0):
        agent.observe(rollout)
        agent.update(agent.prepare(rollout), 0.0)
        assert agent.frozen == left
        assert all(torch.equal(x, first[k]) for k, x in policy_of(agent).items())
    assert not (agent.nets.views["critic.0.weight"] == critic).all(-1).any()
    assert not agent.optimizer.steps.any() and not agent.optimizer.exp_avg_sq.any()
    agent.update(agent.prepare(rollout), 0.0)
    moved = policy_of(agent)
    assert not torch.equal(moved["log_std"], first["log_std"])
    assert not torch.equal(moved["actor.0.weight"], first["actor.0.weight"])


def test_a_policy_takes_no_long_step_after_a_warm_up() -> None:
    # 2 epochs of 32 / 16 samples: 4 steps, each of at most a learning rate 3e-4 per parameter, if
    # Adam begins anew. With the step counts of the warm-up (120), step k of equal gradients would
    # be (1 - 0.9^k) / sqrt((1 - 0.999^k) / (1 - 0.999^(120 + k))): 1.1, 1.4, 1.7 and 1.9, in all 6
    agent = made(critic_warmup=30, epochs=2, lr_schedule="constant")
    rollout = filled(agent)
    for _ in range(30):
        agent.update(agent.prepare(rollout), 0.0)
    before = agent.nets.views["log_std"].clone()
    agent.update(agent.prepare(rollout), 0.0)
    assert (agent.nets.views["log_std"] - before).abs().max() <= 4 * 3e-4 * 1.01


def test_a_saved_state_knows_how_much_of_the_warm_up_is_left() -> None:
    agent, resumed = made(critic_warmup=3), made(critic_warmup=3)
    rollout = filled(agent)
    agent.update(agent.prepare(rollout), 0.0)
    resumed.load_state({k: x.clone() for k, x in agent.state().items()})
    assert resumed.frozen == 2


def test_a_policy_starts_with_the_deviation_that_was_asked_for() -> None:
    agent, kept, student = made(init_std=0.2), made(), made(log_std_init=-3.0)
    for each in (agent, kept):
        each.start_from(0, student.export(0))
    # log 0.2 = -1.609
    assert agent.nets.views["log_std"][0].tolist()[0] == pytest.approx([-1.609438] * 2)
    assert kept.nets.views["log_std"][0].tolist()[0] == [-3.0] * 2
    assert agent.nets.views["log_std"][1].tolist()[0] == [-0.5] * 2  # has no policy to start from
    assert torch.equal(
        agent.nets.views["actor.0.weight"][0], student.nets.views["actor.0.weight"][0]
    )
