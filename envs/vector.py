"""The native simulation as a `gymnasium.vector.VectorEnv`, for use outside this suite.

Import this module, then call `gymnasium.make_vec("dpd/HalfCheetah-v5", num_envs=8)`; or call
`make_vec("dpd.envs.vector:dpd/HalfCheetah-v5", num_envs=8)` without the import.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import register, registry
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from dpd.envs.infos import (
    Arrays,
    Infos,
    info_fields,
    merged_infos,
    place_infos,
    position,
    step_infos,
)
from dpd.envs.native import Simulation
from dpd.envs.task_args import make_task
from dpd.envs.tasks import TASKS


class NativeVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """float64 observations, the task's own action bounds, and Gymnasium's three reset modes.

    Bit-for-bit equal to `make_vec(env_id, vectorization_mode="sync", **kwargs)`, infos included,
    with one exception: an episode whose physics becomes unstable is truncated with reward 0 and a
    RuntimeWarning. Gymnasium continues from MuJoCo's default pose and rewards the jump to it.
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
        self._task = task = make_task(env_id, max_episode_steps, **kwargs)
        self._sim = sim = Simulation(task, num_envs, None, threads, info_fields(task))
        self.num_envs = num_envs
        self.metadata = {
            "render_modes": [],
            "render_fps": round(1 / sim.dt),
            "autoreset_mode": self.autoreset_mode,
        }
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
        return obs, merged_infos([(self._places(), mask)])

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
        before = position(self._task, sim.model, sim.state)
        sim.advance(actions)
        done = sim.finish(actions, restart=False, fresh=np.flatnonzero(fresh))
        velocity = (position(self._task, sim.model, sim.state) - before) / sim.dt
        taken = step_infos(self._task, sim.model, sim.state, velocity, actions)
        # copies, because the caller may write to them
        terminated, truncated = done.terminated.copy(), done.truncated
        over = terminated | truncated
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            obs, infos = self._reset_ended(done.next_obs, over, taken)
        else:
            self._over = over
            obs, infos = done.obs, merged_infos([(taken, ~fresh), (self._places(), fresh)])
        return obs.copy(), done.reward, terminated, truncated, infos

    def _reset_ended(
        self, last_obs: np.ndarray, over: np.ndarray, taken: Arrays
    ) -> tuple[np.ndarray, Infos]:
        """Restart the episodes `over` [M] -> obs [M, O], infos with the final observations."""
        if not over.any():
            return last_obs, merged_infos([(taken, ~over)])
        final_obs = np.full(self.num_envs, None, dtype=object)
        for i in np.flatnonzero(over).tolist():
            final_obs[i] = last_obs[i].copy()
        infos: Infos = {
            "final_obs": final_obs,
            "_final_obs": over.copy(),
            "final_info": merged_infos([(taken, over)]),
            "_final_info": over.copy(),
        }
        obs = self._sim.reset(np.flatnonzero(over))
        return obs, infos | merged_infos([(taken, ~over), (self._places(), over)])

    def _places(self) -> Arrays:
        return place_infos(self._task, self._sim.model, self._sim.state)

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


def register_envs() -> None:
    """Register `dpd/HalfCheetah-v5` and the other five; safe to repeat."""
    for env_id, task in TASKS.items():
        name = f"dpd/{env_id}"
        if name not in registry:
            entry = f"{__name__}:{NativeVectorEnv.__name__}"
            register(
                id=name,
                vector_entry_point=entry,
                max_episode_steps=task.max_steps,
                kwargs={"env_id": env_id},
            )


register_envs()
