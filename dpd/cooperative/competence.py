"""Who is better where, from what every policy really gets from a state.

Cooperative knowledge distillation (Livanos et al., AAAI 2024): where the original asks who
classifies an instance correctly, this asks who gets more reward.
"""

from __future__ import annotations

from itertools import permutations
from typing import NamedTuple

import numpy as np

NOBODY = -1


class Competence(NamedTuple):
    """What k policies get from n states, and who is to teach whom."""

    score: np.ndarray  # [k, n] discounted sums of rewards
    threshold: float
    """A gap counts above it."""
    teacher: np.ndarray  # [k, n] whom student j follows at a state, or NOBODY

    def deficient(self, i: int, j: int) -> np.ndarray:
        """Return where j is to learn from i [n] bool: the set R_{i->j}."""
        return self.teacher[j] == i

    def gap(self, i: int, j: int) -> np.ndarray:
        """Return how much more i gets than j [n]."""
        return self.score[i] - self.score[j]


def judge(score: np.ndarray, margin: float) -> Competence:
    """Find each policy's teachers from score [k, n]; of several that are better, the best.

    R_{i->j} = {s: G_i - G_j > margin * std(G)}. With more than two policies every state of a
    student goes to its best peer there alone, so that the sets of a student do not overlap.
    """
    threshold = margin * float(score.std())
    best = score.argmax(0)  # [n]
    ahead = score.max(0) - score > threshold  # [k, n]; the best is not ahead of itself
    return Competence(score, threshold, np.where(ahead, best, NOBODY))


def pairs(k: int) -> list[tuple[int, int]]:
    """Return all (teacher, student) of k policies."""
    return list(permutations(range(k), 2))
