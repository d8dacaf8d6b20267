"""Peers that differ in settings of their own are rows of one stack, and learn as if alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from dpd.agents.config import PPOConfig, SACConfig, TD3Config
from tests.agents.parity import A, O, filled

SMALL: dict[str, Any] = {"n_envs": 2, "n_steps": 8, "minibatch_size": 8, "hidden": (8, 8)}
REPLAY: dict[str, Any] = SMALL | {"capacity": 64, "learning_starts": 0}
LR, GAMMA, STD = (1e-3, 4e-3), (0.9, 0.99), (0.05, 0.4)
CONFIGS: dict[str, Any] = {
    "ppo": PPOConfig(**SMALL, epochs=2),
    "td3": TD3Config(**REPLAY),
    "td3, parameter noise": TD3Config(**REPLAY, exploration="param"),
    "td3, ou": TD3Config(**REPLAY, exploration="ou"),
    "sac": SACConfig(**REPLAY),
}


def learn(config: Any, seeds: list[tuple[int, int]], row_seeds: list[int]) -> Any:
    """Build learners in float64 and let them learn for three iterations."""
    agent = type(config.build(O, A, seeds))(config, O, A, seeds, torch.float64)
    for i in range(3):
        rollout = filled(agent, [s + i for s in row_seeds])
        agent.update(agent.prepare(rollout), 0.0)
        agent.observe(rollout)
    return agent


@pytest.mark.parametrize("name", CONFIGS)
def test_each_peer_learns_by_its_own_settings(name: str) -> None:
    config = CONFIGS[name]
    noisy = isinstance(config, TD3Config)
    both = replace(
        config, peer_lr=LR, peer_gamma=GAMMA, **({"peer_noise_std": STD} if noisy else {})
    )
    # two groups of two peers, in one stack
    rows = [(seed, peer) for seed in (0, 7) for peer in (0, 1)]
    together = learn(both, rows, [100, 200, 300, 400])
    for n, (seed, peer) in enumerate(rows):
        own = replace(
            config, lr=LR[peer], gamma=GAMMA[peer], **({"noise_std": STD[peer]} if noisy else {})
        )
        # alone: the learner is the peer of its number, though no other is there
        alone = learn(own, [(seed, peer)], [100 * (n + 1)])
        moved = (together.nets.flat[n] - alone.nets.flat[0]).abs().max()
        assert moved <= 1e-10, (n, moved)


def test_the_settings_make_a_difference() -> None:
    alike = learn(CONFIGS["td3"], [(0, 0), (0, 1)], [1, 2])
    unlike = learn(replace(CONFIGS["td3"], peer_gamma=(0.99, 0.5)), [(0, 0), (0, 1)], [1, 2])
    assert torch.equal(alike.nets.flat[0], unlike.nets.flat[0])
    assert not torch.equal(alike.nets.flat[1], unlike.nets.flat[1])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"peer_lr": (1e-3, 0.0)}, "peer_lr must be positive"),
        ({"peer_gamma": (0.9, 1.1)}, "gamma must lie in"),
        ({"peer_noise_std": (0.1, -1.0)}, "peer_noise_std must be positive"),
        ({"peer_lr": (1e-3, 1e-4), "critic_lr": 1e-3}, "leave critic_lr out"),
    ],
)
def test_settings_of_peers_that_make_no_sense_are_refused(
    settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        TD3Config(**REPLAY, **settings)
