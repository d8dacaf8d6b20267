"""Students: learners that are trained by a distillation method alone, not by reward."""

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


class Student(GaussianLearners):
    """N learners that act and store states; rows may differ in width."""

    config: StudentConfig
    replay: Replay

    def _make(self, seeds: Sequence[Sequence[int]]) -> None:
        config, dtype, device = self.config, self.dtype, self.device
        rows = [self._policy_shapes(config.hidden_of(seed[-1])) for seed in seeds]
        self.nets = StackedNets.padded(rows, config.activation, dtype, device)
        self._initialise("actor", 0.01, RowRandom(seeds, Stream.INIT))
        self.optimizer = StackedAdam(self.nets.flat, self.lr.tolist())
        sizes = self.n_learners, self.obs_dim, self.act_dim
        self.replay = Replay(config, *sizes, dtype, device=device)

    @torch.no_grad()
    def ask(self, obs: Tensor) -> Answer:
        """Return the policy at raw obs [N, B, O]; students have no value function."""
        return Answer(self.dist(self.obs_norm(obs)), None)

    @torch.no_grad()
    def prepare(self, rollout: Rollout) -> Batch:
        """Store a rollout in the replay; return its states for the distillation method."""
        self.replay.push(rollout)
        return Batch(None, rollout.flat_obs(), None, rollout.valid.flatten(1))

    def update(self, batch: Batch, progress: float, extra: ExtraLoss | None = None) -> Metrics:
        """Do nothing: the method's own steps train students. Raises ValueError for `extra`."""
        if extra is not None:
            raise ValueError(
                "students have no loss of their own to which a method's loss could be added; "
                "distil by separate gradient steps (dose `step`)"
            )
        return {}

    def load_state(self, state: State) -> None:
        super().load_state(state)
        self._set_rates()

    def retry(self, rows: Sequence[int], attempt: int) -> None:
        super().retry(rows, attempt)
        self._set_rates()

    def _set_rates(self) -> None:
        self.optimizer.lr = self.lr.tolist()
