"""Losses of off-policy learners, with hand-written gradients (`StackedNets` says why)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dpd.agents.base import Metrics
from dpd.agents.dist import DiagGaussian
from dpd.agents.nets import ATEN


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


def deterministic_loss(q: Tensor, act: Tensor, of_act: Tensor) -> Loss:
    """Return -mean_B Q(s, tanh(u)) (Silver et al. 2014); q [N, B].

    act [N, B, A] is tanh(u), and of_act the gradient with respect to it. The gradient is that of u.
    """
    loss = -q.mean(1)
    return Loss(loss, {"loss/actor": loss}, (ATEN.tanh_backward(of_act, act),))


def soft_loss(
    q: Tensor, logp: Tensor, alpha: Tensor, dist: DiagGaussian, noise: Tensor, of_act: Tensor
) -> Loss:
    """Return mean_B (alpha log pi(a|s) - Q(s, a)) (Haarnoja et al. 2018, eq. 7) at a squashed dist.

    q, logp [N, B]; alpha [N, 1]; the action was sampled with noise [N, B, A]; of_act [N, B, A] is
    the gradient of -mean_B Q with respect to the action. The gradients are those of mean and
    log_std.
    """
    loss = (alpha * logp - q).mean(1)
    deviation = dist.log_std.exp() * noise
    act = (dist.mean + deviation).tanh()
    share = (alpha / logp.shape[1]).unsqueeze(-1)
    # With the noise fixed, d log pi / du = 2 tanh(u), and d log pi / d log_std = -1.
    of_u = torch.addcmul(ATEN.tanh_backward(of_act, act), share, act, value=2)
    metrics = {"loss/actor": loss, "train/entropy": -logp.mean(1)}
    return Loss(loss, metrics, (of_u, of_u * deviation - share))


def temperature_gradient(logp: Tensor, target_entropy: float) -> Tensor:
    """Return the gradient of -log(alpha) mean_B (log pi + target_entropy) by log(alpha) [N, 1].

    logp [N, B]. This is Stable-Baselines3's loss; the paper's eq. 18 has alpha for log(alpha).
    """
    return -(logp.mean(1, keepdim=True) + target_entropy)
