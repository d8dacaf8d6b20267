"""Choose the backend for an environment id."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import ModuleType

import torch

from dpd.envs.base import Env, EnvKwargs, EnvSpec, OnDevice, UnsupportedEnv
from dpd.envs.native import NativeEnv
from dpd.envs.randomization import RANDOMIZE, BadRange, Ranges, parse_ranges
from dpd.envs.tasks import TASKS, find_task

BACKENDS = ("auto", "native", "gymnasium", "warp")
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

    Backend `auto` is gymnasium, but native for an id in `TASKS` without env_kwargs other than
    `randomize`, and warp for at least WARP_FROM of those without any on a CUDA device. `threads`
    is for the native backend (None: all cores). `device` holds the tensors of a `Step`; None is
    CUDA for the warp backend, and the CPU otherwise.
    """
    chosen = choose_backend(env_id, backend, env_kwargs, device, n_envs)
    if chosen == "warp":
        warp: Env = _warp_backend().WarpEnv(env_id, n_envs, seeds, str(device or "cuda"))
        return warp
    env: Env
    if chosen == "native":
        env = NativeEnv(env_id, n_envs, seeds, threads, ranges_of(env_id, env_kwargs))
    else:
        from dpd.envs.gymnasium import GymnasiumEnv  # here: it takes a tenth of a second

        env = GymnasiumEnv(env_id, n_envs, seeds, env_kwargs)
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
        _refuse_unrandomizable(env_id, backend, env_kwargs or {})
        return "native"
    if backend in ("native", "warp"):
        find_task(env_id)
        if env_kwargs:
            raise UnsupportedEnv(f"{env_id}: env_kwargs need the gymnasium backend, on the CPU")
    if backend != "auto":
        return backend
    if env_id not in TASKS or env_kwargs:
        return "gymnasium"
    on_gpu = device is not None and device.type == "cuda"
    return "warp" if on_gpu and n_envs >= WARP_FROM else "native"


def ranges_of(env_id: str, env_kwargs: EnvKwargs | None) -> Ranges:
    """Return the ranges in a native task's arguments; of another environment they are its own."""
    if env_id not in TASKS or RANDOMIZE not in (env_kwargs or {}):
        return {}
    try:
        return parse_ranges((env_kwargs or {})[RANDOMIZE])
    except BadRange as error:
        raise UnsupportedEnv(f"{env_id} with {RANDOMIZE}: {error}") from error


def _refuse_unrandomizable(env_id: str, backend: str, env_kwargs: EnvKwargs) -> None:
    """Raise UnsupportedEnv unless the native backend can simulate this randomised task."""
    if backend not in ("auto", "native"):
        raise UnsupportedEnv(
            f"{env_id}: {RANDOMIZE} needs the native backend, not {backend}, which has one model "
            "for all episodes"
        )
    if others := [name for name in env_kwargs if name != RANDOMIZE]:
        raise UnsupportedEnv(
            f"{env_id}: {RANDOMIZE} needs the native backend, which takes no {others[0]}; leave "
            "one of them out"
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
        warp = _warp_backend()
        gpu = warp.warp_device(str(device or "cuda"))
        # the native backend has the same task, and needs no minute of compiling
        native = check(env_id, "native")
        return dataclasses.replace(native, backend="warp", notes=warp.warp_notes(env_id, gpu))
    env = make(env_id, 1, [0], backend, env_kwargs, threads=1)
    env.close()
    return env.spec


def _warp_backend() -> ModuleType:
    try:
        import dpd.envs.warp as warp
    except ModuleNotFoundError as error:
        message = f"the warp backend needs {error.name}: pip install 'dpd[gpu]'"
        raise UnsupportedEnv(message) from error
    return warp
