"""Rulers and gates of dual policy distillation: the gap at a state, and its weight.

A ruler says how far each peer is ahead of a learner at a state, xi, in raw reward units; a gate
turns the gaps into the weights of the states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dpd.agents.base import Metrics
from dpd.distill.exchange import pick
from dpd.distill.peers_config import DPDConfig


def gap(value: Tensor, peer_value: Tensor) -> Tensor:
    """Return xi, how much better the peer is [...]; both in raw reward units (paper, Eq. 2)."""
    return peer_value - value


def value_gaps(value: Tensor, own: Tensor) -> Tensor:
    """Compare value functions [N, P, K], V_p - V_own -> [N, P, K] (paper, Eq. 2)."""
    return gap(pick(value, own).unsqueeze(1), value)


def centred_gaps(value: Tensor, own: Tensor) -> Tensor:
    """Compare where value functions [N, P, K] are high, not how high they are -> [N, P, K].

    V_p - V_own less its mean over the K states: an offset between two value functions cancels, and
    a peer is ahead at those states where it is better than it is elsewhere.
    """
    gaps = value_gaps(value, own)
    return gaps - gaps.mean(-1, keepdim=True)


def played_gaps(adv: Tensor, own: Tensor, source: Tensor, position: Tensor) -> Tensor:
    """Return the advantage of what was played at each state [N, K], in the units of `adv`.

    `adv` [N, P, S] of all samples of a group's peers, learner n itself first and its peers in turn;
    source and position [N, K] name a peer and one of its samples.
    """
    peers, samples = adv.shape[1:]
    return adv.flatten(1).gather(1, (source - own) % peers * samples + position)


def action_gaps(q: Tensor, own: Tensor) -> Tensor:
    """Compare actions by the same critics, Q(s, a_p) - Q(s, a_own) -> [N, P, K].

    Q is the mean over the group of each learner's least critic.
    """
    return value_gaps(q.amin(2).mean(1), own)


def least_each(judged: Sequence[Tensor]) -> Tensor:
    """Join what several stacks' critics [N, J, C, P, K] say, each learner's least one alone."""
    if len(judged) == 1:
        return judged[0]
    return torch.cat([q.amin(2, keepdim=True) for q in judged], 1)


def every_critic(judged: Sequence[Tensor]) -> Tensor:
    """Join what several stacks' critics [N, J, C, P, K] say -> [N, 1, all critics, P, K]."""
    return torch.cat([q.flatten(1, 2) for q in judged], 1).unsqueeze(1)


def lcb_gaps(q: Tensor, own: Tensor, k: float) -> Tensor:
    """Compare actions as surely as the critics agree -> [N, P, K].

    mean_c delta_c - k std_c delta_c with delta_c = Q_c(s, a_p) - Q_c(s, a_own), over all critics of
    the group; the deviation is the population's.
    """
    q = q.flatten(1, 2)  # [N, P C, P, K]
    delta = q - q.gather(2, own[:, None, None].expand(-1, q.shape[1], -1, -1))
    return delta.mean(1) - k * delta.std(1, correction=0)


def critic_gaps(q: Tensor, own: Tensor) -> Tensor:
    """Compare critics on the peer's action, Q_p(s, a_p) - Q_own(s, a_p) -> [N, P, K].

    The 2020 code does this for DDPG: it measures how far two critics disagree about one action.
    """
    least = q.amin(2)  # [N, judging, acting, K]
    theirs = least.diagonal(dim1=1, dim2=2).transpose(1, 2)
    mine = least.gather(1, own[:, None, None].expand(-1, 1, least.shape[2], -1)).squeeze(1)
    return gap(mine, theirs)


def best_other(gaps: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest gap to another peer and which peer that is, both [N, K]."""
    best, who = gaps.scatter(1, own.unsqueeze(1), -torch.inf).max(1)
    return best, who


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


def gap_metrics(xi: Tensor) -> Metrics:
    """Describe gaps [N, K]: their mean, and the share of states where the peer is ahead."""
    return {
        "distill/xi_mean": xi.mean(1),
        "distill/peer_ahead": (xi > 0).to(xi.dtype).mean(1),
    }
