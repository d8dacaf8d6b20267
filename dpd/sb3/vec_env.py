"""The native simulation as a Stable-Baselines3 VecEnv."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import Wrapper, spaces
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvStepReturn

from dpd.envs.native import Simulation


class NativeVecEnv(VecEnv):
    """A native task as an SB3 VecEnv: float32, reset in the same step, one info per environment.

    Environment i gets the seed `seed + i`, as in SB3; None draws seeds from the system.
    """

    def __init__(
        self, env_id: str, n_envs: int, seed: int | None = None, threads: int | None = None
    ) -> None:
        seeds = None if seed is None else [seed + i for i in range(n_envs)]
        self._sim = sim = Simulation(env_id, n_envs, seeds, threads)
        observation_space = spaces.Box(-np.inf, np.inf, (sim.obs_dim,), np.float32)
        action_space = spaces.Box(sim.act_low, sim.act_high, dtype=np.float32)
        super().__init__(n_envs, observation_space, action_space)

    def reset(self) -> np.ndarray:
        self._sim.seed(self._seeds)  # None unless seed() was called since the last reset
        self._reset_seeds()
        self._reset_options()
        return self._sim.reset().astype(np.float32)

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        step = self._sim.step(self._actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in step.ended.tolist():
            infos[i] = {
                "terminal_observation": step.next_obs[i].astype(np.float32),
                "TimeLimit.truncated": bool(step.truncated[i] and not step.terminated[i]),
            }
        done = step.terminated | step.truncated
        return step.obs.astype(np.float32), step.reward.astype(np.float32), done, infos

    def close(self) -> None:
        self._sim.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return render_mode, which SB3 reads; there are no single environments."""
        if attr_name != "render_mode":
            raise AttributeError(f"the native environments have no attribute {attr_name}")
        return [None for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        raise AttributeError(f"{attr_name} can't be set: there are no single environments")

    def env_method(
        self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        raise AttributeError(f"{method_name} can't be called: there are no single environments")

    def env_is_wrapped(
        self, wrapper_class: type[Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        return [False for _ in self._get_indices(indices)]
