"""Aliasing: the spread of a teacher's action among states that look alike to a student.

No function of the student's view can undercut it: more data does not help, a longer history may.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dpd.fidelity.policies import ComparedPolicy

NEIGHBOURS = 16
MAX_STATES = 10_000
"""States of a set that count: time grows with the square of their number."""
SMALL = 0.01
"""Share of the variance of the teacher's action that is not worth a remedy."""
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
    most = _most_of_one_episode(numbers)
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


def _most_of_one_episode(episodes: Tensor) -> int:
    return int(torch.unique(episodes, return_counts=True)[1].max()) if len(episodes) else 0


class AliasingScores(NamedTuple):
    """Shares of the variance of the teacher's action on one set of states."""

    missed: float
    """The student's squared error."""
    aliasing: float
    """What the student's view does not explain."""
    teacher_aliasing: float
    """The same in the teacher's own view, in truth 0: an error of the estimate."""
    own_aliasing: float
    """The same of the student's own action in its own view, in truth 0 too: large in a stack of
    frames whose small differences count."""


def score_aliasing(
    teacher: ComparedPolicy, student: ComparedPolicy, obs: Tensor, episodes: Tensor
) -> AliasingScores | None:
    """Measure aliasing on states [n, O] of numbered episodes [n], the first MAX_STATES of them.

    None if that is undefined: the teacher always acts the same, or a state has fewer than
    NEIGHBOURS states of other episodes.
    """
    obs, episodes = obs[:MAX_STATES], episodes[:MAX_STATES]
    acts = teacher.outputs(obs).act.double()
    total = acts.var(0, correction=0).sum()
    if total == 0 or len(obs) - _most_of_one_episode(episodes) < NEIGHBOURS:
        return None
    own = student.outputs(obs).act.double()
    full, seen = teacher.sees(obs).flatten(1), student.sees(obs).flatten(1)
    near = local_variance(seen, torch.cat([acts, own], 1), episodes).mean(0)
    open_, of_own = (float(part.sum()) for part in near.chunk(2))
    spread = float(own.var(0, correction=0).sum())
    return AliasingScores(
        missed=float((own - acts).square().mean(0).sum() / total),
        aliasing=open_ / float(total),
        teacher_aliasing=(
            open_ / float(total) if torch.equal(full, seen) else aliasing(full, acts, episodes)
        ),
        own_aliasing=of_own / spread if spread > 0 else 0.0,
    )


def aliasing_verdict(scores: AliasingScores, sees_all: bool) -> str:
    """Answer whether more data, more history or neither helps, by error and aliasing.

    `sees_all`: the student reads the whole observation, so that nothing is hidden.
    """
    missed, own = scores.missed, scores.aliasing
    error = max(scores.teacher_aliasing, scores.own_aliasing)
    text = f"misses {missed:.1%} of the variance of the teacher's action"
    seen = f"{text}; its view leaves {own:.1%} open (by an estimate that finds {error:.1%} for 0)"
    if missed <= SMALL:
        return f"{text}: there is nothing left to gain"
    if sees_all:
        return f"{text} and sees all of it: more data, more training or a larger student may help"
    if missed > 2 * own:
        return f"{seen}: more data, more training or a larger student may help"
    if own - error >= missed / 2:
        return (
            f"{seen}: more data does not help; a longer history or more groups may, and if they "
            "leave as much open, give up"
        )
    return f"{seen}: the estimate is too coarse to tell; more --states and --episodes sharpen it"


def _standardised(views: Tensor) -> Tensor:
    """Return views with mean 0 and variance 1 per column, in float64; constant columns are 0."""
    x = views.double() - views.double().mean(0)
    scale = x.square().mean(0).sqrt()
    return x / torch.where(scale > 0, scale, 1.0)
