"""Apply the keyword arguments of Gymnasium's MuJoCo tasks to a row of the task table."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.registration import load_env_creator

from dpd.envs.tasks import Range, Task, find_task, load_model

NO_LIMIT = int(np.iinfo(np.int64).max)
RENAMED = {
    "frame_skip": "frame_skip",
    "forward_reward_weight": "forward_reward",
    "ctrl_cost_weight": "ctrl_cost",
    "contact_cost_weight": "contact_cost",
    "contact_cost_range": "contact_cost_range",
    "contact_force_range": "contact_range",
    "healthy_reward": "healthy_reward",
    "healthy_state_range": "state_range",
    "terminate_when_unhealthy": "ends_unhealthy",
    "reset_noise_scale": "qpos_noise",
}
"""Arguments that correspond to a field of `Task`."""


def _with_range(index: int) -> Callable[[Task, Any], Task]:
    def change(task: Task, limits: tuple[float, float]) -> Task:
        ranges = list(task.ranges)
        ranges[index] = Range(ranges[index].qpos, *limits, closed=ranges[index].closed)
        return dataclasses.replace(task, ranges=tuple(ranges))

    return change


def _with_field(name: str) -> Callable[[Task, Any], Task]:
    def change(task: Task, seen: bool) -> Task:
        kept = tuple(field for field in task.extra if seen or field[0] != name)
        return dataclasses.replace(task, extra=kept)

    return change


def _with_position(task: Task, excluded: bool) -> Task:
    return dataclasses.replace(task, skip_qpos=task.skip_qpos if excluded else 0)


def _with_model(task: Task, xml_file: str) -> Task:
    """Resolve a path as Gymnasium does: in its assets, unless it starts with `.`, `/` or `~`."""
    is_path = xml_file.startswith((".", "/", "~"))
    path = str(Path(xml_file).expanduser().absolute()) if is_path else xml_file
    return dataclasses.replace(task, xml=path)


def _with_body(task: Task, body: int | str) -> Task:
    model = load_model(task)
    is_name = isinstance(body, str)
    index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, body) if is_name else int(body)
    if not 0 <= index < model.nbody:
        raise ValueError(f"{task.env_id}: main_body={body!r} is not a body of the model")
    return dataclasses.replace(task, marker=(task.marker[0], index))


CHANGES: dict[str, Callable[[Task, Any], Task]] = {
    "xml_file": _with_model,
    "main_body": _with_body,
    "healthy_z_range": _with_range(0),
    "healthy_angle_range": _with_range(1),
    "exclude_current_positions_from_observation": _with_position,
    "include_cinert_in_observation": _with_field("cinert"),
    "include_cvel_in_observation": _with_field("cvel"),
    "include_qfrc_actuator_in_observation": _with_field("qfrc_actuator"),
    "include_cfrc_ext_in_observation": _with_field("cfrc_ext"),
}


def make_task(env_id: str, max_episode_steps: int | None = None, **kwargs: Any) -> Task:
    """Return a task with the changes that `gymnasium.make(env_id, **kwargs)` would make.

    max_episode_steps: None for the task's own limit, -1 for none. Raises TypeError for an argument
    that the task does not take, ValueError for a limit below 1.
    """
    task = find_task(env_id)
    known = _arguments(env_id)
    for name in kwargs:
        if name not in known:
            raise TypeError(f"{env_id} takes no {name!r}; it takes {', '.join(known)}")
    # the model first, since main_body may refer to one of its bodies
    for name in sorted(kwargs, key=lambda name: name != "xml_file"):
        if name in RENAMED:
            task = dataclasses.replace(task, **{RENAMED[name]: kwargs[name]})
        else:
            task = CHANGES[name](task, kwargs[name])
    if max_episode_steps is None:
        return task
    if max_episode_steps != -1 and max_episode_steps < 1:
        raise ValueError(
            f"max_episode_steps={max_episode_steps} must be at least 1, or -1 for none"
        )
    limit = NO_LIMIT if max_episode_steps == -1 else max_episode_steps
    return dataclasses.replace(task, max_steps=limit)


def _arguments(env_id: str) -> tuple[str, ...]:
    """Return the arguments of Gymnasium's class that are supported here."""
    entry = gymnasium.spec(env_id).entry_point
    made = load_env_creator(entry) if isinstance(entry, str) else entry
    names = inspect.signature(made.__init__).parameters if made else {}  # type: ignore[misc]
    taken = {*RENAMED, *CHANGES}
    return tuple(name for name in names if name in taken)
