"""An environment that simulates on the CPU, for learners on another device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dpd.envs.base import Env, Step


class OnDevice:
    """Another `Env` whose steps are brought to a device; actions are read from there."""

    def __init__(self, env: Env, device: torch.device) -> None:
        self._env, self._device = env, device
        self.spec, self.n_envs = env.spec, env.n_envs

    def reset(self) -> Tensor:
        return self._env.reset().to(self._device)

    def stagger(self, share: np.ndarray) -> None:
        self._env.stagger(share)

    def start(self, act: Tensor) -> None:
        """Begin a step; waits until the actions are there."""
        self._env.start(act)

    def wait(self) -> Step:
        return Step(*(x.to(self._device, non_blocking=True) for x in self._env.wait()))

    def step(self, act: Tensor) -> Step:
        self.start(act)
        return self.wait()

    def snapshot(self) -> dict[str, np.ndarray]:
        return self._env.snapshot()

    def restore(self, snapshot: dict[str, np.ndarray], ids: Sequence[int] | None = None) -> Tensor:
        return self._env.restore(snapshot, ids).to(self._device)

    def trouble(self) -> list[str]:
        return self._env.trouble()

    def close(self) -> None:
        self._env.close()
