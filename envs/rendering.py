"""Gymnasium's own environments as a policy knows them: for videos, one at a time."""

from __future__ import annotations

import copy
from typing import Any, cast

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces

from dpd.envs.base import EnvKwargs
from dpd.envs.dict_space import without_dict
from dpd.envs.make import ranges_of
from dpd.envs.randomization import RANDOMIZE, Ranges
from dpd.envs.scaling import drawn_factors, scale_model


class RandomizedEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Wrapper that randomises one of Gymnasium's MuJoCo tasks, bit for bit as the native backend.

    Its factors come from the task's own generator after the start of the episode, and are appended
    to its observations.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], ranges: Ranges) -> None:
        super().__init__(env)
        self._task = cast(Any, env.unwrapped)  # a MujocoEnv, which has a model and its data
        self._ranges, self._factors = ranges, np.ones(len(ranges))
        self._base = copy.copy(self._task.model)
        (size,) = env.observation_space.shape or ()
        self.observation_space = spaces.Box(-np.inf, np.inf, (size + len(ranges),), np.float64)

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        _, info = self.env.reset(**kwargs)
        task = self._task
        self._factors = drawn_factors(self._ranges, [task.np_random])[0]
        start = task.data.qpos.copy(), task.data.qvel.copy()
        scale_model(task.model, self._base, self._ranges, self._factors)
        mujoco.mj_setConst(task.model, mujoco.MjData(task.model))
        mujoco.mj_resetData(task.model, task.data)
        task.set_state(*start)
        return self._with_factors(task._get_obs()), info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._with_factors(obs), reward, terminated, truncated, info

    def _with_factors(self, obs: np.ndarray) -> np.ndarray:
        return np.concatenate([obs, self._factors])


def make_renderable(env_id: str, env_kwargs: EnvKwargs) -> gymnasium.Env[Any, Any]:
    """Make one environment that renders images, with observations that a policy's file expects."""
    ranges = ranges_of(env_id, env_kwargs)
    kwargs = {k: v for k, v in env_kwargs.items() if not (ranges and k == RANDOMIZE)}
    env = gymnasium.make(env_id, render_mode="rgb_array", **kwargs)
    return RandomizedEnv(env, ranges) if ranges else without_dict(env, env_id)
