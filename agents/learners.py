"""The base class of every algorithm: a stack of N learners that acts and updates as one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

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
from dpd.agents.dist import DiagGaussian
from dpd.agents.graphs import Graphs
from dpd.agents.nets import StackedNets
from dpd.agents.norm import ObsNorm
from dpd.agents.optim import StackedAdam
from dpd.agents.replay import Replay
from dpd.agents.rng import RowRandom, Stream
from dpd.agents.rollout import Rollout

if TYPE_CHECKING:
    from dpd.agents.kernels import Kernels

FusedImitation = Callable[[Sequence[Tensor], Tensor, float, float], Tensor]
"""Gradient steps by a kernel: targets, active [steps, N], bound of the gradient's norm, coefficient
-> mean loss [N]; see `Kernels.imitate`."""


class Learners(ABC):
    """N learners, each with its own discount, learning rate, normaliser and random numbers.

    `seeds` holds one sequence of integers per learner. All of the learner's random numbers derive
    from it, and its last integer is the learner's peer number within its group.
    """

    config: Any
    """The algorithm's settings; subclasses narrow the type."""
    nets: StackedNets
    """The policies' networks; a distillation loss moves `nets.flat`."""
    optimizer: StackedAdam
    """The optimizer of `nets`."""
    replay: Replay | None = None
    kernels: Kernels | None = None
    """Compiled updates; None: torch's operations."""

    def __init__(
        self,
        config: Any,
        obs_dim: int,
        act_dim: int,
        seeds: Sequence[Sequence[int]],
        dtype: torch.dtype = torch.float32,
        device: torch.device = CPU,
    ) -> None:
        n = self.n_learners = len(seeds)
        self.config = config
        self.obs_dim, self.act_dim, self.dtype, self.device = obs_dim, act_dim, dtype, device
        self.graphs = Graphs(device)
        self.explore = RowRandom(seeds, Stream.EXPLORE, device)
        gamma = per_row(config.peer_gamma, config.gamma, seeds)
        self.gamma = gamma.to(device, dtype).unsqueeze(1)  # [N, 1]
        self.lr = per_row(config.peer_lr, config.lr, seeds)
        self.obs_norm = ObsNorm(n, obs_dim, dtype, config.norm_obs, device)
        self._make(seeds)

    @abstractmethod
    def _make(self, seeds: Sequence[Sequence[int]]) -> None:
        """Create `nets`, the `optimizer` and everything else that the algorithm needs."""

    @property
    def journal(self) -> Replay | None:
        """The replay. It is not part of `state`: a checkpoint appends its new steps to files."""
        return self.replay

    @property
    def warming_up(self) -> bool:
        """True while the learners only collect data, without updates."""
        return False

    @property
    def reward_scale(self) -> Tensor:
        """Raw reward units per unit of the reward that the learners train on [N, 1]."""
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

    @abstractmethod
    def act(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Explore on raw obs [N, E, O] with noise [N, E, A] -> [N, E, A]."""

    @torch.no_grad()
    def mode(self, obs: Tensor) -> Tensor:
        """Act without noise on raw obs [N, B, O] -> [N, B, A] in [-1, 1]."""
        return self.dist(self.obs_norm(obs)).mode()

    @abstractmethod
    def dist(self, obs: Tensor) -> DiagGaussian:
        """Return the policy at normalised obs [N, B, O], differentiably."""

    @abstractmethod
    def ask(self, obs: Tensor) -> Answer:
        """Return the policy and the values at raw obs [N, B, O]; values in raw reward units."""

    @abstractmethod
    def prepare(self, rollout: Rollout) -> Batch:
        """Store or process a rollout; return the batch that `update` learns from."""

    @abstractmethod
    def update(self, batch: Batch, progress: float, extra: ExtraLoss | None = None) -> Metrics:
        """Learn from an iteration; return metrics [N].

        `progress` in [0, 1] is the share of training that is done. `extra` adds a loss to every
        update of the policy, on the same minibatch.
        """

    def fused_imitation(self, kind: str, optimizer: StackedAdam) -> FusedImitation | None:
        """Return the kernel that takes gradient steps on a divergence of the policies; or None."""
        return (
            None
            if self.kernels is None
            else partial(self.kernels.imitate, self.nets, optimizer, kind)
        )

    def observe(self, rollout: Rollout) -> None:
        """Update the normalisers with a rollout, after its last use."""
        self.obs_norm.update(rollout.flat_obs(), rollout.valid.flatten(1))

    def _parts(self) -> dict[str, Stateful]:
        return {
            "nets": self.nets,
            "optimizer": self.optimizer,
            "explore": self.explore,
            "obs_norm": self.obs_norm,
        }

    def _own_state(self) -> State:
        """Return the state that belongs to none of `_parts`."""
        return {"lr": self.lr}

    def state(self) -> State:
        """Return everything that the learners' future depends on, except the replay."""
        return state_of(self._parts()) | self._own_state()

    def load_state(self, state: State) -> None:
        """Restore a state. Raises ValueError if it does not fit these learners."""
        load_parts(self._parts(), state)
        own = self._own_state()
        put_back(own, {name: state[name] for name in own})
        self.graphs.forget()  # a recording keeps the numbers it was made with

    def retry(self, rows: Sequence[int], attempt: int) -> None:
        """Give diverged rows new random numbers and half the learning rate."""
        self.explore.reseed(rows, attempt)
        self.lr[list(rows)] *= 0.5
        self.graphs.forget()  # rows of equal learning rate are recorded as one call

    @abstractmethod
    def start_from(self, n: int, policy: Mapping[str, Tensor]) -> None:
        """Give learner n a policy and its normaliser, as returned by `export`.

        Critics and value functions keep their initial parameters. Raises ValueError or
        RuntimeError for a policy of other widths.
        """

    @abstractmethod
    def export(self, n: int) -> dict[str, Tensor]:
        """Return learner n's policy and normaliser in the format of a policy file."""
