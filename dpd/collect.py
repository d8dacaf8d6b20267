"""Collection: drive the environments with the learners and keep what they saw."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from torch import Tensor

from dpd.agents.buffers import Rollout
from dpd.agents.ppo import PPO
from dpd.envs.base import Env


def collect(env: Env, agent: PPO, obs: Tensor, rollout: Rollout) -> Tensor:
    """Fill a rollout from raw obs [N, E, O]; return the obs to go on from.

    Actions are kept as sampled; the environment clips them to the box, as Stable-Baselines3 does.
    """
    n, n_steps, n_envs = rollout.reward.shape
    noise = agent.noise()
    for t in range(n_steps):
        act = agent.act(obs, noise[:, t])
        rollout.obs[:, t], rollout.act[:, t] = obs, act
        step = env.step(act.view(n * n_envs, -1))
        rollout.next_obs[:, t] = step.next_obs.view_as(obs)
        rollout.reward[:, t] = step.reward.view(n, n_envs)
        rollout.terminated[:, t] = step.terminated.view(n, n_envs)
        rollout.truncated[:, t] = step.truncated.view(n, n_envs)
        rollout.valid[:, t] = step.valid.view(n, n_envs)
        obs = step.obs.view_as(obs)
    return obs


class EpisodeStatistics:
    """Returns and lengths of the episodes that ended, per learner; means over the last few."""

    def __init__(self, n: int, n_envs: int, window: int = 20) -> None:
        self.ret, self.length = np.zeros((n, n_envs)), np.zeros((n, n_envs), dtype=np.int64)
        self.returns: list[deque[float]] = [deque(maxlen=window) for _ in range(n)]
        self.lengths: list[deque[int]] = [deque(maxlen=window) for _ in range(n)]

    def add(self, rollout: Rollout) -> None:
        """Take in a rollout."""
        valid, done = rollout.valid.numpy(), rollout.done.numpy()
        reward = np.where(valid, rollout.reward.double().numpy(), 0.0)
        for t in range(reward.shape[1]):
            self.ret += reward[:, t]
            self.length += valid[:, t]
            for n, e in zip(*np.nonzero(done[:, t]), strict=True):
                self.returns[n].append(float(self.ret[n, e]))
                self.lengths[n].append(int(self.length[n, e]))
            self.ret[done[:, t]] = 0.0
            self.length[done[:, t]] = 0

    def metrics(self) -> dict[str, Tensor]:
        """Return mean return and length [N]; NaN where no episode ended yet."""
        return {
            "train/return": torch.tensor([np.mean(r) if r else np.nan for r in self.returns]),
            "train/length": torch.tensor([np.mean(x) if x else np.nan for x in self.lengths]),
        }
