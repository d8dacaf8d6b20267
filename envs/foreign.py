"""Environments of other packages: the spaces that learners can use, and what all of them share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, NoReturn

import gymnasium
import numpy as np
from gymnasium import spaces
from torch import Tensor

from dpd.envs.base import (
    ActionScale,
    Env,
    EnvSpec,
    Snapshot,
    UnsupportedEnv,
    bounds_defect,
    inner_bounds,
)

_SUPPORTED = (
    "supported are Box observations that are not images, Dicts of them, and Box actions within "
    "bounds"
)


def check_boxes(
    env_id: str, obs: gymnasium.Space[Any], act: gymnasium.Space[Any]
) -> tuple[spaces.Box, spaces.Box]:
    """Return the spaces of one environment. Raises UnsupportedEnv if no learner can use them."""
    if not isinstance(obs, spaces.Box):
        raise UnsupportedEnv(f"{env_id} observes {_name(obs)}; {_SUPPORTED}")
    if obs.dtype == np.uint8 and len(obs.shape) == 3:
        raise UnsupportedEnv(f"{env_id} observes images; {_SUPPORTED}")
    if not isinstance(act, spaces.Box) or not np.issubdtype(act.dtype, np.floating):
        raise UnsupportedEnv(f"{env_id} takes {_name(act)} actions; {_SUPPORTED}")
    if not act.is_bounded():
        raise UnsupportedEnv(f"{env_id} takes actions without bounds; {_SUPPORTED}")
    if defect := bounds_defect(*inner_bounds(act.low.reshape(-1), act.high.reshape(-1))):
        raise UnsupportedEnv(f"{env_id} cannot be acted in: {defect}")
    return obs, act


class ForeignEnv(Env):
    """Environments of another package, which acts within Boxes and cannot be copied."""

    PACKAGE: ClassVar[str]
    """As messages name it: EnvPool, for example."""
    _act_space: spaces.Box
    _envs: Any

    def _act_within(self, act: Tensor) -> np.ndarray:
        """Return act [M, A] in [-1, 1] as the package takes it -> [M, *shape of an action]."""
        space = self._act_space
        scaled = self._scale(act).astype(space.dtype)  # monotone: stays within the bounds
        return scaled.reshape(self.n_envs, *space.shape)

    @cached_property
    def _scale(self) -> ActionScale:
        return ActionScale(self.spec.act_low, self.spec.act_high)

    def snapshot(self) -> NoReturn:
        raise UnsupportedEnv(
            f"{self.spec.env_id}: {self.PACKAGE} environments can't be copied; the native backend "
            "can"
        )

    def restore(self, snapshot: Snapshot, ids: Sequence[int] | None = None) -> NoReturn:
        self.snapshot()

    def close(self) -> None:
        self._envs.close()


def box_spec(env_id: str, backend: str, obs: spaces.Box, act: spaces.Box, **others: Any) -> EnvSpec:
    """Describe an environment that cannot be copied; others are further fields of `EnvSpec`."""
    low, high = inner_bounds(act.low.reshape(-1), act.high.reshape(-1))
    return EnvSpec(
        env_id,
        backend,
        int(np.prod(obs.shape)),
        low.size,
        low,
        high,
        can_snapshot=False,
        obs_shape=obs.shape if len(obs.shape) != 1 else None,
        act_shape=act.shape if len(act.shape) != 1 else None,
        **others,
    )


def _name(space: gymnasium.Space[Any]) -> str:
    dtype = f"({space.dtype})" if isinstance(space, spaces.Box) else ""
    return type(space).__name__ + dtype
