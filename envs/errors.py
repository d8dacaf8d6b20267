"""Errors of environments; imports no torch."""

from __future__ import annotations


class UnsupportedEnv(ValueError):
    """An environment this suite can't train on; the message says why and what to use instead."""


class FailedEnv(RuntimeError):
    """An environment's own code raised an error, which is the cause of this one."""

    def __init__(self, env_id: str, call: str, error: Exception) -> None:
        super().__init__(f"{call}() of {env_id} raised {type(error).__name__}: {error}")


class NonFiniteAction(ValueError):
    """An action is NaN; `ids` are the environments it was meant for."""

    def __init__(self, ids: list[int]) -> None:
        super().__init__(f"act is NaN for environments {ids}; the policy has diverged")
        self.ids = ids
