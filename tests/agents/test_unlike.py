"""Peers that differ in settings of their own are rows of one stack, and learn as if alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from dpd.agents.kernels import Kernels
from dpd.agents.offpolicy_config import SACConfig, TD3Config
from dpd.agents.ppo_config import PPOConfig
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


def learn(
    config: Any,
    seeds: list[tuple[int, int]],
    row_seeds: list[int],
    kernels: Kernels | None = None,
) -> Any:
    """Build learners in float64 and let them learn for three iterations."""
    agent = type(config.build(O, A, seeds))(config, O, A, seeds, torch.float64)
    agent.kernels = kernels
    for i in range(3):
        rollout = filled(agent, [s + i for s in row_seeds])
        agent.update(agent.prepare(rollout), 0.0)
        agent.observe(rollout)
    return agent


@pytest.mark.parametrize("fused", [False, True], ids=["torch", "kernels"])
def test_ppo_peers_of_unlike_width_learn_as_if_alone(fused: bool) -> None:
    config = replace(CONFIGS["ppo"], peer_hidden=("8x4", "6x9"))
    kernels = Kernels(1) if fused else None
    together = learn(config, [(0, 0), (0, 1)], [10, 20], kernels)
    assert together.nets.padding is not None
    assert not together.nets.flat[together.nets.padding].any()
    for peer, hidden in enumerate(((8, 4), (6, 9))):
        one = replace(config, peer_hidden=(), hidden=hidden)
        alone = learn(one, [(0, peer)], [10 * (peer + 1)], kernels)
        for name, x in alone.nets.views.items():
            own = together.nets.own(peer, name)
            torch.testing.assert_close(own, x[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fused", [False, True], ids=["torch", "kernels"])
def test_peers_of_unlike_width_share_experience(fused: bool) -> None:
    sharing = replace(CONFIGS["ppo"], peer_hidden=("8x4", "6x9"), share_experience=True)
    kernels = Kernels(1) if fused else None
    agent = learn(sharing, [(0, 0), (0, 1)], [10, 20], kernels)
    assert not agent.nets.flat[agent.nets.padding].any()
    # A peer's samples count: other ones move a learner elsewhere.
    other = learn(sharing, [(0, 0), (0, 1)], [10, 30], kernels)
    assert not torch.equal(agent.nets.flat[0], other.nets.flat[0])
    batch = agent.prepare(filled(agent, [1, 2]))
    weight = batch.data.weight.unflatten(1, (8, 4))[:, :, 2:]
    assert 0 < float(weight.min()) < float(weight.max()) <= 1


def test_widths_of_unlike_depth_are_refused() -> None:
    with pytest.raises(ValueError, match="peer_hidden 8x8 8x8x8 differ in depth"):
        replace(CONFIGS["ppo"], peer_hidden=("8x8", "8x8x8"))


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
