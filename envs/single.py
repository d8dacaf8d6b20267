"""A user's task as one Gymnasium environment: for videos, and for Gymnasium's own wrappers."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from gymnasium.envs.mujoco import MujocoEnv

from dpd.envs.arguments import make_task
from dpd.envs.task import VIEW_ONLY


class TaskEnv(MujocoEnv):
    """The same episodes as on the native backend, one at a time."""

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"],
    }

    def __init__(self, env_id: str, render_mode: str | None = None, **kwargs: Any) -> None:
        """Make a registered task; kwargs are its arguments, and those of MujocoEnv's images."""
        drawing = {name: value for name, value in kwargs.items() if name in VIEW_ONLY}
        rules = {name: value for name, value in kwargs.items() if name not in VIEW_ONLY}
        self._rules = task = make_task(env_id, None, rules)
        MujocoEnv.__init__(
            self, str(task.path), task.frame_skip, None, render_mode=render_mode, **drawing
        )
        fps = int(np.round(1.0 / self.dt))
        self.metadata = {**self.metadata, "render_fps": fps}  # type: ignore[misc]
        (size,) = self._get_obs().shape
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float64)

    def _state(self) -> dict[str, np.ndarray]:
        names = ("qpos", "qvel", "ctrl", *self._rules.derived)
        return {name: getattr(self.data, name)[None] for name in names}

    def _get_obs(self) -> np.ndarray:
        obs: np.ndarray = self._rules.observe(self._state())[0]
        return obs

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        task, mass = self._rules, self.model.body_mass
        before = task.marker(self._state(), mass)
        self.do_simulation(action, self.frame_skip)
        state = self._state()
        up, after = task.healthy(state), task.marker(state, mass)
        act = np.asarray(action, np.float32)[None]
        reward = task.total(task.reward_terms(before, after, state, act, up))
        if self.render_mode == "human":
            self.render()
        return self._get_obs(), float(reward[0]), up is not None and not up[0], False, {}

    def reset_model(self) -> np.ndarray:
        self.set_state(*self._rules.draw_start(self.np_random))
        return self._get_obs()
