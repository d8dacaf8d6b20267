"""Collection: drive the environments with the learners and keep what they saw."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dpd.agents.base import State, put_back
from dpd.agents.buffers import Rollout
from dpd.distill.base import Actor
from dpd.envs.base import Env


def collect(env: Env, actor: Actor, obs: Tensor, rollout: Rollout) -> Tensor:
    """Fill a rollout from raw obs [N, E, O]; return the obs to go on from.

    Actions are kept as sampled; the environment clips them to the box, as Stable-Baselines3 does.
    """
    n, n_steps, n_envs = rollout.reward.shape
    noise = actor.noise()
    for t in range(n_steps):
        act = actor.act(obs, noise[:, t])
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
        self.ret = torch.zeros(n, n_envs, dtype=torch.float64)  # of running episodes
        self.length = torch.zeros(n, n_envs, dtype=torch.int64)
        self.returns = torch.full((n, window), torch.nan, dtype=torch.float64)  # of ended ones
        self.lengths = torch.full((n, window), torch.nan, dtype=torch.float64)
        self.ended = torch.zeros(n, dtype=torch.int64)

    def add(self, rollout: Rollout) -> None:
        """Take in a rollout."""
        valid, done = rollout.valid.numpy(), rollout.done.numpy()
        reward = np.where(valid, rollout.reward.double().numpy(), 0.0)
        ret, length = self.ret.numpy(), self.length.numpy()  # views
        for t in range(reward.shape[1]):
            ret += reward[:, t]
            length += valid[:, t]
            for n, e in zip(*np.nonzero(done[:, t]), strict=True):
                slot = int(self.ended[n]) % self.returns.shape[1]
                self.returns[n, slot], self.lengths[n, slot] = float(ret[n, e]), float(length[n, e])
                self.ended[n] += 1
            ret[done[:, t]] = 0.0
            length[done[:, t]] = 0

    def restart(self) -> None:
        """Forget the running episodes: new ones begin."""
        self.ret.zero_()
        self.length.zero_()

    def metrics(self) -> dict[str, Tensor]:
        """Return mean return and length [N]; NaN where no episode ended yet."""
        return {
            "train/return": self.returns.nanmean(1),
            "train/length": self.lengths.nanmean(1),
        }

    def state(self) -> State:
        """Return all statistics, as live tensors."""
        return {
            "ret": self.ret,
            "length": self.length,
            "returns": self.returns,
            "lengths": self.lengths,
            "ended": self.ended,
        }

    def load_state(self, state: State) -> None:
        """Put a state back."""
        put_back(self.state(), state)
