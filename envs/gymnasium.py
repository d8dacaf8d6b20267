"""Any Gymnasium environment with vectors in and vectors out, stepped in this process."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from typing import Any, NoReturn

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from dpd.envs.base import (
    ActionScale,
    EnvKwargs,
    EnvSpec,
    Step,
    UnsupportedEnv,
    inner_bounds,
)
from dpd.envs.unstable import cut_unstable, lost_steps

_SUPPORTED = "supported are Box observations that are not images, and Box actions within bounds"


class GymnasiumEnv:
    """`gymnasium.make_vec` as an `Env`.

    Environments that can only be reset one step late (NEXT_STEP) give one transition per
    episode in which nothing happens: `valid` is false there and `obs` before it is the last one.
    """

    def __init__(
        self,
        env_id: str,
        n_envs: int,
        seeds: Sequence[int],
        env_kwargs: EnvKwargs | None = None,
    ) -> None:
        if len(seeds) != n_envs:
            raise ValueError(f"{len(seeds)} seeds for {n_envs} environments; give one each")
        self._envs, self._one_seed = _make_vec(env_id, n_envs, env_kwargs or {})
        try:
            self._next_step = _autoreset_mode(env_id, self._envs) is AutoresetMode.NEXT_STEP
            obs_space, act_space = _check_spaces(env_id, self._envs)
        except UnsupportedEnv:
            self._envs.close()
            raise
        self.n_envs = n_envs
        low, high = inner_bounds(act_space.low.reshape(-1), act_space.high.reshape(-1))
        self._act_space = act_space
        self._scale = ActionScale(low, high)
        n_obs = int(np.prod(obs_space.shape))
        self.spec = EnvSpec(
            env_id,
            "gymnasium",
            n_obs,
            low.size,
            low,
            high,
            False,
            obs_shape=_unless_flat(obs_space.shape),
            act_shape=_unless_flat(act_space.shape),
        )
        self._seeds: list[int] | None = [int(seed) for seed in seeds]
        self._over = np.zeros(n_envs, dtype=bool)
        self._act: Tensor | None = None

    def reset(self) -> Tensor:
        """Start fresh episodes. An environment with a vector entry point takes the first seed."""
        seeds, self._seeds = self._seeds, None
        seed: Any = seeds[0] if seeds and self._one_seed else seeds
        obs, _ = self._envs.reset(seed=seed)
        self._over = np.zeros(self.n_envs, dtype=bool)
        return torch.from_numpy(self._flat(obs))

    def start(self, act: Tensor) -> None:
        """Keep act for `wait`, which does the work: Gymnasium's step holds the GIL throughout."""
        if self._act is not None:
            raise RuntimeError("a step is under way; call wait() first")
        self._act = act

    def wait(self) -> Step:
        if self._act is None:
            raise RuntimeError("wait() without start()")
        act, self._act = self._act, None
        return self.step(act)

    def step(self, act: Tensor) -> Step:
        scaled = self._scale(act).astype(self._act_space.dtype)  # monotone: stays within the bounds
        scaled = scaled.reshape(self.n_envs, *self._act_space.shape)
        raw_obs, reward, terminated, truncated, infos = self._envs.step(scaled)
        obs = self._flat(raw_obs)
        void = self._over if self._next_step else np.zeros(self.n_envs, dtype=bool)
        terminated, truncated = terminated & ~void, truncated & ~void
        self._over = terminated | truncated
        valid = ~(void | lost_steps(infos, self.n_envs))
        next_obs = obs if self._next_step else self._successors(obs, infos)
        return Step(
            torch.from_numpy(obs),
            torch.from_numpy(next_obs),
            torch.from_numpy(np.where(valid, reward, 0.0).astype(np.float32)),
            torch.from_numpy(terminated),
            torch.from_numpy(truncated),
            torch.from_numpy(valid),
        )

    def _successors(self, obs: np.ndarray, infos: dict[str, Any]) -> np.ndarray:
        ended = np.flatnonzero(self._over)
        if not len(ended):
            return obs
        next_obs = obs.copy()
        next_obs[ended] = np.stack([infos["final_obs"][i].reshape(-1) for i in ended])
        return next_obs

    def _flat(self, obs: np.ndarray) -> np.ndarray:
        return obs.reshape(self.n_envs, -1).astype(np.float32)  # always a copy

    def snapshot(self) -> dict[str, np.ndarray]:
        self._refuse_snapshot()

    def restore(self, snapshot: dict[str, np.ndarray], ids: Sequence[int] | None = None) -> Tensor:
        self._refuse_snapshot()

    def _refuse_snapshot(self) -> NoReturn:
        raise UnsupportedEnv(
            f"{self.spec.env_id}: Gymnasium environments can't be copied; the native backend can"
        )

    def trouble(self) -> list[str]:
        return []

    def close(self) -> None:
        self._envs.close()


