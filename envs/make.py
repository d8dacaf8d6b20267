"""Choose the backend for an environment id."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from types import ModuleType

import gymnasium
import torch

from dpd.envs.arguments import native_task
from dpd.envs.base import Env, EnvKwargs, EnvSpec, OnDevice, UnsupportedEnv
from dpd.envs.native import NativeEnv
from dpd.envs.randomization import RANDOMIZE, BadRange, Ranges, parse_ranges
from dpd.envs.tasks import is_native
from dpd.envs.user_task import MujocoTask, imported

BACKENDS = ("auto", "native", "gymnasium", "async", "envpool", "warp")
EXTRAS = {"warp": "gpu", "envpool": "envpool"}
"""The extra with the packages of a backend."""
WARP_FROM = 512
"""Number of environments from which `auto` simulates on a GPU. A Warp step takes as long for one
world as for hundreds, so sixteen CPU cores are faster for few. An estimate; docs/benchmarks.md."""


def make(
    env_id: str,
    n_envs: int,
    seeds: Sequence[int],
    backend: str = "auto",
    env_kwargs: EnvKwargs | None = None,
    threads: int | None = None,
    device: torch.device | None = None,
) -> Env:
    """Make n_envs environments, one seed each. Raises UnsupportedEnv if that is impossible.

    Backend `auto` is native for an id that `is_native`, or warp for at least WARP_FROM of a task in
    `TASKS` on a CUDA device, envpool for an id that Gymnasium does not know and EnvPool does, and
    gymnasium for other ids; `async` is gymnasium with a process per environment. `threads` is for
    the native backend and envpool (None: all cores). `device` holds the tensors of a `Step`; None
    is CUDA for the warp backend, and the CPU otherwise.
    """
    chosen = choose_backend(env_id, backend, env_kwargs, device, n_envs)
    if chosen == "warp":
        task = native_task(env_id, env_kwargs)
        warp: Env = _backend_module("warp").WarpEnv(task, n_envs, seeds, str(device or "cuda"))
        return warp
    env: Env
    if chosen == "native":
        task, ranges = native_task(env_id, env_kwargs), ranges_of(env_id, env_kwargs)
        env = NativeEnv(task, n_envs, seeds, threads, ranges)
    elif chosen == "envpool":
        env = _backend_module("envpool").EnvpoolEnv(env_id, n_envs, seeds, env_kwargs, threads)
    else:
        from dpd.envs.gymnasium import GymnasiumEnv  # here: it takes a tenth of a second

        mode = "async" if chosen == "async" else "sync"
        env = GymnasiumEnv(env_id, n_envs, seeds, env_kwargs, mode)
    return env if device is None or device.type == "cpu" else OnDevice(env, device)


def choose_backend(
    env_id: str,
    backend: str = "auto",
    env_kwargs: EnvKwargs | None = None,
    device: torch.device | None = None,
    n_envs: int = WARP_FROM,
) -> str:
    """Return the name of the backend that `make` would use, without making anything."""
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    if ranges_of(env_id, env_kwargs):
        _refuse_unrandomizable(env_id, backend)
        return "native"
    if backend in ("gymnasium", "async", "envpool"):
        return backend
    if backend == "auto" and not is_native(env_id):
        return "envpool" if _is_envpools_alone(env_id) else "gymnasium"
    task = native_task(env_id, env_kwargs)
    if isinstance(task, MujocoTask):
        if backend == "warp":
            raise UnsupportedEnv(
                f"{env_id}: its rules are NumPy, which Warp cannot run; use --backend native"
            )
        return "native"
    if backend != "auto":
        return backend
    on_gpu = device is not None and device.type == "cuda"
    return "warp" if on_gpu and n_envs >= WARP_FROM else "native"


def ranges_of(env_id: str, env_kwargs: EnvKwargs | None) -> Ranges:
    """Return the ranges in a native task's arguments; of another environment they are its own."""
    if RANDOMIZE not in (env_kwargs or {}) or not is_native(env_id):
        return {}
    try:
        return parse_ranges((env_kwargs or {})[RANDOMIZE])
    except BadRange as error:
        raise UnsupportedEnv(f"{env_id} with {RANDOMIZE}: {error}") from error


def _refuse_unrandomizable(env_id: str, backend: str) -> None:
    """Raise UnsupportedEnv unless the native backend simulates this randomised task."""
    if backend not in ("auto", "native"):
        raise UnsupportedEnv(
            f"{env_id}: {RANDOMIZE} needs the native backend, not {backend}, which has one model "
            "for all episodes"
        )


def check(
    env_id: str,
    backend: str = "auto",
    env_kwargs: EnvKwargs | None = None,
    device: torch.device | None = None,
    n_envs: int = WARP_FROM,
) -> EnvSpec:
    """Make and close one environment -> the specification of n_envs of them."""
    backend = choose_backend(env_id, backend, env_kwargs, device, n_envs)
    if backend == "warp":
        warp = _backend_module("warp")
        gpu = warp.warp_device(str(device or "cuda"))
        # the native backend has the same task, and needs no minute of compiling
        native, task = check(env_id, "native", env_kwargs), native_task(env_id, env_kwargs)
        return dataclasses.replace(native, backend="warp", notes=warp.warp_notes(task, gpu))
    env = make(env_id, 1, [0], backend, env_kwargs, threads=1)
    env.close()
    refuse_unplayable(env.spec, env_kwargs)
    return env.spec


def refuse_unplayable(spec: EnvSpec, env_kwargs: EnvKwargs | None) -> None:
    """Raise UnsupportedEnv if EnvPool's environment has others of its id that differ.

    Saved policies are played where `auto` says, which must be possible and have the same sizes.
    """
    if spec.backend != "envpool":
        return
    if (chosen := choose_backend(spec.env_id, env_kwargs=env_kwargs)) == "envpool":
        return
    played = check(spec.env_id, chosen, env_kwargs)
    sizes = [(one.obs_dim, one.act_dim) for one in (spec, played)]
    if sizes[0] != sizes[1]:
        raise UnsupportedEnv(
            f"{spec.env_id}: EnvPool's has {sizes[0][0]} observations and {sizes[0][1]} actions, "
            f"and the {chosen} backend, on which saved policies are played, {sizes[1][0]} and "
            f"{sizes[1][1]}; use --backend {chosen}"
        )


def _is_envpools_alone(env_id: str) -> bool:
    """Return True for an id that Gymnasium does not know and an installed EnvPool does."""
    if imported(env_id) in gymnasium.registry or importlib.util.find_spec("envpool") is None:
        return False
    return bool(_backend_module("envpool").has_task(env_id))


def _backend_module(backend: str) -> ModuleType:
    """Import the module of a backend whose packages are an extra."""
    try:
        return importlib.import_module(f"dpd.envs.{backend}")
    except ModuleNotFoundError as error:
        message = f"the {backend} backend needs {error.name}: pip install 'dpd[{EXTRAS[backend]}]'"
        raise UnsupportedEnv(message) from error
