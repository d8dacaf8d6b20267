"""Errors of environments; imports no torch."""

from __future__ import annotations


class UnsupportedEnv(ValueError):
    """This suite can't train on the environment; the message gives the reason and a remedy."""


class FailedEnv(RuntimeError):
    """The environment's own code raised an error, which is the `__cause__` of this one."""

    def __init__(self, env_id: str, call: str, error: Exception) -> None:
        super().__init__(f"{call}() of {env_id} raised {type(error).__name__}: {error}")


class NonFiniteAction(ValueError):
    """Actions are NaN for the environments `ids`."""

    def __init__(self, ids: list[int]) -> None:
        super().__init__(f"act is NaN for environments {ids}; the policy has diverged")
        self.ids = ids
