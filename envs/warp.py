"""The Warp backend: the MuJoCo tasks on a GPU, without host-device synchronisation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dpd.envs.base import ActionScale, Env, EnvSpec, Snapshot, Step, UnsupportedEnv, snapshot_rows
from dpd.envs.task import Task, load_model
from dpd.envs.tasks import find_task
from dpd.envs.warp_physics import WarpPhysics, loops_on, wait_for, warp_device

DIFFERENCES = {
    **dict.fromkeys(
        ("Ant-v5", "Ant-v4"),
        "MuJoCo Warp turns the friction pyramid under a leg steeper than 60 degrees; single steps "
        "differ from MuJoCo's there",
    ),
    **dict.fromkeys(
        ("Humanoid-v5", "HumanoidStandup-v5", "Humanoid-v4", "HumanoidStandup-v4"),
        "solved by Newton in place of PGS, which MuJoCo Warp does not have",
    ),
}
"""Differences from MuJoCo's simulation, other than float32."""

OLD_DRIVER = (
    "the CUDA driver is older than 12.4: the solver takes all of its iterations at every step, "
    "however soon it has converged, which is many times slower; update it, or --backend native"
)


def warp_notes(task: Task, device: torch.device) -> tuple[str, ...]:
    """Return the remarks to print once for a task on a device."""
    own = (DIFFERENCES[task.env_id],) if task.env_id in DIFFERENCES else ()
    remarks = (*task.notes, *own)
    return remarks if loops_on(device) else (*remarks, OLD_DRIVER)


