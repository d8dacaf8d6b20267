"""The EnvPool backend: environments in C++, stepped by its own threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import envpool
import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from dpd.envs.base import (
    SEEDS,
    EnvKwargs,
    Step,
    UnsupportedEnv,
    own_errors,
)
from dpd.envs.dict_space import DictLayout
from dpd.envs.foreign import ForeignEnv, box_spec, check_boxes
from dpd.envs.native import NativeEnv
from dpd.envs.tasks import is_native

_OURS = {
    *("num_envs", "batch_size", "num_threads", "seed", "env_seed", "max_num_players"),
    *("thread_affinity_offset", "base_path", "gym_reset_return_info"),
}
"""Arguments of every pool that a user cannot choose."""
_NOTE = (
    "EnvPool has its own physics, so numbers may differ from Gymnasium's in the last digits; "
    "unstable physics is not noticed"
)


class EnvpoolEnv(ForeignEnv):
    """`envpool.make` as an `Env`.

    EnvPool spends the step after an episode's end on the reset. Here an environment is reset at
    once instead, so every step is a transition.
    """

    PACKAGE = "EnvPool"

    def __init__(
        self,
        env_id: str,
        n_envs: int,
        seeds: Sequence[int],
        env_kwargs: EnvKwargs | None = None,
        threads: int | None = None,
    ) -> None:
        """Make n_envs of an id, one seed each; env_kwargs are those of EnvPool's task.

        threads: None for as many as there are cores. Raises UnsupportedEnv if EnvPool does not
        know the id or the arguments, or if no learner can use the spaces.
        """
        if len(seeds) != n_envs:
            raise ValueError(f"{len(seeds)} seeds for {n_envs} environments; give one each")
        self._envs = _make_pool(env_id, seeds, env_kwargs or {}, threads or 0)
        found: gymnasium.Space[Any] = self._envs.observation_space
        layout = DictLayout(env_id, found) if isinstance(found, spaces.Dict) else None
        seen = found if layout is None else layout.space
        obs_space, act_space = check_boxes(env_id, seen, self._envs.action_space)
        self.n_envs, self._act_space, self._layout = n_envs, act_space, layout
        self.spec = box_spec(
            env_id,
            "envpool",
            obs_space,
            act_space,
            max_steps=self._envs.config["max_episode_steps"],
            notes=(_NOTE,),
            groups=_native_groups(env_id, env_kwargs) if layout is None else layout.groups,
            first_values={} if layout is None else layout.first_values,
        )
        self._age = np.zeros(n_envs, dtype=np.int64)  # steps that staggering took away

    def reset(self) -> Tensor:
        with own_errors(self.spec.env_id, "reset"):
            obs, _ = self._envs.reset()
        self._age[:] = 0
        return torch.from_numpy(self._flat(obs, self.n_envs))

    def stagger(self, share: np.ndarray) -> None:
        self._age = (share * self.spec.max_steps).astype(np.int64)

    def step(self, act: Tensor) -> Step:
        scaled = self._act_within(act)
        with own_errors(self.spec.env_id, "step"):
            raw_obs, reward, terminated, truncated, infos = self._envs.step(scaled)
        next_obs = self._flat(raw_obs, self.n_envs)
        truncated = truncated | (infos["elapsed_step"] + self._age >= self.spec.max_steps)
        return Step(
            torch.from_numpy(self._restarted(next_obs, terminated | truncated)),
            torch.from_numpy(next_obs),
            torch.from_numpy(reward.astype(np.float32)),
            torch.from_numpy(terminated.copy()),
            torch.from_numpy(truncated),
            torch.ones(self.n_envs, dtype=torch.bool),
        )

    def _restarted(self, last_obs: np.ndarray, over: np.ndarray) -> np.ndarray:
        """Restart the episodes `over` [M] -> the observations to act on next [M, O]."""
        ended = np.flatnonzero(over)
        if not len(ended):
            return last_obs
        with own_errors(self.spec.env_id, "reset"):
            raw_obs, infos = self._envs.reset(ended)
        obs = last_obs.copy()
        obs[infos["env_id"]] = self._flat(raw_obs, len(ended))
        self._age[ended] = 0
        return obs

    def _flat(self, obs: Any, n: int) -> np.ndarray:
        if self._layout is not None:
            return self._layout.flat(obs, (n,))
        flat: np.ndarray = obs.reshape(n, -1).astype(np.float32)  # always a copy
        return flat


def has_task(env_id: str) -> bool:
    """Return True if EnvPool has an environment of this id."""
    return env_id in envpool.list_all_envs()


def _make_pool(env_id: str, seeds: Sequence[int], kwargs: EnvKwargs, threads: int) -> Any:
    if not has_task(env_id):
        raise UnsupportedEnv(
            f"EnvPool has no {env_id}; use --backend gymnasium, or see envpool.list_all_envs()"
        )
    taken = [name for name in envpool.make_spec(env_id).config._fields if name not in _OURS]
    if unknown := sorted(kwargs.keys() - set(taken)):
        raise UnsupportedEnv(
            f"EnvPool's {env_id} takes no {', '.join(unknown)}; it takes {', '.join(taken)}"
        )
    try:
        envs = envpool.make(
            env_id,
            env_type="gymnasium",
            num_envs=len(seeds),
            batch_size=len(seeds),
            num_threads=threads,
            seed=[int(seed) % SEEDS for seed in seeds],
            **kwargs,
        )
    except Exception as error:
        raise UnsupportedEnv(f"{env_id} can't be made with {kwargs}: {error}") from error
    if envs.config["max_num_players"] != 1:
        raise UnsupportedEnv(f"{env_id} has several players; this suite trains one per environment")
    return envs


def _native_groups(env_id: str, env_kwargs: EnvKwargs | None) -> dict[str, range]:
    """Return the groups of the native task that observes the same, or none."""
    if env_kwargs or not is_native(env_id):
        return {}
    example = NativeEnv(env_id, 1, [0], threads=1)
    example.close()
    return example.spec.groups
