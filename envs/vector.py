"""The native simulation as a `gymnasium.vector.VectorEnv`, for use outside this suite.

After `import dpd.envs.vector`, `gymnasium.make_vec("dpd/HalfCheetah-v5", num_envs=8)` makes one;
`make_vec("dpd.envs.vector:dpd/HalfCheetah-v5", num_envs=8)` does without the import.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import register, registry
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from dpd.envs.native import Simulation, Transition
from dpd.envs.tasks import TASKS

Infos = dict[str, Any]


class NativeVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """float64 observations, the task's own action bounds, reset in the step that ends an episode.

    Bit for bit `make_vec(env_id, vectorization_mode="sync")` with SAME_STEP. Two differences:
    infos hold `final_obs` and `final_info` only, and an episode whose physics becomes unstable
    is truncated with reward 0 and a RuntimeWarning, where Gymnasium's goes on from MuJoCo's default
    pose and counts the way there as the task's own motion.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int = 1,
        threads: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None:
            raise ValueError(f"render_mode={render_mode!r}: the native environments do not render")
        self._sim = sim = Simulation(env_id, num_envs, None, threads)
        self.num_envs = num_envs
        self.metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (sim.obs_dim,), np.float64)
        self.single_action_space = spaces.Box(sim.act_low, sim.act_high, dtype=np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, Infos]:
        """Reset all, or options["reset_mask"]; an int seed gives environment i seed + i."""
        ids = self._masked((options or {}).get("reset_mask"))
        if isinstance(seed, int | np.integer):
            seed = [int(seed) + i for i in range(self.num_envs)]
        if seed is not None:
            if len(seed) != self.num_envs:
                raise ValueError(f"{len(seed)} seeds for num_envs={self.num_envs}; give one each")
            chosen = set(ids.tolist())
            self._sim.seed([s if i in chosen else None for i, s in enumerate(seed)])
        return self._sim.reset(ids).copy(), {}

    def _masked(self, mask: np.ndarray | None) -> np.ndarray:
        if mask is None:
            return np.arange(self.num_envs)
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise ValueError(f"reset_mask must be {self.num_envs} bools, at least one of them True")
        return np.flatnonzero(mask)

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Infos]:
        """Step with actions [M, A] in the task's own bounds; like Gymnasium, clip nothing."""
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise ValueError(f"actions are {actions.shape}, not {self.action_space.shape}")
        self._sim.advance(actions)
        done = self._sim.finish(actions)
        # the simulation keeps its own arrays; what is handed out may be written to
        return (
            done.obs.copy(),
            done.reward,
            done.terminated.copy(),
            done.truncated,
            self._infos(done),
        )

    def _infos(self, done: Transition) -> Infos:
        if not len(done.ended):
            return {}
        final_obs = np.full(self.num_envs, None, dtype=object)
        for i in done.ended.tolist():
            final_obs[i] = done.next_obs[i].copy()
        mask = np.zeros(self.num_envs, dtype=np.bool_)
        mask[done.ended] = True
        return {
            "final_obs": final_obs,
            "_final_obs": mask,
            "final_info": {},
            "_final_info": mask.copy(),
        }

    def close_extras(self, **kwargs: Any) -> None:
        self._sim.close()


def register_envs() -> None:
    """Register `dpd/HalfCheetah-v5` and the other five; safe to repeat."""
    for env_id in TASKS:
        name = f"dpd/{env_id}"
        if name not in registry:
            entry = f"{__name__}:{NativeVectorEnv.__name__}"
            register(id=name, vector_entry_point=entry, kwargs={"env_id": env_id})


register_envs()
