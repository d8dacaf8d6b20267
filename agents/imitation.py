"""A method's loss inside the updates of learners with a replay."""

from __future__ import annotations

import torch
from torch import Tensor

from dpd.agents.base import ExtraLoss, Metrics, Minibatch
from dpd.agents.learners import Learners


class Imitation:
    """A method's loss on one minibatch: the states that the learner's own gradient step uses.

    `raw_obs` [N, B, O] are those states; `extra` None stands for no method.
    """

    def __init__(self, learners: Learners, raw_obs: Tensor, extra: ExtraLoss | None) -> None:
        self.learners, self.raw_obs, self.extra = learners, raw_obs, extra

    def gradient(self) -> tuple[Tensor | None, Metrics]:
        """Return the gradient [N, D] of the policies' parameters, or None, and metrics [N]."""
        if self.extra is None:
            return None, {}
        nets, norm = self.learners.nets, self.learners.obs_norm
        with torch.enable_grad():
            dist = self.learners.dist(norm(self.raw_obs))
            ratio = dist.mean.new_ones(self.raw_obs.shape[:2])
            loss, metrics = self.extra(Minibatch(dist, ratio, raw_obs=self.raw_obs))
            if not loss.requires_grad:
                return None, metrics
            (grad,) = torch.autograd.grad(loss.sum(), nets.flat)
        return grad, metrics
