"""What cooperation asks of a world, and what may be spent in it.

Letters: k policies · n states · O observation · A action · D coordinates of a state · K episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

PURPOSES = ("probe", "competence", "counterfactual", "trial", "evaluation")

Act = Callable[[Tensor], Tensor]
"""Raw observations [B, O] -> actions [B, A] in [-1, 1]."""


class States(NamedTuple):
    """States that a world can go on from."""

    obs: Tensor  # [n, O] raw: what policies see
    coords: Tensor  # [n, D] float64: what may be moved
    inner: dict[str, np.ndarray]  # everything the future depends on, a row per state

    def __len__(self) -> int:
        return len(self.obs)

    def rows(self, which: np.ndarray) -> States:
        """Return some of the states, by index or mask."""
        pick = torch.as_tensor(which)
        return States(
            self.obs[pick], self.coords[pick], {k: v[which] for k, v in self.inner.items()}
        )


def joined(parts: Sequence[States]) -> States:
    """Put states of one world behind each other."""
    inner = {k: np.concatenate([p.inner[k] for p in parts]) for k in parts[0].inner}
    return States(torch.cat([p.obs for p in parts]), torch.cat([p.coords for p in parts]), inner)


class World(Protocol):
    """Where policies act. Every step counts in its budget; `Spent` before one that's too many."""

    def visit(self, act: Act, n: int, seed: int) -> States:
        """Return n states of a policy's own episodes."""
        ...

    def score(self, states: States, acts: Sequence[Act], purpose: str) -> np.ndarray:
        """Play every policy from every state -> the discounted sums of rewards [k, n]."""
        ...

    def moved(self, states: States, coords: Tensor) -> States:
        """Return the states at other coordinates [n, D], as possible as the world can make them."""
        ...

    def evaluate(self, acts: Sequence[Act], purpose: str = "evaluation") -> np.ndarray:
        """Play the same whole episodes with every policy -> returns [k, K]; others for a trial."""
        ...


class Spent(Exception):
    """The budget does not suffice for what comes next; the message says for what."""


class Budget:
    """Counts every simulator step by what it was for; `tell` hears of each."""

    def __init__(self, total: int, tell: Callable[[str, int], None] = lambda what, n: None) -> None:
        self.total, self.tell = total, tell
        self.reserved = 0
        """Steps that only evaluations may take."""
        self.used = dict.fromkeys(PURPOSES, 0)

    @property
    def spent(self) -> int:
        """All steps so far."""
        return sum(self.used.values())

    def require(self, purpose: str, at_most: int) -> None:
        """Raise Spent unless so many steps are left for a purpose."""
        left = self.total - self.spent - (0 if purpose == "evaluation" else self.reserved)
        if at_most > left:
            raise Spent(
                f"{purpose} needs up to {at_most:,} more steps, and {max(left, 0):,} are left"
            )

    def count(self, purpose: str, steps: int) -> None:
        """Take in steps that were made."""
        self.used[purpose] += steps
        self.tell(purpose, steps)
