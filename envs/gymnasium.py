"""The Gymnasium backend: any environment with Box observations and bounded Box actions."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import gymnasium
import mujoco
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv
from gymnasium.wrappers import TimeLimit
from torch import Tensor

from dpd.envs.base import (
    SEEDS,
    EnvKwargs,
    FailedEnv,
    Step,
    UnsupportedEnv,
    own_errors,
)
from dpd.envs.dict_space import DictLayout, FlatDictEnv, without_dict
from dpd.envs.foreign import ForeignEnv, box_spec, check_boxes
from dpd.envs.groups import Groups, consecutive
from dpd.envs.physics import UNSTABLE
from dpd.envs.tasks import TASKS, find_task, is_native
from dpd.envs.user_task import imported

WrapperKind = TypeVar("WrapperKind")
_LOST = "dpd_lost"
"""The info key that marks a step in which the physics became unstable."""


class GymnasiumEnv(ForeignEnv):
    """`gymnasium.make_vec` as an `Env`.

    Environments that reset one step late (NEXT_STEP) spend one step per episode on the reset. Its
    `valid` is false, and the `obs` before it is the episode's last one.
    """

    PACKAGE = "Gymnasium"

    def __init__(
        self,
        env_id: str,
        n_envs: int,
        seeds: Sequence[int],
        env_kwargs: EnvKwargs | None = None,
        mode: str = "sync",
    ) -> None:
        """Make n_envs of any id; mode `async` gives each of them a process of its own."""
        if len(seeds) != n_envs:
            raise ValueError(f"{len(seeds)} seeds for {n_envs} environments; give one each")
        max_steps = _max_steps(env_id, env_kwargs or {})
        self._envs, self._one_seed = _make_vec(env_id, n_envs, env_kwargs or {}, mode)
        try:
            self._next_step = _autoreset_mode(env_id, self._envs) is AutoresetMode.NEXT_STEP
            obs_space, act_space = _boxes(env_id, self._envs)
        except UnsupportedEnv:
            self._envs.close()
            raise
        self.n_envs = n_envs
        self.spec = box_spec(
            env_id,
            "gymnasium" if mode == "sync" else mode,
            obs_space,
            act_space,
            max_steps=max_steps,
            notes=_notes(env_id),
            **self._columns(env_id, env_kwargs, int(np.prod(obs_space.shape))),
        )
        self._act_space = act_space
        self._seeds: list[int] | None = [int(seed) % SEEDS for seed in seeds]
        self._over = np.zeros(n_envs, dtype=bool)  # episodes that ended in the last step

    def _columns(self, env_id: str, env_kwargs: EnvKwargs | None, obs_dim: int) -> dict[str, Any]:
        """Return the groups of columns and their first values, as fields of `EnvSpec`."""
        if isinstance(self._envs, AsyncVectorEnv):
            example = GymnasiumEnv(env_id, 1, [0], env_kwargs)  # the others are in other processes
            example.close()
            return {"groups": example.spec.groups, "first_values": example.spec.first_values}
        layout = _dict_layout(self._envs)
        return {
            "groups": _named_groups(env_id, self._envs, obs_dim),
            "first_values": {} if layout is None else layout.first_values,
        }

    def reset(self) -> Tensor:
        """Start fresh episodes. A native vector environment gets the first seed only."""
        seeds, self._seeds = self._seeds, None
        seed: Any = seeds[0] if seeds and self._one_seed else seeds
        with own_errors(self.spec.env_id, "reset"):
            obs, _ = self._envs.reset(seed=seed)
        self._over = np.zeros(self.n_envs, dtype=bool)
        return torch.from_numpy(self._flat(obs))

    def stagger(self, share: np.ndarray) -> None:
        if isinstance(self._envs, AsyncVectorEnv) and all(
            self._envs.call("has_wrapper_attr", "_max_episode_steps")
        ):
            longest = self._envs.get_attr("_max_episode_steps")
            ages = [int(age * steps) for age, steps in zip(share, longest, strict=True)]
            self._envs.set_attr("_elapsed_steps", ages)
            return
        limits = [_find_wrapper(env, TimeLimit) for env in getattr(self._envs, "envs", [None])]
        for limit, age in zip(limits, share, strict=False):
            if limit is None:
                raise UnsupportedEnv(
                    f"{self.spec.env_id} has no TimeLimit wrapper by which to stagger its first "
                    "episodes; use --no-stagger"
                )
            limit._elapsed_steps = int(age * limit._max_episode_steps)  # type: ignore[assignment]

    def step(self, act: Tensor) -> Step:
        scaled = self._act_within(act)
        with own_errors(self.spec.env_id, "step"):
            raw_obs, reward, terminated, truncated, infos = self._envs.step(scaled)
        obs = self._flat(raw_obs)
        void = self._over if self._next_step else np.zeros(self.n_envs, dtype=bool)
        terminated, truncated = terminated & ~void, truncated & ~void
        self._over = terminated | truncated
        valid = ~(void | infos.get("final_info", {}).get(f"_{_LOST}", False))
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


class CheckedEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Wrapper that checks a foreign environment's numbers, and cuts episodes of unstable physics.

    Observations become arrays of the declared space and rewards plain numbers: lists and rewards of
    shape (1,) are converted. Raises UnsupportedEnv for anything else, with the names of the
    environment and the call. If MuJoCo resets its own simulation, it continues from the default
    pose within the same step, and the environment rewards the jump to that pose as the robot's
    motion; that step is truncated here with reward 0.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], env_id: str) -> None:
        super().__init__(env)
        self._env_id = env_id
        self._counters = np.zeros(0)
        data = getattr(env.unwrapped, "data", None)
        if isinstance(data, mujoco.MjData):
            self._counters = data.warning.number[UNSTABLE]  # a live view; a reset clears it

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        with own_errors(self._env_id, "reset"):
            obs, info = self.env.reset(**kwargs)
        return self._array(obs, "reset"), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        with own_errors(self._env_id, "step"):
            obs, reward, terminated, truncated, info = self.env.step(action)
        if np.count_nonzero(self._counters):
            return self._array(obs, "step"), 0.0, False, True, {**info, _LOST: True}
        number = np.asarray(reward)
        if number.size != 1 or number.dtype.kind not in "biuf":
            raise UnsupportedEnv(
                f"step() of {self._env_id} returned the reward {reward!r:.60}, not one number"
            )
        flags = bool(terminated), bool(truncated)
        return self._array(obs, "step"), float(number.item()), *flags, info

    def _array(self, obs: Any, call: str) -> np.ndarray:
        space = self.observation_space
        try:
            array = np.array(obs, space.dtype)  # a copy: the reset may reuse the last step's array
        except (TypeError, ValueError) as error:
            raise UnsupportedEnv(
                f"{call}() of {self._env_id} returned the observation {obs!r:.60}, not an array"
            ) from error
        if array.shape != space.shape:
            raise UnsupportedEnv(
                f"{call}() of {self._env_id} returned an observation of shape {array.shape}; "
                f"its observation space has shape {space.shape}"
            )
        return array


def _max_steps(env_id: str, kwargs: EnvKwargs) -> int:
    """Return an environment's time limit. Raises UnsupportedEnv if it has none."""
    limit = kwargs.get("max_episode_steps", find_spec(env_id).max_episode_steps)
    if not isinstance(limit, int) or limit < 1:
        remedy = json.dumps({**kwargs, "max_episode_steps": 1000})
        raise UnsupportedEnv(
            f"{env_id} has no time limit, so an evaluation might never end; set one with "
            f"--env-kwargs '{remedy}', or register the environment with max_episode_steps"
        )
    return limit


