"""A double integrator as a world, and two policies that are experts on one half of it each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpd.agents.nets import mlp_shapes
from dpd.cooperate.config import CooperateConfig
from dpd.cooperate.simulator import Budget, SimStates, Simulator
from dpd.policies.metadata import PolicyMeta, shapes
from dpd.policies.policyfile import Policy
from dpd.run.episodes import ActFunction

HORIZON, DT, WIDTH = 50, 0.1, 32
HALVES = (-1.0, 1.0)  # sign of the x at which the policy is good


def steer(state: Tensor) -> Tensor:
    """Return the good action of (x, y, vx, vy): to rest at the origin."""
    return (-state[..., :2] - 1.5 * state[..., 2:]).clamp(-1, 1)


def flee(state: Tensor) -> Tensor:
    """Return the bad action: away from the origin."""
    return state[..., :2].sign() * 0.8


def starts(n: int, seed: int) -> Tensor:
    """Draw states [n, 4]."""
    state = torch.rand(n, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return state * torch.tensor([1, 1, 0.5, 0.5])


def move(state: Tensor, act: Tensor) -> Tensor:
    """Take one step [n, 4]."""
    velocity = state[..., 2:] + DT * act
    return torch.cat([state[..., :2] + DT * velocity, velocity], -1)


@torch.no_grad()
def returns(act: ActFunction, state: Tensor) -> Tensor:
    """Return the sum of -|state|^2 of the episodes from states [n, 4] -> [n]."""
    total = torch.zeros(len(state))
    for _ in range(HORIZON):
        total -= state.square().sum(-1)
        state = move(state, act(state))
    return total


class Plane(Simulator):
    """Starts of the double integrator; the observation is the state."""

    def __init__(self, budget: Budget, config: CooperateConfig) -> None:
        self.budget, self.config = budget, config

    def at(self, state: Tensor) -> SimStates:
        return SimStates(state, state.double(), {"state": state.numpy()})

    def visit(self, act: ActFunction, n: int, seed: int) -> SimStates:
        self.budget.require("probe", n)
        self.budget.count("probe", n)
        return self.at(starts(n, seed))

    def score(self, states: SimStates, acts: Sequence[ActFunction], purpose: str) -> np.ndarray:
        steps = len(acts) * len(states) * HORIZON
        self.budget.require(purpose, steps)
        self.budget.count(purpose, steps)
        return torch.stack([returns(act, states.obs) for act in acts]).double().numpy()

    def moved(self, states: SimStates, coords: Tensor) -> SimStates:
        return self.at(coords.float())

    def evaluate(self, acts: Sequence[ActFunction], purpose: str = "evaluation") -> np.ndarray:
        return self.score(self.at(starts(200, 77)), acts, purpose)


def described(**changes: Any) -> PolicyMeta:
    """Describe a PPO-like policy of the plane."""
    fields: dict[str, Any] = {
        "algo": "ppo",
        "env_id": "Plane-v0",
        "activation": "tanh",
        "squashed": False,
        "obs_dim": 4,
        "act_dim": 2,
        "hidden": (WIDTH, WIDTH),
        "env_kwargs": {},
        "provenance": {},
    }
    return PolicyMeta(**fields | changes)


def untrained(meta: PolicyMeta, seed: int) -> Policy:
    """Return a policy of random weights, without normalisation to speak of."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator) * shape[0] ** -0.5
        for name, shape in shapes(meta).items()
    }
    ones = {name: torch.ones(shapes(meta)[name]) for name in ("obs_scale", "obs_count", "act_high")}
    zero = {"obs_mean": torch.zeros(shapes(meta)["obs_mean"])}
    return Policy({**tensors, **zero, **ones, "act_low": -ones["act_high"]}, meta)


def expert(half: float, seed: int) -> Policy:
    """Fit a policy that is good where x has one sign, and bad elsewhere."""

    def wanted(state: Tensor) -> Tensor:
        return torch.where(state[:, :1] * half > 0, steer(state), flee(state))

    return fitted(untrained(described(), seed), wanted, seed)


def fitted(policy: Policy, wanted: Callable[[Tensor], Tensor], seed: int) -> Policy:
    """Regress a policy's actions on those wanted."""
    names = mlp_shapes("actor", [4, *policy.meta.hidden, 2])
    tensors = {k: v.clone().requires_grad_(k in names) for k, v in policy.tensors.items()}
    optimizer = torch.optim.Adam([tensors[k] for k in names], lr=4e-3)
    state = torch.cat([starts(4000, seed), 2 * starts(2000, seed + 1)])
    generator = torch.Generator().manual_seed(seed)
    for _ in range(900):
        rows = torch.randint(len(state), (256,), generator=generator)
        error = Policy(tensors, policy.meta).dist(state[rows]).mean - wanted(state[rows])
        optimizer.zero_grad()
        error.square().mean().backward()
        optimizer.step()
    return Policy({k: v.detach() for k, v in tensors.items()}, policy.meta)
