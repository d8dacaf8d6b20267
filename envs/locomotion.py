"""Gymnasium's tasks of walking bodies: forward velocity, health, costs of control and contact.

Source: Gymnasium 1.4's `envs/mujoco/*_v5.py` and `*_v4.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

import numpy as np

from dpd.envs.task import Array, SimState, Task


@dataclass(frozen=True)
class Range:
    """An interval in which a coordinate must stay."""

    qpos: int
    """Index of the coordinate."""
    low: float
    high: float
    closed: bool = False
    """True if the interval includes its ends."""


@dataclass(frozen=True, kw_only=True)
class Locomotion(Task):
    """A body that is paid for its forward velocity. Defaults are those of most tasks."""

    ctrl_cost: float
    skip_qpos: int = 1
    places: tuple[str, ...] = ("x_position",)
    axes: int = 1
    cost_field: str | None = None
    """State field that the control cost squares; None: the action, in its own precision."""
    forward_reward: float = 1.0
    healthy_reward: float = 0.0
    ranges: tuple[Range, ...] = ()
    """A body is healthy if each of these holds (empty: the task never terminates) ..."""
    state_range: tuple[float, float] | None = None
    """... and qpos[state_from:] and qvel stay inside this interval."""
    state_from: int = 0
    ends_unhealthy: bool = True
    """True if an unhealthy body ends its episode."""
    clip_qvel: float = inf
    """Applies to the observation only."""
    extra: tuple[tuple[str, int], ...] = ()
    """Further observed fields, with their first row (1 skips the world body)."""
    contact_range: tuple[float, float] = (-inf, inf)
    """Clip range of contact forces, in the observation and in their cost."""
    contact_cost: float | None = None
    """Weight of the contact cost; None: the task has no such term."""
    contact_cost_range: tuple[float, float] = (-inf, inf)
    uses_contacts: bool = True
    """False: contact forces are neither observed nor paid for."""
    velocity_of: tuple[str, int] = ("qpos", 0)
    """Field and index whose change in x is the forward velocity; index -1: centre of mass."""

    @property
    def terminates(self) -> bool:
        return bool(self.ranges) and self.ends_unhealthy

    @property
    def derived(self) -> tuple[str, ...]:
        names = [name for name, _ in self._observed]
        names += ["cfrc_ext"] if self._pays_contacts else []
        return tuple(dict.fromkeys(n for n in [self.velocity_of[0], *names] if n != "qpos"))

    def observed_parts(self, state: SimState) -> dict[str, Array]:
        qvel = state["qvel"]
        if self.clip_qvel < inf:
            qvel = qvel.clip(-self.clip_qvel, self.clip_qvel)
        parts = {"qpos": state["qpos"][:, self.skip_qpos :], "qvel": qvel}
        parts |= {name: self._rows(state, name)[:, first:] for name, first in self._observed}
        return {name: part.reshape(len(part), -1) for name, part in parts.items()}

    def marker(self, state: SimState, mass: Array, axis: int = 0) -> Array:
        """Return the x position (axis 1: y) whose change is the velocity [M].

        The centre of mass is summed body by body, as Gymnasium's einsum does: it decides the last
        bit.
        """
        name, index = self.velocity_of
        if name == "qpos":
            return state[name][:, index + axis]
        if index >= 0:
            return state[name][:, index, axis]
        if isinstance(mass, np.ndarray):
            return (state[name] * mass[..., None]).sum(1)[:, axis] / mass.sum(-1)
        return (state[name][:, :, axis] * mass).sum(-1) / mass.sum()

    def healthy(self, state: SimState) -> Array | None:
        if not self.ranges:
            return None
        qpos = state["qpos"]
        up = _inside(qpos, self.ranges[0])
        for limits in self.ranges[1:]:
            up = up & _inside(qpos, limits)
        if self.state_range is not None:
            low, high = self.state_range
            for part in (qpos[:, self.state_from :], state["qvel"]):
                up = up & ((part > low) & (part < high)).all(-1)
        return up

    def reward_terms(
        self, before: Array, after: Array, state: SimState, act: Array, up: Array | None
    ) -> dict[str, Array]:
        terms = {"reward_forward": self.forward_reward * ((after - before) / self.dt)}
        terms["reward_ctrl"] = -self._control_cost(state, act)
        if self._pays_contacts:
            terms["reward_contact"] = -self._impact_cost(state)
        if up is not None:
            terms["reward_survive"] = self.paid(up) * self.healthy_reward
        return terms

    def total(self, terms: Mapping[str, Array]) -> Array:
        """Add the terms as gains - (costs)."""
        gain, cost = terms["reward_forward"], terms["reward_ctrl"]
        if "reward_survive" in terms:
            gain = gain + terms["reward_survive"]
        if "reward_contact" in terms:
            cost = cost + terms["reward_contact"]
        return gain + cost

    @property
    def _observed(self) -> tuple[tuple[str, int], ...]:
        """The further fields that are observed."""
        return tuple(e for e in self.extra if self.uses_contacts or e[0] != "cfrc_ext")

    @property
    def _pays_contacts(self) -> bool:
        return self.uses_contacts and self.contact_cost is not None

    def _control_cost(self, state: SimState, act: Array) -> Array:
        squared = act if self.cost_field is None else state[self.cost_field]
        return self.ctrl_cost * (squared * squared).sum(-1)

    def _impact_cost(self, state: SimState) -> Array:
        assert self.contact_cost is not None
        force = self._rows(state, "cfrc_ext")
        force = force.reshape(len(force), -1)
        return _clip(self.contact_cost * (force * force).sum(-1), self.contact_cost_range)

    def _rows(self, state: SimState, name: str) -> Array:
        """Return a field, with contact forces clipped to the task's range."""
        return _clip(state[name], self.contact_range) if name == "cfrc_ext" else state[name]


@dataclass(frozen=True, kw_only=True)
class Standup(Locomotion):
    """A body on its back that is paid for the height that it reaches, and never falls."""

    axes: int = 0
    height: int = 2
    uph_cost_weight: float = 1.0
    """An argument of Gymnasium's that its reward does not use."""

    @property
    def notes(self) -> tuple[str, ...]:
        used = self.uph_cost_weight == type(self).uph_cost_weight
        return () if used else (f"{self.env_id}'s reward does not use uph_cost_weight",)

    def reward_terms(
        self, before: Array, after: Array, state: SimState, act: Array, up: Array | None
    ) -> dict[str, Array]:
        timestep = float(self.model.opt.timestep)
        return {
            "reward_linup": state["qpos"][:, self.height] / timestep,
            "reward_quadctrl": -self._control_cost(state, act),
            "reward_impact": -self._impact_cost(state),
        }

    def total(self, terms: Mapping[str, Array]) -> Array:
        return Task.total(self, terms) + 1


def _inside(qpos: Array, limits: Range) -> Array:
    x = qpos[:, limits.qpos]
    if limits.closed:
        return (x >= limits.low) & (x <= limits.high)
    return (x > limits.low) & (x < limits.high)


def _clip(values: Array, limits: tuple[float, float]) -> Array:
    return values if limits == (-inf, inf) else values.clip(*limits)
