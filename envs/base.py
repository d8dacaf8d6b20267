"""The interface of every environment backend, its errors, and its rules for actions and bounds.

Notation: M environments (N learners x E each, learner-major) · O observation · A action.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dpd.envs.groups import Groups

SEEDS = 2**31
"""Number of seeds: NumPy's legacy generators, which dm_control uses, and EnvPool's int32 take no
more."""


class UnsupportedEnv(ValueError):
    """This suite can't train on the environment; the message gives the reason and a remedy."""


class FailedEnv(RuntimeError):
    """The environment's own code raised an error, which is the `__cause__` of this one."""

    def __init__(self, env_id: str, call: str, error: Exception) -> None:
        super().__init__(f"{call}() of {env_id} raised {type(error).__name__}: {error}")


@contextmanager
def own_errors(env_id: str, call: str) -> Iterator[None]:
    """Turn an error in the environment's own code into FailedEnv."""
    try:
        yield
    except (UnsupportedEnv, FailedEnv):
        raise
    except Exception as error:
        raise FailedEnv(env_id, call, error) from error


class NonFiniteAction(ValueError):
    """Actions are NaN for the environments `ids`."""

    def __init__(self, ids: list[int]) -> None:
        super().__init__(f"act is NaN for environments {ids}; the policy has diverged")
        self.ids = ids


class Step(NamedTuple):
    """One step of M environments, float32 on the environment's device.

    `obs` is the observation to act on next (already reset where an episode ended), `next_obs` the
    true successor, so `reward + gamma * (1 - terminated) * V(next_obs)` is correct everywhere.
    `valid` is false where no transition took place: the backend spent the step on a reset, or the
    physics became unstable. The reward is 0 there, and returns and lengths skip the step.
    """

    obs: Tensor  # [M, O]
    next_obs: Tensor  # [M, O]
    reward: Tensor  # [M]
    terminated: Tensor  # [M] bool
    truncated: Tensor  # [M] bool
    valid: Tensor  # [M] bool


@dataclass(frozen=True)
class EnvSpec:
    """An environment's sizes, bounds and limits, as far as an agent needs them."""

    env_id: str
    backend: str
    obs_dim: int
    act_dim: int
    act_low: np.ndarray  # [A] float32, rounded inwards
    act_high: np.ndarray  # [A] float32
    can_snapshot: bool
    max_steps: int
    """Time limit of an episode, in steps."""
    notes: tuple[str, ...] = ()
    """Differences from the task's own simulation."""
    obs_shape: tuple[int, ...] | None = None
    """Shape of the original observations, which are flattened here; None if they are vectors."""
    act_shape: tuple[int, ...] | None = None
    """Shape of the original actions, likewise."""
    groups: Groups = field(default_factory=dict)
    """Columns of each named group of the observation, in their order."""
    first_values: Mapping[int, int] = field(default_factory=dict)
    """Least value of each column that is a Discrete space which does not begin at 0."""


class Env(Protocol):
    """M environments stepped together; actions in [-1, 1] are rescaled to the task's bounds."""

    spec: EnvSpec
    n_envs: int

    def reset(self) -> Tensor:
        """Start M fresh episodes -> obs [M, O]. The first call uses the seeds given at creation."""
        ...

    def stagger(self, share: np.ndarray) -> None:
        """Age the running episodes by share [M] in [0, 1) of the time limit.

        Each of them is truncated that much earlier; states do not change. Raises UnsupportedEnv
        if the environment has no time limit.
        """
        ...

    def step(self, act: Tensor) -> Step:
        """Take a step with act [M, A] in [-1, 1]; values beyond are clipped."""
        ...

    def snapshot(self) -> Snapshot:
        """Copy the whole state (physics, counters, generators), one row per environment."""
        ...

    def restore(self, snapshot: Snapshot, ids: Sequence[int] | None = None) -> Tensor:
        """Put row k of a snapshot into environment ids[k] (None: k) -> obs [M, O]."""
        ...

    def trouble(self) -> list[str]:
        """Return warnings about deviations from the task's simulation; may wait for a device."""
        return []

    def close(self) -> None:
        """Release processes, threads and simulators."""
        ...


EnvKwargs = dict[str, Any]
Snapshot = dict[str, np.ndarray]
"""A copy of environments' states: named arrays whose first axis is the environment."""


