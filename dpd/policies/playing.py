"""Policies in running episodes: what those that see a history need to remember."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from dpd.agents.config import View
from dpd.agents.rng import RowRandom, Stream
from dpd.agents.views import Frames
from dpd.envs.groups import flat_dict

if TYPE_CHECKING:
    from dpd.policies.policyfile import Policy


class Watch:
    """The last frames of B running episodes, as a policy sees them.

    `seed` is that of the noise, if the view has any.
    """

    def __init__(
        self, view: View, batch: int, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        self.view, self.batch = view, batch
        self.frames = Frames([view], batch, RowRandom([(seed, 0)], Stream.SENSOR), dtype)

    def see(self, obs: Tensor) -> Tensor:
        """Add raw obs [B, O]; return the stacks of frames [B, H, G] that the policy reads."""
        self.frames.follow(obs.unsqueeze(0))
        return self.frames.seen().view(self.batch, self.view.history, -1)

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
        if view is None or (view.is_memoryless and not view.has_noise):
            return self.policy.repeatable_mode(obs)
        if self.watch is None or self.watch.batch != len(obs):
            self.watch = Watch(view, len(obs), self.seed)
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
