"""Tasks on all CPU cores, bit-for-bit equal to Gymnasium's vector environment."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpd.envs.base import (
    ActionScale,
    Env,
    EnvSpec,
    Snapshot,
    Step,
    UnsupportedEnv,
    distinct_rows,
    snapshot_rows,
)
from dpd.envs.physics import BatchPhysics, ThreadPhysics, n_cores
from dpd.envs.randomization import PARAMS, Ranges
from dpd.envs.scaling import drawn_factors, without_effect
from dpd.envs.task import SimState, Task, load_model
from dpd.envs.tasks import find_task

_WORD = 2**64
_NOBODY = np.zeros(0, dtype=np.int64)
_ALL = slice(None)


class Transition(NamedTuple):
    """One step in the simulator's precision; no array is written to again."""

    obs: np.ndarray  # [M, O] float64, already reset where an episode ended (with `restart`)
    next_obs: np.ndarray  # [M, O] float64, `obs` itself when no episode ended
    reward: np.ndarray  # [M] float64
    terminated: np.ndarray  # [M] bool
    truncated: np.ndarray  # [M] bool
    lost: np.ndarray | None  # [M] bool: unstable physics, reward 0; None: none was
    ended: np.ndarray  # [K] environments whose episode ended


class Simulation:
    """M copies of a task in float64 NumPy: episodes, time limits and resets."""

    def __init__(
        self,
        task: str | Task,
        n_envs: int,
        seeds: Sequence[int] | None,
        threads: int | None = None,
        fields: Sequence[str] = (),
        ranges: Ranges | None = None,
    ) -> None:
        """Make n_envs of `task`; `fields` are MjData fields to add to `state`.

        With `ranges`, every episode draws factors of the model's quantities, which follow the other
        columns of its observations. Raises UnsupportedEnv for one that has no effect.
        """
        self.task = find_task(task) if isinstance(task, str) else task
        threads = n_cores() if threads is None else threads
        for name, number in (("n_envs", n_envs), ("threads", threads)):
            if number < 1:
                raise ValueError(f"{name}={number} must be at least 1")
        self.n_envs = n_envs
        self.model = load_model(self.task)
        self.act_low, self.act_high = self.model.actuator_ctrlrange.T.astype(np.float32)
        self._ranges = {} if ranges is None else ranges
        self._physics = self._make_physics(threads, fields)
        self.state: SimState = self._physics.fields
        """The MjData fields of all environments: read-only live views [M, ...]; copy to keep."""
        self.dt = self.task.dt
        self._elapsed = np.zeros(n_envs, dtype=np.int64)
        self._params = np.ones((n_envs, len(self._ranges)))
        self._mass = self.model.body_mass
        if "mass" in self._ranges:
            self._mass = np.tile(self._mass, (n_envs, 1))
        self._marker = self._place_of(self.state).copy()
        self._obs = self._observe(self.state, self._params)
        self.obs_dim = self._obs.shape[1]
        self.groups = self.task.observation_groups(self.state, len(self._ranges))
        self._never = np.zeros(n_envs, dtype=bool)
        self._never.flags.writeable = False
        self._started = False
        self.generators: list[np.random.Generator] = []
        self.seeds: list[int] = []
        self.seed([None] * n_envs if seeds is None else seeds)

    def _make_physics(self, threads: int, fields: Sequence[str]) -> BatchPhysics | ThreadPhysics:
        task, ranges = self.task, self._ranges
        if (idle := without_effect(self.model, ranges)) is not None:
            raise UnsupportedEnv(
                f"{task.env_id}: a factor of {idle} would change nothing in its model; leave it "
                "out of --randomize"
            )
        physics: type[BatchPhysics | ThreadPhysics]
        physics = ThreadPhysics if task.needs_contact_forces else BatchPhysics
        derived = tuple(dict.fromkeys((*task.derived, *fields)))
        return physics(self.model, self.n_envs, threads, task.frame_skip, derived, ranges)

    def seed(self, seeds: Sequence[int | None]) -> None:
        """Seed environment i with seeds[i], as Gymnasium does; None keeps its generator."""
        if len(seeds) != self.n_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.n_envs} environments; give one each")
        for i, seed in enumerate(seeds):
            if seed is not None or i >= len(self.generators):
                source = np.random.SeedSequence(seed)
                assert isinstance(source.entropy, int)
                self.generators[i : i + 1] = [np.random.default_rng(source)]
                self.seeds[i : i + 1] = [source.entropy]

    def reset(self, ids: np.ndarray | None = None) -> np.ndarray:
        """Start fresh episodes in environments `ids` (sorted; None: all) -> obs [M, O]."""
        if ids is None:
            ids = np.arange(self.n_envs)
        self._obs = self._restart(ids, self._obs.copy())
        self._started = self._started or len(ids) == self.n_envs
        return self._obs

    def _restart(self, ids: np.ndarray, obs: np.ndarray) -> np.ndarray:
        """Reset environments `ids` and write their first observations into obs."""
        generators = [self.generators[i] for i in ids.tolist()]
        qpos, qvel = zip(*map(self.task.draw_start, generators), strict=True)
        if self._ranges:
            self._scale(ids, drawn_factors(self._ranges, generators))
        self._physics.reset(ids, np.stack(qpos), np.stack(qvel))
        self._elapsed[ids] = 0
        return self._refresh(ids, obs)

    def _scale(self, ids: np.ndarray, factors: np.ndarray) -> None:
        """Give environments `ids` (sorted) the model of factors [K, P]."""
        self._params[ids] = factors
        if "mass" in self._ranges:
            column = list(self._ranges).index("mass")
            self._mass[ids] = self.model.body_mass * factors[:, [column]]
        self._physics.scale(ids, factors)

    def _observe(self, state: SimState, params: np.ndarray) -> np.ndarray:
        obs: np.ndarray = self.task.observe(state)
        return np.concatenate([obs, params], axis=1) if self._ranges else obs

    def _place_of(self, state: SimState, ids: np.ndarray | slice = _ALL) -> np.ndarray:
        """Return the markers of environments `ids`, such as their x position [K, ...]."""
        mass = self._mass[ids] if self._mass.ndim > 1 else self._mass
        place: np.ndarray = self.task.marker(state, mass)
        return place

    def _refresh(self, ids: np.ndarray, obs: np.ndarray) -> np.ndarray:
        """Write the observations of environments `ids` into obs, and update their markers."""
        fresh = {name: field[ids] for name, field in self.state.items()}
        obs[ids] = self._observe(fresh, self._params[ids])
        self._marker[ids] = self._place_of(fresh, ids)
        return obs

    def stagger(self, share: np.ndarray) -> None:
        """Age the running episodes by share [M] in [0, 1) of the time limit."""
        self._elapsed[:] = np.floor(share * self.task.max_steps)

    def step(
        self, act: np.ndarray, restart: bool = True, fresh: np.ndarray = _NOBODY
    ) -> Transition:
        """Take a step with act [M, A], in the task's bounds, and restart the episodes it ends.

        Without `restart`, the episodes `ended` keep their last state. Environments `fresh` (sorted)
        start an episode in place of the step: their reward is 0, and they cannot end.
        """
        if not self._started:
            raise RuntimeError("reset the environment before its first step")
        self._physics.step(act)
        task, state = self.task, self.state
        if len(fresh):
            self._restart(fresh, self._obs.copy())
        before = self._marker
        self._marker = self._place_of(state).copy()
        up = task.healthy(state)
        reward = task.total(task.reward_terms(before, self._marker, state, act, up))
        terminated = ~up if task.terminates and up is not None else self._never
        self._elapsed += 1
        truncated = self._elapsed >= task.max_steps
        lost = self._physics.unstable()
        if lost is not None:
            self._warn_lost(lost)
            terminated, truncated = terminated & ~lost, truncated | lost
            # MuJoCo moved the body to its default pose; that jump must not earn a reward
            reward = np.where(lost, 0.0, reward)
        if len(fresh):
            terminated = terminated.copy()
            self._elapsed[fresh], reward[fresh] = 0, 0.0
            terminated[fresh] = truncated[fresh] = False
        obs = next_obs = self._observe(state, self._params)
        ended = _NOBODY
        over = terminated | truncated
        if np.count_nonzero(over):  # a tenth of the cost of any()
            ended = np.flatnonzero(over)
            if restart:
                obs = self._restart(ended, obs.copy())
        self._obs = obs
        return Transition(obs, next_obs, reward, terminated, truncated, lost, ended)

    def _warn_lost(self, lost: np.ndarray) -> None:
        warnings.warn(
            f"{self.task.env_id}: the physics of environments {np.flatnonzero(lost).tolist()} "
            "became unstable; their step is marked invalid and their episode cut",
            RuntimeWarning,
            stacklevel=3,
        )

    def snapshot(self) -> Snapshot:
        """Copy everything the future depends on, one row per environment."""
        return {
            "physics": self._physics.get_state(),
            "elapsed": self._elapsed.copy(),
            "marker": self._marker.copy(),
            "obs": self._obs.copy(),
            "generator": np.stack([_pack_generator(g) for g in self.generators]),
            **({PARAMS: self._params.copy()} if self._ranges else {}),
        }

    def restore(self, snapshot: Snapshot, ids: Sequence[int] | None = None) -> np.ndarray:
        """Put row k of the snapshot into environment ids[k] (None: k) -> obs [M, O]."""
        rows = snapshot_rows(snapshot, ids, self.n_envs, self.obs_dim, self.task.env_id)
        if self._ranges:
            order = np.argsort(rows)
            self._scale(rows[order], snapshot[PARAMS][order])
        self._physics.set_state(rows.tolist(), snapshot["physics"])
        self._elapsed[rows] = snapshot["elapsed"]
        self._marker[rows] = snapshot["marker"]
        self._obs = self._obs.copy()
        self._obs[rows] = snapshot["obs"]
        for i, words in zip(rows.tolist(), snapshot["generator"], strict=True):
            self.generators[i].bit_generator.state = _unpack_generator(words)
        self._started = self._started or len(rows) == self.n_envs
        return self._obs

    def set_state(self, ids: Sequence[int], qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        """Put qpos [K, nq] and qvel [K, nv] into environments ids[k] -> obs [M, O].

        The clock, the last action and the solver's warm start do not change. Some tasks also
        observe contact forces, or places of bodies (Reacher, Pusher). A step leaves those of its
        last stage, but this method computes those of the new state, so they change even if qpos
        and qvel do not.
        Raises ValueError for ids, shapes or numbers that do not fit.
        """
        rows = distinct_rows(ids, self.n_envs)
        for name, given, width in (("qpos", qpos, self.model.nq), ("qvel", qvel, self.model.nv)):
            if given.shape != (len(rows), width) or not np.isfinite(given).all():
                raise ValueError(
                    f"{name} must be finite and of shape {(len(rows), width)}, got {given.shape}"
                )
        self._physics.place(rows, qpos, qvel)
        self._obs = self._refresh(rows, self._obs.copy())
        self._started = self._started or len(rows) == self.n_envs
        return self._obs

    def close(self) -> None:
        self._physics.close()


class NativeEnv(Env):
    """The native simulation as an `Env`.

    A `Step`'s tensors are read-only: if no episode ended, `next_obs` is `obs` itself, and constant
    masks are shared between steps.
    """

    def __init__(
        self,
        task: str | Task,
        n_envs: int,
        seeds: Sequence[int],
        threads: int | None = None,
        ranges: Ranges | None = None,
    ) -> None:
        self._sim = sim = Simulation(task, n_envs, seeds, threads, ranges=ranges)
        self.n_envs = n_envs
        sizes, bounds = (sim.obs_dim, sim.model.nu), (sim.act_low, sim.act_high)
        limits, env_id = (True, sim.task.max_steps), sim.task.env_id
        self.spec = EnvSpec(
            env_id, "native", *sizes, *bounds, *limits, sim.task.notes, groups=sim.groups
        )
        self._scale = ActionScale(sim.act_low, sim.act_high)
        self._all_valid = torch.ones(n_envs, dtype=torch.bool)
        self._never = torch.zeros(n_envs, dtype=torch.bool)

    def reset(self) -> Tensor:
        return _tensor(self._sim.reset())

    def stagger(self, share: np.ndarray) -> None:
        self._sim.stagger(share)

    def step(self, act: Tensor) -> Step:
        done = self._sim.step(self._scale(act))
        first = _tensor(done.obs)
        return Step(
            first,
            _tensor(done.next_obs) if len(done.ended) else first,
            _tensor(done.reward),
            torch.from_numpy(done.terminated) if self._sim.task.terminates else self._never,
            torch.from_numpy(done.truncated),
            self._all_valid if done.lost is None else torch.from_numpy(~done.lost),
        )

    def snapshot(self) -> Snapshot:
        return self._sim.snapshot()

    def restore(self, snapshot: Snapshot, ids: Sequence[int] | None = None) -> Tensor:
        return _tensor(self._sim.restore(snapshot, ids))

    def set_state(self, ids: Sequence[int], qpos: np.ndarray, qvel: np.ndarray) -> Tensor:
        """Put qpos [K, nq] and qvel [K, nv] into environments `ids`: `Simulation.set_state`."""
        return _tensor(self._sim.set_state(ids, qpos, qvel))

    def close(self) -> None:
        self._sim.close()


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))


def _pack_generator(generator: np.random.Generator) -> np.ndarray:
    """Return PCG64's state as six uint64 words, which any file format can store."""
    state = generator.bit_generator.state
    inner = state["state"]
    words = [*divmod(inner["state"], _WORD), *divmod(inner["inc"], _WORD)]
    return np.array([*words, state["has_uint32"], state["uinteger"]], dtype=np.uint64)


def _unpack_generator(words: np.ndarray) -> dict[str, object]:
    high, low, inc_high, inc_low, has_uint32, uinteger = (int(word) for word in words)
    return {
        "bit_generator": "PCG64",
        "state": {"state": high * _WORD + low, "inc": inc_high * _WORD + inc_low},
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }
