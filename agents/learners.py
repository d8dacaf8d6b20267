"""A stack of learners as the loop and the distillation methods see it, whatever its algorithm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from dpd.agents.base import (
    CPU,
    Answer,
    Batch,
    ExtraLoss,
    Metrics,
    State,
    Stateful,
    load_parts,
    per_row,
    put_back,
    state_of,
)
from dpd.agents.config import LearnerConfig
from dpd.agents.dist import DiagGaussian
from dpd.agents.graphs import Graphs
from dpd.agents.nets import StackedNets
from dpd.agents.norm import ObsNorm
from dpd.agents.optim import StackedAdam
from dpd.agents.rng import RowRandom, Stream
from dpd.agents.rollout import Rollout


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


Config = TypeVar("Config", bound=LearnerConfig)


class Stacked(ABC, Generic[Config]):
    """N learners with a discount, a learning rate, a normaliser and random numbers each.

    `seeds`: one sequence of integers per learner, from which all its random numbers follow; the
    last is which peer of its group it is.
    """

    nets: StackedNets
    optimizer: StackedAdam

    def __init__(
        self,
        config: Config,
        obs_dim: int,
        act_dim: int,
        seeds: Sequence[Sequence[int]],
        dtype: torch.dtype = torch.float32,
        device: torch.device = CPU,
    ) -> None:
        n = self.n_learners = len(seeds)
        self.config: Config = config
        self.obs_dim, self.act_dim, self.dtype, self.device = obs_dim, act_dim, dtype, device
        self.graphs = Graphs(device)
        self.explore = RowRandom(seeds, Stream.EXPLORE, device)
        gamma = per_row(config.peer_gamma, config.gamma, seeds)
        self.gamma = gamma.to(device, dtype).unsqueeze(1)
        self.lr = per_row(config.peer_lr, config.lr, seeds)
        self.obs_norm = ObsNorm(n, obs_dim, dtype, config.norm_obs, device)
        self._make(seeds)

    @abstractmethod
    def _make(self, seeds: Sequence[Sequence[int]]) -> None:
        """Make `nets`, the `optimizer` and whatever else the algorithm has."""

    @abstractmethod
    def dist(self, obs: Tensor) -> DiagGaussian:
        """Return the policy at normalised obs [N, B, O]."""

    @property
    def warming_up(self) -> bool:
        """Whether they only collect as yet: never, unless a subclass says so."""
        return False

    @property
    def reward_scale(self) -> Tensor:
        """Raw reward units per unit of reward they learn from [N, 1]: rewards are not scaled."""
        return torch.ones_like(self.gamma)

    def new_rollout(self) -> Rollout:
        """Return an empty buffer for one iteration."""
        c = self.config
        sizes = (c.n_steps, c.n_envs, self.obs_dim, self.act_dim)
        return Rollout(self.n_learners, *sizes, self.dtype, self.device)

    def noise(self) -> Tensor:
        """Draw an iteration's exploration noise [N, T, E, A] in one block."""
        c = self.config
        return self.explore.normal(c.n_steps, c.n_envs, self.act_dim, dtype=self.dtype)

    @torch.no_grad()
    def mode(self, obs: Tensor) -> Tensor:
        """Act without noise on raw obs [N, B, O] -> [N, B, A] in [-1, 1]."""
        return self.dist(self.obs_norm(obs)).mode()

    def observe(self, rollout: Rollout) -> None:
        """Take a rollout into the normaliser, after its last use."""
        self.obs_norm.update(rollout.flat_obs(), rollout.valid.flatten(1))

    def _parts(self) -> dict[str, Stateful]:
        return {
            "nets": self.nets,
            "optimizer": self.optimizer,
            "explore": self.explore,
            "obs_norm": self.obs_norm,
        }

    def _own_state(self) -> State:
        """Return what is in no part."""
        return {"lr": self.lr}

    def state(self) -> State:
        """Return all that the learners' future depends on, but for the journal."""
        return state_of(self._parts()) | self._own_state()

    def load_state(self, state: State) -> None:
        """Put a state back. Raises ValueError where it is of other learners."""
        load_parts(self._parts(), state)
        own = self._own_state()
        put_back(own, {name: state[name] for name in own})

    def retry(self, rows: Sequence[int], attempt: int) -> None:
        """Give rows new random numbers and half the learning rate, after they diverged."""
        self.explore.reseed(rows, attempt)
        self.lr[list(rows)] *= 0.5