def _notes(env_id: str) -> tuple[str, ...]:
    newer = f"{env_id.rpartition('-v')[0]}-v5"
    known = newer in TASKS and env_id not in TASKS
    return (f"{newer} has a native simulation, which is many times faster",) if known else ()


def _make_vec(env_id: str, n_envs: int, kwargs: EnvKwargs, mode: str) -> tuple[VectorEnv, bool]:
    """Make the environments; the second result is True if they take a single seed."""
    only_vector = find_spec(env_id).entry_point is None
    if only_vector and mode != "sync":
        raise UnsupportedEnv(
            f"{env_id} steps all of its environments itself; leave out --backend {mode}"
        )
    how: EnvKwargs = {
        "vectorization_mode": mode,
        # no copies of observations: `_flat` makes the only one
        "vector_kwargs": {"autoreset_mode": AutoresetMode.SAME_STEP, "copy": False},
        "wrappers": [partial(without_dict, env_id=env_id), partial(CheckedEnv, env_id=env_id)],
    }
    try:
        envs = gymnasium.make_vec(env_id, n_envs, **({} if only_vector else how), **kwargs)
    except UnsupportedEnv:
        raise
    except (gymnasium.error.Error, ImportError) as error:
        raise UnsupportedEnv(f"{env_id} can't be made: {error}") from error
    except Exception as error:
        if isinstance(error, TypeError) and kwargs:  # else a bug of its own: keep the traceback
            raise UnsupportedEnv(f"{env_id} can't be made with {kwargs}: {error}") from error
        raise FailedEnv(env_id, "make", error) from error
    return envs, only_vector


