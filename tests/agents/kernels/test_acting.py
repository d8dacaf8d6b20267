"""A compiled policy acts as torch's operations do."""

import pytest
import torch

from dpd.agents.kernels import Kernels
from dpd.agents.ppo import PPO
from dpd.agents.ppo_config import PPOConfig

OBS, ACT = 5, 3


def learners(dtype: torch.dtype, **settings: object) -> PPO:
    """Return three learners with unlike parameters, deviations and statistics."""
    torch.manual_seed(0)
    config = PPOConfig(n_envs=2, n_steps=32, **settings)  # type: ignore[arg-type]
    agent = PPO(config, OBS, ACT, [(0, 0), (0, 1), (1, 0)], dtype)
    with torch.no_grad():
        agent.nets.flat.normal_(std=0.5)
    agent.obs_norm.update(torch.randn(3, 100, OBS, dtype=dtype) * 3 + 1)
    return agent


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden": (16, 16)},
        {"hidden": (7,), "activation": "relu"},
        {"hidden": (20, 9, 20), "activation": "elu", "norm_obs": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("rows", [1, 6, 300])
def test_actions_are_those_of_torch(settings: dict[str, object], rows: int) -> None:
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.float64, 1e-12)):
        agent = learners(dtype, **settings)
        obs = torch.randn(3, rows, OBS, dtype=dtype) * 20  # beyond the clip
        noise = torch.randn(3, 2, rows, ACT, dtype=dtype)[:, 1]  # a step of a block, not contiguous
        sampled, mode = agent.act(obs, noise), agent.mode(obs)
        agent.kernels = Kernels(1)
        for made, expected in ((agent.act(obs, noise), sampled), (agent.mode(obs), mode)):
            torch.testing.assert_close(made, expected, rtol=5 * tolerance, atol=tolerance)


def test_a_learner_acts_alike_alone_and_beside_others() -> None:
    agent = learners(torch.float32, hidden=(16, 16))
    agent.kernels = Kernels(1)
    obs, noise = torch.randn(3, 4, OBS), torch.randn(3, 4, ACT)
    together = agent.act(obs, noise)
    alone = PPO(agent.config, OBS, ACT, [(0, 1)])
    with torch.no_grad():
        alone.nets.flat.copy_(agent.nets.flat[1:2])
    alone.obs_norm.start_from(0, agent.obs_norm.export(1))
    alone.obs_norm.mean.copy_(agent.obs_norm.mean[1:2])
    alone.obs_norm.scale.copy_(agent.obs_norm.scale[1:2])
    alone.kernels = agent.kernels
    assert torch.equal(alone.act(obs[1:2], noise[1:2]), together[1:2])


def test_a_nan_in_an_observation_stays_visible() -> None:
    agent = learners(torch.float32, hidden=(16, 16))
    agent.kernels = Kernels(1)
    obs = torch.zeros(3, 2, OBS)
    obs[1, 0, 2] = torch.nan
    act = agent.act(obs, torch.zeros(3, 2, ACT))
    assert act[1, 0].isnan().all()
    assert act[1, 1].isfinite().all() and act[[0, 2]].isfinite().all()
