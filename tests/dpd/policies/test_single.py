"""A single observation is acted on as a batch is, in NumPy alone."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dpd.agents.nets import ACTIVATIONS
from dpd.policies.policyfile import Policy
from dpd.policies.single import NUMPY_ACTIVATIONS, SingleActor
from tests.dpd.test_export import policy

KINDS: list[dict[str, Any]] = [
    {"activation": name, "norm_obs": norm, **extra}
    for name in ACTIVATIONS
    for norm in (True, False)
    for extra in ({}, {"tanh_mean": True}, {"hidden": (8,)})
]


def observations(n: int, of: Policy) -> np.ndarray:
    """Draw raw obs [n, O]; every second one lies beyond the clip."""
    obs = np.random.default_rng(1).normal(size=(n, of.meta.obs_dim))
    obs[1::2] *= 100
    return obs


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_one_observation_gives_the_action_that_a_batch_gives(changes):
    made = policy(**changes)
    obs = observations(40, made)
    one_by_one = np.stack([made.act(x) for x in obs])
    assert one_by_one.dtype == np.float32
    np.testing.assert_allclose(one_by_one, made.act(obs), atol=2e-5)


def test_every_activation_has_its_numpy_form():
    assert NUMPY_ACTIVATIONS.keys() == ACTIVATIONS.keys()
    x = np.linspace(-5, 5, 101, dtype=np.float32)
    for name, function in NUMPY_ACTIVATIONS.items():
        expected = ACTIVATIONS[name].forward_(torch.from_numpy(x.copy()))
        np.testing.assert_allclose(function(x.copy(), x.copy()), expected.numpy(), atol=1e-6)


def test_an_action_does_not_change_when_the_next_one_is_taken():
    made = policy()
    first = made.act(np.zeros(made.meta.obs_dim))
    kept = first.copy()
    made.act(np.ones(made.meta.obs_dim))
    assert (first == kept).all()


def test_a_hand_worked_action():
    # x = (3 - 1) * 0.5 = 1; u = 1 * 0.5 + 0.25 = 0.75; low 0, high 4: 2 + 0.75 * 2 = 3.5
    meta = replace(policy().meta, hidden=(), obs_dim=1, act_dim=1)
    tensors = {
        "obs_mean": torch.tensor([[1.0]]),
        "obs_scale": torch.tensor([[0.5]]),
        "actor.0.weight": torch.tensor([[0.5]]),
        "actor.0.bias": torch.tensor([[0.25]]),
        "act_low": torch.tensor([0.0]),
        "act_high": torch.tensor([4.0]),
    }
    assert SingleActor(tensors, meta)(np.array([3.0])) == pytest.approx([3.5])
