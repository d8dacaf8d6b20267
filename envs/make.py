"""Choose the backend for an environment id."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import ModuleType

from dpd.envs.base import Env, EnvKwargs, EnvSpec, UnsupportedEnv
from dpd.envs.gymnasium import GymnasiumEnv
from dpd.envs.native import NativeEnv
from dpd.envs.tasks import TASKS, find_task

BACKENDS = ("auto", "native", "gymnasium", "warp")


def native_ids() -> tuple[str, ...]:
    """Ids of which there is a native simulation."""
    return tuple(TASKS)


def make(
    env_id: str,
    n_envs: int,
    seeds: Sequence[int],
    backend: str = "auto",
    env_kwargs: EnvKwargs | None = None,
    threads: int | None = None,
    device: str | None = None,
) -> Env:
    """Make n_envs environments, one seed each; raises UnsupportedEnv where that can't be done.

    `auto` is native for an id in `native_ids()` without env_kwargs, and gymnasium otherwise; on a
    CUDA device it is warp. `threads` is for the native backend (None: all cores). `device` is where
    a `Step` lives; None is the CPU, and for the warp backend CUDA.
    """
    chosen = choose(env_id, backend, env_kwargs, device)
    if chosen == "warp":
        warp: Env = _warp_backend().WarpEnv(env_id, n_envs, seeds, device or "cuda")
        return warp
    if chosen == "native":
        return NativeEnv(env_id, n_envs, seeds, threads)
    return GymnasiumEnv(env_id, n_envs, seeds, env_kwargs)


def choose(
    env_id: str,
    backend: str = "auto",
    env_kwargs: EnvKwargs | None = None,
    device: str | None = None,
) -> str:
    """Name the backend `make` would use; makes nothing."""
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    on_cpu = device is None or device == "cpu"
    if backend in ("native", "warp") or not on_cpu:
        find_task(env_id)
        if env_kwargs:
            raise UnsupportedEnv(f"{env_id}: env_kwargs need the gymnasium backend, on the CPU")
    if backend == "auto" and on_cpu:
        return "native" if env_id in TASKS and not env_kwargs else "gymnasium"
    if backend in ("native", "gymnasium") and not on_cpu:
        raise UnsupportedEnv(f"the {backend} backend simulates on the CPU, not on {device}")
    return "warp" if backend == "auto" else backend


def check(
    env_id: str,
    backend: str = "auto",
    env_kwargs: EnvKwargs | None = None,
    device: str | None = None,
) -> EnvSpec:
    """Make one environment and close it -> what an agent must know of it."""
    if choose(env_id, backend, env_kwargs, device) == "warp":
        _warp_backend().find_device(device or "cuda")
        # the same task, without a minute of compiling
        return dataclasses.replace(check(env_id, "native"), backend="warp")
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
