"""Tasks that users define: their own model, with rules in batched NumPy."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TypeVar, final

import mujoco
import numpy as np

from dpd.envs.base import FailedEnv, UnsupportedEnv
from dpd.envs.groups import is_choosable
from dpd.envs.randomization import NATIVE_IDS, RANDOMIZE
from dpd.envs.task import VIEW_ONLY, Array, SimState, Task, joined

Reply = TypeVar("Reply")


@dataclass(frozen=True, kw_only=True)
class MujocoTask(Task):
    """A model of your own, with its reward and the end of its episodes, for many states at once.

    Subclass it as a frozen dataclass whose fields are the arguments of the task, override
    `reward`, and what else differs, and pass the class to `register_task`. A state maps names of
    MjData fields to arrays whose first axis is the environment: `qpos` [N, nq], `qvel` [N, nv],
    `ctrl` [N, nu], and the `state_fields`. They are the simulator's memory: read them only.
    """

    env_id: str = ""
    """Set by `register_task`."""
    xml: str = ""
    """Absolute path of the model, or a file of Gymnasium's assets, such as `hopper.xml`."""
    frame_skip: int = 1
    """Number of the model's time steps in one step of the environment."""
    state_fields: tuple[str, ...] = ()
    """Further MjData fields that the rules read, such as `xpos` or `sensordata`. As after
    MuJoCo's `mj_step`, those that it derives belong to the state before its last time step."""

    def observed_parts(self, state: SimState) -> dict[str, Array]:
        """Return the named groups of the observation, in their order -> {name: [N, size]}."""
        return {"qpos": state["qpos"], "qvel": state["qvel"]}

    def reward(self, before: SimState, act: np.ndarray, state: SimState) -> np.ndarray:
        """Return the reward [N] of the step from `before` to `state`.

        act [N, nu] is float32, within the bounds of the actuators. `before` has no `ctrl`.
        """
        raise NotImplementedError

    def terminated(self, state: SimState) -> np.ndarray:
        """Return a mask [N] of the states that end an episode; not overridden: none does."""
        return np.zeros(len(state["qpos"]), dtype=bool)

    def draw_start(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw the start of one episode -> qpos [nq], qvel [nv].

        Here it is the model's pose with uniform noise within ±`qpos_noise` and ±`qvel_noise`.
        """
        return super().draw_start(generator)

    @property
    def terminates(self) -> bool:
        return type(self).terminated is not MujocoTask.terminated

    @property
    def derived(self) -> tuple[str, ...]:
        return self.state_fields

    @property
    def _remembered(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(("qpos", "qvel", *self.state_fields)))

    @final
    def observe(self, state: SimState) -> Array:
        parts = self._run("observed_parts", lambda: self.observed_parts(state))
        for name, part in parts.items():
            if not (isinstance(name, str) and is_choosable(name)):
                raise UnsupportedEnv(f"{self.env_id}: {name!r} is no name for a group of columns")
            if np.ndim(part) != 2 or len(part) != len(state["qpos"]):
                raise UnsupportedEnv(
                    f"observed_parts() of {self.env_id} returned {name} of shape {np.shape(part)}, "
                    f"not ({len(state['qpos'])}, columns)"
                )
        return joined([np.asarray(part, np.float64) for part in parts.values()])

    @final
    def marker(self, state: SimState, mass: Array, axis: int = 0) -> Array:
        """Return a copy of the state, flattened [M, S]."""
        return joined([state[name].reshape(len(state[name]), -1) for name in self._remembered])

    @final
    def healthy(self, state: SimState) -> Array | None:
        if not self.terminates:
            return None
        ended = self._run("terminated", lambda: np.asarray(self.terminated(state)))
        return ~self._checked("terminated", ended, len(state["qpos"]), "b").astype(bool)

    @final
    def reward_terms(
        self, before: Array, after: Array, state: SimState, act: Array, up: Array | None
    ) -> dict[str, Array]:
        past, first = {}, 0
        for name in self._remembered:
            shape = state[name].shape
            size = int(np.prod(shape[1:]))
            past[name] = before[:, first : first + size].reshape(shape)
            first += size
        paid = self._run("reward", lambda: np.asarray(self.reward(past, act, state)))
        return {"reward": self._checked("reward", paid, len(act), "biuf").astype(np.float64)}

    def _run(self, call: str, work: Callable[[], Reply]) -> Reply:
        """Turn an error in the user's code into FailedEnv."""
        try:
            return work()
        except Exception as error:
            raise FailedEnv(self.env_id, call, error) from error

    def _checked(self, call: str, rows: np.ndarray, n: int, kinds: str) -> np.ndarray:
        if rows.shape != (n,) or rows.dtype.kind not in kinds:
            kind = "masks" if kinds == "b" else "numbers"
            raise UnsupportedEnv(
                f"{call}() of {self.env_id} returned {rows.dtype} of shape {rows.shape}; it must "
                f"return {kind} of shape ({n},), one per state"
            )
        return rows


USER_TASKS: dict[str, type[MujocoTask]] = {}
"""The classes that `register_task` was given, by id."""
ARGUMENTS = {"xml_file": "xml", "frame_skip": "frame_skip", "reset_noise_scale": "qpos_noise"}
"""Arguments of every user's task beside its own fields, with the field that each sets."""


def register_task(env_id: str, task: type[MujocoTask]) -> None:
    """Make a task known to dpd's native simulation and to `gymnasium.make` under an id.

    Call it where your module is imported; `dpd train my_module:MyTask-v0` imports the module. To
    register an id again replaces its task. Raises UnsupportedEnv for the id of a task that dpd has,
    and for a class that cannot be made without arguments.
    """
    import gymnasium  # here: it takes a tenth of a second

    if env_id in NATIVE_IDS or ":" in env_id:
        raise UnsupportedEnv(f"{env_id!r} is no id for a task of your own; take another")
    try:
        example = task(env_id=env_id)
    except TypeError as error:
        raise UnsupportedEnv(
            f"{env_id}: every field of its class needs a default: {error}"
        ) from error
    taken = VIEW_ONLY | {"max_episode_steps", "render_mode", RANDOMIZE}
    if wrong := sorted(taken & own_fields(example).keys()):
        raise UnsupportedEnv(f"{env_id}: a field called {wrong[0]} has another meaning; rename it")
    if not example.xml:
        raise UnsupportedEnv(f"{env_id}: its class sets no `xml`, the path of its model")
    USER_TASKS[env_id] = task
    gymnasium.registry.pop(env_id, None)  # registering an id twice is a warning
    gymnasium.register(
        env_id,
        entry_point="dpd.envs.single:TaskEnv",
        max_episode_steps=example.max_steps,
        kwargs={"env_id": env_id},
    )


def own_fields(task: MujocoTask) -> dict[str, str]:
    """Return the arguments of a user's task with the field that each sets."""
    inherited = {field.name for field in fields(MujocoTask)}
    own = [field.name for field in fields(task) if field.name not in inherited]
    return ARGUMENTS | {name: name for name in own}


def registered_task(env_id: str) -> MujocoTask | None:
    """Return the task of an id, or None if no user registered it.

    `module:Id` imports the module first, and is the id that the task then has. Raises
    UnsupportedEnv if there is no such module, or the task's fields are none of MjData.
    """
    kind = USER_TASKS.get(imported(env_id))
    if kind is None:
        return None
    task = kind(env_id=env_id)
    if task.state_fields:
        _refuse_unknown_fields(task)
    return task


def _refuse_unknown_fields(task: MujocoTask) -> None:
    data = mujoco.MjData(task.model)
    # those of constraints have another size in every step
    sized = [name for name in dir(data) if not name.startswith(("_", "efc_", "contact"))]
    known = [name for name in sized if isinstance(getattr(data, name), np.ndarray)]
    for name in task.state_fields:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UnsupportedEnv(f"{task.env_id}: MjData has no array {name!r} of its own{hint}")


def imported(env_id: str) -> str:
    """Import the module of `module:Id` -> the id alone. Raises UnsupportedEnv if there is none."""
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UnsupportedEnv(f"{env_id}: {error}; is the package installed?") from error
    return name
