"""Hybrid policies for tests: random ones, and one whose peers are right in one half each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dpd.agents.learners import Learners
from dpd.agents.offpolicy import OffPolicy
from dpd.policies.hybrid import HybridPolicy, make_hybrid
from dpd.policies.metadata import PolicyMeta
from dpd.policies.policyfile import Policy
from tests.toy.policies import described, learners

OBS, ACT = 5, 2
BOUNDS = {"act_low": torch.tensor([-0.4, -2.0]), "act_high": torch.tensor([2.0, -1.0])}


def group(algo: str, peers: int = 2, **settings: Any) -> Learners:
    """Return peers of one algorithm with random policies and critics."""
    agent = learners(algo, OBS, ACT, peers, **settings)
    if isinstance(agent, OffPolicy):
        with torch.no_grad():
            for view in agent.critics.views.values():
                view.normal_(0, view.shape[1] ** -0.5 if view.shape[1] > 1 else 0.2)
    return agent


def critics_of(agent: Learners, n: int) -> list[Mapping[str, Tensor]]:
    """Return learner n's critics; none for PPO."""
    if not isinstance(agent, OffPolicy):
        return []
    c = agent.config.n_critics
    views = agent.critics.views.items()
    return [{name: view[n * c + i].detach() for name, view in views} for i in range(c)]


def policy_of(algo: str, agent: Learners, n: int) -> Policy:
    """Return learner n's policy."""
    tensors = {name: x.detach().float().clone() for name, x in agent.export(n).items()}
    return Policy(tensors | BOUNDS, described(algo, agent))


def random_hybrid(algos: Sequence[str], **settings: Any) -> HybridPolicy:
    """Return a hybrid of one peer per algorithm, no two alike."""
    agents = [group(algo, len(algos), **settings) for algo in algos]
    peers = [policy_of(algos[k], agent, k) for k, agent in enumerate(agents)]
    critics = [critics_of(agent, k) for k, agent in enumerate(agents)]
    return make_hybrid(peers, critics, {"seed": 3, "steps": 100})


def line_hybrid() -> HybridPolicy:
    """Return a hybrid on a line, where the action should equal the observation x.

    Peer 0 acts max(x, 0), peer 1 acts min(x, 0), and both critics say -|x - a|. Each hidden layer
    has two units: relu(x) and relu(-x), or relu(x - a) and relu(a - x).
    """
    meta = PolicyMeta(
        algo="td3",
        env_id="Line-v0",
        activation="relu",
        squashed=False,
        norm_obs=False,
        obs_dim=1,
        act_dim=1,
        hidden=(2,),
        env_kwargs={},
        provenance={},
    )
    one = torch.ones(1, 1)
    common = {
        "obs_mean": 0 * one,
        "obs_scale": one,
        "obs_count": one,
        "log_std": 0 * one,
        "act_low": -one[0],
        "act_high": one[0],
        "actor.0.weight": torch.tensor([[1.0, -1.0]]),
        "actor.0.bias": torch.zeros(1, 2),
        "actor.1.bias": torch.zeros(1, 1),
    }
    right = common | {"actor.1.weight": torch.tensor([[1.0], [0.0]])}
    left = common | {"actor.1.weight": torch.tensor([[0.0], [-1.0]])}
    critic = {
        "critic.0.weight": torch.tensor([[1.0, -1.0], [-1.0, 1.0]]),
        "critic.0.bias": torch.zeros(1, 2),
        "critic.1.weight": torch.tensor([[-1.0], [-1.0]]),
        "critic.1.bias": torch.zeros(1, 1),
    }
    return make_hybrid([Policy(right, meta), Policy(left, meta)], [[critic], [critic]], {})


def near_ties(policy: HybridPolicy, n: int = 200) -> Tensor:
    """Return raw obs [2n, O] in pairs: neighbours in float32 at which different peers act."""
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(20 * n, policy.meta.obs_dim, generator=generator) * 3 + 1
    best = policy.judge(obs).best
    first, other = obs[best == 0], obs[best == 1]
    size = min(len(first), len(other), n)
    first, other = first[:size], other[:size]
    for _ in range(60):  # bisection: halves the distance until float32 has no number between
        middle = (first + other) / 2
        acts = policy.judge(middle).best
        first = torch.where((acts == 0).unsqueeze(1), middle, first)
        other = torch.where((acts == 1).unsqueeze(1), middle, other)
    return torch.cat([first, other])
