"""Losses of retrieval: what is alike to the teacher should be near, to the student as well.

z are keys and x queries [N, B, d], of length 1. No state is compared with itself: its similarity
to itself would outweigh all others.
"""

from __future__ import annotations

import torch
from torch import Tensor


def contrastive_loss(z: Tensor, actions: Tensor, bandwidth: Tensor, tau: float) -> Tensor:
    """Return -sum_j w_ij log softmax_j(z_i z_j / tau) [N], the mean over i.

    Supervised contrastive learning (Khosla et al. 2020) with the kernel of actions [N, B, A],
    w_ij ~ exp(-|a_i - a_j|^2 / 2 h^2), in the place of equal labels; bandwidth h [N].
    """
    alike = torch.cdist(actions, actions).square() / (-2 * bandwidth.view(-1, 1, 1).square())
    weight = _softmax(alike)
    logp = (z @ z.mT / tau).masked_fill(_own(z), -torch.inf).log_softmax(-1)
    return -(weight * logp.masked_fill(_own(z), 0)).sum(-1).mean(1)


def relational_loss(x: Tensor, z: Tensor, tau: float) -> Tensor:
    """Return KL between softmax_j(z_i z_j / tau) and softmax_j(x_i z_j / tau) [N], z constant."""
    z = z.detach()
    p = (z @ z.mT / tau).masked_fill(_own(z), -torch.inf).log_softmax(-1)
    q = (x @ z.mT / tau).masked_fill(_own(z), -torch.inf).log_softmax(-1)
    difference = (p - q).masked_fill(_own(z), 0)  # -inf less -inf
    return (p.exp() * difference).sum(-1).mean(1)


def others_answer(x: Tensor, z: Tensor, actions: Tensor, tau: float) -> Tensor:
    """Return what the other states of a batch say at each [N, B, A], weighted by similarity."""
    return _softmax(x @ z.detach().mT / tau) @ actions


def _softmax(logits: Tensor) -> Tensor:
    """Return weights of all others [N, B, B]: the diagonal is 0."""
    return logits.masked_fill(_own(logits), -torch.inf).softmax(-1)


def _own(like: Tensor) -> Tensor:
    """Return where a state meets itself [B, B]."""
    return torch.eye(like.shape[1], dtype=torch.bool, device=like.device)
