"""Students: a stack of learners that a distillation method alone moves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dpd.agents.base import Answer, Batch, ExtraLoss, Metrics, State
from dpd.agents.config import StudentConfig
from dpd.agents.gaussian import GaussianLearners
from dpd.agents.nets import StackedNets
from dpd.agents.optim import StackedAdam
from dpd.agents.replay import Replay
from dpd.agents.rng import RowRandom, Stream
from dpd.agents.rollout import Rollout


class Student(GaussianLearners[StudentConfig]):
    """N learners that collect, remember and answer as one stack, and learn from no reward.

    Rows may differ in width.
    """

    def _make(self, seeds: Sequence[Sequence[int]]) -> None:
        config, dtype, device = self.config, self.dtype, self.device
        rows = [self._policy_shapes(config.hidden_of(seed[-1])) for seed in seeds]
        self.nets = StackedNets.padded(rows, config.activation, dtype, device)
        self._initialise("actor", 0.01, RowRandom(seeds, Stream.INIT))
        self.optimizer = StackedAdam(self.nets.flat, self.lr.tolist())
        sizes = self.n_learners, self.obs_dim, self.act_dim
        self.replay = Replay(config, *sizes, dtype, device=device)

    @property
    def journal(self) -> Replay:
        """The replay, which is no part of `state`: a checkpoint writes what is new of it."""
        return self.replay

    @torch.no_grad()
    def ask(self, obs: Tensor) -> Answer:
        """Answer on raw obs [N, B, O]; students know no values."""
        return Answer(self.dist(self.obs_norm(obs)), None)

    @torch.no_grad()
    def prepare(self, rollout: Rollout) -> Batch:
        """Remember a rollout; return its states for whoever distils."""
        self.replay.push(rollout)
        return Batch(None, rollout.flat_obs(), None, rollout.valid.flatten(1))

    def update(self, batch: Batch, progress: float, extra: ExtraLoss | None = None) -> Metrics:
        """Do nothing: a method's own steps move them. Raises ValueError for an `extra` loss."""
        if extra is not None:
            raise ValueError(
                "students have no loss of their own that a method's could be added to; "
                "distil by steps of its own (dose `step`)"
            )
        return {}

    def load_state(self, state: State) -> None:
        """Put a state back. Raises ValueError where it is of other learners."""
        super().load_state(state)
        self._set_rates()

    def retry(self, rows: Sequence[int], attempt: int) -> None:
        """Give rows new random numbers and half the learning rate, after they diverged."""
        super().retry(rows, attempt)
        self._set_rates()

    def _set_rates(self) -> None:
        self.optimizer.lr = self.lr.tolist()
