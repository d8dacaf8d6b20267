"""A learner's own last iterations count as a peer's samples would, and nothing else differs."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from dpd.agents.base import Batch, Rollout
from dpd.agents.ppo import PPO
from dpd.agents.ppo_config import PPOConfig
from tests.agents.test_ppo import A, O
from tests.agents.test_sharing import F64, SMALL, broken, group, rollout_of

REUSE = replace(SMALL, reuse_iterations=2)


def moved(agent: PPO, seed: int) -> Tensor:
    """Return the parameters of all learners, some way off."""
    flat = agent.nets.flat.detach()
    noise = torch.randn(flat.shape, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return flat + 0.03 * noise


def copied(rollout: Rollout) -> Rollout:
    n, steps, envs, obs_dim = rollout.obs.shape
    other = Rollout(n, steps, envs, obs_dim, rollout.act.shape[-1], F64)
    for name, x in vars(rollout).items():
        getattr(other, name).copy_(x)
    return other


def two_iterations(agent: PPO) -> tuple[Batch, tuple[Rollout, Rollout], tuple[Tensor, Tensor]]:
    """Prepare two rollouts, each of another policy; return the second's batch, and all of it."""
    before = agent.nets.flat.detach().clone()
    old = copied(rollout_of(agent, 0))
    agent.prepare(old)
    after = moved(agent, 1)
    agent.nets.flat.detach().copy_(after)
    new = rollout_of(agent, 1)
    return agent.prepare(new), (old, new), (before, after)


def test_own_past_counts_exactly_as_a_peer_that_is_the_past_policy() -> None:
    reusing = group(REUSE, peers=1)
    batch, rollouts, (before, after) = two_iterations(reusing)
    sharing = PPO(replace(SMALL, share_experience=True), O, A, [(0, 0), (0, 1)], F64)
    sharing.nets.flat.detach().copy_(torch.cat([after, before]))
    joint = sharing.new_rollout()
    for row, rollout in enumerate(reversed(rollouts)):
        for name, x in vars(rollout).items():
            getattr(joint, name)[row] = x[0]
    expected = sharing.prepare(joint)
    assert 0 < float(batch.data.weight.min()) < 0.95 and bool(batch.valid.all())
    for x, y in zip(batch.data, expected.data, strict=True):
        torch.testing.assert_close(x[0], y[0], rtol=1e-12, atol=1e-12)
    assert batch.metrics is not None and expected.metrics is not None
    for name, values in expected.metrics.items():
        torch.testing.assert_close(batch.metrics[name][0], values[0], rtol=1e-12, atol=1e-12)
    assert batch.returns is not None and expected.returns is not None
    torch.testing.assert_close(batch.returns[0], expected.returns[0], rtol=1e-12, atol=1e-12)
    assert torch.equal(batch.raw_obs[0], expected.raw_obs[0])


def test_in_the_first_iteration_own_samples_stand_in() -> None:
    agent = group(REUSE)
    batch = agent.prepare(rollout_of(agent))
    own = torch.tensor([True, True, False, False]).repeat(8)
    assert torch.equal(batch.valid, own.expand(2, -1))
    order = agent._shuffle(batch)
    assert order.shape == (2, 32) and bool(own[order].all())
    assert batch.metrics is not None
    assert {name: x.tolist() for name, x in batch.metrics.items()} == {
        "share/ess": [0, 0],
        "share/weight": [0, 0],
    }
    assert all(x.isfinite().all() for x in agent.update(batch, 0.0).values())


def test_of_three_iterations_the_latest_comes_first_and_the_oldest_goes() -> None:
    agent = group(replace(SMALL, reuse_iterations=3), peers=1)
    seen = []
    for k in range(4):
        rollout = rollout_of(agent, k)
        seen.append(rollout.obs[0].clone())
        agent.prepare(rollout)
        batch, _ = agent.past.join(rollout, torch.zeros_like(rollout.reward))
        expected = [seen[k], *reversed(seen[max(0, k - 1) : k + 1])][:3]
        assert torch.equal(batch.obs[0, :, : 2 * len(expected)], torch.cat(expected, 1))
        agent.past.rollout.obs[:, :, :2], agent.past.rollout.obs[:, :, 2:] = (
            rollout.obs,
            seen[k - 1] if k else 0,
        )


def test_invalid_steps_of_the_past_never_count() -> None:
    agent = group(REUSE)
    agent.prepare(broken(rollout_of(agent)))
    batch = agent.prepare(rollout_of(agent, 1))
    at = 4 * 4 + 2  # step 4 of the first environment of the past, the third of the joint rollout
    assert batch.valid.sum(1).tolist() == [32, 31] and not batch.valid[1, at]
    assert all(x.isfinite().all() for x in agent.update(batch, 0.0).values())


@pytest.mark.parametrize("iterations", [1, 2])
def test_a_resumed_learner_has_the_samples_of_its_past(iterations: int) -> None:
    config = replace(SMALL, reuse_iterations=iterations)
    agent, other = group(config), PPO(config, O, A, [(0, 0), (0, 1)], F64)
    agent.update(agent.prepare(rollout_of(agent)), 0.0)
    state = {name: x.clone() for name, x in agent.state().items()}
    assert any(name.startswith("past.") for name in state) == (iterations == 2)
    other.load_state(state)
    latest = rollout_of(agent, 1)
    first, second = agent.prepare(latest), other.prepare(latest)
    for x, y in zip(first.data, second.data, strict=True):
        assert (x is None and y is None) or torch.equal(x, y)
    assert torch.equal(first.valid, second.valid)


def test_learners_reuse_nothing_of_each_other() -> None:
    together, alone = group(REUSE, groups=2), PPO(REUSE, O, A, [(1, 1)], F64)
    alone.nets.flat.detach().copy_(together.nets.flat.detach()[3:])
    alone.obs_norm.mean.copy_(together.obs_norm.mean[3:])
    for k, agent in product(range(2), (together, alone)):
        rollout = rollout_of(group(REUSE, groups=2), k)
        own = agent.new_rollout()
        for name, x in vars(rollout).items():
            getattr(own, name).copy_(x[-agent.n_learners :])
        agent.update(agent.prepare(own), 0.0)
    torch.testing.assert_close(alone.nets.flat[0], together.nets.flat[3], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"reuse_iterations": 0}, "reuse_iterations must be at least 1"),
        ({"reuse_iterations": 2, "share_experience": True}, "give one of them"),
        ({"reuse_iterations": 2, "share_value": "mean"}, "share_value does nothing without"),
        ({"share_min_ess": 0.1}, "share_min_ess does nothing without --share-experience or"),
    ],
)
def test_reuse_that_would_do_nothing_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PPOConfig(**settings)


def test_the_plan_of_an_iteration_names_the_reused_samples() -> None:
    expected = "2 envs x 8 steps = 16 per learner of each of 2 iterations, 2 epochs of 8"
    assert REUSE.plan == expected
