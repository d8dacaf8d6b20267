"""Numbers that must be finite."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Who = tuple[int, int]
"""A learner's seed and peer."""


class NonFinite(RuntimeError):
    """A number in training is NaN or infinite."""

    def __init__(self, what: str, who: Who) -> None:
        super().__init__(f"{what} of seed {who[0]}'s peer {who[1]} is NaN or infinite")
        self.what, self.who = what, who


class Checks:
    """Checks of an iteration, of the learners `who`: on the CPU each at once.

    On a GPU, which would have to be waited for, they are read when they are settled: what follows
    a NaN is then wasted, but nothing of it is kept.
    """

    def __init__(self, who: Sequence[Who], device: torch.device) -> None:
        self.who, self.at_once = who, device.type == "cpu"
        self.seen: list[tuple[str, Tensor]] = []

    def require(self, what: str, value: Tensor) -> None:
        """Raise NonFinite, now or later, of the learner that a quantity [N, ...] went wrong in."""
        good = torch.isfinite(value)
        self.seen.append((what, good.flatten(1).all(1) if good.ndim > 1 else good))
        if self.at_once:
            self.settle()

    def settle(self) -> None:
        """Raise NonFinite of the first quantity that went wrong, if any did."""
        seen, self.seen = self.seen, []
        if not seen:
            return
        found = torch.stack([good for _, good in seen]).tolist()
        for (what, _), good in zip(seen, found, strict=True):
            if not all(good):
                raise NonFinite(what, self.who[good.index(False)])
