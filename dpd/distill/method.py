"""The interface between the training loop and a distillation method.

A method answers four questions: who acts, on which states, towards whose answer, and how hard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dpd.agents.base import Batch, ExtraLoss, LearnerId, Metrics, Rollout, State, Stateful
from dpd.agents.learners import Learners
from dpd.distill.teacher import Teacher
from dpd.policies.memory import MemoryMeta


@dataclass(frozen=True)
class PeerStack:
    """A stack of learners, and the numbers of its peers within every group."""

    agent: Learners
    peers: Sequence[int]

    def to_rows(self, x: Tensor) -> Tensor:
        """Repeat values of groups for every peer of the stack: [G, K, ...] -> [N, K, ...]."""
        return x.unsqueeze(1).expand(-1, len(self.peers), *x.shape[1:]).flatten(0, 1)


@dataclass(frozen=True)
class Context:
    """Everything that a method is built from: students, seeds, peers and teachers."""

    agent: Learners
    """The students' stack."""
    groups: int
    peers: int
    """Peers of a group, over all its stacks."""
    ids: Sequence[LearnerId]
    teacher: Teacher | None = None
    stacks: Sequence[PeerStack] = ()
    """All stacks that hold peers of a group; empty: only the students'."""

    @property
    def peer_stacks(self) -> Sequence[PeerStack]:
        """All stacks of a group."""
        return self.stacks or (PeerStack(self.agent, range(self.peers)),)

    @property
    def peer_numbers(self) -> list[int]:
        """Number of every student within its group."""
        return [peer for _, peer in self.ids]


class Actor(Protocol):
    """Chooses actions during collection: the learners, or a mixture with a teacher."""

    def noise(self) -> Tensor:
        """Draw the random numbers of an iteration in one block [N, T, E, ...]."""
        ...

    def act(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Act on raw obs [N, E, O] with the random numbers of one step -> [N, E, A]."""
        ...


class Method(Stateful):
    """A distillation method; a subclass overrides the hooks it needs.

    In every iteration the loop lets `actor` collect, then calls `on_rollout` and `on_batch`, passes
    `loss` to the learners' update, and calls `step`.
    """

    def __init__(self, context: Context) -> None:
        self.agent: Learners = context.agent
        self.actor: Actor = context.agent

    def on_rollout(self, rollout: Rollout) -> None:
        """Read or change a rollout, for instance its rewards, before the learners use it."""

    def on_returns(self, returns: Sequence[Tensor]) -> None:
        """Read the returns of the latest training episodes, before `on_batch`.

        [N, W] of every stack of peers, raw rewards; NaN where there are fewer.
        """

    def on_batch(self, batch: Batch, progress: float) -> None:
        """Choose states, targets and weights; `progress` of the run is in [0, 1]."""

    def on_peer_batch(self, agent: Learners, batch: Batch) -> None:
        """Read the latest batch of peers in another stack, whose learners are `agent`."""

    @property
    def loss(self) -> ExtraLoss | None:
        """A term for the learners' loss."""
        return None

    def step(self) -> Metrics:
        """Take the method's own gradient steps; return metrics [N]."""
        return {}

    def mode(self, obs: Tensor) -> Tensor:
        """Let the policies to evaluate act on raw obs [N, B, O] -> [N, B, A] in [-1, 1]."""
        return self.agent.mode(obs)

    def export(self, n: int) -> State:
        """Return learner n's policy as a policy file stores it."""
        return self.agent.export(n)

    def memory_meta(self, n: int) -> MemoryMeta | None:
        """Describe learner n's retrieval memory, if its policy has one."""
        return None
