"""The interface of a task in the native simulation: a model, and what is made of its state.

The functions of a task run on NumPy and on torch: a state maps MjData field names to arrays whose
first axis is the environment.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import mujoco
import numpy as np
import torch

from dpd.envs.base import UnsupportedEnv
from dpd.envs.groups import Groups, consecutive
from dpd.envs.randomization import PARAMS

Array: TypeAlias = Any  # np.ndarray or torch.Tensor, one kind throughout a call
SimState: TypeAlias = Mapping[str, Array]
AFTER_STEP = frozenset({"cacc", "cfrc_int", "cfrc_ext"})
"""MjData fields that mj_step leaves to mj_rnePostConstraint."""
VIEW_ONLY = frozenset(
    {
        "camera_id",
        "camera_name",
        "default_camera_config",
        "height",
        "max_geom",
        "visual_options",
        "width",
    }
)
"""Arguments of all of Gymnasium's MuJoCo tasks that change images only."""


class Goal(NamedTuple):
    """Two neighbouring coordinates that a start draws from a rectangle, until they fit a circle."""

    qpos: int
    """Index of the first one, from the end (negative)."""
    low: tuple[float, float]
    high: tuple[float, float]
    radius: float
    is_inside: bool
    """True if the point must be inside of the circle around 0, False if it must be outside."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model and the rules of its episodes. A start is the model's pose with noise."""

    env_id: str
    xml: str
    """A file of Gymnasium's assets, or an absolute path."""
    frame_skip: int
    max_steps: int = 1000
    skip_qpos: int = 0
    """Number of leading coordinates left out of the observation."""
    qpos_noise: float | None = 0.1
    """None: a start draws no noise for the positions."""
    qvel_noise: float | None = None
    """None: that of the positions."""
    normal_qvel: bool = False
    """True if the velocity noise of a start is normal, False if it is uniform."""
    goal: Goal | None = None
    still: int = 0
    """Number of last velocities that are 0 at the start."""
    places: tuple[str, ...] = ()
    """Keys of `dpd.envs.vector.PLACES`: the infos that both resets and steps report."""
    height: int = 1
    """Index of the vertical coordinate."""
    axes: int = 0
    """Number of axes whose velocity `dpd.envs.vector` reports."""
    pays_fall: bool = False
    """True if the step that ends an episode has the bonus of health too, as in version 4."""

    @cached_property
    def model(self) -> mujoco.MjModel:
        """The compiled model. Copy it (`load_model`) to change it."""
        try:
            with python_warnings():
                return mujoco.MjModel.from_xml_path(str(self.path))
        except ValueError as error:
            reason = str(error).strip().split("\n")[0]
            raise UnsupportedEnv(f"{self.env_id}: {self.path} is no model: {reason}") from error

    @property
    def path(self) -> Path:
        """The file of the model."""
        # Finding Gymnasium instead of importing it makes `dpd train` start a tenth of a second
        # sooner.
        spec = find_spec("gymnasium")
        assert spec is not None and spec.origin is not None
        return Path(spec.origin).parent / "envs" / "mujoco" / "assets" / self.xml

    @property
    def dt(self) -> float:
        """Seconds of simulated time in a step."""
        return float(self.model.opt.timestep) * self.frame_skip

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks to print once."""
        return ()

    @property
    def terminates(self) -> bool:
        """True if an episode can end before its time."""
        return False

    @property
    def derived(self) -> tuple[str, ...]:
        """MjData fields needed in addition to qpos, qvel and ctrl."""
        return ()

    @property
    def needs_contact_forces(self) -> bool:
        return not AFTER_STEP.isdisjoint(self.derived)

    def body(self, name: str) -> int:
        """Return a body's index. Raises UnsupportedEnv if the model has none of that name."""
        index = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_BODY, name)
        if index < 0:
            raise UnsupportedEnv(f"{self.env_id}: the model {self.xml} has no body called {name}")
        return int(index)

    def observed_parts(self, state: SimState) -> dict[str, Array]:
        """Return the groups of an observation, in their order -> {name: [M, size]}."""
        return {"qpos": state["qpos"][:, self.skip_qpos :], "qvel": state["qvel"]}

    def observe(self, state: SimState) -> Array:
        """Return the observations [M, O]."""
        return joined(list(self.observed_parts(state).values()))

    def observation_groups(self, state: SimState, n_params: int = 0) -> Groups:
        """Return the columns of each group of the observation.

        `n_params` drawn factors of a randomised task follow the others.
        """
        sizes = {name: part.shape[1] for name, part in self.observed_parts(state).items()}
        return consecutive({**sizes, PARAMS: n_params})

    def marker(self, state: SimState, mass: Array, axis: int = 0) -> Array:
        """Return what a reward needs of the state before the step [M, ...].

        mass [n_bodies], or in NumPy [M, n_bodies]. Here it is a coordinate that is not used.
        """
        return state["qpos"][:, 0]

    def healthy(self, state: SimState) -> Array | None:
        """Return a mask [M] of the states in which an episode may go on; None if all are."""
        return None

    def paid(self, up: Array) -> Array:
        """Return the mask [M] of the steps with the bonus of health, from that of `healthy`."""
        return up | (self.pays_fall and self.terminates)

    def reward_terms(
        self, before: Array, after: Array, state: SimState, act: Array, up: Array | None
    ) -> dict[str, Array]:
        """Return the terms of the reward by their name in Gymnasium's infos -> {name: [M]}.

        `before` and `after` are the markers of the step to `state`, `up` the mask of `healthy`.
        Costs are negative terms.
        """
        raise NotImplementedError

    def total(self, terms: Mapping[str, Array]) -> Array:
        """Add the terms [M] in Gymnasium's order, which decides the last bit."""
        first, *others = terms.values()
        reward = first * 1.0  # an integer term is a reward too
        for term in others:
            reward = reward + term
        return reward

    def pose(self) -> np.ndarray:
        """Return the positions [nq] around which a start is drawn."""
        return np.array(self.model.qpos0)

    def draw_start(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw a start, positions before velocities -> qpos [nq], qvel [nv]."""
        qpos, noise = self.pose(), self.qpos_noise
        if noise is not None:
            qpos = qpos + generator.uniform(-noise, noise, self.model.nq)
        if self.goal is not None:
            last = self.goal.qpos + 2 or None  # a slice to the end has no index
            qpos[self.goal.qpos : last] = _drawn_goal(self.goal, generator)
        speed = self.velocity_noise
        if self.normal_qvel:
            qvel = speed * generator.standard_normal(self.model.nv)
        else:
            qvel = generator.uniform(-speed, speed, self.model.nv)
        qvel[self.model.nv - self.still :] = 0.0
        return qpos, qvel

    @property
    def velocity_noise(self) -> float:
        """Scale of the noise of a start's velocities."""
        noise = self.qpos_noise if self.qvel_noise is None else self.qvel_noise
        return 0.0 if noise is None else noise


def _drawn_goal(goal: Goal, generator: np.random.Generator) -> np.ndarray:
    while True:
        point = generator.uniform(goal.low, goal.high)
        distance = np.linalg.norm(point)
        if distance < goal.radius if goal.is_inside else distance > goal.radius:
            return point


def load_model(task: Task) -> mujoco.MjModel:
    """Return a model of the task for the caller alone."""
    return copy.copy(task.model)


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


def joined(parts: Sequence[Array]) -> Array:
    """Join parts [M, ...] into rows [M, O]."""
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(tuple(parts), dim=1)
    return np.concatenate(parts, axis=1)


def sines(angle: Array) -> tuple[Array, Array]:
    """Return sine and cosine of angles [M, K]."""
    if isinstance(angle, torch.Tensor):
        return angle.sin(), angle.cos()
    return np.sin(angle), np.cos(angle)


def norm(vector: Array) -> Array:
    """Return the lengths of vectors [M, K] -> [M]."""
    if isinstance(vector, torch.Tensor):
        return vector.norm(dim=1)
    vector = np.ascontiguousarray(vector)
    # matmul uses BLAS's dot product, as np.linalg.norm of a vector does: the same last bit
    squared: np.ndarray = vector[:, None, :] @ vector[:, :, None]
    return np.sqrt(squared[:, 0, 0])


def square(x: Array) -> Array:
    """Return x [M] squared as Python's `x**2` does, which NumPy's arrays do not.

    The power of a NumPy scalar is the C library's `pow`, whose last bit may differ from x * x.
    """
    if isinstance(x, torch.Tensor):
        return x * x
    return np.array([value**2 for value in x.tolist()])
