"""Many copies ("worlds") of a task's model on a device, simulated by MuJoCo Warp.

The kernels of a step and of a restart are recorded once as CUDA graphs, so that a step takes two
launches and never waits for the device. Numbers are float32; MuJoCo Warp raises the solver's
tolerance to 1e-6, which float32 can meet.
"""

import gc
import warnings
from collections.abc import Callable

import mujoco
import mujoco_warp as mjw
import numpy as np
import torch
import warp as wp
from torch import Tensor

from dpd.envs.base import UnsupportedEnv
from dpd.envs.task import Task

ON_CPU = "--backend native simulates on the CPU"

# Capacity for contacts (shared by all worlds) and constraint rows per world. Random and bang-bang
# actions for 12,000 steps, falls included, needed at most 8 and 38; Humanoid 11 and 47.
_CAPACITY = {
    f"{name}-{v}": (32, 128) for name in ("Humanoid", "HumanoidStandup") for v in ("v4", "v5")
}
_USUAL_CAPACITY = (24, 96)
# Not capacities: a solver that reaches its iteration limit loses no contacts.
_HARMLESS = int(mjw.OverflowType.ITERATIONS | mjw.OverflowType.LS_ITERATIONS)
# Beyond this MuJoCo calls a state unstable and resets the simulation; MuJoCo Warp does not.
_MAX_VALUE = 1e10
# The full state, in the order of MuJoCo's integration state.
_STATE = ("time", "qpos", "qvel", "qacc_warmstart", "ctrl")
# Fields that are zero after a restart: without ctrl there is no actuator force, MuJoCo computes
# contact forces in a step only, and no start of a double pendulum is near the end of its rail.
_ZERO_AT_START = ("cfrc_ext", "qfrc_actuator", "qfrc_constraint")
_TRIES = wp.constant(64)  # a goal is rejected 64 times in a row less often than once in 1e40 starts


@wp.func
def _scramble(x: wp.uint64) -> wp.uint64:
    """Apply SplitMix64's finaliser: each input bit flips half of the output bits."""
    x = (x ^ (x >> wp.uint64(30))) * wp.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> wp.uint64(27))) * wp.uint64(0x94D049BB133111EB)
    return x ^ (x >> wp.uint64(31))


@wp.func
def _absorb(word: wp.uint64, number: int) -> wp.uint64:
    """Hash a word and a number into a new word."""
    return _scramble(word + wp.uint64(number + 1) * wp.uint64(0x9E3779B97F4A7C15))


@wp.func
def _unit(bits: wp.uint64) -> float:
    """Turn the lowest 23 bits into a number in (0, 1), exclusive; float32 can hold no more bits."""
    return (float(bits & wp.uint64(0x7FFFFF)) + 0.5) / 8388608.0


@wp.kernel(enable_backward=False)
def _draw_start(
    mask: wp.array[bool],
    key: wp.array[wp.int64],
    episode: wp.array[int],
    qpos0: wp.array[float],
    qpos_noise: float,
    qvel_noise: float,
    normal_qvel: bool,
    n_moving: int,
    time: wp.array[float],
    qpos: wp.array2d[float],
    qvel: wp.array2d[float],
    warmstart: wp.array2d[float],
) -> None:
    """Move masked worlds to a start that depends only on key, episode and coordinate."""
    world, k = wp.tid()
    if not mask[world]:
        return
    bits = _absorb(_absorb(_absorb(wp.uint64(key[world]), 0), episode[world]), k)
    first, second = _unit(bits), _unit(bits >> wp.uint64(23))
    x = 2.0 * first - 1.0
    nq = qpos0.shape[0]
    if k < nq:
        qpos[world, k] = qpos0[k] + qpos_noise * x
        return
    if normal_qvel:
        x = wp.sqrt(-2.0 * wp.log(first)) * wp.cos(6.283185307179586 * second)
    if k - nq >= n_moving:
        x = 0.0
    qvel[world, k - nq] = qvel_noise * x
    warmstart[world, k - nq] = 0.0
    time[world] = 0.0