def _make_vec(env_id: str, n_envs: int, kwargs: EnvKwargs) -> tuple[VectorEnv, bool]:
    """Make the environments -> them, and whether one seed must do for all."""
    only_vector = find_spec(env_id).entry_point is None
    same_step = {"autoreset_mode": AutoresetMode.SAME_STEP}
    how: EnvKwargs = {
        "vectorization_mode": "sync",
        "vector_kwargs": same_step,
        "wrappers": [cut_unstable],
    }
    try:
        envs = gymnasium.make_vec(env_id, n_envs, **({} if only_vector else how), **kwargs)
    except (gymnasium.error.Error, ImportError) as error:
        raise UnsupportedEnv(f"{env_id} can't be made: {error}") from error
    except TypeError as error:
        if not kwargs:
            raise  # a defect of the environment's own, which its author wants to see whole
        raise UnsupportedEnv(f"{env_id} can't be made with {kwargs}: {error}") from error
    return envs, only_vector


def find_spec(env_id: str) -> gymnasium.envs.registration.EnvSpec:
    """Look an id up (`module:Id` imports the module); raises UnsupportedEnv with near matches."""
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        return gymnasium.spec(name)
    except ModuleNotFoundError as error:
        raise UnsupportedEnv(f"{env_id}: {error}; is the package installed?") from error
    except gymnasium.error.Error as error:
        near = difflib.get_close_matches(name, list(gymnasium.registry), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "see gymnasium.pprint_registry()"
        raise UnsupportedEnv(f"no environment is called {env_id}; {hint}") from error


def _autoreset_mode(env_id: str, envs: VectorEnv) -> AutoresetMode:
    mode = envs.metadata.get("autoreset_mode")
    if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
        raise UnsupportedEnv(
            f"{env_id}: its vector environment declares autoreset_mode {mode}; "
            "supported are SAME_STEP and NEXT_STEP"
        )
    return mode


def _check_spaces(env_id: str, envs: VectorEnv) -> tuple[spaces.Box, spaces.Box]:
    obs, act = envs.single_observation_space, envs.single_action_space
    if not isinstance(obs, spaces.Box):
        raise UnsupportedEnv(f"{env_id} observes {_name(obs)}; {_SUPPORTED}")
    if obs.dtype == np.uint8 and len(obs.shape) == 3:
        raise UnsupportedEnv(f"{env_id} observes images; {_SUPPORTED}")
    if not isinstance(act, spaces.Box) or not np.issubdtype(act.dtype, np.floating):
        raise UnsupportedEnv(f"{env_id} takes {_name(act)} actions; {_SUPPORTED}")
    if not act.is_bounded():
        raise UnsupportedEnv(f"{env_id} takes actions without bounds; {_SUPPORTED}")
    return obs, act


def _unless_flat(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    return None if len(shape) == 1 else shape


def _name(space: gymnasium.Space) -> str:
    dtype = f"({space.dtype})" if isinstance(space, spaces.Box) else ""
    return type(space).__name__ + dtype
