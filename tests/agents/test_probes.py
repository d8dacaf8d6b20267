"""Every algorithm learns every probe environment: an algorithm is a row of SOLVERS."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dpd.agents.offpolicy_config import DDPGConfig, OffPolicyConfig, SACConfig, TD3Config
from dpd.agents.ppo_config import PPOConfig
from dpd.run.collect import collect
from tests.toy import probe_envs as probes

GAMMA = 0.9
PPO = PPOConfig(
    n_envs=16,
    n_steps=8,
    minibatch_size=32,
    epochs=4,
    lr=1e-2,
    gamma=GAMMA,
    hidden=(16, 16),
    norm_reward=False,
)


def replayed(kind: Callable[..., OffPolicyConfig], **settings: Any) -> OffPolicyConfig:
    return kind(
        n_envs=16,
        n_steps=8,
        minibatch_size=32,
        updates_per_step=0.125,
        learning_starts=256,
        capacity=4096,
        gamma=GAMMA,
        lr=5e-3,
        tau=0.05,
        hidden=(16, 16),
        **settings,
    )


SOLVERS: dict[str, PPOConfig | OffPolicyConfig] = {
    "ppo": PPO,
    "td3": replayed(TD3Config),
    "ddpg": replayed(DDPGConfig),
    "sac": replayed(SACConfig, alpha_init=0.05),
}
SWITCHES: dict[str, OffPolicyConfig] = {
    "td3, three steps": replayed(TD3Config, n_step=3),
    "sac, normalised": replayed(SACConfig, alpha_init=0.05, norm_obs=True),
    "ddpg, parameter noise": replayed(DDPGConfig, exploration="param", noise_std=0.2),
    "ddpg, ou": replayed(DDPGConfig, exploration="ou", noise_std=0.2),
}


def solve(config: Any, probe: type[probes.Probe], iterations: int) -> Any:
    seeds = [(0, 0), (0, 1)]
    agent = config.build(probe.obs_dim, probe.act_dim, seeds)
    env = probe(len(seeds) * config.n_envs)
    obs, rollout = env.reset().view(len(seeds), config.n_envs, -1), agent.new_rollout()
    for i in range(iterations):
        obs = collect(env, agent, obs, rollout)
        agent.update(agent.prepare(rollout), i / iterations)
        agent.observe(rollout)
    return agent


def grid(*points: float) -> Tensor:
    return torch.tensor(points).view(1, -1, 1).expand(2, -1, -1)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("probe", "points", "values"),
    [
        (probes.ConstantValue, (0.0,), (1.0,)),
        (probes.ValueFromObs, (-1.0, 1.0), (-1.0, 1.0)),
        (probes.Discounting, (0.0, 1.0), (GAMMA, 1.0)),
    ],
)
def test_values_of_a_probe_are_learnt(
    solver: str, probe: type[probes.Probe], points: tuple[float, ...], values: tuple[float, ...]
) -> None:
    value = solve(SOLVERS[solver], probe, 30).ask(grid(*points)).value
    assert value is not None
    for row in value.tolist():
        assert row == pytest.approx(values, abs=0.05)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("probe", "points", "actions"),
    [
        (probes.ActionToReward, (0.0,), (0.5,)),
        (probes.ObsTimesAction, (-0.8, 0.0, 0.8), (-0.4, 0.0, 0.4)),
    ],
)
def test_the_best_action_of_a_probe_is_found(
    solver: str, probe: type[probes.Probe], points: tuple[float, ...], actions: tuple[float, ...]
) -> None:
    mode = solve(SOLVERS[solver], probe, 60).mode(grid(*points)).squeeze(-1)
    for row in mode.tolist():
        assert row == pytest.approx(actions, abs=0.1)


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_probe_is_solved_with_a_switch_turned(switch: str) -> None:
    agent = solve(SWITCHES[switch], probes.ObsTimesAction, 60)
    for row in agent.mode(grid(-0.8, 0.0, 0.8)).squeeze(-1).tolist():
        assert row == pytest.approx((-0.4, 0.0, 0.4), abs=0.1)


def test_three_step_returns_reach_back_to_the_first_of_two_steps() -> None:
    value = solve(SWITCHES["td3, three steps"], probes.Discounting, 30).ask(grid(0.0, 1.0)).value
    for row in value.tolist():
        assert row == pytest.approx((GAMMA, 1.0), abs=0.05)
