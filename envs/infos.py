"""The info dicts of Gymnasium's MuJoCo tasks, for many environments at once.

Source: Gymnasium 1.4, `envs/mujoco/*_v5.py`; values and types are identical.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import mujoco
import numpy as np

from dpd.envs import tasks
from dpd.envs.tasks import SimState, Task

Arrays = dict[str, np.ndarray]
Infos = dict[str, Any]


def _distance(state: SimState, _: mujoco.MjModel) -> np.ndarray:
    place = np.ascontiguousarray(state["qpos"][:, :2])
    # matmul uses BLAS's dot product, as np.linalg.norm of a vector does: the same last bit
    squared: np.ndarray = place[:, None, :] @ place[:, :, None]
    return np.sqrt(squared[:, 0, 0])


PLACES: dict[str, Callable[[SimState, mujoco.MjModel], np.ndarray]] = {
    "x_position": lambda state, _: state["qpos"][:, 0].copy(),
    "y_position": lambda state, _: state["qpos"][:, 1].copy(),
    "z_distance_from_origin": lambda state, model: state["qpos"][:, 1] - model.qpos0[1],
    "distance_from_origin": _distance,
    "tendon_length": lambda state, _: state["ten_length"].copy(),
    "tendon_velocity": lambda state, _: state["ten_velocity"].copy(),
}
TENDON_FIELDS = {"tendon_length": "ten_length", "tendon_velocity": "ten_velocity"}
_TERMS = ("forward", "ctrl", "contact", "survive")


def info_fields(task: Task) -> tuple[str, ...]:
    """Return the MjData fields that the infos need in addition to the task's."""
    return tuple(TENDON_FIELDS[name] for name in task.places if name in TENDON_FIELDS)


def place_infos(task: Task, model: mujoco.MjModel, state: SimState) -> Arrays:
    """Return the infos of a reset: positions -> {name: [M] or [M, K]}."""
    return {name: PLACES[name](state, model) for name in task.places}


def position(task: Task, model: mujoco.MjModel, state: SimState) -> np.ndarray:
    """Return the positions whose differences are the velocity infos -> [M, 1 or 2]: x, y."""
    axes = 2 if "y_position" in task.places else 1
    places = [tasks.marker(task, state, model.body_mass, axis) for axis in range(axes)]
    return np.stack(places, axis=1)


def step_infos(
    task: Task, model: mujoco.MjModel, state: SimState, velocity: np.ndarray, act: np.ndarray
) -> Arrays:
    """Return the infos of the step to `state`; velocity [M, 1 or 2] -> {name: [M] or [M, K]}."""
    infos = place_infos(task, model, state)
    infos |= {f"{'xy'[axis]}_velocity": column for axis, column in enumerate(velocity.T)}
    up = tasks.healthy(task, state) if task.ranges else None
    terms = tasks.reward_terms(task, state, velocity[:, 0], act, up)
    return infos | {f"reward_{name}": terms[name] for name in _TERMS if name in terms}


def merged_infos(parts: Iterable[tuple[Mapping[str, Any], np.ndarray]]) -> Infos:
    """Merge infos [M] by masks [M], as Gymnasium's vector environment does.

    Every key comes with a mask `_key`; the array is zero where the mask is False.
    """
    merged: Infos = {}
    for arrays, mask in parts:
        for name, array in arrays.items() if mask.any() else ():
            if name not in merged:
                merged[name], merged[f"_{name}"] = np.zeros_like(array), np.zeros_like(mask)
            merged[name][mask] = array[mask]
            merged[f"_{name}"] |= mask
    return merged
