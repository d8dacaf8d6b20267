"""Randomised tasks: the quantities of a model that an episode draws, and their ranges.

A range is written `mass=0.8:1.2` and means a factor, uniform between its ends, drawn for each
episode. The command line checks ranges, so this module imports neither torch nor MuJoCo.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import NamedTuple

RANDOMIZE = "randomize"
"""The environment argument of native tasks with the ranges, as text."""
PARAMS = "params"
"""The group of an observation with the episode's factors, after all others."""
NATIVE_IDS = (
    "HalfCheetah-v5",
    "Hopper-v5",
    "Walker2d-v5",
    "Swimmer-v5",
    "Ant-v5",
    "Humanoid-v5",
    "HumanoidStandup-v5",
    "Reacher-v5",
    "Pusher-v5",
    "InvertedPendulum-v5",
    "InvertedDoublePendulum-v5",
    "HalfCheetah-v4",
    "Hopper-v4",
    "Walker2d-v4",
    "Swimmer-v4",
    "Ant-v4",
    "Humanoid-v4",
    "HumanoidStandup-v4",
    "Reacher-v4",
    "InvertedPendulum-v4",
    "InvertedDoublePendulum-v4",
)
"""Tasks that can be randomised: the ids of `dpd.envs.tasks.TASKS`, which needs torch."""
QUANTITIES: dict[str, tuple[str, ...]] = {
    # a body that becomes denser: its inertia grows with its mass
    "mass": ("body_mass", "body_inertia"),
    "friction": ("geom_friction",),
    "gear": ("actuator_gear",),
    "damping": ("dof_damping",),
    "stiffness": ("jnt_stiffness",),
    "fluid": ("opt.density", "opt.viscosity"),
}
"""MjModel fields that each factor multiplies, in the order of the columns of `params`."""


class Limits(NamedTuple):
    """The range of a factor."""

    low: float
    high: float


Ranges = dict[str, Limits]
"""Ranges by quantity, in the order of QUANTITIES."""


class BadRange(ValueError):
    """A text of ranges cannot be understood; the message names the part."""


def parse_ranges(text: str) -> Ranges:
    """Read ranges such as `mass=0.8:1.2,gear=0.9`; a single number is a constant factor.

    Raises BadRange.
    """
    found: Ranges = {}
    for word in text.split(",") if isinstance(text, str) else [repr(text)]:
        name, _, limits = word.strip().partition("=")
        if name not in QUANTITIES:
            near = difflib.get_close_matches(name, QUANTITIES, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise BadRange(
                f"'{word.strip()}' is no range: {hint}write for example mass=0.8:1.2, with one of "
                f"{', '.join(QUANTITIES)}"
            )
        if name in found:
            raise BadRange(f"{name} has two ranges; give one")
        found[name] = _limits_of(name, limits)
    return {name: found[name] for name in QUANTITIES if name in found}


def _limits_of(name: str, text: str) -> Limits:
    low, colon, high = text.partition(":")
    try:
        limits = Limits(float(low), float(high if colon else low))
    except ValueError as error:
        raise BadRange(f"'{name}={text}' is no range; write for example {name}=0.8:1.2") from error
    if not 0 < limits.low <= limits.high < math.inf:
        raise BadRange(
            f"the range of {name} is {text}, but a factor must be above 0, and the lower end first"
        )
    return limits


def format_ranges(ranges: Mapping[str, Limits]) -> str:
    """Write ranges as `parse_ranges` reads them."""
    return ",".join(f"{name}={low}:{high}" for name, (low, high) in ranges.items())
