"""Gates: how much a state counts, from how far the peer is ahead there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dpd.distill.peers_config import DPDConfig


def gate_weight(
    xi: Tensor, scale: Tensor, config: DPDConfig, order: Tensor | None = None
) -> Tensor:
    """Return the weight of each state [N, K] from its gap xi [N, K]; scale [N, 1].

    soft: K softmax_K(alpha xi / scale), the paper's exp(alpha xi) up to a constant and without its
    overflow, at most `max_weight`; hard: 1 where xi > 0, raw. `order` [N, K] is the permutation of
    the shuffled control.
    """
    weight = _gate(-xi if config.control == "reversed" else xi, scale, config)
    if config.control == "cancelled":
        # Where every weight multiplies every distance, sum_ij w_i D_j = sum_i w_i sum_j D_j.
        return weight.mean(1, keepdim=True).expand_as(weight)
    return weight if order is None else weight.gather(1, order)


def _gate(xi: Tensor, scale: Tensor, config: DPDConfig) -> Tensor:
    ahead = (xi > 0).to(xi.dtype)
    if config.gate == "hard":
        return ahead
    if config.gate == "uniform":
        weight = torch.ones_like(xi)
        return weight * ahead.mean(1, keepdim=True) if config.match_dose else weight
    exponent = config.alpha * xi / scale
    if config.weight_clip is not None:
        low, high = config.weight_clip
        weight = exponent.exp().clamp(low, high)
        return weight / weight.mean(1, keepdim=True)
    if config.max_weight is None:
        return exponent.softmax(1) * xi.shape[1]
    return bounded_softmax(exponent, config.max_weight)


def bounded_softmax(x: Tensor, most: float) -> Tensor:
    """Return K softmax_K(x) with no weight above `most` and the mean still 1; x [N, K], most > 1.

    The weights are min(most, c exp(x)) with c [N] such that their mean is 1: the closest to the
    softmax within the bound, in KL (Warmuth & Kuzmin 2008, "capping"). Since the mean of w^2 is
    then at most `most`, the effective sample size is at least K / most.
    """
    k = x.shape[1]
    plain = x.softmax(1) * k
    ordered = x.sort(1, descending=True).values
    # If the m largest are at the bound, the others share what is left: log c, for every m.
    left = k - most * torch.arange(k, dtype=x.dtype, device=x.device)
    log_rest = ordered.flip(1).logcumsumexp(1).flip(1)
    log_c = left.clamp(min=1e-9).log() - log_rest
    fits = log_c + ordered <= math.log(most)  # the largest of the others is within the bound
    first = fits.to(torch.int8).argmax(1, keepdim=True)
    bounded = (x + log_c.gather(1, first)).exp().clamp(max=most)
    return torch.where(plain.amax(1, keepdim=True) <= most, plain, bounded)


def effective_sample_size(weight: Tensor) -> Tensor:
    """Return (sum w)^2 / sum w^2 as a share of the K states; weight [N, K] -> [N]."""
    total = weight.sum(1).square() / weight.square().sum(1).clamp(min=1e-12)
    return total / weight.shape[1]


def weighted_loss(distance: Tensor, weight: Tensor) -> Tensor:
    """Return mean_B w(s) D(s) per learner: distance, weight [N, B] -> [N] (paper, Eq. 11)."""
    if distance.shape != weight.shape:
        # The 2020 code multiplied (B, 1) by (B,), and its weights cancelled.
        raise ValueError(f"weight {tuple(weight.shape)} for distance {tuple(distance.shape)}")
    return (weight * distance).mean(1)
