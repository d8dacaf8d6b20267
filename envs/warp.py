"""The six MuJoCo tasks on a GPU: MuJoCo Warp's physics, the task table on torch, no host sync."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dpd.envs import tasks
from dpd.envs.base import ActionScale, EnvSpec, Step, snapshot_rows
from dpd.envs.errors import UnsupportedEnv
from dpd.envs.warp_physics import WarpPhysics, find_device, loops_on

Snapshot = dict[str, np.ndarray]

NOTES = {
    "Ant-v5": "MuJoCo Warp turns the friction pyramid under a leg steeper than 60 degrees; "
    "single steps differ from MuJoCo's there",
    "Humanoid-v5": "solved by Newton in place of PGS, which MuJoCo Warp does not have",
}
"""What differs from MuJoCo's own simulation, beside float32."""


OLD_DRIVER = (
    "the CUDA driver is older than 12.4: the solver takes all of its iterations at every step, "
    "however soon it has converged, which is many times slower; update it, or --backend native"
)


def notes(env_id: str, device: torch.device) -> tuple[str, ...]:
    """Return what to say once of a task on a device."""
    found = (NOTES[env_id],) if env_id in NOTES else ()
    return found if loops_on(device) else (*found, OLD_DRIVER)


class WarpEnv:
    """M environments on one device, as an `Env`; a `Step`'s tensors stay there and are fresh.

    Nothing here waits for the device but `snapshot`, `restore` and `trouble`. So a NaN action
    is not refused: its environment gets ctrl 0, and as where physics becomes unstable, the step is
    invalid (reward 0, `next_obs` the new episode's first observation) and the episode cut.
    `n_lost` counts such steps, for whoever reads it.

    An episode's start depends on the environment's seed and its number of episodes alone.
    """

    def __init__(
        self, env_id: str, n_envs: int, seeds: Sequence[int], device: str = "cuda"
    ) -> None:
        self._task = task = tasks.find_task(env_id)
        if len(seeds) != n_envs or n_envs < 1:
            raise ValueError(f"{len(seeds)} seeds for {n_envs} environments; give one each")
        self.n_envs, self.device = n_envs, find_device(device)
        model = tasks.load_model(task)
        keys = np.array([int(seed) % 2**64 for seed in seeds], dtype=np.uint64).view(np.int64)
        try:
            self._physics = WarpPhysics(task, model, keys, self.device)
        except RuntimeError as error:
            if "allocate" not in str(error):  # Warp has no error of its own for it
                raise
            raise UnsupportedEnv(
                f"{n_envs:,} environments of {env_id} do not fit into the memory of {self.device}; "
                "lower --n-envs or --seeds"
            ) from error
        self._mass = torch.tensor(model.body_mass, dtype=torch.float32, device=self.device)
        self._dt = model.opt.timestep * task.frame_skip
        low, high = model.actuator_ctrlrange.T.astype(np.float32)
        self._scale = ActionScale(low, high).on(self.device)
        self._elapsed = torch.zeros(n_envs, dtype=torch.int64, device=self.device)
        self.n_lost = torch.zeros((), dtype=torch.int64, device=self.device)
        self._marker = torch.zeros(n_envs, device=self.device)
        self._obs = tasks.observe(task, self._physics.fields)
        size = self._obs.shape[1]
        self.spec = EnvSpec(
            env_id,
            "warp",
            size,
            model.nu,
            low,
            high,
            can_snapshot=True,
            max_steps=task.max_steps,
            notes=notes(env_id, self.device),
        )
        self._started = self._closed = False
        self._act: Tensor | None = None
        self._void = torch.zeros(n_envs, dtype=torch.bool, device=self.device)

    def reset(self) -> Tensor:
        self._refuse_midstep()
        everyone = torch.ones(self.n_envs, dtype=torch.bool, device=self.device)
        self._restart(everyone, self._obs, self._marker)
        self._started = True
        return self._obs

    def stagger(self, share: np.ndarray) -> None:
        self._refuse_midstep()
        self._elapsed.copy_(torch.from_numpy(np.floor(share * self._task.max_steps)))

    def start(self, act: Tensor) -> None:
        """Begin a step; on a GPU this returns before the physics has run."""
        self._refuse_midstep()
        if not self._started:
            raise RuntimeError("reset the environment before its first step")
        scaled = self._scale(act)
        # MuJoCo Warp clamps ctrl, which would make a bound of a NaN and hide it.
        self._void = scaled.isnan().any(1)
        self._act = scaled.nan_to_num(0.0)
        self._physics.step(self._act)

    def wait(self) -> Step:
        if self._act is None:
            raise RuntimeError("wait() without start()")
        task, state, act, self._act = self._task, self._physics.fields, self._act, None
        marker = tasks.marker(task, state, self._mass).clone()  # planar: a view of qpos
        up = tasks.healthy(task, state) if task.terminates else None
        reward = tasks.reward(task, state, (marker - self._marker) / self._dt, act, up)
        lost = self._physics.unstable() | self._void
        self._elapsed += 1
        terminated = torch.zeros_like(lost) if up is None else ~(up | lost)
        truncated = (self._elapsed >= task.max_steps) | lost
        next_obs = tasks.observe(task, state)
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

    def step(self, act: Tensor) -> Step:
        self.start(act)
        return self.wait()

    def _restart(self, over: Tensor, obs: Tensor, marker: Tensor) -> Tensor:
        """Begin new episodes where `over` [M] says -> obs [M, O], with theirs in place."""
        self._physics.restart(over)
        self._elapsed.masked_fill_(over, 0)
        state = self._physics.fields
        fresh = tasks.marker(self._task, state, self._mass)
        self._marker = torch.where(over, fresh, marker)
        self._obs = torch.where(over[:, None], tasks.observe(self._task, state), obs)
        return self._obs

    def trouble(self) -> list[str]:
        """Say of dropped contacts and of lost steps; waits for the device, so ask rarely."""
        self._refuse_midstep()
        said = []
        if self._physics.overflowed():
            said.append("contacts were dropped for want of room: the physics was not the task's")
        if lost := int(self.n_lost):
            said.append(f"{lost:,} steps were lost to NaN actions or unstable physics")
        return said

    def snapshot(self) -> Snapshot:
        self._refuse_midstep()
        held = {
            "physics": self._physics.get_state(),
            "elapsed": self._elapsed,
            "marker": self._marker,
            "obs": self._obs,
            "key": self._physics.key,
            "episode": self._physics.episode,
        }
        return {name: tensor.cpu().numpy().copy() for name, tensor in held.items()}

    def restore(self, snapshot: Snapshot, ids: Sequence[int] | None = None) -> Tensor:
        """Put rows back; on the CPU the same future follows bit for bit, on a GPU nearly so."""
        self._refuse_midstep()
        rows = snapshot_rows(snapshot, ids, self.n_envs, self.spec.obs_dim, self.spec.env_id)
        at = torch.tensor(rows, device=self.device)
        held = {
            "elapsed": self._elapsed,
            "marker": self._marker,
            "obs": self._obs.clone(),
            "key": self._physics.key,
            "episode": self._physics.episode,
        }
        if not held.keys() <= snapshot.keys():
            raise ValueError("the snapshot is another backend's")
        for name, tensor in held.items():
            tensor[at] = torch.tensor(snapshot[name], dtype=tensor.dtype, device=self.device)
        physics = torch.tensor(snapshot["physics"], dtype=torch.float32, device=self.device)
        self._physics.set_state(at, physics)
        self._obs = held["obs"]
        self._started = self._started or len(rows) == self.n_envs
        return self._obs

    def close(self) -> None:
        """Give the simulation's memory back, whoever still holds this object."""
        if not self._closed:
            self._closed, self._act = True, None
            self._physics.wait()  # a step under way still uses it
            del self._physics

    def _refuse_midstep(self) -> None:
        if self._closed:
            raise RuntimeError("the environment is closed")
        if self._act is not None:
            raise RuntimeError("a step is under way; call wait() first")
