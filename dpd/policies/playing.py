"""Policies in running episodes: what those that see a history need to remember."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from dpd.agents.rng import RowRandom, Stream
from dpd.agents.views import Frames, RememberingFrames
from dpd.envs.groups import flat_dict

if TYPE_CHECKING:
    from dpd.policies.policyfile import Policy


class Watch:
    """The last frames of B running episodes, as a policy with a view sees them.

    A recurrent policy's memory of them too. `seed` is that of the noise, if the view has any.
    """

    def __init__(self, policy: Policy, batch: int, seed: int = 0) -> None:
        view = policy.meta.view
        assert view is not None
        self.policy, self.batch, self.history = policy, batch, view.history
        given = [view], batch, RowRandom([(seed, 0)], Stream.SENSOR)
        size = policy.meta.memory_dim
        self.frames = RememberingFrames(*given, self._remember, size) if size else Frames(*given)

    def see(self, obs: Tensor) -> Tensor:
        """Add raw obs [B, O]; return what the policy reads, as `Policy.dist` says."""
        self.frames.follow(obs.unsqueeze(0))
        seen = self.frames.seen()
        if isinstance(self.frames, RememberingFrames):
            return torch.cat([seen.squeeze(0), self.memory], -1)
        return seen.view(self.batch, self.history, -1)

    def _remember(self, seen: Tensor, memory: Tensor) -> Tensor:
        """Return the memory [1, B, S] after what is seen [1, B, F]."""
        joint = torch.cat([seen, memory], -1).squeeze(0)
        return self.policy.repeatable_recall(joint).unsqueeze(0)

    @property
    def memory(self) -> Tensor:
        """The memory [B, S] of a recurrent policy before the present step."""
        assert isinstance(self.frames, RememberingFrames)
        return self.frames.memory.squeeze(0)

    def took(self, act: Tensor) -> None:
        """Store the actions [B, A] in [-1, 1] that followed."""
        self.frames.act = act.to(self.frames.kept.dtype).unsqueeze(0)

    def restart(self) -> None:
        """Let the next observations begin episodes."""
        self.frames.act = None


class EpisodeActor:
    """Chooses actions in episodes that begin and end together."""

    def begin(self) -> None:
        """Begin episodes."""

    def __call__(self, obs: Tensor) -> Tensor:
        """Act on raw obs [B, O] -> [B, A] in [-1, 1]."""
        raise NotImplementedError

    def took(self, act: Tensor) -> None:
        """Store the actions [B, A] that were taken, if they are not those of the last call."""


class Playing(EpisodeActor):
    """A policy that acts without noise of its own, with its sensors' noise and delay."""

    def __init__(self, policy: Policy, seed: int = 0) -> None:
        self.policy, self.seed = policy, seed
        self.watch: Watch | None = None

    def begin(self) -> None:
        if self.watch is not None:
            self.watch.restart()

    def __call__(self, obs: Tensor) -> Tensor:
        view = self.policy.meta.view
        if view is None or not (self.policy.meta.needs_episode or view.has_noise):
            return self.policy.repeatable_mode(obs)
        if self.watch is None or self.watch.batch != len(obs):
            self.watch = Watch(self.policy, len(obs), self.seed)
        act = self.policy.repeatable_mode(self.watch.see(obs))
        self.watch.took(act)
        return act

    def took(self, act: Tensor) -> None:
        if self.watch is not None:
            self.watch.took(act)


def play(
    policy: Policy, env: gymnasium.Env[Any, Any], episodes: int = 1, seed: int = 0
) -> np.ndarray:
    """Play episodes of a Gymnasium environment with a policy; return their returns [episodes].

    The policy acts without noise. Episode k begins with `env.reset(seed=seed + k)`, and ends as the
    environment says, which must therefore have a time limit. Raises ValueError for observations
    that do not fit the policy.
    """
    returns = np.zeros(episodes)
    for k in range(episodes):
        obs, _ = env.reset(seed=seed + k)
        policy.reset()
        done = False
        while not done:
            act = policy.act(flat_dict(obs) if isinstance(obs, dict) else obs)
            obs, reward, terminated, truncated, _ = env.step(act)
            returns[k] += float(reward)
            done = terminated or truncated
    return returns
