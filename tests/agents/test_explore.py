import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dpd.agents.offpolicy_config import TD3Config
from dpd.agents.rng import RowRandom, Stream, uniform_from_normal
from dpd.agents.td3 import TD3, ParameterNoise

O, A = 3, 2  # noqa: E741
SEEDS = [(0, 0), (0, 1)]
CONFIG = TD3Config(n_envs=4, n_steps=500, learning_starts=0, capacity=4000, hidden=(16, 16))


def learners(**settings: object) -> TD3:
    return TD3(replace(CONFIG, **settings), O, A, SEEDS, torch.float64)  # type: ignore[arg-type]


def test_normals_turn_into_uniform_numbers() -> None:
    # erf(z / sqrt 2) = 2 Phi(z) - 1: uniform in [-1, 1], quantiles evenly spread
    drawn = uniform_from_normal(
        RowRandom(SEEDS, Stream.EXPLORE).normal(20000, dtype=torch.float64)
    ).flatten()
    levels = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    assert drawn.abs().max() <= 1
    # five deviations of the quantile: 2 * 5 * sqrt(0.25 / 40000) = 0.025
    torch.testing.assert_close(drawn.quantile(levels), 2 * levels - 1, rtol=0, atol=0.025)


def test_first_steps_are_uniform_and_later_ones_are_the_policy_with_noise() -> None:
    agent = learners(learning_starts=2000, noise_std=0.3)
    obs = torch.randn(2, 4, O, dtype=torch.float64)
    for warm in (True, False):
        noise = agent.noise()
        act = torch.stack([agent.act(obs, x) for x in noise.unbind(1)], 1)
        assert act.abs().max() <= 1
        if warm:
            assert act.std() == pytest.approx(1 / math.sqrt(3), abs=0.02)
        else:
            assert noise.std() == pytest.approx(0.3, abs=0.02)
            expected = (agent.mode(obs).unsqueeze(1) + noise).clamp(-1, 1)
            torch.testing.assert_close(act, expected, rtol=0, atol=1e-12)
        agent.replay.push(agent.new_rollout())


def test_an_ornstein_uhlenbeck_process_has_its_deviation_and_its_memory() -> None:
    # x' = 0.85 x + 0.2 z: deviation 0.2 / sqrt(1 - 0.85^2) = 0.3797, correlation 0.85 a step
    agent = learners(exploration="ou", noise_std=0.2)
    parts = [agent.noise() for _ in range(40)]
    x = torch.cat(parts, 1)[:, 50:]  # 20000 steps in 16 processes, less the start from 0
    assert x.std() == pytest.approx(0.3797, abs=0.01)
    assert (x[:, 1:] * x[:, :-1]).mean() / x.var() == pytest.approx(0.85, abs=0.005)
    # and an iteration goes on where the last one ended
    step = parts[1][:, 0] - 0.85 * parts[0][:, -1]
    assert step.abs().max() < 0.2 * 5


