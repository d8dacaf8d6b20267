"""Settings that all distillation methods share; imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dpd.agents.config import require
from dpd.agents.student_config import StudentConfig

if TYPE_CHECKING:
    from dpd.distill.method import Context, Method


Divergence = Literal["kl_forward", "kl_reverse", "mse", "huber", "nll"]
OF_MEANS = ("mse", "huber")
"""Divergences of mean actions alone, which policies without a spread have as well."""


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Settings of every method."""

    COMMAND: ClassVar[str] = "train"
    """Command that runs the method: train or distill."""
    ALGO: ClassVar[str] = "ppo"
    """Default algorithm of the learners."""
    SETTINGS: ClassVar[dict[str, Any]] = {}
    """Defaults of the learners under this method, instead of their own."""
    STACKS_HISTORIES: ClassVar[bool] = False
    """True if students that see histories of several lengths can be rows of one stack."""

    def _require(self, bound: str, *names: str) -> None:
        require(self, bound, *names, called="distill.{}".format)

    def refuse_unfit(self, *learners: Any) -> None:
        """Raise ValueError if the method cannot work with learners of these settings."""
        if any(isinstance(each, StudentConfig) for each in learners):
            raise ValueError("students learn from a teacher alone; see dpd distill --help")

    def build(self, context: Context) -> Method:
        """Return the method for a stack of learners."""
        from dpd.distill.table import METHODS  # here: the table lists these settings

        row = next(row for row in METHODS.values() if row.settings is type(self))
        make: Callable[[MethodConfig, Context], Method] = resolve_name(row.method)
        return make(self, context)
