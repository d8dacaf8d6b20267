"""Settings of scaffolding; imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dpd.distill.teaching_config import DAggerConfig, Divergence

if TYPE_CHECKING:
    from dpd.distill.base import Context, Method


@dataclass(frozen=True, kw_only=True)
class ScaffoldConfig(DAggerConfig):
    """A guide censors what a small student cannot learn (DiSK: Kag et al. 2023).

    States are DAgger's. The student's likelihood is lifted to (pi + g b) / (1 + g), with a broad
    density b; the guide g in (0, 1) is trained beside it and thrown away at the end.
    """

    divergence: Divergence = "nll"
    """Only nll: the mixture is of likelihoods."""
    label: Literal["mean", "sample"] = "mean"
    """What the likelihood is of: the teacher's mean action, or a sample of it."""
    std: float = 0.2
    """The student's deviation in it, in halves of the action range: one that is learnt would
    explain the hard states away. It is fitted behind the mean."""
    broad: Literal["box", "teacher"] = "box"
    """The density b: uniform on the action box, or `kappa` times as wide as `std` around the
    teacher's mean action."""
    kappa: float = 5.0
    """Width of b around the teacher."""
    aux: float = 0.1
    """Weight of the squared error at all states, censored ones too (DiSK: of cross-entropy)."""
    warm_up: float = 0.05
    """Share of the run before the guide begins: g = 0, plain likelihood. 1: never."""
    guide_steps: int = 80
    """The guide's gradient steps per iteration, after the student's."""
    guide_lr: float = 3e-4
    """The guide's learning rate."""
    guide_hidden: tuple[int, ...] = (64, 64)
    """The guide's hidden layers; it sees the state and the teacher's mean action."""
    delta_start: float = 0.5
    """The guide's budget at first: the mean, over the states where the student errs, of g times
    the share of the largest error that counts."""
    delta_end: float = 0.3
    """The budget at the end; it falls by a cosine."""
    multiplier: float = 5.0
    """Initial weight of what exceeds the budget (DiSK)."""
    multiplier_lr: float = 0.1
    """Step of its dual ascent, between 0 and 50."""
    tolerance: float = 0.2
    """A student errs where an action's dimension is off by more, in halves of its range."""
    coverage: float = 0.5
    """Least share of states that is not censored: 1 - mean g of a minibatch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.divergence != "nll":
            raise ValueError(f"distill.divergence must be nll here, not {self.divergence}")
        for name in ("std", "kappa", "guide_steps", "guide_lr", "tolerance"):
            if getattr(self, name) <= 0:
                raise ValueError(f"distill.{name} must be positive, not {getattr(self, name)}")
        for name in ("aux", "delta_start", "delta_end", "multiplier", "multiplier_lr"):
            if getattr(self, name) < 0:
                raise ValueError(f"distill.{name} must not be negative, not {getattr(self, name)}")
        if not 0 <= self.warm_up <= 1:
            raise ValueError(f"distill.warm_up must lie in [0, 1], not {self.warm_up}")
        if not 0 <= self.coverage < 1:
            raise ValueError(f"distill.coverage must lie in [0, 1), not {self.coverage}")
        if not self.guide_hidden or min(self.guide_hidden) <= 0:
            raise ValueError(f"distill.guide_hidden must name sizes, not {self.guide_hidden}")

    def delta(self, progress: float) -> float:
        """Return the guide's budget."""
        fallen = 0.5 * (1 - math.cos(math.pi * min(progress, 1.0)))
        return self.delta_start + fallen * (self.delta_end - self.delta_start)

    def build(self, context: Context) -> Method:
        """Return the method for a stack of learners."""
        from dpd.distill.scaffold import Scaffold

        return Scaffold(self, context)
