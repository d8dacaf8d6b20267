"""An environment that observes a Dict: a cart to push, its load, and the number of its terrain."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import register

NOWHERE = 3


class Cart(gymnasium.Env[dict[str, Any], np.ndarray]):
    """Each of 20 steps is worth minus the cart's distance from 0, where it starts at random."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012, Gymnasium's way

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Dict(
            {
                "terrain": spaces.Discrete(4, start=NOWHERE),
                "cart": spaces.Dict(
                    {
                        "place": spaces.Box(-np.inf, np.inf, (), np.float64),
                        "grid": spaces.Box(0, 9, (2, 3), np.uint8),
                    }
                ),
                "alpha": spaces.Box(-1, 1, (2,), np.float32),
            }
        )
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], Any]:
        super().reset(seed=seed)
        self.place, self.terrain = self.np_random.normal(), NOWHERE + self.np_random.integers(4)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.place += 0.2 * float(action[0])
        return self._observe(), -abs(self.place), False, False, {}

    def _observe(self) -> dict[str, Any]:
        cart = {"place": np.array(self.place), "grid": np.arange(6, dtype=np.uint8).reshape(2, 3)}
        return {"terrain": int(self.terrain), "cart": cart, "alpha": np.full(2, 0.5, np.float32)}

    def render(self) -> Any:
        return np.full((32, 32, 3), 50, np.uint8)


register("Cart-v0", entry_point=f"{__name__}:Cart", max_episode_steps=20)
CART = f"{__name__}:Cart-v0"
