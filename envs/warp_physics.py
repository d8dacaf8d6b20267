"""Many worlds of one task's model on a device, simulated by MuJoCo Warp.

All that happens between two readings by the host is recorded once as a graph and replayed: a step
takes two launches, and nothing waits for the device. Numbers are float32, and MuJoCo Warp raises
the solver's tolerance to 1e-6, which is what float32 can meet.
"""

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mujoco
import mujoco_warp as mjw
import numpy as np
import torch
import warp as wp
from torch import Tensor

from dpd.envs.errors import UnsupportedEnv
from dpd.envs.tasks import Task

ON_CPU = "--backend native simulates on the CPU"

# Contacts (shared by all worlds) and constraint rows per world. Random and bang-bang actions for
# 12,000 steps, falls included, needed up to 8 and 38; Humanoid 11 and 47.
_CAPACITY = {"Humanoid-v5": (32, 128)}
_USUAL_CAPACITY = (24, 96)
# Not capacities: a solver that stops at its last iteration is no loss of contacts.
_HARMLESS = int(mjw.OverflowType.ITERATIONS | mjw.OverflowType.LS_ITERATIONS)
# Beyond this MuJoCo calls a state unstable and resets the simulation. MuJoCo Warp goes on.
_MAX_VALUE = 1e10
# What the future depends on, in the order of MuJoCo's own integration state.
_STATE = ("time", "qpos", "qvel", "qacc_warmstart", "ctrl")
# What a restart leaves at zero: without ctrl there is no actuator force, and MuJoCo computes
# contact forces in a step only.
_ZERO_AT_START = ("cfrc_ext", "qfrc_actuator")


@wp.func
def _scramble(x: wp.uint64) -> wp.uint64:
    """SplitMix64's finaliser: each bit that goes in changes half of those that come out."""
    x = (x ^ (x >> wp.uint64(30))) * wp.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> wp.uint64(27))) * wp.uint64(0x94D049BB133111EB)
    return x ^ (x >> wp.uint64(31))


@wp.func
def _absorb(word: wp.uint64, number: int) -> wp.uint64:
    """Make a new word of a word and a number."""
    return _scramble(word + wp.uint64(number + 1) * wp.uint64(0x9E3779B97F4A7C15))


@wp.func
def _unit(bits: wp.uint64) -> float:
    """Make a number in (0, 1), both ends excluded, of the lowest 23 bits; float32 holds no more."""
    return (float(bits & wp.uint64(0x7FFFFF)) + 0.5) / 8388608.0


@wp.kernel(enable_backward=False)
def _draw_start(
    mask: wp.array[bool],
    key: wp.array[wp.int64],
    episode: wp.array[int],
    qpos0: wp.array[float],
    noise: float,
    normal_qvel: bool,
    time: wp.array[float],
    qpos: wp.array2d[float],
    qvel: wp.array2d[float],
    warmstart: wp.array2d[float],
) -> None:
    """Put masked worlds at a start that depends on key, episode and coordinate alone."""
    world, k = wp.tid()
    if not mask[world]:
        return
    bits = _absorb(_absorb(_absorb(wp.uint64(key[world]), 0), episode[world]), k)
    first, second = _unit(bits), _unit(bits >> wp.uint64(23))
    x = 2.0 * first - 1.0
    nq = qpos0.shape[0]
    if k < nq:
        qpos[world, k] = qpos0[k] + noise * x
        return
    if normal_qvel:
        x = wp.sqrt(-2.0 * wp.log(first)) * wp.cos(6.283185307179586 * second)
    qvel[world, k - nq] = noise * x
    warmstart[world, k - nq] = 0.0
    time[world] = 0.0