def bounds_defect(low: np.ndarray, high: np.ndarray) -> str | None:
    """Return the reason why bounds [A] are unusable, or None.

    Policies act in [-1, 1] and store bounds in float32, so the width must be a positive float32.
    """
    with np.errstate(over="ignore"):
        width = high.astype(np.float32) - low.astype(np.float32)
    if not (width > 0).all():
        k = int(np.flatnonzero(~(width > 0))[0])
        return f"action {k} has no room between its bounds, {low[k]:g} and {high[k]:g}"
    if not np.isfinite(width).all():
        k = int(np.flatnonzero(~np.isfinite(width))[0])
        return (
            f"the bounds of action {k}, {low[k]:g} and {high[k]:g}, are too far apart for float32"
        )
    return None


def inner_bounds(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round bounds [A] inwards to float32, so that numbers between them are valid in float64 too.

    float32(0.1), for example, exceeds the float64 number 0.1, and a float64 Box rejects it.
    """
    with np.errstate(over="ignore"):
        near_low, near_high = low.astype(np.float32), high.astype(np.float32)
    up, down = np.float32(np.inf), np.float32(-np.inf)
    return (
        np.where(near_low < low, np.nextafter(near_low, up), near_low),
        np.where(near_high > high, np.nextafter(near_high, down), near_high),
    )


class ActionScale:
    """Map actions from [-1, 1] to the bounds in float32; the identity for bounds of ±1."""

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        self._low, self._high = low.astype(np.float32), high.astype(np.float32)
        wide_low, wide_high = low.astype(np.float64), high.astype(np.float64)
        self._half = ((wide_high - wide_low) / 2).astype(np.float32)
        self._middle = ((wide_high + wide_low) / 2).astype(np.float32)
        self._is_identity = bool((self._half == 1).all() and (self._middle == 0).all())

    def __call__(self, act: Tensor) -> np.ndarray:
        """Clip act [M, A] to [-1, 1] and rescale -> [M, A]. Raises NonFiniteAction for NaN."""
        unit = act.detach().clamp(-1.0, 1.0).float().cpu().numpy()
        if np.isnan(unit.sum()):
            raise NonFiniteAction(np.flatnonzero(np.isnan(unit).any(1)).tolist())
        if self._is_identity:
            return unit
        scaled: np.ndarray = unit * self._half + self._middle
        return scaled.clip(self._low, self._high)  # rounding may exceed a bound

    def on(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """Return the same map, bit for bit, for tensors on a device; NaN stays NaN."""
        bounds = (self._half, self._middle, self._low, self._high)
        half, middle, low, high = (torch.tensor(bound, device=device) for bound in bounds)

        def scale(act: Tensor) -> Tensor:
            unit = act.detach().clamp(-1.0, 1.0).float()
            return (unit * half + middle).clamp(low, high)

        return scale


def distinct_rows(ids: Sequence[int] | None, n_envs: int) -> np.ndarray:
    """Return environments `ids` (None: all) -> [K]. Raises ValueError unless distinct and known."""
    rows = np.arange(n_envs) if ids is None else np.asarray(ids, dtype=np.int64)
    if len(np.unique(rows)) != len(rows) or not np.isin(rows, np.arange(n_envs)).all():
        raise ValueError(f"ids must be distinct and in [0, {n_envs}), got {rows.tolist()}")
    return rows


def snapshot_rows(
    snapshot: Snapshot, ids: Sequence[int] | None, n_envs: int, obs_dim: int, env_id: str
) -> np.ndarray:
    """Check that a snapshot's rows fit environments `ids` (None: all) -> ids [K]."""
    rows, (n_rows, width) = distinct_rows(ids, n_envs), snapshot["obs"].shape
    if n_rows != len(rows):
        raise ValueError(f"the snapshot has {n_rows} rows for {len(rows)} environments")
    if width != obs_dim:
        raise ValueError(f"the snapshot is not one of {env_id}")
    return rows


class OnDevice(Env):
    """Wrap an `Env` so that its tensors live on a device; actions are copied from there."""

    def __init__(self, env: Env, device: torch.device) -> None:
        self._env, self._device = env, device
        self.spec, self.n_envs = env.spec, env.n_envs

    def reset(self) -> Tensor:
        return self._env.reset().to(self._device)

    def stagger(self, share: np.ndarray) -> None:
        self._env.stagger(share)

    def step(self, act: Tensor) -> Step:
        return Step(*(x.to(self._device, non_blocking=True) for x in self._env.step(act)))

    def snapshot(self) -> Snapshot:
        return self._env.snapshot()

    def restore(self, snapshot: Snapshot, ids: Sequence[int] | None = None) -> Tensor:
        return self._env.restore(snapshot, ids).to(self._device)

    def trouble(self) -> list[str]:
        return self._env.trouble()

    def close(self) -> None:
        self._env.close()
