"""Dict observation spaces as one vector, so that learners need to know nothing of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from dpd.envs.base import UnsupportedEnv
from dpd.envs.groups import consecutive, is_choosable

_EXACT = 2**24
"""float32 holds every integer up to this one."""


class DictLayout:
    """The columns of a Dict space: keys in sorted order, those of nested Dicts too.

    A Box key is flattened in C order, and a Discrete one is its number. Each key is a group of
    columns, `a.b` if it is nested. Raises UnsupportedEnv for other spaces.
    """

    def __init__(self, env_id: str, space: spaces.Dict) -> None:
        self._env_id, self._leaves = env_id, dict(_leaves(env_id, space))
        sizes = {".".join(path): _size(leaf) for path, leaf in self._leaves.items()}
        if len(sizes) < len(self._leaves):
            raise UnsupportedEnv(f"{env_id}: a key of its Dict observation is like a nested one")
        self.groups = consecutive(sizes)
        self.first_values = {
            self.groups[".".join(path)].start: int(leaf.start)
            for path, leaf in self._leaves.items()
            if isinstance(leaf, spaces.Discrete) and leaf.start != 0
        }
        self.space = spaces.Box(-np.inf, np.inf, (sum(sizes.values()),), np.float32)

    def flat(self, obs: Any, batch: tuple[int, ...] = ()) -> np.ndarray:
        """Return the observation, or a batch of them, as vectors -> [*batch, O] float32.

        Raises UnsupportedEnv if it does not fit the space.
        """
        parts = [self._part(obs, path, leaf, batch) for path, leaf in self._leaves.items()]
        return np.concatenate(parts, axis=-1, dtype=np.float32)

    def _part(
        self, obs: Any, path: tuple[str, ...], space: spaces.Space, batch: tuple[int, ...]
    ) -> np.ndarray:
        """Return the numbers of one key. Raises UnsupportedEnv if they do not fit its space."""
        called = f"{self._env_id} returned an observation whose '{'.'.join(path)}'"
        try:
            for key in path:
                obs = obs[key]
        except (KeyError, TypeError, IndexError) as error:
            raise UnsupportedEnv(f"{called} is missing") from error
        try:
            array = np.asarray(obs, space.dtype)
        except (TypeError, ValueError) as error:
            raise UnsupportedEnv(f"{called} is {obs!r:.60}, not an array") from error
        if array.shape != (*batch, *(space.shape or ())):
            raise UnsupportedEnv(
                f"{called} has shape {array.shape}; its observation space has {space.shape}"
            )
        return array.reshape(*batch, -1)


class FlatDictEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Wrapper that makes Dict observations float32 vectors; see `DictLayout`."""

    def __init__(self, env: gymnasium.Env[Any, Any], env_id: str) -> None:
        super().__init__(env)
        assert isinstance(env.observation_space, spaces.Dict)
        self.layout = DictLayout(env_id, env.observation_space)
        self.observation_space = self.layout.space

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        return self.layout.flat(obs), info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self.layout.flat(obs), reward, terminated, truncated, info


def without_dict(env: gymnasium.Env[Any, Any], env_id: str) -> gymnasium.Env[Any, Any]:
    """Wrap an environment with Dict observations; return others as they are."""
    return FlatDictEnv(env, env_id) if isinstance(env.observation_space, spaces.Dict) else env


def _leaves(
    env_id: str, space: spaces.Dict, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], spaces.Space]]:
    """Yield the path and space of every key that is no Dict itself, in their order."""
    inner: Mapping[Any, spaces.Space] = space.spaces
    if not inner:
        raise UnsupportedEnv(f"{env_id} observes an empty Dict")
    if odd := [key for key in inner if not isinstance(key, str) or not is_choosable(key)]:
        raise UnsupportedEnv(
            f"{env_id} observes a Dict with the key {odd[0]!r:.60}, which cannot be the name of a "
            "group of columns; rename it"
        )
    for key, leaf in sorted(inner.items()):
        if isinstance(leaf, spaces.Dict):
            yield from _leaves(env_id, leaf, (*path, key))
        elif reason := _unfit_kind(leaf):
            name = ".".join((*path, key))
            raise UnsupportedEnv(
                f"{env_id} observes {reason} as '{name}'; in a Dict, supported are Box that are "
                "not images, Discrete and Dict"
            )
        else:
            yield (*path, key), leaf


def _unfit_kind(space: spaces.Space) -> str | None:
    """Return the reason why a space cannot be a part of a vector, or None."""
    if isinstance(space, spaces.Discrete):
        last = max(abs(int(space.start)), abs(int(space.start + space.n - 1)))
        return None if last <= _EXACT else f"integers up to {last}, beyond float32's"
    if not isinstance(space, spaces.Box):
        return type(space).__name__
    return "images" if space.dtype == np.uint8 and len(space.shape) == 3 else None


def _size(space: spaces.Space) -> int:
    return int(np.prod(space.shape or ()))