class WarpEnv(Env):
    """M environments on one device, as an `Env`; every `Step` has fresh tensors on that device.

    Only `snapshot`, `restore` and `trouble` wait for the device. NaN actions are therefore not
    refused: the environment gets ctrl 0, the step is invalid (reward 0, `next_obs` is the new
    episode's first observation) and the episode is truncated, as for unstable physics. `n_lost`
    counts these steps.

    An episode's start depends only on the environment's seed and the number of the episode.
    """

    def __init__(
        self, task: str | Task, n_envs: int, seeds: Sequence[int], device: str = "cuda"
    ) -> None:
        self._task = task = find_task(task) if isinstance(task, str) else task
        env_id = task.env_id
        if len(seeds) != n_envs or n_envs < 1:
            raise ValueError(f"{len(seeds)} seeds for {n_envs} environments; give one each")
        self.n_envs, self.device = n_envs, warp_device(device)
        model = load_model(task)
        keys = np.array([int(seed) % 2**64 for seed in seeds], dtype=np.uint64).view(np.int64)
        try:
            self._open: WarpPhysics | None = WarpPhysics(task, model, keys, self.device)
        except RuntimeError as error:
            if "allocate" not in str(error):  # Warp raises a plain RuntimeError when out of memory
                raise
            raise UnsupportedEnv(
                f"{n_envs:,} environments of {env_id} do not fit into the memory of {self.device}; "
                "lower --n-envs or --seeds"
            ) from error
        self._mass = torch.tensor(model.body_mass, dtype=torch.float32, device=self.device)
        low, high = model.actuator_ctrlrange.T.astype(np.float32)
        self._scale = ActionScale(low, high).on(self.device)
        self._elapsed = torch.zeros(n_envs, dtype=torch.int64, device=self.device)
        self.n_lost = torch.zeros((), dtype=torch.int64, device=self.device)
        state = self._physics.fields
        self._marker = task.marker(state, self._mass).clone()
        self._obs = task.observe(state)
        sizes, notes = (self._obs.shape[1], model.nu), warp_notes(task, self.device)
        limits, groups = (True, task.max_steps), task.observation_groups(state)
        self.spec = EnvSpec(env_id, "warp", *sizes, low, high, *limits, notes, groups=groups)
        self._started = False

    def reset(self) -> Tensor:
        everyone = torch.ones(self.n_envs, dtype=torch.bool, device=self.device)
        self._restart(everyone, self._obs, self._marker)
        self._started = True
        return self._obs

    def stagger(self, share: np.ndarray) -> None:
        self._elapsed.copy_(torch.from_numpy(np.floor(share * self._task.max_steps)))

    def step(self, act: Tensor) -> Step:
        """Take a step; on a GPU this returns before the physics has run."""
        if not self._started:
            raise RuntimeError("reset the environment before its first step")
        scaled = self._scale(act)
        # MuJoCo Warp clamps ctrl, which would turn a NaN into a bound and hide it.
        is_nan = scaled.isnan().any(1)
        ctrl = scaled.nan_to_num(0.0)
        self._physics.step(ctrl)
        task, state = self._task, self._physics.fields
        marker = task.marker(state, self._mass).clone()  # planar: a view of qpos
        up = task.healthy(state)
        reward = task.total(task.reward_terms(self._marker, marker, state, ctrl, up))
        lost = self._physics.unstable() | is_nan
        self._elapsed += 1
        fell = None if up is None or not task.terminates else ~up
        terminated = torch.zeros_like(lost) if fell is None else fell & ~lost
        truncated = (self._elapsed >= task.max_steps) | lost
        next_obs = task.observe(state)
        obs = self._restart(terminated | truncated, next_obs, marker)
        self.n_lost += lost.sum()
        return Step(
            obs,
            torch.where(lost[:, None], obs, next_obs),  # a NaN times a weight of 0 is a NaN
            reward.masked_fill(lost, 0.0),
            terminated,
            truncated,
            ~lost,
        )

    def _restart(self, over: Tensor, obs: Tensor, marker: Tensor) -> Tensor:
        """Restart the episodes `over` [M] -> obs [M, O] with their first observations."""
        self._physics.restart(over)
        self._elapsed.masked_fill_(over, 0)
        state = self._physics.fields
        fresh = self._task.marker(state, self._mass)
        self._marker = torch.where(over, fresh, marker)
        self._obs = torch.where(over[:, None], self._task.observe(state), obs)
        return self._obs

    def trouble(self) -> list[str]:
        """Return warnings about dropped contacts and lost steps. It waits for the device."""
        warnings = []
        if self._physics.overflowed():
            warnings.append("contacts were dropped for lack of space: the physics was wrong")
        if lost := int(self.n_lost):
            warnings.append(f"{lost:,} steps were lost to NaN actions or unstable physics")
        return warnings

    def _live(self) -> dict[str, Tensor]:
        """Return the state beside the physics, by its name in a snapshot."""
        own = {"elapsed": self._elapsed, "marker": self._marker, "obs": self._obs}
        return {**own, "key": self._physics.key, "episode": self._physics.episode}

    def snapshot(self) -> Snapshot:
        tensors = {"physics": self._physics.get_state(), **self._live()}
        return {name: tensor.cpu().numpy().copy() for name, tensor in tensors.items()}

    def restore(self, snapshot: Snapshot, ids: Sequence[int] | None = None) -> Tensor:
        """Restore rows. The same future follows: bit for bit on the CPU, nearly so on a GPU."""
        rows = snapshot_rows(snapshot, ids, self.n_envs, self.spec.obs_dim, self.spec.env_id)
        at = torch.tensor(rows, device=self.device)
        self._obs = self._obs.clone()  # the last step handed it out
        live = self._live()
        if not live.keys() <= snapshot.keys():
            raise ValueError("the snapshot comes from another backend")
        for name, tensor in live.items():
            tensor[at] = torch.tensor(snapshot[name], dtype=tensor.dtype, device=self.device)
        physics = torch.tensor(snapshot["physics"], dtype=torch.float32, device=self.device)
        self._physics.set_state(at, physics)
        self._started = self._started or len(rows) == self.n_envs
        return self._obs

    @property
    def _physics(self) -> WarpPhysics:
        if self._open is None:
            raise RuntimeError("the environment is closed")
        return self._open

    def close(self) -> None:
        """Free the simulation's memory, even if this object is still referenced."""
        if self._open is not None:
            wait_for(self.device)  # a running step still uses the memory
            self._open = None
