"""Truncate Gymnasium episodes whose MuJoCo simulation became unstable."""

from __future__ import annotations

from typing import Any

import gymnasium
import mujoco
import numpy as np

from dpd.envs.physics import UNSTABLE

LOST = "dpd_lost"
"""The info key that marks a step in which the physics became unstable."""


class CutUnstable(gymnasium.Wrapper):
    """Truncate the step in which MuJoCo resets its own simulation, with reward 0.

    MuJoCo then continues from the default pose within the same step, and the environment would
    reward the jump to that pose as the robot's motion.
    """

    def __init__(self, env: gymnasium.Env, data: mujoco.MjData) -> None:
        super().__init__(env)
        self._counters = data.warning.number[UNSTABLE]  # a live view; a reset of the data clears it

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        if np.count_nonzero(self._counters):
            return obs, 0.0, False, True, {**info, LOST: True}
        return obs, reward, terminated, truncated, info


def cut_unstable(env: gymnasium.Env) -> gymnasium.Env:
    """Wrap an environment on MuJoCo (`MujocoEnv`); return any other one unchanged."""
    data = getattr(env.unwrapped, "data", None)
    return CutUnstable(env, data) if isinstance(data, mujoco.MjData) else env


def lost_steps(infos: dict[str, Any], n_envs: int) -> np.ndarray:
    """Return a mask [M] of the unstable steps, from a vector environment's infos."""
    mask = infos.get("final_info", {}).get(f"_{LOST}")
    return np.zeros(n_envs, dtype=bool) if mask is None else mask