def find_spec(env_id: str) -> gymnasium.envs.registration.EnvSpec:
    """Look up an id (`module:Id` imports the module); UnsupportedEnv suggests close matches."""
    name = imported(env_id)
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error as error:
        near = difflib.get_close_matches(name, list(gymnasium.registry), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "see gymnasium.pprint_registry()"
        raise UnsupportedEnv(f"no environment is called {env_id}; {hint}") from error


def _find_wrapper(
    env: gymnasium.Env[Any, Any] | None, kind: type[WrapperKind]
) -> WrapperKind | None:
    """Return an environment's outermost wrapper of a kind, or None."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, kind):
            return env
        env = env.env
    return None


def _autoreset_mode(env_id: str, envs: VectorEnv) -> AutoresetMode:
    mode = envs.metadata.get("autoreset_mode")
    if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
        raise UnsupportedEnv(
            f"{env_id}: its vector environment declares autoreset_mode {mode}; "
            "supported are SAME_STEP and NEXT_STEP"
        )
    return mode


def _boxes(env_id: str, envs: VectorEnv) -> tuple[spaces.Box, spaces.Box]:
    """Return the spaces of single environments. Raises UnsupportedEnv unless they are Boxes."""
    obs, act = envs.single_observation_space, envs.single_action_space
    if isinstance(obs, spaces.Dict):  # of a vector environment, which takes no wrappers
        raise UnsupportedEnv(
            f"{env_id} observes a Dict, but has no entry_point for single environments, which "
            "Dict observations need"
        )
    return check_boxes(env_id, obs, act)


def _dict_layout(envs: VectorEnv) -> DictLayout | None:
    """Return the columns of a Dict, if the environments observe one."""
    wrapper = _find_wrapper(getattr(envs, "envs", [None])[0], FlatDictEnv)
    return None if wrapper is None else wrapper.layout


def _named_groups(env_id: str, envs: VectorEnv, obs_dim: int) -> Groups:
    """Return the keys of a Dict, or the groups that a MuJoCo task names, or none."""
    if (layout := _dict_layout(envs)) is not None:
        return layout.groups
    env = getattr(envs, "envs", [None])[0]
    inner = getattr(env, "unwrapped", None)
    sizes, data = (getattr(inner, name, None) for name in ("observation_structure", "data"))
    if not isinstance(sizes, dict) or not all(isinstance(n, int) for n in sizes.values()):
        if not (is_native(env_id) and isinstance(data, mujoco.MjData)):
            return {}
        task = find_task(env_id)
        fields = ("qpos", "qvel", *task.derived)
        sizes = {
            name: part.shape[1]
            for name, part in task.observed_parts(
                {field: getattr(data, field)[None] for field in fields}
            ).items()
        }
    groups = consecutive({name: n for name, n in sizes.items() if name != "skipped_qpos"})
    # a wrapper may have changed the observation
    return groups if sum(map(len, groups.values())) == obs_dim else {}
