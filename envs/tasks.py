"""The six Gymnasium v5 MuJoCo tasks as one table, with their observations and rewards.

The same functions run on NumPy and on torch: a state maps MjData field names to arrays whose
first axis is the environment. Source: Gymnasium 1.4's `envs/mujoco/*_v5.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import Any, TypeAlias

import mujoco
import numpy as np
import torch

from dpd.envs.base import UnsupportedEnv
from dpd.envs.groups import Groups, consecutive
from dpd.envs.randomization import PARAMS

Array: TypeAlias = Any  # np.ndarray or torch.Tensor, one kind throughout a call
SimState: TypeAlias = Mapping[str, Array]


@dataclass(frozen=True)
class Range:
    """An interval in which a coordinate must stay."""

    qpos: int
    """Index of the coordinate."""
    low: float
    high: float
    closed: bool = False
    """True if the interval includes its ends."""


@dataclass(frozen=True)
class Task:
    """One row of the table. Defaults are those of most tasks."""

    env_id: str
    xml: str
    frame_skip: int
    ctrl_cost: float
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
    skip_qpos: int = 1
    """Number of leading coordinates left out of the observation."""
    clip_qvel: float = inf
    """Applies to the observation only."""
    extra: tuple[tuple[str, int], ...] = ()
    """Further observed fields, with their first row (1 skips the world body)."""
    contact_range: tuple[float, float] = (-inf, inf)
    """Clip range of contact forces, in the observation and in their cost."""
    contact_cost: float | None = None
    """Weight of the contact cost; None: the task has no such term."""
    contact_cost_range: tuple[float, float] = (-inf, inf)
    marker: tuple[str, int] = ("qpos", 0)
    """Field and index whose change in x is the forward velocity; index -1: centre of mass."""
    qpos_noise: float = 0.1
    normal_qvel: bool = False
    """True if the velocity noise of a reset is normal, False if it is uniform."""
    max_steps: int = 1000
    places: tuple[str, ...] = ("x_position",)
    """Keys of `dpd.envs.vector.PLACES`: the infos that both resets and steps report."""

    @property
    def terminates(self) -> bool:
        return bool(self.ranges) and self.ends_unhealthy

    @property
    def derived(self) -> tuple[str, ...]:
        """MjData fields needed in addition to qpos, qvel and ctrl."""
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
    """Look up a task. Raises UnsupportedEnv with the known ids."""
    if env_id not in TASKS:
        known = ", ".join(TASKS)
        raise UnsupportedEnv(f"no native simulation of {env_id}; there is one of {known}")
    return TASKS[env_id]


def load_model(task: Task) -> mujoco.MjModel:
    """Compile the task's model: a file of Gymnasium's assets, or an absolute path."""
    # Finding Gymnasium instead of importing it makes `dpd train` start a tenth of a second sooner.
    spec = find_spec("gymnasium")
    assert spec is not None and spec.origin is not None
    assets = Path(spec.origin).parent / "envs" / "mujoco" / "assets"
    with python_warnings():
        return mujoco.MjModel.from_xml_path(str(assets / task.xml))


@contextmanager
def python_warnings() -> Iterator[None]:
    """Turn MuJoCo's warnings while models are compiled into Python's, and drop a known one."""
    messages: list[str] = []
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(messages.append)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)
    for text in messages:
        # MuJoCo 4 warns about Gymnasium's half_cheetah.xml, in a file in the working directory
        if "'settotalmass' is deprecated" not in text:
            warnings.warn(text, RuntimeWarning, stacklevel=4)


def observed_parts(task: Task, state: SimState) -> dict[str, Array]:
    """Return the groups of an observation, in their order -> {name: [M, size]}."""
    qvel = state["qvel"]
    if task.clip_qvel < inf:
        qvel = qvel.clip(-task.clip_qvel, task.clip_qvel)
    parts = {"qpos": state["qpos"][:, task.skip_qpos :], "qvel": qvel}
    parts |= {name: _rows(task, state, name)[:, first:] for name, first in task.extra}
    return {name: part.reshape(len(part), -1) for name, part in parts.items()}


def observe(task: Task, state: SimState) -> Array:
    """Return the observations [M, O]."""
    return _concat(list(observed_parts(task, state).values()))


def observation_groups(task: Task, state: SimState, n_params: int = 0) -> Groups:
    """Return the columns of each group of the task's observation, by its MjData field.

    `n_params` drawn factors of a randomised task follow the others.
    """
    sizes = {name: part.shape[1] for name, part in observed_parts(task, state).items()}
    return consecutive({**sizes, PARAMS: n_params})


def marker(task: Task, state: SimState, mass: Array, axis: int = 0) -> Array:
    """Return the x position (axis 1: y) whose change is the velocity [M].

    mass [n_bodies], or in NumPy [M, n_bodies]. The centre of mass is summed body by body, as
    Gymnasium's einsum does: it decides the last bit.
    """
    name, index = task.marker
    if name == "qpos":
        return state[name][:, index + axis]
    if index >= 0:
        return state[name][:, index, axis]
    if isinstance(mass, np.ndarray):
        return (state[name] * mass[..., None]).sum(1)[:, axis] / mass.sum(-1)
    return (state[name][:, :, axis] * mass).sum(-1) / mass.sum()


def healthy(task: Task, state: SimState) -> Array:
    """Return a mask [M] of the healthy bodies; only for tasks with `ranges`."""
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
    task: Task, state: SimState, velocity: Array, act: Array, up: Array | None
) -> dict[str, Array]:
    """Return the terms of `reward`, costs as negative terms -> {name: [M]}."""
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


def reward(task: Task, state: SimState, velocity: Array, act: Array, up: Array | None) -> Array:
    """Return the reward [M] of the step to `state`; `up` is the mask of `healthy`, or None.

    Sums have Gymnasium's order, gains - (costs), which decides the last bit.
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
    """Draw a start per generator, positions before velocities -> qpos [K, nq], qvel [K, nv]."""
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


def _rows(task: Task, state: SimState, name: str) -> Array:
    """Return a field, with contact forces clipped to the task's range."""
    return _clip(state[name], task.contact_range) if name == "cfrc_ext" else state[name]


def _clip(values: Array, limits: tuple[float, float]) -> Array:
    return values if limits == (-inf, inf) else values.clip(*limits)


def _concat(parts: Sequence[Array]) -> Array:
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(tuple(parts), dim=1)
    return np.concatenate(parts, axis=1)