class WarpPhysics:
    """M worlds. `fields` are live views [M, ...] of the simulator: whoever keeps them must copy.

    `key` [M] and `episode` [M] decide where a world starts, whatever happens to the others.
    """

    def __init__(
        self, task: Task, model: mujoco.MjModel, keys: np.ndarray, device: torch.device
    ) -> None:
        self._task, self._device, n_worlds = task, device, len(keys)
        if model.opt.solver == mujoco.mjtSolver.mjSOL_PGS:
            model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON  # there is no PGS
        self.key = torch.tensor(keys, device=device)
        self.episode = torch.full((n_worlds,), -1, dtype=torch.int32, device=device)
        self._mask = torch.ones(n_worlds, dtype=torch.bool, device=device)
        self._qpos0 = torch.tensor(model.qpos0, dtype=torch.float32, device=device)
        _wait_for(device)  # what torch has begun; Warp's stream is another one
        n_contacts, n_rows = _CAPACITY.get(task.env_id, _USUAL_CAPACITY)
        with wp.ScopedDevice(str(device)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of an old driver `notes` tells, in one line
                self._model = mjw.put_model(model)
            self._model.opt.graph_conditional = loops_on(device)
            self._model.opt.warn_overflow = 0  # or the device prints; `overflowed` tells
            self._data = mjw.make_data(model, n_worlds, nconmax=n_contacts, njmax=n_rows)
            self._draw_args = self._make_draw_args()
            self._step = self._record(self._run_step)
            self._restart = self._record(self._run_restart)
        names = dict.fromkeys((*_STATE, *task.derived))
        self.fields = {name: wp.to_torch(getattr(self._data, name)) for name in names}
        self._state = [self.fields[name].view(n_worlds, -1) for name in _STATE]
        self._overflow = wp.to_torch(self._data.overflow)
        _wait_for(device)

    def step(self, ctrl: Tensor) -> None:
        """Begin to advance all worlds by one environment step under ctrl [M, A]."""
        self.fields["ctrl"].copy_(ctrl)
        self._launch(self._step)

    def restart(self, mask: Tensor) -> None:
        """Start masked worlds [M] anew.

        The derived fields of *all* worlds change: they now belong to the positions, where after a
        step they belong to the integrator's last stage. Read those of a step before.
        """
        self.episode += mask
        self._mask.copy_(mask)
        self._launch(self._restart)
        for name in _ZERO_AT_START:
            if name in self.fields:
                field = self.fields[name]
                field.masked_fill_(mask.view(-1, *[1] * (field.ndim - 1)), 0.0)

    def unstable(self) -> Tensor:
        """Whether a world's numbers are not finite, or beyond what MuJoCo takes -> [M] bool."""
        size = torch.cat(self._state[1:4], dim=1).abs().amax(1)
        return ~(size < _MAX_VALUE)  # NaN is less than nothing

    def overflowed(self) -> bool:
        """Whether any world ever needed more contacts or constraints than fit; waits."""
        return bool((self._overflow & ~_HARMLESS).any())

    def get_state(self) -> Tensor:
        """Copy everything the next step depends on -> [M, S]."""
        return torch.cat(self._state, dim=1)

    def set_state(self, ids: Tensor, rows: Tensor) -> None:
        """Put rows [K, S] into worlds `ids`. Derived fields follow at the next step."""
        parts = rows.split([field.shape[1] for field in self._state], dim=1)
        for field, part in zip(self._state, parts, strict=True):
            field[ids] = part

    def wait(self) -> None:
        """Wait until the device has done all that was begun."""
        _wait_for(self._device)

    def _make_draw_args(self) -> tuple[list[object], list[object]]:
        data, task = self._data, self._task
        given = [wp.from_torch(t) for t in (self._mask, self.key, self.episode, self._qpos0)]
        drawn = [data.time, data.qpos, data.qvel, data.qacc_warmstart]
        return [*given, task.qpos_noise, task.normal_qvel], drawn

    def _run_step(self) -> None:
        for _ in range(self._task.frame_skip):
            mjw.step(self._model, self._data)
        if self._task.needs_contact_forces:
            mjw.rne_postconstraint(self._model, self._data)

    def _run_restart(self) -> None:
        data = self._data
        inputs, outputs = self._draw_args
        n_drawn = data.qpos.shape[1] + data.qvel.shape[1]
        wp.launch(_draw_start, (data.nworld, n_drawn), inputs=inputs, outputs=outputs)
        if self._task.derived:
            mjw.kinematics(self._model, data)
            mjw.com_pos(self._model, data)
            mjw.com_vel(self._model, data)

    def _record(self, work: Callable[[], None]) -> wp.Graph:
        """Run work once, and record what it launches."""
        work()  # compiles, which a recording can't
        with _clear_errors(self._task.env_id), _no_collection(), wp.ScopedCapture() as capture:
            work()
        return capture.graph

    def _launch(self, graph: wp.Graph) -> None:
        """Replay a recording on the stream torch works on now, so that all stays in order."""
        on_gpu = self._device.type == "cuda"
        wp.capture_launch(graph, stream=wp.stream_from_torch(self._device) if on_gpu else None)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collector away: what it frees would become part of a recording."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _clear_errors(env_id: str) -> Iterator[None]:
    """Say in one line that a simulation could not be recorded; a lack of memory stays one."""
    try:
        yield
    except RuntimeError as error:
        if "allocate" in str(error):
            raise
        reason = str(error).strip().split("\n")[0]
        raise UnsupportedEnv(
            f"Warp cannot record the simulation of {env_id} as a CUDA graph: {reason}; {ON_CPU}"
        ) from error


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # all streams, Warp's too


def loops_on(device: torch.device) -> bool:
    """Whether a recording may loop until the solver has converged: on a GPU from CUDA 12.4 on."""
    return device.type == "cpu" or bool(wp.is_conditional_graph_supported())


def find_device(name: str) -> torch.device:
    """Return the device called so; raises UnsupportedEnv where Warp or torch can't use it."""
    device = torch.device(name)
    if device.type not in ("cpu", "cuda"):
        raise UnsupportedEnv(f"device {name!r}: MuJoCo Warp runs on cuda, and for tests on cpu")
    # a line for each of the modules it compiles
    wp.config.log_level = max(wp.config.log_level, wp.LOG_WARNING)
    if device.type == "cpu":
        return device
    if not (torch.cuda.is_available() and wp.is_cuda_available()):
        raise UnsupportedEnv(f"device {name!r}: {_why_no_device()}; {ON_CPU}")
    index = torch.cuda.current_device() if device.index is None else device.index
    device = torch.device("cuda", index)
    if not wp.is_mempool_enabled(str(device)):
        # the Runge-Kutta integrator allocates inside the recording
        raise UnsupportedEnv(
            f"device {name!r}: Warp needs CUDA memory pools, and they are switched off; {ON_CPU}"
        )
    return device


def _why_no_device() -> str:
    """Say why there is no CUDA device for both PyTorch and Warp."""
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    driver, built = wp.get_cuda_driver_version(), wp.get_cuda_toolkit_version()
    if driver is None or built is None or driver >= built:
        return "Warp finds no CUDA device"
    said = [".".join(map(str, version)) for version in (built, driver)]
    return (
        f"Warp {wp.__version__} is built for CUDA {said[0]}, and the driver is of {said[1]}: "
        "update the driver, or install a warp-lang that is built for it"
    )
