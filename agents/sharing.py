"""Advantages, also of samples that the peers of a group share: joint rollouts, weights, V-trace.

Each learner learns from its peers' samples as from its own, with an off-policy correction (SEAC,
Christianos et al. 2020; LASER, 1909.11583; SAPG, 2407.20230). For a sample of peer j, learner i has

    rho = pi_i(a|s) / pi_j(a|s)    both before the update, the action as sampled
    w   = min(1, rho)              1 on own samples

With w in the recursion of GAE, V + w A is V-trace's target (IMPALA, 1802.01561, eq. 1, with both
truncations at 1), whose fixed point is the value of the policy proportional to min(pi_j, pi_i).
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from dpd.agents.base import Metrics, Rollout


def shared(x: Tensor, peers: int) -> Tensor:
    """Give every learner its own and then its peers' values: [N, T, E, ...] -> [N, T, P E, ...].

    The peers of row i of a group follow it in turn: i + 1, i + 2, ..., after the last the first.
    """
    groups = x.unflatten(0, (-1, peers))
    return torch.cat([groups.roll(-k, 1) for k in range(peers)], 3).flatten(0, 1)


def to_group(x: Tensor, peers: int) -> Tensor:
    """Give every learner the values of its whole group in one order: [N, B, ...] -> [N, P B, ...].

    Unlike `shared`, peer 0's come first for all of them.
    """
    groups = x.reshape(-1, 1, peers * x.shape[1], *x.shape[2:])
    return groups.expand(-1, peers, *groups.shape[2:]).flatten(0, 1)


def group_mean(x: Tensor, peers: int) -> Tensor:
    """Return the mean over a group of what each learner says of the same samples.

    x [N, T, P E] in every learner's own order, as `shared` makes it, and so is the result.
    """
    says = x.unflatten(2, (peers, -1)).unflatten(0, (-1, peers))  # [G, P, T, P, E]
    of_peer = [says[:, i].roll(i, 2) for i in range(peers)]  # the samples of peer 0 first
    mean = torch.stack(of_peer).mean(0)
    return torch.stack([mean.roll(-i, 2) for i in range(peers)], 1).flatten(3).flatten(0, 1)


def shared_rollout(rollout: Rollout, peers: int) -> Rollout:
    """Return a copy in which every learner also has its peers' environments, as `shared` says."""
    joint = copy(rollout)
    for name, x in vars(rollout).items():
        setattr(joint, name, shared(x, peers))
    return joint


def share_weights(
    logp: Tensor, behaviour: Tensor, valid: Tensor, peers: int, min_ess: float
) -> tuple[Tensor, Tensor, Metrics]:
    """Return weight and mask of the samples of a joint rollout [N, T, P E], and metrics [N].

    `logp` is the learner's log-probability of the action and `behaviour` that of the peer that took
    it, both [N, T, P E]. All samples of a peer have weight 0, and are not in the mask of those to
    learn from, if their effective size is below `min_ess` of their number.
    """
    log_rho, counts = (peer_samples(x, peers) for x in (logp - behaviour, valid))
    ess = effective_share(log_rho, counts)  # [N, P - 1]
    kept = (ess >= min_ess).unsqueeze(-1)
    weight = log_rho.clamp(max=0).exp() * kept
    n_valid = counts.sum((1, 2)).clamp(min=1)
    metrics = {
        "share/ess": ess.mean(1),
        "share/weight": (weight * counts).sum((1, 2)) / n_valid,
    }
    envs = logp.shape[2] // peers
    joint = torch.cat([torch.ones_like(logp[:, :, :envs]), rollout_of_peers(weight, envs)], 2)
    used = torch.cat([valid[:, :, :envs], rollout_of_peers(counts & kept, envs)], 2)
    return joint, used, metrics


def peer_samples(x: Tensor, peers: int, first: int = 1) -> Tensor:
    """Return the other peers' part of a joint rollout: [N, T, P E] -> [N, P - 1, T E].

    With `first` 0, the learner's own part too.
    """
    return x.unflatten(2, (peers, -1))[:, :, first:].transpose(1, 2).flatten(2)


def rollout_of_peers(x: Tensor, envs: int) -> Tensor:
    """Undo `peer_samples`: [N, P - 1, T E] -> [N, T, (P - 1) E]."""
    return x.unflatten(2, (-1, envs)).transpose(1, 2).flatten(2)


def effective_share(log_rho: Tensor, valid: Tensor) -> Tensor:
    """Return (sum rho)^2 / (n sum rho^2) over the n valid samples [..., S] -> [...]; 0 if none."""
    log_rho = log_rho.masked_fill(~valid, -torch.inf)
    # relative to the largest ratio, which may itself be too large for a float
    rho = (log_rho - log_rho.amax(-1, keepdim=True).clamp(min=-1e30)).exp()
    squares = valid.sum(-1) * rho.square().sum(-1)
    return rho.sum(-1).square() / squares.clamp(min=1e-12)


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    gamma: Tensor,
    lam: Tensor,
    weight: Tensor | None = None,
) -> Tensor:
    """Return generalised advantages [N, T, E] (Schulman et al. 2016, eq. 16), or V-trace's.

    `next_value` is the value of the true successor, so a truncated step bootstraps and a
    terminated one does not; gamma is [N, 1, 1], lam a scalar.

    With weights [N, T, E], A_t = delta_t + gamma lam w_{t+1} A_{t+1}, so that v - V = w A obeys
    IMPALA's remark 1: v_t - V_t = w_t delta_t + gamma (lam w_t) (v_{t+1} - V_{t+1}).
    """
    delta = reward + gamma * next_value * ~terminated - value
    decay = gamma * lam * ~done
    if weight is not None:
        decay[:, :-1] *= weight[:, 1:]
    adv = torch.empty_like(delta)
    running = torch.zeros_like(delta[:, 0])
    for t in reversed(range(delta.shape[1])):
        running = delta[:, t] + decay[:, t] * running
        adv[:, t] = running
    return adv
