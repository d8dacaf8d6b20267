"""Policy files: they act as the learner did, and nothing else is taken for one."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dpd import policyfile
from dpd.agents.ppo import PPO
from dpd.agents.ppo_config import PPOConfig
from dpd.policyfile import NotAPolicy, PolicyMeta

OBS, ACT = 5, 2


def meta(**changes):
    """Describe a small policy."""
    fields: dict[str, Any] = {
        "algo": "ppo",
        "env_id": "Some-v0",
        "activation": "tanh",
        "squashed": False,
        "obs_dim": OBS,
        "act_dim": ACT,
        "hidden": (8, 8),
        "env_kwargs": {},
        "provenance": {"seed": 0},
    }
    return PolicyMeta(**fields | changes)


def learner():
    """Return a stack of two learners with statistics of their own."""
    agent = PPO(PPOConfig(hidden=(8, 8), n_envs=2, n_steps=32), OBS, ACT, [(0, 0), (0, 1)])
    with torch.no_grad():
        agent.nets.flat.normal_()
    agent.obs_norm.update(torch.randn(2, 100, OBS) * 3 + 1)
    return agent


def bounds(low=-1.0, high=1.0):
    return {"act_low": torch.full((ACT,), low), "act_high": torch.full((ACT,), high)}


def test_a_policy_acts_as_its_learner_did(tmp_path):
    agent = learner()
    obs = torch.randn(2, 50, OBS)
    for n in range(2):
        path = tmp_path / f"{n}.safetensors"
        policyfile.save(path, agent.export(n) | bounds(), meta())
        acted = policyfile.load(path).act(obs[n].numpy())
        np.testing.assert_allclose(acted, agent.mode(obs)[n].numpy(), atol=1e-6)


def test_actions_come_in_the_bounds_of_the_environment(tmp_path):
    path = tmp_path / "p.safetensors"
    policyfile.save(path, learner().export(0) | bounds(-0.4, 2.0), meta())
    unit = torch.randn(200, OBS)
    policy = policyfile.load(path)
    # [-1, 1] onto [-0.4, 2]: a -> -0.4 + (a + 1) * 1.2
    expected = -0.4 + (policy.mode(unit) + 1) * 1.2
    np.testing.assert_allclose(policy.act(unit), expected.numpy(), atol=1e-6)
    assert policy.act(unit).min() >= -0.4 and policy.act(unit).max() <= 2.0


def test_one_observation_and_any_batch_of_them_are_read(tmp_path):
    path = tmp_path / "p.safetensors"
    policyfile.save(path, learner().export(0) | bounds(), meta())
    policy = policyfile.load(path)
    obs = np.random.default_rng(0).normal(size=(3, 4, OBS))
    assert policy.act(obs).shape == (3, 4, ACT)
    np.testing.assert_allclose(policy.act(obs)[1, 2], policy.act(obs[1, 2]), atol=1e-6)
    with pytest.raises(ValueError, match="reads 5"):
        policy.act(np.zeros(OBS + 1))


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 8 + b"x", b"PK\x03\x04", b"a" * 1000])
def test_a_foreign_file_is_refused(tmp_path, content):
    path = tmp_path / "p.safetensors"
    path.write_bytes(content)
    with pytest.raises(NotAPolicy, match="no policy file"):
        policyfile.load(path)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "p.safetensors"
    policyfile.save(path, learner().export(0) | bounds(), meta())
    whole = path.read_bytes()
    for size in (4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(NotAPolicy):
            policyfile.load(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden": (8, 9)}, "does not fit"),
        ({"obs_dim": 4}, "does not fit"),
        ({"activation": "gelu"}, "unknown activation"),
        ({"format": 99}, "policy format 99"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(tmp_path, changes, says):
    path = tmp_path / "p.safetensors"
    policyfile.save(path, learner().export(0) | bounds(), meta(**changes))
    with pytest.raises(NotAPolicy, match=says):
        policyfile.load(path)


@pytest.mark.parametrize(
    "text", [None, "[1]", "{", json.dumps({"format": 1}), '{"format": 1, "x": 2}']
)
def test_a_safetensors_file_of_something_else_is_refused(tmp_path, text):
    path = tmp_path / "p.safetensors"
    save_file({"x": torch.zeros(2)}, path, metadata=None if text is None else {"dpd": text})
    with pytest.raises(NotAPolicy):
        policyfile.load(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(NotAPolicy, match="no such file"):
        policyfile.load(tmp_path / "none")


def test_a_write_that_fails_leaves_the_older_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "p.safetensors"
    agent = learner()
    policyfile.save(path, agent.export(0) | bounds(), meta())
    before = path.read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(policyfile, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        policyfile.save(path, agent.export(1) | bounds(), meta())
    assert path.read_bytes() == before
