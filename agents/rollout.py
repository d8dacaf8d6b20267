"""The samples of one iteration, and generalised advantages."""

from __future__ import annotations

import torch
from torch import Tensor

from dpd.agents.base import CPU


class Rollout:
    """T steps of N learners in E environments each; raw observations, unclipped actions."""

    def __init__(
        self,
        n: int,
        n_steps: int,
        n_envs: int,
        obs_dim: int,
        act_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device = CPU,
    ) -> None:
        shape = (n, n_steps, n_envs)
        self.obs = torch.zeros(*shape, obs_dim, dtype=dtype, device=device)
        self.next_obs = torch.zeros_like(self.obs)
        self.act = torch.zeros(*shape, act_dim, dtype=dtype, device=device)
        self.reward = torch.zeros(shape, dtype=dtype, device=device)
        self.terminated = torch.zeros(shape, dtype=torch.bool, device=device)
        self.truncated = torch.zeros_like(self.terminated)
        self.valid = torch.ones_like(self.terminated)

    @property
    def done(self) -> Tensor:
        """Mask of the steps that ended an episode, by termination or truncation [N, T, E]."""
        return self.terminated | self.truncated

    def flat_obs(self) -> Tensor:
        """Return the observations as samples [N, S, O]."""
        return self.obs.flatten(1, 2)


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    gamma: Tensor,
    lam: Tensor,
) -> Tensor:
    """Return generalised advantages [N, T, E] (Schulman et al. 2016, eq. 16).

    `next_value` is the value of the true successor, so a truncated step bootstraps and a
    terminated one does not; gamma is [N, 1, 1], lam a scalar.
    """
    delta = reward + gamma * next_value * ~terminated - value
    decay = gamma * lam * ~done
    adv = torch.empty_like(delta)
    running = torch.zeros_like(delta[:, 0])
    for t in reversed(range(delta.shape[1])):
        running = delta[:, t] + decay[:, t] * running
        adv[:, t] = running
    return adv


def valid_positions(valid: Tensor, pick: Tensor) -> Tensor:
    """Map random integers pick [N, ...] to positions where valid [N, S]; to some if none is."""
    order = valid.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    choice = pick.flatten(1) % valid.sum(1, keepdim=True).clamp(min=1)
    return order.gather(1, choice).view_as(pick)
