"""Policies of every algorithm, made without training: random weights, statistics of some states."""

from pathlib import Path
from typing import Any

import torch

from dpd.agents.config import LearnerConfig
from dpd.agents.learners import Learners
from dpd.agents.table import ALGORITHMS
from dpd.config import TrainConfig
from dpd.distill.peers_config import IndependentConfig
from dpd.distill.teaching_config import CloningConfig
from dpd.envs.make import check
from dpd.policies import policyfile
from dpd.policies.metadata import PolicyMeta
from dpd.policies.policyfile import Policy, load
from dpd.run.config import RunConfig
from dpd.run.policies import PolicySaver

EVERY = sorted(ALGORITHMS)
IN_SB3 = [name for name in EVERY if name != "student"]


def config_of(algo: str, **settings: Any) -> LearnerConfig:
    """Return an algorithm's settings for small networks."""
    small: dict[str, Any] = {"hidden": (16, 8), "norm_obs": True, "minibatch_size": 64}
    small |= {} if algo == "ppo" else {"capacity": 2048}
    small |= {} if algo in ("ppo", "student") else {"learning_starts": 0}
    return ALGORITHMS[algo].settings(**small | settings)


def learners(algo: str, obs_dim: int, act_dim: int, n: int = 2, **settings: Any) -> Learners:
    """Return n learners whose actions cover their range."""
    torch.manual_seed(0)
    config = config_of(algo, **settings)
    agent: Learners = config.build(obs_dim, act_dim, [(0, k) for k in range(n)])
    with torch.no_grad():
        for view in agent.nets.views.values():  # weights [n, in, out], biases [n, 1, out]
            view.normal_(0, view.shape[1] ** -0.5 if view.shape[1] > 1 else 0.2)
    agent.obs_norm.update(torch.randn(n, 100, obs_dim) * 3 + 1)
    return agent


def described(algo: str, agent: Learners, **changes: Any) -> PolicyMeta:
    """Describe learners as a run does."""
    config = agent.config
    names = ("activation", "squashed", "tanh_mean", "state_std", "hidden", "norm_obs")
    fields = {name: getattr(config, name) for name in names} | {
        "algo": algo,
        "env_id": "Some-v0",
        "obs_dim": agent.obs_dim,
        "act_dim": agent.act_dim,
        "env_kwargs": {},
        "provenance": {"seed": 0},
    }
    return PolicyMeta(**fields | changes)


def saved(folder: Path, algo: str, env_id: str, **settings: Any) -> Policy:
    """Return a policy for an environment, from the file that a run of 1000 steps would write."""
    spec = check(env_id)
    agent = learners(algo, spec.obs_dim, spec.act_dim, 1, **settings)
    config = TrainConfig(
        run=RunConfig(env=env_id, peers=1),
        algos=((algo, agent.config),),
        method="bc" if algo == "student" else "none",
        distill=CloningConfig() if algo == "student" else IndependentConfig(),
    )
    saver = PolicySaver(folder, config, spec, lambda n: (config.stacks[0], agent.export(n)))
    saver.save_last(1000)
    return load(saver.path(0))


def write(path: Path, policy: Policy) -> Path:
    """Write a policy into a file; return its path."""
    policyfile.save(path, policy.tensors, policy.meta)
    return path
