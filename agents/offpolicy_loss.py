"""Losses with their gradients, and the loss of critics of actions."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dpd.agents.base import Metrics


class Loss(NamedTuple):
    """A loss [N], its metrics, and the gradients of its sum over learners."""

    loss: Tensor
    metrics: Metrics
    grads: tuple[Tensor, ...]


def critic_loss(q: Tensor, target: Tensor, coef: float) -> Loss:
    """Return coef times the sum over critics of mean_B (Q - y)^2; q [N, C, B], target [N, B].

    coef is 1 for TD3 and 1/2 for SAC, as in Stable-Baselines3. The gradient is that of q [N, C, B].
    """
    error = q - target.unsqueeze(1)
    loss = error.square().mean(2).sum(1).mul_(coef)
    metrics = {"loss/critic": loss, "train/q": q.mean((1, 2))}
    return Loss(loss, metrics, (error * (2 * coef / error.shape[2]),))
