"""The six Gymnasium v5 MuJoCo tasks as one table, and what it says to do with a simulator's state.

The same functions run on NumPy and on torch: a state is a mapping from MjData field names to
arrays whose first axis is the environment. Read from Gymnasium 1.4's `envs/mujoco/*_v5.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium
import mujoco
import numpy as np
import torch

from dpd.envs.errors import UnsupportedEnv

Array: TypeAlias = Any  # np.ndarray or torch.Tensor, one kind throughout a call
State: TypeAlias = Mapping[str, Array]


@dataclass(frozen=True)
class Range:
    """An interval one coordinate must stay in."""

    qpos: int
    """Which coordinate."""
    low: float
    high: float
    closed: bool = False
    """Whether the ends belong to it."""


@dataclass(frozen=True)
class Task:
    """One row of the table. Defaults are what most tasks do."""

    env_id: str
    xml: str
    frame_skip: int
    ctrl_cost: float
    cost_field: str | None = None
    """State field the control cost squares; None: the action itself, at its own precision."""
    forward_reward: float = 1.0
    healthy_reward: float = 0.0
    ranges: tuple[Range, ...] = ()
    """Healthy means: each of these holds (none: the task never terminates) ..."""
    state_range: tuple[float, float] | None = None
    """... and qpos[state_from:] and qvel stay inside of this."""
    state_from: int = 0
    ends_unhealthy: bool = True
    """Whether a body that is not healthy ends its episode."""
    skip_qpos: int = 1
    """Leading coordinates left out of the observation."""
    clip_qvel: float = inf
    """Applies to the observation only."""
    extra: tuple[tuple[str, int], ...] = ()
    """Further fields observed, each from this row on (the world's body is left out)."""
    contact_range: tuple[float, float] = (-inf, inf)
    """Contact forces are clipped to this, for the observation and for their cost."""
    contact_cost: float | None = None
    """None: contact costs nothing, and no such term is reported."""
    contact_cost_range: tuple[float, float] = (-inf, inf)
    marker: tuple[str, int] = ("qpos", 0)
    """Field and index whose x, differenced, is the forward velocity; index -1: centre of mass."""
    qpos_noise: float = 0.1
    normal_qvel: bool = False
    """Whether the reset's velocity noise is normal rather than uniform."""
    max_steps: int = 1000
    places: tuple[str, ...] = ("x_position",)
    """The infos of a reset, which a step reports too: keys of `dpd.envs.infos.PLACES`."""

    @property
    def terminates(self) -> bool:
        return bool(self.ranges) and self.ends_unhealthy

    @property
    def derived(self) -> tuple[str, ...]:
        """MjData fields needed beside qpos, qvel and ctrl."""
        names = [name for name, _ in self.extra]
        names += [] if self.contact_cost is None else ["cfrc_ext"]
        return tuple(dict.fromkeys(n for n in [self.marker[0], *names] if n != "qpos"))

    @property
    def needs_contact_forces(self) -> bool:
        return "cfrc_ext" in self.derived


_PLANE = ("x_position", "y_position", "distance_from_origin")
_TENDONS = ("tendon_length", "tendon_velocity")

TASKS: dict[str, Task] = {
    task.env_id: task
    for task in (
        Task("HalfCheetah-v5", "half_cheetah.xml", 5, 0.1, normal_qvel=True),
        Task(
            "Hopper-v5",
            "hopper.xml",
            4,
            1e-3,
            healthy_reward=1.0,
            ranges=(Range(1, 0.7, inf), Range(2, -0.2, 0.2)),
            state_range=(-100.0, 100.0),
            state_from=2,
            clip_qvel=10.0,
            qpos_noise=5e-3,
            places=("x_position", "z_distance_from_origin"),
        ),
        Task(
            "Walker2d-v5",
            "walker2d_v5.xml",
            4,
            1e-3,
            healthy_reward=1.0,
            ranges=(Range(1, 0.8, 2.0), Range(2, -1.0, 1.0)),
            clip_qvel=10.0,
            qpos_noise=5e-3,
            places=("x_position", "z_distance_from_origin"),
        ),
        Task("Swimmer-v5", "swimmer.xml", 4, 1e-4, skip_qpos=2, places=_PLANE),
        Task(
            "Ant-v5",
            "ant.xml",
            5,
            0.5,
            healthy_reward=1.0,
            ranges=(Range(2, 0.2, 1.0, closed=True),),
            state_range=(-inf, inf),
            skip_qpos=2,
            extra=(("cfrc_ext", 1),),
            contact_range=(-1.0, 1.0),
            contact_cost=5e-4,
            marker=("xpos", 1),
            normal_qvel=True,
            places=_PLANE,
        ),
        Task(
            "Humanoid-v5",
            "humanoid.xml",
            5,
            0.1,
            # Gymnasium squares data.ctrl here, which is float64, and the float32 action elsewhere.
            cost_field="ctrl",
            forward_reward=1.25,
            healthy_reward=5.0,
            ranges=(Range(2, 1.0, 2.0),),
            skip_qpos=2,
            extra=(("cinert", 1), ("cvel", 1), ("qfrc_actuator", 6), ("cfrc_ext", 1)),
            contact_cost=5e-7,
            contact_cost_range=(-inf, 10.0),
            marker=("xipos", -1),
            qpos_noise=1e-2,
            places=("x_position", "y_position", *_TENDONS, "distance_from_origin"),
        ),
    )
}


def find_task(env_id: str) -> Task:
    """Look a task up; raises UnsupportedEnv with the ids that there are."""
    if env_id not in TASKS:
        known = ", ".join(TASKS)
        raise UnsupportedEnv(f"no native simulation of {env_id}; there is one of {known}")
    return TASKS[env_id]


def load_model(task: Task) -> mujoco.MjModel:
    """Compile the task's model: a file that Gymnasium ships, or one with a path of its own."""
    assets = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
    said: list[str] = []
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(said.append)
    try:
        model = mujoco.MjModel.from_xml_path(str(assets / task.xml))
    finally:
        mujoco.set_mju_user_warning(before)
    for text in said:
        # MuJoCo 4 says so of Gymnasium's half_cheetah.xml, into a file in the working directory
        if "'settotalmass' is deprecated" not in text:
            warnings.warn(text, RuntimeWarning, stacklevel=2)
    return model


def observe(task: Task, state: State) -> Array:
    """Observe every environment -> [M, O]."""
    qvel = state["qvel"]
    if task.clip_qvel < inf:
        qvel = qvel.clip(-task.clip_qvel, task.clip_qvel)
    parts = [state["qpos"][:, task.skip_qpos :], qvel]
    parts += [_rows(task, state, name)[:, first:] for name, first in task.extra]
    return _concat([part.reshape(len(part), -1) for part in parts])


def marker(task: Task, state: State, mass: Array, axis: int = 0) -> Array:
    """Place along x (axis 1: y) whose change is the velocity -> [M]; mass is the model's, per body.

    The centre of mass sums body by body: Gymnasium's einsum does, and it decides the last bit.
    """
    name, index = task.marker
    if name == "qpos":
        return state[name][:, index + axis]
    if index >= 0:
        return state[name][:, index, axis]
    if isinstance(mass, np.ndarray):
        return (state[name] * mass[:, None]).sum(1)[:, axis] / mass.sum()
    return (state[name][:, :, axis] * mass).sum(-1) / mass.sum()


def healthy(task: Task, state: State) -> Array:
    """Whether the body is still up -> [M] bool. Only for tasks that terminate."""
    qpos = state["qpos"]
    up = _inside(qpos, task.ranges[0])
    for limits in task.ranges[1:]:
        up = up & _inside(qpos, limits)
    if task.state_range is not None:
        low, high = task.state_range
        for part in (qpos[:, task.state_from :], state["qvel"]):
            up = up & ((part > low) & (part < high)).all(-1)
    return up


def reward_terms(
    task: Task, state: State, velocity: Array, act: Array, up: Array | None
) -> dict[str, Array]:
    """Price the step that led to `state`, term by term, costs negative -> {name: [M]}.

    `up` is None where the task knows no health.
    """
    terms = {"forward": task.forward_reward * velocity}
    if up is not None:
        terms["survive"] = up * task.healthy_reward
    squared = act if task.cost_field is None else state[task.cost_field]
    terms["ctrl"] = -(task.ctrl_cost * (squared * squared).sum(-1))
    if task.contact_cost is not None:
        force = _rows(task, state, "cfrc_ext")
        force = force.reshape(len(force), -1)
        cost = task.contact_cost * (force * force).sum(-1)
        terms["contact"] = -_clip(cost, task.contact_cost_range)
    return terms


def reward(task: Task, state: State, velocity: Array, act: Array, up: Array | None) -> Array:
    """Reward of the step that led to `state` -> [M]; `up` is None where the task knows no health.

    The order of the sums is Gymnasium's, gains - (costs): it decides the last bit.
    """
    terms = reward_terms(task, state, velocity, act, up)
    gain, cost = terms["forward"], terms["ctrl"]
    if "survive" in terms:
        gain = gain + terms["survive"]
    if "contact" in terms:
        cost = cost + terms["contact"]
    return gain + cost


def draw_reset(
    task: Task, model: mujoco.MjModel, generators: Sequence[np.random.Generator]
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one start per generator, positions before velocities -> qpos [K, nq], qvel [K, nv]."""
    noise = task.qpos_noise
    qpos = np.empty((len(generators), model.nq))
    qvel = np.empty((len(generators), model.nv))
    for row, generator in enumerate(generators):
        qpos[row] = generator.uniform(-noise, noise, model.nq)
        if task.normal_qvel:
            qvel[row] = noise * generator.standard_normal(model.nv)
        else:
            qvel[row] = generator.uniform(-noise, noise, model.nv)
    return model.qpos0 + qpos, qvel


def _inside(qpos: Array, limits: Range) -> Array:
    x = qpos[:, limits.qpos]
    if limits.closed:
        return (x >= limits.low) & (x <= limits.high)
    return (x > limits.low) & (x < limits.high)


def _rows(task: Task, state: State, name: str) -> Array:
    """Read a field as the task sees it: contact forces may be clipped."""
    return _clip(state[name], task.contact_range) if name == "cfrc_ext" else state[name]


def _clip(values: Array, limits: tuple[float, float]) -> Array:
    return values if limits == (-inf, inf) else values.clip(*limits)


def _concat(parts: Sequence[Array]) -> Array:
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(tuple(parts), dim=1)
    return np.concatenate(parts, axis=1)
