"""What a distillation method is to the loop: who acts, on which states, towards what, how hard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dpd.agents.base import Batch, ExtraLoss, Metrics, State
from dpd.agents.learners import Learners


@dataclass(frozen=True)
class Context:
    """What a method is built on: the stack, how it divides, and its learners' seeds."""

    agent: Learners
    groups: int
    peers: int
    seeds: Sequence[Sequence[int]]


class Method(Protocol):
    """The loop calls `prepare`, gives `loss` to the learners' update, then calls `step`."""

    def prepare(self, batch: Batch, progress: float) -> None:
        """Choose states, targets and weights; `progress` in [0, 1] of the run."""
        ...

    @property
    def loss(self) -> ExtraLoss | None:
        """The term to add inside the learners' loss, if any."""
        ...

    def step(self) -> Metrics:
        """Take the method's own gradient steps; return metrics [N]."""
        ...

    def state(self) -> State:
        """Return what a checkpoint must hold."""
        ...

    def load_state(self, state: State) -> None:
        """Put a state back."""
        ...