@wp.kernel(enable_backward=False)
def _draw_goal(
    mask: wp.array[bool],
    key: wp.array[wp.int64],
    episode: wp.array[int],
    n_drawn: int,
    first: int,
    low: wp.vec2,
    high: wp.vec2,
    radius: float,
    is_inside: bool,
    qpos: wp.array2d[float],
) -> None:
    """Draw coordinates `first` and `first + 1` of masked worlds, after n_drawn other numbers."""
    world = wp.tid()
    if not mask[world]:
        return
    word = _absorb(_absorb(wp.uint64(key[world]), 0), episode[world])
    for k in range(_TRIES):
        bits = _absorb(word, n_drawn + k)
        x = low[0] + (high[0] - low[0]) * _unit(bits)
        y = low[1] + (high[1] - low[1]) * _unit(bits >> wp.uint64(23))
        qpos[world, first] = x
        qpos[world, first + 1] = y
        distance = wp.sqrt(x * x + y * y)
        if (is_inside and distance < radius) or (not is_inside and distance > radius):
            return


class WarpPhysics:
    """M worlds. `fields` are live views [M, ...] of the simulator; copy to keep.

    A world's start depends only on its `key` and `episode` (both [M]), not on other worlds.
    """

    def __init__(
        self, task: Task, model: mujoco.MjModel, keys: np.ndarray, device: torch.device
    ) -> None:
        self._task, self._device, n_worlds = task, device, len(keys)
        if model.opt.solver == mujoco.mjtSolver.mjSOL_PGS:
            model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON  # MuJoCo Warp has no PGS
        self.key = torch.tensor(keys, device=device)
        self.episode = torch.full((n_worlds,), -1, dtype=torch.int32, device=device)
        self._mask = torch.ones(n_worlds, dtype=torch.bool, device=device)
        self._qpos0 = torch.tensor(task.pose(), dtype=torch.float32, device=device)
        wait_for(device)  # finish torch's work first: Warp uses another stream
        n_contacts, n_rows = _CAPACITY.get(task.env_id, _USUAL_CAPACITY)
        with wp.ScopedDevice(str(device)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about old drivers; `warp_notes` reports them
                self._model = mjw.put_model(model)
            self._model.opt.graph_conditional = loops_on(device)
            self._model.opt.warn_overflow = 0  # do not print from the device; see `overflowed`
            self._data = mjw.make_data(model, n_worlds, nconmax=n_contacts, njmax=n_rows)
            data, views = self._data, (self._mask, self.key, self.episode, self._qpos0)
            self._draw_args: dict[str, list[object]] = {
                "inputs": [
                    *map(wp.from_torch, views),
                    task.qpos_noise or 0.0,
                    task.velocity_noise,
                    task.normal_qvel,
                    model.nv - task.still,
                ],
                "outputs": [data.time, data.qpos, data.qvel, data.qacc_warmstart],
            }
            self._step = self._record(self._run_step)
            self._restart = self._record(self._run_restart)
        names = dict.fromkeys((*_STATE, *task.derived))
        self.fields = {name: wp.to_torch(getattr(self._data, name)) for name in names}
        self._state = [self.fields[name].view(n_worlds, -1) for name in _STATE]
        self._overflow = wp.to_torch(self._data.overflow)
        wait_for(device)

    def step(self, ctrl: Tensor) -> None:
        """Launch one environment step of all worlds under ctrl [M, A]."""
        self.fields["ctrl"].copy_(ctrl)
        self._launch(self._step)

    def restart(self, mask: Tensor) -> None:
        """Restart masked worlds [M].

        The derived fields of *all* worlds change: afterwards they belong to the positions, whereas
        after a step they belong to the integrator's last stage. Read those of a step first.
        """
        self.episode += mask
        self._mask.copy_(mask)
        self._launch(self._restart)
        for name in _ZERO_AT_START:
            if name in self.fields:
                field = self.fields[name]
                field.masked_fill_(mask.view(-1, *[1] * (field.ndim - 1)), 0.0)

    def unstable(self) -> Tensor:
        """Return a mask [M] of the worlds whose state is not finite, or too large for MuJoCo."""
        size = torch.cat(self._state[1:4], dim=1).abs().amax(1)
        return ~(size < _MAX_VALUE)  # comparisons with NaN are false

    def overflowed(self) -> bool:
        """Return True if contacts or constraints ever exceeded the capacity; waits."""
        return bool((self._overflow & ~_HARMLESS).any())

    def get_state(self) -> Tensor:
        """Copy everything the next step depends on -> [M, S]."""
        return torch.cat(self._state, dim=1)

    def set_state(self, ids: Tensor, rows: Tensor) -> None:
        """Put rows [K, S] into worlds `ids`; the next step updates derived fields."""
        parts = rows.split([field.shape[1] for field in self._state], dim=1)
        for field, part in zip(self._state, parts, strict=True):
            field[ids] = part

    def _run_step(self) -> None:
        for _ in range(self._task.frame_skip):
            mjw.step(self._model, self._data)
        if self._task.needs_contact_forces:
            mjw.rne_postconstraint(self._model, self._data)

    def _run_restart(self) -> None:
        data = self._data
        n_drawn = data.qpos.shape[1] + data.qvel.shape[1]
        wp.launch(_draw_start, (data.nworld, n_drawn), **self._draw_args)
        if (goal := self._task.goal) is not None:
            first = data.qpos.shape[1] + goal.qpos
            limits = (wp.vec2(*goal.low), wp.vec2(*goal.high), goal.radius, goal.is_inside)
            known = self._draw_args["inputs"][:3]  # mask, key, episode
            wp.launch(
                _draw_goal, data.nworld, [*known, n_drawn, first, *limits], outputs=[data.qpos]
            )
        if self._task.derived:
            mjw.kinematics(self._model, data)
            mjw.com_pos(self._model, data)
            mjw.com_vel(self._model, data)

    def _record(self, work: Callable[[], None]) -> wp.Graph:
        """Run work once, then record the kernels that it launches."""
        work()  # compiles kernels, which is impossible while recording
        was_enabled = gc.isenabled()
        gc.disable()  # the memory that it frees would become part of the recording
        try:
            with wp.ScopedCapture() as capture:
                work()
        except RuntimeError as error:
            if "allocate" in str(error):  # `WarpEnv` reports a lack of memory
                raise
            reason = str(error).strip().split("\n")[0]
            raise UnsupportedEnv(
                f"Warp cannot record the simulation of {self._task.env_id} as a CUDA graph: "
                f"{reason}; {ON_CPU}"
            ) from error
        finally:
            if was_enabled:
                gc.enable()
        return capture.graph

    def _launch(self, graph: wp.Graph) -> None:
        """Replay a recording on torch's current stream, so that the order is kept."""
        on_gpu = self._device.type == "cuda"
        wp.capture_launch(graph, stream=wp.stream_from_torch(self._device) if on_gpu else None)


def wait_for(device: torch.device) -> None:
    """Wait until a device has finished all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # all streams, including Warp's


def loops_on(device: torch.device) -> bool:
    """Return True if a recording can loop until the solver converges: on a GPU, CUDA 12.4."""
    return device.type == "cpu" or bool(wp.is_conditional_graph_supported())


def warp_device(name: str) -> torch.device:
    """Return a device by name. Raises UnsupportedEnv if Warp or torch cannot use it."""
    device = torch.device(name)
    if device.type not in ("cpu", "cuda"):
        raise UnsupportedEnv(f"device {name!r}: MuJoCo Warp runs on cuda (or, for tests, on cpu)")
    # or Warp prints a line for every module that it compiles
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
            f"device {name!r}: Warp needs CUDA memory pools, but they are disabled; {ON_CPU}"
        )
    return device


def _why_no_device() -> str:
    """Return the reason why PyTorch or Warp finds no CUDA device."""
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    driver, built = wp.get_cuda_driver_version(), wp.get_cuda_toolkit_version()
    if driver is None or built is None or driver >= built:
        return "Warp finds no CUDA device"
    needs, has = (".".join(map(str, version)) for version in (built, driver))
    return (
        f"Warp {wp.__version__} is built for CUDA {needs}, but the driver supports {has}: "
        "update the driver, or install a warp-lang that is built for it"
    )
