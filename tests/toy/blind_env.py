"""A mass on a line that must come to rest at 0, and a teacher that sees its velocity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import register

from dpd.policies import policyfile
from dpd.policies.policyfile import Policy
from tests.toy.students import linear

ENV = f"{__name__}:Blind-v0"
DT, STEPS = 0.5, 40
STIFFNESS, DAMPING = 0.8, 1.2


class Blind(gymnasium.Env[np.ndarray, np.ndarray]):
    """A double integrator, x and v, that begins at rest; a step is worth exp(-10 (x² + v²)).

    The velocity is (x - x of the step before) / DT. With position alone a force -k x makes it
    swing for ever, since the product of the two eigenvalues of a step is then 1.
    """

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)
        self.x = self.v = 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, Any]:
        super().reset(seed=seed)
        self.x, self.v = float(self.np_random.choice([-1, 1]) * self.np_random.uniform(0.5, 1)), 0.0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.v += DT * float(action[0])
        self.x += DT * self.v
        return self._observe(), float(np.exp(-10 * (self.x**2 + self.v**2))), False, False, {}

    def _observe(self) -> np.ndarray:
        return np.array([self.x, self.v], np.float32)


register("Blind-v0", entry_point=f"{__name__}:Blind", max_episode_steps=STEPS)


def teacher() -> Policy:
    """Return the policy with force -0.8 x - 1.2 v, under which both eigenvalues are 0.63."""
    weight = torch.tensor([[-STIFFNESS], [-DAMPING]])
    return linear(weight, torch.zeros(1), log_std=-3.0, env_id=ENV)


def saved_teacher(folder: Path) -> Path:
    """Write that policy."""
    path, policy = folder / "teacher.safetensors", teacher()
    policyfile.save(path, policy.tensors, policy.meta)
    return path


def played_returns(policy: Policy, episodes: int) -> list[float]:
    """Return the returns of a loaded policy that is played by `act` and `reset` alone."""
    env, returns = gymnasium.make(ENV), []
    for seed in range(episodes):
        obs, _ = env.reset(seed=seed)
        policy.reset()
        returns.append(0.0)
        is_over = False
        while not is_over:
            obs, reward, terminated, truncated, _ = env.step(policy.act(obs))
            returns[-1] += float(reward)
            is_over = terminated or truncated
    return returns
