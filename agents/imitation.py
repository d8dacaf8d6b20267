"""Where a method's loss enters the updates of learners with a replay."""

from __future__ import annotations

import torch
from torch import Tensor

from dpd.agents.base import Batch, ExtraLoss, Metrics, Minibatch, take
from dpd.agents.learners import Learners


class Imitation:
    """A method's loss, on samples of an iteration's chunk that are drawn for every update.

    Positions are uniform over the chunk's valid samples, from the learner's BATCH stream. They are
    drawn whether or not there is a loss, so that a learner's own samples do not depend on it.
    """

    def __init__(self, learners: Learners, batch: Batch, extra: ExtraLoss | None) -> None:
        self.learners, self.batch, self.extra = learners, batch, extra

    def gradient(self, idx: Tensor) -> tuple[Tensor | None, Metrics]:
        """Return the gradient of the policies' parameters at idx [N, B], if there is one."""
        if self.extra is None:
            return None, {}
        nets, norm = self.learners.nets, self.learners.obs_norm
        with torch.enable_grad():
            dist = self.learners.dist(norm(take(self.batch.raw_obs, idx)))
            loss, metrics = self.extra(Minibatch(dist, dist.mean.new_ones(idx.shape), idx))
            if not loss.requires_grad:
                return None, metrics
            (grad,) = torch.autograd.grad(loss.sum(), nets.flat)
        return grad, metrics