def test_parameter_noise_adapts_to_the_distance_of_actions_it_is_to_have() -> None:
    agent = learners(exploration="param", noise_std=0.2)
    assert isinstance(agent.exploration, ParameterNoise)
    with torch.no_grad():  # the second policy is three times as steep, so its noise must be smaller
        agent.nets.flat[1] *= 3
    obs = torch.randn(2, 4, O, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    every = torch.ones(2, 4, dtype=torch.bool)
    distances = []
    for i in range(600):
        noise = agent.noise()
        assert noise.abs().max() == 0
        if i >= 400:  # a policy drawn now is as far off in each environment
            distance = agent.act(obs, noise[:, 0]) - agent.mode(obs)
            distances.append(distance.square().mean((1, 2)).sqrt())
        agent.exploration.adapt(agent.obs_norm(obs), every)
    # it steps by 1 % to the deviation that is too wide half the time: the median is the target
    median = torch.stack(distances).median(0).values
    torch.testing.assert_close(median, torch.full_like(median, 0.2), rtol=0.15, atol=0)
    std = agent.exploration.std.squeeze(1)
    assert std[0] != std[1]


def acting(agent: TD3) -> Tensor:
    """Return the parameters that act in each environment [N, E, D]."""
    return agent.exploration.state()["perturbed.flat"].unflatten(0, (agent.n_learners, -1)).clone()


def test_every_environment_acts_with_a_policy_of_its_own_and_a_row_is_left_to_itself() -> None:
    agent, alone = (
        learners(exploration="param"),
        TD3(replace(CONFIG, exploration="param"), O, A, SEEDS[1:], torch.float64),
    )
    before = agent.nets.flat.detach().clone()
    noise = agent.noise()
    alone.noise()
    assert torch.equal(agent.nets.flat, before)
    assert torch.equal(acting(agent)[1], acting(alone)[0])
    # normal noise of deviation 0.1, some 400 parameters, independent in each environment
    off = acting(agent) - before.unsqueeze(1)
    assert off.std() == pytest.approx(0.1, rel=0.1)
    assert torch.corrcoef(off[0]).triu(1).abs().max() < 0.25  # five deviations of 1 / sqrt(400)
    # and each acts: the same state everywhere, other actions
    obs = torch.ones(2, 4, O, dtype=torch.float64)
    act = agent.act(obs, noise[:, 0])
    for n in range(2):
        for e in range(4):
            twin = agent.nets.twin()
            twin.flat.detach()[n] = acting(agent)[n, e]
            expected = twin.run(obs, "actor")[0][0].tanh()[n, 0]
            torch.testing.assert_close(act[n, e], expected, rtol=0, atol=1e-12)


def test_a_perturbed_policy_acts_for_an_episode_while_the_policy_learns_on() -> None:
    # 500 steps an iteration; an episode ends in environment 1 of row 0 and in 3 of row 1
    agent = learners(exploration="param")
    agent.noise()
    first, rollout = acting(agent), agent.new_rollout()
    agent.prepare(rollout)
    with torch.no_grad():
        agent.nets.flat.add_(5.0)  # the policy learns; who acts stays as it was
    agent.noise()
    assert torch.equal(acting(agent), first)
    rollout.terminated[0, 200, 1] = rollout.truncated[1, 499, 3] = True
    agent.prepare(rollout)
    assert torch.equal(acting(agent), first)  # until the next iteration begins
    agent.noise()
    changed = (acting(agent) != first).any(2)
    assert changed.tolist() == [[False, True, False, False], [False, False, False, True]]
    # the new ones are the policy as it is now, perturbed
    off = acting(agent) - agent.nets.flat.detach().unsqueeze(1)
    assert off[changed].abs().mean() < 1 and off[~changed].abs().mean() > 4
    rollout.terminated[:] = rollout.truncated[:] = False
    agent.prepare(rollout)
    again = acting(agent)
    agent.noise()
    assert torch.equal(acting(agent), again)  # a draw is for one episode


def test_parameter_noise_goes_on_within_an_episode_after_a_checkpoint() -> None:
    straight, resumed = learners(exploration="param"), learners(exploration="param")
    straight.noise()
    rollout = straight.new_rollout()
    rollout.truncated[0, 3, 2] = True
    straight.prepare(rollout)
    resumed.load_state({k: x.clone() for k, x in straight.state().items()})
    for _ in range(2):
        for agent in (straight, resumed):
            agent.noise()
            agent.prepare(rollout)
        assert torch.equal(acting(straight), acting(resumed))


def test_nothing_adapts_to_steps_the_perturbed_policy_did_not_take() -> None:
    agent = learners(exploration="param", learning_starts=2000)
    start = agent.exploration.state()["std"].clone()
    agent.noise()  # uniform: warming up
    agent.prepare(agent.new_rollout())
    assert torch.equal(agent.exploration.state()["std"], start)
