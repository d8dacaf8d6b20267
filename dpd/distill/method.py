"""What a distillation method is to the loop: who acts, on which states, towards what, how hard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dpd.agents.base import Batch, ExtraLoss, Metrics, State
from dpd.agents.learners import Learners
from dpd.agents.rollout import Rollout
from dpd.distill.teacher import Teacher
from dpd.policies.memory import MemoryMeta


@dataclass
class Members:
    """A stack of learners, and which peers of every group they are, peer by peer in each group."""

    agent: Learners
    peers: Sequence[int]
    batch: Batch | None = None
    """What they collected last."""

    def to_rows(self, x: Tensor) -> Tensor:
        """Show every member what its group has: [G, K, ...] -> [N, K, ...]."""
        return x.unsqueeze(1).expand(-1, len(self.peers), *x.shape[1:]).flatten(0, 1)


@dataclass(frozen=True)
class Context:
    """What a method is built on: the students' stack, their seeds, and who else is in a group."""

    agent: Learners
    groups: int
    peers: int
    """Of a group, in all its stacks."""
    seeds: Sequence[Sequence[int]]
    """Of the students; the last of each is which peer it is."""
    teacher: Teacher | None = None
    stacks: Sequence[Members] = ()
    """All stacks that a group's peers are in; none: the students' is the only one."""

    @property
    def members(self) -> Sequence[Members]:
        """All stacks of a group."""
        return self.stacks or (Members(self.agent, range(self.peers)),)


class Actor(Protocol):
    """Who acts while learners collect."""

    def noise(self) -> Tensor:
        """Draw an iteration's random numbers in one block [N, T, E, ...]."""
        ...

    def act(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Act on raw obs [N, E, O] with a step's random numbers -> [N, E, A]."""
        ...


class Deployed(Protocol):
    """What a method makes of the learners' policies: this is evaluated, and written to files."""

    def mode(self, obs: Tensor) -> Tensor:
        """Act without noise on raw obs [N, B, O] -> [N, B, A] in [-1, 1]."""
        ...

    def export(self, n: int) -> State:
        """Return learner n's policy as a policy file holds it, with what belongs to it."""
        ...

    def memory_meta(self, n: int) -> MemoryMeta | None:
        """Describe learner n's memory, if its policy has one."""
        ...


class Method(Protocol):
    """The loop lets `actor` collect, calls `prepare`, gives `loss` to the learners' update, then
    calls `step`.
    """

    @property
    def actor(self) -> Actor:
        """Who acts: as a rule the learners themselves."""
        ...

    @property
    def policy(self) -> Deployed | None:
        """What is evaluated and saved; None: the learners as they are."""
        ...

    def see(self, rollout: Rollout) -> None:
        """Look at what was collected before the learners do; may change its rewards."""
        ...

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
