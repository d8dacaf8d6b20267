"""Stable-Baselines3's off-policy learners on our batches and weights, for one-step parity."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.logger import configure
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor, nn

from dpd.agents.base import Batch, Rollout
from dpd.agents.learners import Learners
from dpd.agents.nets import StackedNets
from dpd.agents.sac import SAC
from dpd.agents.td3 import TD3

O, A, B = 3, 2, 32  # noqa: E741
F64 = torch.float64


class Nothing(gymnasium.Env[np.ndarray, np.ndarray]):
    """Spaces for Stable-Baselines3; never stepped."""

    observation_space = spaces.Box(-np.inf, np.inf, (O,), np.float32)
    action_space = spaces.Box(-1, 1, (A,), np.float32)


def in_float64(model: OffPolicyAlgorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a model compute in float64, and log nothing."""
    for module in ("policies", "torch_layers"):  # SB3 casts observations whatever its policy is
        monkeypatch.setattr(
            f"stable_baselines3.common.{module}.preprocess_obs",
            lambda obs, *_, **__: obs,
            raising=False,
        )
    model.policy.to(F64)
    model.set_logger(configure(None, []))


def linear(net: nn.Module | Iterable[nn.Module]) -> list[nn.Linear]:
    modules = net.modules() if isinstance(net, nn.Module) else net
    return [m for m in modules if isinstance(m, nn.Linear)]


def named(prefix: str, found: list[nn.Linear]) -> dict[str, Tensor]:
    """Return linear layers under our names, in our layout."""
    weights = {f"{prefix}.{i}.weight": x.weight.detach().T for i, x in enumerate(found)}
    return weights | {f"{prefix}.{i}.bias": x.bias.detach()[None] for i, x in enumerate(found)}


def load(nets: StackedNets, row: int, values: dict[str, Tensor]) -> None:
    for name, view in nets.views.items():
        view[row] = values[name]


def load_critics(nets: StackedNets, q_networks: Iterable[nn.Module]) -> None:
    for row, net in enumerate(q_networks):
        load(nets, row, named("critic", linear(net)))


def filled(agent: Learners, seeds: list[int]) -> Rollout:
    """Return a rollout on random observations; row n's from seeds[n] alone."""
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    rollout, dtype = agent.new_rollout(), agent.dtype

    def draw(x: Tensor) -> Tensor:
        return torch.stack([torch.randn(x.shape[1:], generator=g, dtype=dtype) for g in generators])

    rollout.obs[:], rollout.next_obs[:] = draw(rollout.obs), draw(rollout.obs)
    rollout.reward[:] = draw(rollout.reward) * 5 - 1
    rollout.terminated[:] = draw(rollout.reward) < -1
    rollout.truncated[:] = draw(rollout.reward) < -1
    noise = agent.noise()
    for t in range(rollout.reward.shape[1]):
        rollout.act[:, t] = agent.act(rollout.obs[:, t], noise[:, t])
    return rollout


def batches(agent: TD3 | SAC, batch: Batch, updates: int) -> Iterator[ReplayBufferSamples]:
    """Foretell the minibatches of a learner's next update, as SB3 wants them."""
    assert len(batch.raw_obs) == 1
    before = agent.batches.state()
    samples = agent.replay.draw(agent.batches, updates, agent.config.minibatch_size)[0]
    agent.batches.load_state(before)
    rows = agent.replay.rows[0].flatten(0, 1)
    for idx in samples:
        obs, act, next_obs, ends = rows[idx].split([O, A, O, 4], 1)
        yield ReplayBufferSamples(obs, act, next_obs, ends[:, 1:2], ends[:, :1], None)


def feed(model: OffPolicyAlgorithm, samples: Iterator[ReplayBufferSamples]) -> None:
    """Let a model's replay buffer answer with these samples."""

    def sample(*_: object, **__: object) -> ReplayBufferSamples:
        return next(samples)

    model.replay_buffer.sample = sample  # type: ignore[union-attr, method-assign]
