"""Episodes of randomised tasks: draw factors, and scale a model's fields by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mujoco
import numpy as np

from dpd.envs.randomization import QUANTITIES, Limits


def drawn_factors(
    ranges: Mapping[str, Limits], generators: Sequence[np.random.Generator]
) -> np.ndarray:
    """Draw the factors of an episode per generator -> [K, P].

    A constant factor takes no random number, so that it changes no later draw.
    """
    factors = np.empty((len(generators), len(ranges)))
    for row, generator in zip(factors, generators, strict=True):
        for k, (low, high) in enumerate(ranges.values()):
            row[k] = low if low == high else generator.uniform(low, high)
    return factors


def fields_of(ranges: Mapping[str, Limits]) -> list[tuple[str, int]]:
    """Return the MjModel fields to scale, each with the column of its factor."""
    return [(field, k) for k, name in enumerate(ranges) for field in QUANTITIES[name]]


def field_of(model: mujoco.MjModel, name: str) -> Any:
    """Return a field of a model, or of its options, by a name of QUANTITIES."""
    owner = model.opt if name.startswith("opt.") else model
    return getattr(owner, name.removeprefix("opt."))


def scale_model(
    model: mujoco.MjModel, base: mujoco.MjModel, ranges: Mapping[str, Limits], row: np.ndarray
) -> None:
    """Set a model's fields to those of `base` times an episode's factors [P].

    Follow it with mj_setConst, for the constants that MuJoCo derives from them.
    """
    for name, k in fields_of(ranges):
        value = field_of(base, name) * row[k]
        owner = model.opt if name.startswith("opt.") else model
        if isinstance(value, np.ndarray):
            getattr(owner, name)[:] = value
        else:
            setattr(owner, name.removeprefix("opt."), value)


def without_effect(model: mujoco.MjModel, ranges: Mapping[str, Limits]) -> str | None:
    """Return the first quantity whose factor would change nothing in this model, or None."""
    for name in ranges:
        if not any(np.any(field_of(model, field)) for field in QUANTITIES[name]):
            return name
    touches = np.any(model.geom_contype) and np.any(model.geom_conaffinity)
    return "friction" if "friction" in ranges and not (touches or model.npair) else None
