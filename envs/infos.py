"""The infos that Gymnasium's MuJoCo tasks give, for many environments at once.

Read from Gymnasium 1.4's `envs/mujoco/*_v5.py`; equal to them bit for bit, and in type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import mujoco
import numpy as np

from dpd.envs import tasks
from dpd.envs.tasks import State, Task

Arrays = dict[str, np.ndarray]
Infos = dict[str, Any]


def _distance(state: State, _: mujoco.MjModel) -> np.ndarray:
    place = np.ascontiguousarray(state["qpos"][:, :2])
    # a product of matrices takes BLAS's dot product, as np.linalg.norm of one vector does
    squared: np.ndarray = place[:, None, :] @ place[:, :, None]
    return np.sqrt(squared[:, 0, 0])


PLACES: dict[str, Callable[[State, mujoco.MjModel], np.ndarray]] = {
    "x_position": lambda state, _: state["qpos"][:, 0].copy(),
    "y_position": lambda state, _: state["qpos"][:, 1].copy(),
    "z_distance_from_origin": lambda state, model: state["qpos"][:, 1] - model.qpos0[1],
    "distance_from_origin": _distance,
    "tendon_length": lambda state, _: state["ten_length"].copy(),
    "tendon_velocity": lambda state, _: state["ten_velocity"].copy(),
}
FIELDS = {"tendon_length": "ten_length", "tendon_velocity": "ten_velocity"}
_TERMS = ("forward", "ctrl", "contact", "survive")


def fields(task: Task) -> tuple[str, ...]:
    """Name the MjData fields that the infos need beside the task's own."""
    return tuple(FIELDS[name] for name in task.places if name in FIELDS)


def place_infos(task: Task, model: mujoco.MjModel, state: State) -> Arrays:
    """Describe where every body is, as a reset does -> {name: [M] or [M, K]}."""
    return {name: PLACES[name](state, model) for name in task.places}


def position(task: Task, model: mujoco.MjModel, state: State) -> np.ndarray:
    """Measure what the velocities of the infos are differences of -> [M, 1 or 2]: x, and y."""
    axes = 2 if "y_position" in task.places else 1
    places = [tasks.marker(task, state, model.body_mass, axis) for axis in range(axes)]
    return np.stack(places, axis=1)


def step_infos(
    task: Task, model: mujoco.MjModel, state: State, velocity: np.ndarray, act: np.ndarray
) -> Arrays:
    """Describe the step that led to `state`, with velocity [M, 1 or 2] -> {name: [M] or [M, K]}."""
    infos = place_infos(task, model, state)
    infos |= {f"{'xy'[axis]}_velocity": column for axis, column in enumerate(velocity.T)}
    up = tasks.healthy(task, state) if task.ranges else None
    terms = tasks.reward_terms(task, state, velocity[:, 0], act, up)
    return infos | {f"reward_{name}": terms[name] for name in _TERMS if name in terms}


def gathered(parts: Iterable[tuple[Mapping[str, Any], np.ndarray]]) -> Infos:
    """Merge infos [M] of the environments that masks [M] name, as Gymnasium's vector env does.

    Every key comes with a mask `_key`; where it is False, the array holds zeros.
    """
    merged: Infos = {}
    for arrays, mask in parts:
        for name, array in arrays.items() if mask.any() else ():
            if name not in merged:
                merged[name], merged[f"_{name}"] = np.zeros_like(array), np.zeros_like(mask)
            merged[name][mask] = array[mask]
            merged[f"_{name}"] |= mask
    return merged
