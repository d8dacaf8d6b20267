"""Two bit-for-bit equal ways to step many simulations of one model on all cores."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import mujoco
import numpy as np
from mujoco.batch import Batch

from dpd.envs.randomization import Ranges
from dpd.envs.scaling import fields_of, scale_model

STATE = mujoco.mjtState.mjSTATE_INTEGRATION
# Counters of the warnings after which MuJoCo resets a simulation within a step.
UNSTABLE = slice(mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQACC + 1)


class BatchPhysics:
    """M simulations stepped by `mujoco.batch`, without Python per simulation.

    It lacks mj_rnePostConstraint. `fields` are live views [M, ...]; copy to keep. With `ranges`,
    each simulation has its own values of the model's fields that they name.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        n_envs: int,
        threads: int,
        skip: int,
        derived: Sequence[str],
        ranges: Ranges,
    ) -> None:
        self._skip = skip
        self._batch, self._derives = Batch(model, n_envs, threads), bool(derived)
        self.fields = {name: self._batch.bind(name) for name in ("qpos", "qvel", "ctrl", *derived)}
        self._counters = self._batch.warning[:, UNSTABLE]
        scaled = [(self._batch.expand(name), k) for name, k in fields_of(ranges)]
        self._scaled = [(field, field.copy(), k) for field, k in scaled]

    def scale(self, ids: np.ndarray, factors: np.ndarray) -> None:
        """Give simulations `ids` (sorted) the model's fields times factors [K, P].

        States do not change, derived fields with the next `reset`, `place` or `step`.
        """
        for field, base, k in self._scaled:
            field[ids] = base[ids] * factors[:, k].reshape(-1, *[1] * (field.ndim - 1))
        self._batch.set_const(ids)

    def step(self, ctrl: np.ndarray) -> None:
        """Advance all by one environment step under ctrl [M, A]."""
        self.fields["ctrl"][:] = ctrl
        self._batch.step(nstep=self._skip)

    def unstable(self) -> np.ndarray | None:
        """Return a mask [M] of those that MuJoCo reset in the last step; None if there are none."""
        # counters are (last info, number) pairs, both zero if nothing happened
        if not np.count_nonzero(self._counters):
            return None
        return np.any(self._counters, axis=(1, 2))

    def reset(self, ids: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> None:
        """Restart simulations `ids` (sorted) from qpos [K, nq] and qvel [K, nv]."""
        self._batch.reset(ids, stage=mujoco.mjtStage.mjSTAGE_NONE)
        self.fields["qpos"][ids] = qpos
        self.fields["qvel"][ids] = qvel
        self._batch.forward(ids)

    def place(self, ids: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> None:
        """Put qpos [K, nq] and qvel [K, nv] into simulations `ids`, and update derived fields.

        Time, controls and the solver's warm start do not change.
        """
        self.fields["qpos"][ids] = qpos
        self.fields["qvel"][ids] = qvel
        if self._derives:
            self._batch.forward(np.sort(ids))

    def get_state(self) -> np.ndarray:
        """Copy everything the next step depends on -> [M, S]."""
        return self._batch.state.copy()

    def set_state(self, ids: Sequence[int], rows: np.ndarray) -> None:
        """Put rows [K, S] into simulations `ids`; the next step updates derived fields."""
        self._batch.state[ids] = rows
        self._batch.warning[ids] = 0

    def close(self) -> None: ...


class ThreadPhysics:
    """Like `BatchPhysics`, in threads, with mj_rnePostConstraint, which contact forces require.

    MuJoCo releases the GIL in both calls, so a thread holds it for a few microseconds per
    simulation. One call copies all fields of a simulation into its row of a block.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        n_envs: int,
        threads: int,
        skip: int,
        derived: Sequence[str],
        ranges: Ranges,
    ) -> None:
        self._model, self._skip, self._ranges = model, skip, ranges
        self._models = [copy.copy(model) if ranges else model for _ in range(n_envs)]
        self._scratch = mujoco.MjData(model) if ranges else None
        self._data = [mujoco.MjData(model) for _ in range(n_envs)]
        names = ("qpos", "qvel", "ctrl", *derived)
        self._sources = [[getattr(d, name).reshape(-1) for name in names] for d in self._data]
        self._ctrl = [d.ctrl for d in self._data]
        self._counters = [d.warning.number[UNSTABLE] for d in self._data]  # live views
        self._block = np.zeros((n_envs, sum(source.size for source in self._sources[0])))
        self._rows = list(self._block)
        self.fields = self._slice_block(names)
        self._unstable = np.zeros((n_envs, len(self._counters[0])), dtype=np.int32)
        # The calling thread steps a chunk too, hence one worker less.
        self._chunks = [c.tolist() for c in np.array_split(np.arange(n_envs), min(threads, n_envs))]
        self._pool = ThreadPoolExecutor(max(1, len(self._chunks) - 1))

    def scale(self, ids: np.ndarray, factors: np.ndarray) -> None:
        for i, row in zip(ids.tolist(), factors, strict=True):
            scale_model(self._models[i], self._model, self._ranges, row)
            mujoco.mj_setConst(self._models[i], self._scratch)

    def _slice_block(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        fields, first = {}, 0
        for name, source in zip(names, self._sources[0], strict=True):
            shape = getattr(self._data[0], name).shape
            columns = self._block[:, first : first + source.size]
            fields[name] = columns.reshape(len(self._block), *shape)  # a view: the split is inner
            first += source.size
        return fields

    def step(self, ctrl: np.ndarray) -> None:
        ctrl = ctrl.astype(np.float64)
        first, *others = self._chunks
        running = [self._pool.submit(self._step_chunk, chunk, ctrl) for chunk in others]
        self._step_chunk(first, ctrl)
        for future in running:
            future.result()

    def _step_chunk(self, chunk: list[int], ctrl: np.ndarray) -> None:
        skip = self._skip
        for i in chunk:
            model, data = self._models[i], self._data[i]
            self._ctrl[i][:] = ctrl[i]
            mujoco.mj_step(model, data, skip)
            mujoco.mj_rnePostConstraint(model, data)
            np.concatenate(self._sources[i], out=self._rows[i])
            self._unstable[i] = self._counters[i]

    def unstable(self) -> np.ndarray | None:
        if not np.count_nonzero(self._unstable):
            return None
        return np.any(self._unstable, axis=1)

    def reset(self, ids: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> None:
        for row, i in enumerate(ids.tolist()):
            model, data = self._models[i], self._data[i]
            mujoco.mj_resetData(model, data)
            data.qpos[:], data.qvel[:] = qpos[row], qvel[row]
            mujoco.mj_forward(model, data)
            np.concatenate(self._sources[i], out=self._rows[i])
            self._unstable[i] = 0

    def place(self, ids: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> None:
        for row, i in enumerate(ids.tolist()):
            model, data = self._models[i], self._data[i]
            data.qpos[:], data.qvel[:] = qpos[row], qvel[row]
            mujoco.mj_forward(model, data)
            mujoco.mj_rnePostConstraint(model, data)
            np.concatenate(self._sources[i], out=self._rows[i])

    def get_state(self) -> np.ndarray:
        rows = np.empty((len(self._data), mujoco.mj_stateSize(self._model, STATE)))
        for data, row in zip(self._data, rows, strict=True):
            mujoco.mj_getState(self._model, data, row, STATE)
        return rows

    def set_state(self, ids: Sequence[int], rows: np.ndarray) -> None:
        for i, row in zip(ids, rows, strict=True):
            mujoco.mj_resetData(self._models[i], self._data[i])
            mujoco.mj_setState(self._models[i], self._data[i], row, STATE)

    def close(self) -> None:
        self._pool.shutdown()


def positions(model: mujoco.MjModel, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Extract qpos [K, nq] and qvel [K, nv] from rows [K, S] of `get_state`."""
    first = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_TIME)  # qpos follows the time
    middle = first + model.nq
    return rows[:, first:middle].copy(), rows[:, middle : middle + model.nv].copy()


def n_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
