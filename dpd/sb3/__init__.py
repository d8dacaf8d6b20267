"""Stable-Baselines3: read and write its policies, and train its algorithms on the native tasks."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    # Lazy: the rest of dpd.sb3 reads zips without loading Stable-Baselines3.
    if name == "NativeVecEnv":
        from dpd.sb3.vec_env import NativeVecEnv

        return NativeVecEnv
    raise AttributeError(name)
