"""Students: learners that are trained by a distillation method alone, not by reward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dpd.agents.base import Answer, Batch, ExtraLoss, LearnerId, Metrics
from dpd.agents.config import StudentConfig
from dpd.agents.learners import GaussianLearners
from dpd.agents.nets import StackedNets
from dpd.agents.optim import StackedAdam
from dpd.agents.replay import Replay
from dpd.agents.rng import RowRandom, Stream


class Student(GaussianLearners):
    """N learners that act and store states; rows may differ in width and in view."""

    config: StudentConfig
    replay: Replay

    def _make(self, ids: Sequence[LearnerId]) -> None:
        config, dtype, device = self.config, self.dtype, self.device
        hidden = [config.hidden_of(peer) for _, peer in ids]
        rows = [self._policy_shapes(*sizes) for sizes in zip(hidden, self.in_dims, strict=True)]
        self.nets = StackedNets.padded(rows, config.activation, dtype, device)
        self._initialise("actor", 0.01, RowRandom(ids, Stream.INIT))
        self.optimizer = StackedAdam(self.nets.flat, self.lr.tolist())
        sizes = self.n_learners, self.obs_dim, self.act_dim
        self.replay = Replay(config, *sizes, dtype, device=device)

    @torch.no_grad()
    def ask(self, obs: Tensor) -> Answer:
        """Return the policy at raw obs [N, B, O]; students have no value function."""
        return Answer(self.dist(self.obs_norm(obs)), None)

    def update(self, batch: Batch, progress: float, extra: ExtraLoss | None = None) -> Metrics:
        """Set the learning rates of the method's own steps, which train students.

        Raises ValueError for `extra`.
        """
        if extra is not None:
            raise ValueError(
                "students have no loss of their own to which a method's loss could be added; "
                "distil by separate gradient steps (dose `step`)"
            )
        self.optimizer.lr = self.lr.tolist()
        return {}
