"""Rulers: how much better a peer is than the student at a state, xi, always in raw reward units.

Answers of critics q [N, P, C, P, K] are, for student n, what critic c of peer i says of the action
of peer p; `own` [N, K] is the student's own place in its group.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dpd.distill.exchange import pick


def gap(value: Tensor, peer_value: Tensor) -> Tensor:
    """Return xi, how much better the peer is [...]; both in raw reward units (paper, Eq. 2)."""
    return peer_value - value


def value_gaps(value: Tensor, own: Tensor) -> Tensor:
    """Compare value functions [N, P, K], V_p - V_own -> [N, P, K] (paper, Eq. 2)."""
    return gap(pick(value, own).unsqueeze(1), value)


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

    What the 2020 code does for DDPG: it says how far two critics disagree, not whose action is
    better. Each learner's least critic speaks for it.
    """
    least = q.amin(2)  # [N, judging, acting, K]
    theirs = least.diagonal(dim1=1, dim2=2).transpose(1, 2)
    mine = least.gather(1, own[:, None, None].expand(-1, 1, least.shape[2], -1)).squeeze(1)
    return gap(mine, theirs)


def best_other(gaps: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest gap to another peer and which peer that is, both [N, K]."""
    best, who = gaps.scatter(1, own.unsqueeze(1), -torch.inf).max(1)
    return best, who
