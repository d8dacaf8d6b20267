"""Environments whose keyword arguments change what a step is worth and what is seen."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import register


class Payload(gymnasium.Env[np.ndarray, np.ndarray]):
    """Every one of 20 steps is worth `payload`; `dims` numbers are seen."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012, Gymnasium's way

    def __init__(self, payload: float = 1.0, dims: int = 3, render_mode: str | None = None) -> None:
        self.payload, self.render_mode = payload, render_mode
        self.observation_space = spaces.Box(-np.inf, np.inf, (dims,), np.float32)
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, Any]:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self._observe(), self.payload, False, False, {}

    def _observe(self) -> np.ndarray:
        return self.np_random.normal(size=self.observation_space.shape or ()).astype(np.float32)

    def render(self) -> Any:
        return np.full((32, 32, 3), int(50 * self.payload), np.uint8)


for _id in ("Payload-v0", "Unladen-v0"):
    register(_id, entry_point=f"{__name__}:Payload", max_episode_steps=20)
