"""A pole on a cart that must swing up: a model of our own with a reward in batched NumPy."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpd import MujocoTask, register_task

State = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class SwingUp(MujocoTask):
    xml: str = str(Path(__file__).with_name("swing_up.xml"))
    frame_skip: int = 2
    max_steps: int = 500
    state_fields: tuple[str, ...] = ("site_xpos",)
    force_cost: float = 0.01  # a field of your own is an argument of the task

    def observed_parts(self, state: State) -> dict[str, np.ndarray]:
        cart, angle = state["qpos"][:, :1], state["qpos"][:, 1:]
        pole = np.hstack([np.sin(angle), np.cos(angle)])
        return {"cart": cart, "pole": pole, "qvel": state["qvel"]}

    def reward(self, before: State, act: np.ndarray, state: State) -> np.ndarray:
        height = state["site_xpos"][:, 0, 2] / 0.6  # of the pole's tip: 1 is upright
        return height - self.force_cost * (act**2).sum(1)

    def terminated(self, state: State) -> np.ndarray:
        return abs(state["qpos"][:, 0]) > 1.7  # near the end of the rail

    def draw_start(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        hanging = np.array([0.0, np.pi])
        return hanging + generator.uniform(-0.1, 0.1, 2), np.zeros(2)


register_task("SwingUp-v0", SwingUp)
