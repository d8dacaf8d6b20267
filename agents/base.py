"""What a stack of learners is to the rest of the suite.

Legend, used in every file:
N learners = G groups x P peers · E environments per learner · T steps · S = T x E samples
B batch · O observation · A action · D parameters of one learner.
Row n is peer n % P of group n // P.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dpd.agents.dist import DiagGaussian

Metrics = dict[str, Tensor]
"""Detached, one value per learner [N], until the logger reads them."""


class Answer(NamedTuple):
    """What a learner says about states it is asked about; values in raw reward units."""

    dist: DiagGaussian  # mean, log_std [N, B, A]
    value: Tensor | None  # [N, B]


class Minibatch(NamedTuple):
    """What a loss added to the learner's own may look at."""

    dist: DiagGaussian
    ratio: Tensor  # [N, B] new over old probability of the action taken
    idx: Tensor  # [N, B] positions in the flattened rollout [N, S]


ExtraLoss = Callable[[Minibatch], tuple[Tensor, Metrics]]
"""A method's loss inside the learner's own: minibatch -> (loss [N], metrics)."""


def take(rows: Tensor, idx: Tensor) -> Tensor:
    """Gather samples row by row: rows [N, S, ...], idx [N, K] -> [N, K, ...]."""
    n, s = rows.shape[:2]
    offset = torch.arange(n, device=rows.device).mul_(s).unsqueeze(1)
    flat = rows.reshape(n * s, *rows.shape[2:]).index_select(0, (idx + offset).flatten())
    return flat.view(*idx.shape, *rows.shape[2:])
