"""A stack of learners as the loop and the distillation methods see it, whatever its algorithm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from dpd.agents.base import Answer, Batch, ExtraLoss, Metrics, State
from dpd.agents.buffers import Rollout
from dpd.agents.dist import DiagGaussian
from dpd.agents.graphs import Graphs
from dpd.agents.nets import StackedNets
from dpd.agents.norm import ObsNorm
from dpd.agents.optim import StackedAdam


class Journal(Protocol):
    """A memory that grows at one end, so that a checkpoint need only add to the last one's."""

    total: int
    """Steps ever added."""

    @property
    def held(self) -> int:
        """Steps that are still there."""
        ...

    def since(self, total: int) -> Tensor:
        """Return a copy of what was added after the first `total` steps [N, T, ...]."""
        ...

    def restart(self, total: int) -> None:
        """Forget everything, and count on from `total` steps."""
        ...

    def extend(self, rows: Tensor) -> None:
        """Add what `since` returned."""
        ...


class Learners(Protocol):
    """N learners that collect, update and answer as one stack."""

    config: Any
    n_learners: int
    obs_dim: int
    act_dim: int
    dtype: torch.dtype
    device: torch.device
    nets: StackedNets
    """The policies' networks; `flat` is what a distillation loss moves."""
    optimizer: StackedAdam
    """The policies'."""
    obs_norm: ObsNorm
    graphs: Graphs
    """The recordings of their updates."""
    gamma: Tensor  # [N, 1]

    @property
    def journal(self) -> Journal | None:
        """The replay, which is no part of `state`."""
        ...

    @property
    def warming_up(self) -> bool:
        """Whether they only collect as yet."""
        ...

    @property
    def reward_scale(self) -> Tensor:
        """Raw reward units per unit of reward they learn from [N, 1]."""
        ...

    def new_rollout(self) -> Rollout:
        """Return an empty buffer for one iteration."""
        ...

    def noise(self) -> Tensor:
        """Draw an iteration's exploration noise [N, T, E, A] in one block."""
        ...

    def act(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Explore on raw obs [N, E, O] with noise [N, E, A] -> [N, E, A]."""
        ...

    def mode(self, obs: Tensor) -> Tensor:
        """Act without noise on raw obs [N, B, O] -> [N, B, A] in [-1, 1]."""
        ...

    def dist(self, obs: Tensor) -> DiagGaussian:
        """Return the policy at normalised obs [N, B, O], differentiably."""
        ...

    def ask(self, obs: Tensor) -> Answer:
        """Answer on raw obs [N, B, O]; values in raw reward units."""
        ...

    def prepare(self, rollout: Rollout) -> Batch:
        """Take in a rollout; return what `update` learns from."""
        ...

    def update(self, batch: Batch, progress: float, extra: ExtraLoss | None = None) -> Metrics:
        """Learn from an iteration; `extra` adds a loss to every update of the policy."""
        ...

    def observe(self, rollout: Rollout) -> None:
        """Take a rollout into the normalisers, after its last use."""
        ...

    def state(self) -> State:
        """Return all that the learners' future depends on, but for the journal."""
        ...

    def load_state(self, state: State) -> None:
        """Put a state back."""
        ...

    def retry(self, rows: Sequence[int], attempt: int) -> None:
        """Give rows new random numbers and half the learning rate, after they diverged."""
        ...

    def start_from(self, n: int, policy: Mapping[str, Tensor]) -> None:
        """Give learner n a policy and its normaliser, as `export` returns them."""
        ...

    def export(self, n: int) -> dict[str, Tensor]:
        """Return learner n's policy and normaliser, as a policy file holds them."""
        ...
