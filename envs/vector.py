"""The native simulation as a `gymnasium.vector.VectorEnv`, for use outside this suite.

Import this module, then call `gymnasium.make_vec("dpd/HalfCheetah-v5", num_envs=8)`; or call
`make_vec("dpd.envs.vector:dpd/HalfCheetah-v5", num_envs=8)` without the import. Arguments and infos
are those of Gymnasium 1.4's `envs/mujoco/*_v5.py`; values and types are identical.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import register, registry
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from dpd.envs.arguments import make_task
from dpd.envs.native import Simulation
from dpd.envs.task import SimState, Task, norm
from dpd.envs.tasks import TASKS

Arrays = dict[str, np.ndarray]
Infos = dict[str, Any]


class NativeVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """float64 observations, the task's own action bounds, and Gymnasium's three reset modes.

    Bit-for-bit equal to `make_vec(env_id, vectorization_mode="sync", **kwargs)`, infos included,
    with two exceptions. An episode whose physics becomes unstable is truncated with reward 0 and a
    RuntimeWarning; Gymnasium continues from MuJoCo's default pose and rewards the jump to it. The
    infos of a v4 task are those of its v5.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int = 1,
        threads: int | None = None,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Make num_envs of a task; kwargs are those of `gymnasium.make(env_id)`.

        max_episode_steps: None for the task's own limit, -1 for none. Raises TypeError for an
        argument that the task does not take, ValueError for an invalid value.
        """
        if render_mode is not None:
            raise ValueError(f"render_mode={render_mode!r}: the native environments do not render")
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self._task = task = make_task(env_id, max_episode_steps, kwargs)
        fields = [TENDON_FIELDS[name] for name in task.places if name in TENDON_FIELDS]
        self._sim = sim = Simulation(task, num_envs, None, threads, fields)
        self.num_envs = num_envs
        self.metadata = {"render_modes": [], "render_fps": round(1 / sim.dt)}
        self.metadata["autoreset_mode"] = self.autoreset_mode
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (sim.obs_dim,), np.float64)
        self.single_action_space = spaces.Box(sim.act_low, sim.act_high, dtype=np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._over = np.zeros(num_envs, dtype=np.bool_)
        """Episodes that ended and have not been restarted."""

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, Infos]:
        """Reset all, or options["reset_mask"]; environment i gets an int seed plus i."""
        mask = self._checked_mask((options or {}).get("reset_mask"))
        if isinstance(seed, int | np.integer):
            seed = [int(seed) + i for i in range(self.num_envs)]
        if seed is not None:
            if len(seed) != self.num_envs:
                raise ValueError(f"{len(seed)} seeds for num_envs={self.num_envs}; give one each")
            self._sim.seed([s if mask[i] else None for i, s in enumerate(seed)])
        obs = self._sim.reset(np.flatnonzero(mask)).copy()
        self._over[mask] = False
        return obs, _merged_infos([(self._places(), mask)])

    def _checked_mask(self, mask: np.ndarray | None) -> np.ndarray:
        if mask is None:
            return np.ones(self.num_envs, dtype=np.bool_)
        if not isinstance(mask, np.ndarray):
            raise TypeError(f"reset_mask must be a NumPy array, got {type(mask).__name__}")
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise ValueError(f"reset_mask must be {self.num_envs} bools, at least one of them True")
        return mask

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Infos]:
        """Step with actions [M, A] in the task's bounds; like Gymnasium, do not clip them."""
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise ValueError(f"actions are {actions.shape}, not {self.action_space.shape}")
        if self.autoreset_mode is AutoresetMode.DISABLED and self._over.any():
            ids = np.flatnonzero(self._over).tolist()
            raise RuntimeError(
                f"the episodes of environments {ids} have ended, and autoreset is DISABLED; "
                'call reset(options={"reset_mask": mask}) first'
            )
        sim, fresh = self._sim, self._over
        before = self._position()
        done = sim.step(actions, restart=False, fresh=np.flatnonzero(fresh))
        taken = self._taken(before, actions)
        # copies, because the caller may write to them
        terminated, truncated = done.terminated.copy(), done.truncated
        over = terminated | truncated
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            obs, infos = self._reset_ended(done.next_obs, over, taken)
        else:
            self._over = over
            obs, infos = done.obs, _merged_infos([(taken, ~fresh), (self._places(), fresh)])
        return obs.copy(), done.reward, terminated, truncated, infos

    def _reset_ended(
        self, last_obs: np.ndarray, over: np.ndarray, taken: Arrays
    ) -> tuple[np.ndarray, Infos]:
        """Restart the episodes `over` [M] -> obs [M, O], infos with the final observations."""
        if not over.any():
            return last_obs, _merged_infos([(taken, ~over)])
        final_obs = np.full(self.num_envs, None, dtype=object)
        for i in np.flatnonzero(over).tolist():
            final_obs[i] = last_obs[i].copy()
        infos: Infos = {
            "final_obs": final_obs,
            "_final_obs": over.copy(),
            "final_info": _merged_infos([(taken, over)]),
            "_final_info": over.copy(),
        }
        obs = self._sim.reset(np.flatnonzero(over))
        return obs, infos | _merged_infos([(taken, ~over), (self._places(), over)])

    def _places(self) -> Arrays:
        """Return the infos of a reset: positions -> {name: [M] or [M, K]}."""
        return {name: PLACES[name](self._sim.state, self._task) for name in self._task.places}

    def _position(self) -> np.ndarray:
        """Return the markers of the step's axes, of one at least -> [M, 1 or 2]: x, y."""
        task, state, mass = self._task, self._sim.state, self._sim.model.body_mass
        return np.stack([task.marker(state, mass, k) for k in range(task.axes or 1)], axis=1)

    def _taken(self, before: np.ndarray, act: np.ndarray) -> Arrays:
        """Return the infos of the last step; before [M, 1 or 2] -> {name: [M] or [M, K]}."""
        task, state, infos, after = self._task, self._sim.state, self._places(), self._position()
        velocity = ((after - before) / self._sim.dt).T
        infos |= {f"{'xy'[axis]}_velocity": velocity[axis] for axis in range(task.axes)}
        up = task.healthy(state)
        return infos | task.reward_terms(before[:, 0], after[:, 0], state, act, up)

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The environments' generators, as in Gymnasium's SyncVectorEnv."""
        return tuple(self._sim.generators)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seeds of the environments."""
        return tuple(self._sim.seeds)

    def close_extras(self, **kwargs: Any) -> None:
        self._sim.close()


PLACES: dict[str, Callable[[SimState, Task], np.ndarray]] = {
    "x_position": lambda state, _: state["qpos"][:, 0].copy(),
    "y_position": lambda state, _: state["qpos"][:, 1].copy(),
    "z_distance_from_origin": lambda state, task: (
        state["qpos"][:, task.height] - task.model.qpos0[task.height]
    ),
    "distance_from_origin": lambda state, _: norm(state["qpos"][:, :2]),
    "tendon_length": lambda state, _: state["ten_length"].copy(),
    "tendon_velocity": lambda state, _: state["ten_velocity"].copy(),
}
TENDON_FIELDS = {"tendon_length": "ten_length", "tendon_velocity": "ten_velocity"}


def _merged_infos(parts: Iterable[tuple[Mapping[str, Any], np.ndarray]]) -> Infos:
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


for _env_id, _task in TASKS.items():
    if (_name := f"dpd/{_env_id}") not in registry:  # it is, if this module is reloaded
        register(
            id=_name,
            vector_entry_point=f"{__name__}:{NativeVectorEnv.__name__}",
            max_episode_steps=_task.max_steps,
            kwargs={"env_id": _env_id},
        )
