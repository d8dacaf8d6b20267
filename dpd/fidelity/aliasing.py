"""Aliasing: the spread of a teacher's action among states that look alike to a student.

No function of the student's view can undercut it: more data does not help, a longer history may.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEIGHBOURS = 16
_BLOCK = 512
"""States whose distances to all others are in memory at once."""


def aliasing(
    views: Tensor, actions: Tensor, episodes: Tensor | None = None, k: int = NEIGHBOURS
) -> float:
    """Return the share of the variance of actions [S, A] that views [S, G] do not explain.

    0: the view determines the action; 1: it says nothing about it. This is the mean of
    `local_variance` over states, summed over the actions, by the teacher's own variance; 0 if the
    teacher always acts the same. Neighbours are never quite equal, which adds to it: more for more
    columns, less for more states. Compare it with that of the teacher's own view, in truth 0.
    """
    total = actions.double().var(0, correction=0).sum()
    if total == 0:
        return 0.0
    return float(local_variance(views, actions, episodes, k).sum(1).mean() / total)


def local_variance(
    views: Tensor, actions: Tensor, episodes: Tensor | None = None, k: int = NEIGHBOURS
) -> Tensor:
    """Return the variance of actions [S, A] given views [S, G] near each state -> [S, A].

    Half the mean squared difference from the actions at the k nearest states in the standardised
    view: for actions that are independent given the view, this is their variance without bias, for
    any k (the Gamma test; Evans and Jones, 2002).

    `episodes` [S] are the numbers of the states' episodes, whose own states are no neighbours: the
    steps before and after look alike and act alike, and a randomised task has one model throughout.
    For the same reason neighbours, which may come from one episode, are not compared with each
    other. Raises ValueError if a state has fewer than k states of other episodes.
    """
    numbers = torch.arange(len(views)) if episodes is None else episodes
    most = int(torch.unique(numbers, return_counts=True)[1].max()) if len(views) else 0
    if len(views) - most < k:
        raise ValueError(
            f"{len(views)} states, up to {most} of them of one episode: each needs {k} of others"
        )
    x, acts = _standardised(views), actions.double()
    parts = []
    for rows in torch.arange(len(x)).split(_BLOCK):
        distance = torch.cdist(x[rows], x)  # [B, S]
        distance[numbers[rows, None] == numbers] = torch.inf
        near = distance.topk(k, largest=False).indices  # [B, k]
        parts.append((acts[near] - acts[rows, None]).square().mean(1) / 2)
    return torch.cat(parts)


def _standardised(views: Tensor) -> Tensor:
    """Return views with mean 0 and variance 1 per column, in float64; constant columns are 0."""
    x = views.double() - views.double().mean(0)
    scale = x.square().mean(0).sqrt()
    return x / torch.where(scale > 0, scale, 1.0)
