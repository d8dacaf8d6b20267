"""A Dict environment whose two terrains need opposite actions, and a teacher for each."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import register

from dpd.policies import policyfile
from tests.toy.students import linear

STEPS = 10


class Terrain(gymnasium.Env[dict[str, Any], np.ndarray]):
    """Each step is worth the action on one terrain and minus the action on the other.

    Terrains are numbered from `first`.
    """

    def __init__(self, first: int = 0) -> None:
        self.first = first
        terrain = spaces.Discrete(2, start=first)
        noise = spaces.Box(-1, 1, (1,), np.float32)
        self.observation_space = spaces.Dict({"noise": noise, "terrain": terrain})
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], Any]:
        super().reset(seed=seed)
        self.terrain = int(self.np_random.integers(2))
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        reward = float(action[0]) * (1 - 2 * self.terrain)
        return self._observe(), reward, False, False, {}

    def _observe(self) -> dict[str, Any]:
        noise = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return {"noise": noise, "terrain": self.first + self.terrain}


register("Terrain-v0", entry_point=f"{__name__}:Terrain", max_episode_steps=STEPS)
ENV = f"{__name__}:Terrain-v0"


def saved_teachers(folder: Path) -> list[str]:
    """Write the policies that answer 0.8 and -0.8 everywhere; return their paths."""
    paths = []
    for k, act in enumerate((0.8, -0.8)):
        policy = linear(torch.zeros(2, 1), torch.tensor([act]), log_std=-3.0, env_id=ENV)
        path = folder / f"teacher{k}.safetensors"
        policyfile.save(path, policy.tensors, policy.meta)
        paths.append(str(path))
    return paths
