"""Arguments of native tasks, with the names and the meaning that they have in Gymnasium."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from dpd.envs.base import EnvKwargs, UnsupportedEnv
from dpd.envs.locomotion import Locomotion, Range
from dpd.envs.randomization import RANDOMIZE
from dpd.envs.task import VIEW_ONLY, Task
from dpd.envs.tasks import find_task
from dpd.envs.user_task import MujocoTask, own_fields

FIELDS = {
    "frame_skip": "frame_skip",
    "forward_reward_weight": "forward_reward",
    "ctrl_cost_weight": "ctrl_cost",
    "contact_cost_weight": "contact_cost",
    "contact_cost_range": "contact_cost_range",
    "contact_force_range": "contact_range",
    "healthy_reward": "healthy_reward",
    "healthy_state_range": "state_range",
    "impact_cost_weight": "contact_cost",
    "impact_cost_range": "contact_cost_range",
    "reset_noise_scale": "qpos_noise",
    "reward_dist_weight": "dist_weight",
    "reward_near_weight": "near_weight",
    "reward_control_weight": "control_weight",
    "terminate_when_unhealthy": "ends_unhealthy",
    "uph_cost_weight": "uph_cost_weight",
    "use_contact_forces": "uses_contacts",
}
"""Arguments of `gymnasium.make` that are a field of a task."""


def _with_range(task: Locomotion, index: int, limits: tuple[float, float]) -> Task:
    ranges = list(task.ranges)
    ranges[index] = Range(ranges[index].qpos, *limits, closed=ranges[index].closed)
    return replace(task, ranges=tuple(ranges))


def _with_model(task: Task, xml_file: str) -> Task:
    """Resolve a path as Gymnasium does: in its assets, unless it starts with `.`, `/` or `~`."""
    is_path = xml_file.startswith((".", "/", "~"))
    return replace(task, xml=str(Path(xml_file).expanduser().absolute()) if is_path else xml_file)


def _with_body(task: Locomotion, body: int | str) -> Task:
    model = task.model
    is_name = isinstance(body, str)
    index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, body) if is_name else int(body)
    if not 0 <= index < model.nbody:
        raise ValueError(f"{task.env_id}: main_body={body!r} is not a body of the model")
    return replace(task, velocity_of=(task.velocity_of[0], index))


def _with_observed(name: str) -> Callable[[Any, Any], Task]:
    def change(task: Locomotion, is_observed: bool) -> Task:
        kept = tuple(field for field in task.extra if is_observed or field[0] != name)
        return replace(task, extra=kept)

    return change


CHANGES: dict[str, Callable[[Any, Any], Task]] = {
    "xml_file": _with_model,  # first, since main_body may refer to one of the model's bodies
    "main_body": _with_body,
    "healthy_z_range": lambda task, limits: _with_range(task, 0, limits),
    "healthy_angle_range": lambda task, limits: _with_range(task, 1, limits),
    "exclude_current_positions_from_observation": lambda task, is_excluded: replace(
        task, skip_qpos=task.skip_qpos if is_excluded else 0
    ),
    **{
        f"include_{name}_in_observation": _with_observed(name)
        for name in ("cinert", "cvel", "qfrc_actuator", "cfrc_ext")
    },
}
"""Further arguments, in the order in which they apply."""


def make_task(env_id: str, max_episode_steps: int | None, arguments: Mapping[str, Any]) -> Task:
    """Return a task with the changes that `gymnasium.make(env_id, **arguments)` would make.

    max_episode_steps: None for the task's own limit, -1 for none. Raises TypeError for an argument
    that the task does not take or of another type, ValueError for a value out of range, and
    UnsupportedEnv if there is no such task.
    """
    task = find_task(env_id)
    if arguments:
        task = _changed(task, arguments)
    if max_episode_steps is None:
        return task
    if max_episode_steps != -1 and max_episode_steps < 1:
        raise ValueError(
            f"max_episode_steps={max_episode_steps} must be at least 1, or -1 for none"
        )
    no_limit = int(np.iinfo(np.int64).max)
    return replace(task, max_steps=no_limit if max_episode_steps == -1 else max_episode_steps)


def _changed(task: Task, arguments: Mapping[str, Any]) -> Task:
    if isinstance(task, MujocoTask):
        sets = own_fields(task)
        defaults = {name: getattr(task, field) for name, field in sets.items()}
    else:
        sets, defaults = FIELDS, gymnasium_defaults(task.env_id)
    for name, value in arguments.items():
        if name in VIEW_ONLY:
            continue
        if name not in defaults:
            raise TypeError(f"{task.env_id} takes no {name!r}; it takes {', '.join(defaults)}")
        _refuse_unlike(f"{task.env_id}: {name}", value, defaults[name])
    given = {name: _frozen(value) for name, value in arguments.items()}
    task = replace(task, **{sets[k]: value for k, value in given.items() if k in sets})
    for name, change in CHANGES.items():
        if name in given and (name == "xml_file" or not isinstance(task, MujocoTask)):
            task = change(task, given[name])
    return task


def gymnasium_defaults(env_id: str) -> dict[str, Any]:
    """Return the arguments that Gymnasium's constructor of a task names, with their defaults."""
    from gymnasium import spec  # here: it takes a tenth of a second, and few runs have arguments
    from gymnasium.envs.registration import load_env_creator

    entry: Any = spec(env_id).entry_point
    made = load_env_creator(entry) if isinstance(entry, str) else entry
    known = inspect.signature(made).parameters.values()
    return {p.name: p.default for p in known if p.name in {*FIELDS, *CHANGES}}


def _refuse_unlike(name: str, value: Any, default: Any) -> None:
    """Raise TypeError unless a value is of its default's kind, and ValueError for a bad number."""
    text = f"{name}={value!r}"
    if name.endswith("main_body"):
        is_fit, kind = _is_number(value, whole=True) or isinstance(value, str), "an index or a name"
    elif isinstance(default, bool):
        is_fit, kind = isinstance(value, bool), "true or false"
    elif isinstance(default, str):
        is_fit, kind = isinstance(value, str), "text"
    elif isinstance(default, tuple):
        is_pair = isinstance(value, list | tuple) and len(value) == 2
        is_fit, kind = is_pair and all(map(_is_number, value)), "two numbers"
    elif not _is_number(default):
        return  # a user's own field, whose class must judge it
    else:
        whole = name.endswith("frame_skip")
        is_fit, kind = _is_number(value, whole), "a whole number" if whole else "a number"
    if not is_fit:
        raise TypeError(f"{text} must be {kind}")
    if name.endswith("frame_skip") and value < 1:
        raise ValueError(f"{text} must be at least 1")


def _is_number(value: Any, whole: bool = False) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int | np.integer) or (
        not whole and isinstance(value, float | np.floating)
    )


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def native_task(env_id: str, env_kwargs: EnvKwargs | None = None) -> Task:
    """Return a task with an environment's keyword arguments, without those of `--randomize`.

    Raises UnsupportedEnv for arguments that it does not take.
    """
    kwargs = {name: value for name, value in (env_kwargs or {}).items() if name != RANDOMIZE}
    limit = kwargs.pop("max_episode_steps", None)
    if limit is not None and not (_is_number(limit, whole=True) and limit >= 1):
        raise UnsupportedEnv(
            f"{env_id}: max_episode_steps={limit!r} must be a whole number, at least 1"
        )
    try:
        return make_task(env_id, limit, kwargs)
    except UnsupportedEnv:
        raise
    except (TypeError, ValueError) as error:
        raise UnsupportedEnv(str(error)) from error
