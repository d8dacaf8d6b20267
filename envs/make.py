"""Choose the backend for an environment id."""

from __future__ import annotations

from collections.abc import Sequence

from dpd.envs.base import Env, EnvKwargs, EnvSpec, UnsupportedEnv
from dpd.envs.gymnasium import GymnasiumEnv
from dpd.envs.native import NativeEnv
from dpd.envs.tasks import TASKS, find_task

BACKENDS = ("auto", "native", "gymnasium")


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
) -> Env:
    """Make n_envs environments, one seed each; raises UnsupportedEnv where that can't be done.

    `auto` is native for an id in `native_ids()` without env_kwargs, and gymnasium otherwise.
    `threads` is for the native backend (None: all cores).
    """
    if choose(env_id, backend, env_kwargs) == "native":
        return NativeEnv(env_id, n_envs, seeds, threads)
    return GymnasiumEnv(env_id, n_envs, seeds, env_kwargs)


def choose(env_id: str, backend: str = "auto", env_kwargs: EnvKwargs | None = None) -> str:
    """Name the backend `make` would use; makes nothing."""
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    if backend == "native":
        find_task(env_id)
        if env_kwargs:
            raise UnsupportedEnv(f"{env_id}: env_kwargs need the gymnasium backend")
    if backend == "auto":
        return "native" if env_id in TASKS and not env_kwargs else "gymnasium"
    return backend


def check(env_id: str, backend: str = "auto", env_kwargs: EnvKwargs | None = None) -> EnvSpec:
    """Make one environment and close it -> what an agent must know of it."""
    env = make(env_id, 1, [0], backend, env_kwargs, threads=1)
    env.close()
    return env.spec
