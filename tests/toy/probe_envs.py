"""Probe environments: each fails for one reason, so that a failing learner says what is broken.

They implement the `Env` protocol on torch tensors; M environments of one or two steps. At the end
are Gymnasium environments that are odd in one respect each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from dpd.envs.base import EnvSpec, Step


class Probe:
    """An episode of `length` steps; observations uniform in [-1, 1] unless a probe says otherwise.

    Actions are clipped to [-1, 1], as every environment of the suite does.
    """

    length = 1
    obs_dim = 1
    act_dim = 1

    def __init__(self, n_envs: int, seed: int = 0) -> None:
        self.n_envs = n_envs
        self.generator = torch.Generator().manual_seed(seed)
        bound = np.ones(self.act_dim, dtype=np.float32)
        self.spec = EnvSpec(
            type(self).__name__,
            "probe",
            self.obs_dim,
            self.act_dim,
            -bound,
            bound,
            can_snapshot=True,
            max_steps=self.length,
        )
        self.t = 0
        self.obs = torch.zeros(n_envs, self.obs_dim)
        self.act = torch.zeros(n_envs, self.act_dim)

    def first(self) -> Tensor:
        """Return the observations an episode begins with [M, O]."""
        return torch.rand(self.n_envs, self.obs_dim, generator=self.generator) * 2 - 1

    def after(self) -> Tensor:
        """Return the observations after self.act at self.obs [M, O]."""
        return self.obs

    def reward(self) -> Tensor:
        """Return the reward of self.act at self.obs [M]."""
        raise NotImplementedError

    def reset(self) -> Tensor:
        self.t, self.obs = 0, self.first()
        return self.obs

    def stagger(self, share: np.ndarray) -> None:
        raise NotImplementedError("all environments of a probe are at one step")

    def step(self, act: Tensor) -> Step:
        assert act.shape == (self.n_envs, self.act_dim)
        self.act = act.to(torch.float32).clamp(-1, 1)
        reward, next_obs = self.reward(), self.after()
        self.t += 1
        over = self.t == self.length
        self.obs = self.reset() if over else next_obs
        ended = torch.full((self.n_envs,), over)
        running = torch.zeros(self.n_envs, dtype=torch.bool)
        return Step(self.obs, next_obs, reward, ended, running, ~running)

    def snapshot(self) -> dict[str, np.ndarray]:
        return {"obs": self.obs.numpy().copy(), "t": np.full(self.n_envs, self.t)}

    def restore(self, snapshot: dict[str, np.ndarray], ids: Sequence[int] | None = None) -> Tensor:
        rows = slice(None) if ids is None else list(ids)
        self.obs = self.obs.clone()
        self.obs[rows] = torch.from_numpy(snapshot["obs"].copy())
        self.t = int(snapshot["t"][0])
        return self.obs

    def trouble(self) -> list[str]:
        return []

    def close(self) -> None:
        pass


class ConstantValue(Probe):
    """Reward 1 whatever is done: the value is 1. Fails: value loss, or an end that bootstraps."""

    def first(self) -> Tensor:
        return torch.zeros(self.n_envs, self.obs_dim)

    def reward(self) -> Tensor:
        return torch.ones(self.n_envs)


class ValueFromObs(Probe):
    """Reward is the observation, -1 or 1: so is the value. Fails: observations reach no critic."""

    def first(self) -> Tensor:
        return super().first().sign()

    def reward(self) -> Tensor:
        return self.obs[:, 0]


class Discounting(Probe):
    """Observation 0, then 1, then reward 1: values gamma and 1. Fails: discounting, bootstrap."""

    length = 2

    def first(self) -> Tensor:
        return torch.zeros(self.n_envs, self.obs_dim)

    def after(self) -> Tensor:
        return self.obs + 1

    def reward(self) -> Tensor:
        return self.obs[:, 0]


class ActionToReward(Probe):
    """Reward -(a - 0.5)^2: the action is 0.5. Fails: policy loss, advantage, exploration."""

    def first(self) -> Tensor:
        return torch.zeros(self.n_envs, self.obs_dim)

    def reward(self) -> Tensor:
        return -(self.act[:, 0] - 0.5).square()


class ObsTimesAction(Probe):
    """Reward -(a - obs / 2)^2: the action is obs / 2. Fails: actions credited to other states."""

    def reward(self) -> Tensor:
        return -(self.act[:, 0] - 0.5 * self.obs[:, 0]).square()


class FreeAction(ObsTimesAction):
    """As `ObsTimesAction`, with a second action that nothing depends on."""

    act_dim = 2


class Silent(ObsTimesAction):
    """As `ObsTimesAction`, but nothing is rewarded: only a peer can teach."""

    def reward(self) -> Tensor:
        return torch.zeros(self.n_envs)


class Odd(gymnasium.Env):
    """A Gymnasium environment of 20 steps that insists on actions from its own space.

    A subclass chooses the spaces. The observation is noise, the reward the action's mean.
    """

    observation_space: spaces.Box = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space: spaces.Box = spaces.Box(-1, 1, (2,), np.float32)
    metadata = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 20,
    }

    def __init__(self, render_mode: str | None = None, **_: Any) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> Any:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        return self._observe(), float(action.mean()), False, False, {}

    def render(self) -> Any:
        return np.zeros((64, 64, 3), np.uint8)

    def _observe(self) -> np.ndarray:
        space = self.observation_space
        return self.np_random.normal(size=space.shape).astype(space.dtype)


class Float64Bounds(Odd):
    """Bounds that float32 rounds outwards: float32(0.1) > 0.1."""

    action_space = spaces.Box(-0.1, 0.1, (2,), np.float64)


class Matrix(Odd):
    """Matrices in, matrices out."""

    observation_space = spaces.Box(-np.inf, np.inf, (3, 4), np.float64)
    action_space = spaces.Box(-2, 3, (2, 3), np.float64)


def registered(env: type[Odd]) -> str:
    """Register an environment, once, and return its id."""
    name = f"DpdTest/{env.__name__}-v0"
    if name not in gymnasium.registry:
        gymnasium.register(name, entry_point=env, max_episode_steps=20)
    return name
