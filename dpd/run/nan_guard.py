"""Checks that the numbers of training are finite."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SeedPeer = tuple[int, int]
"""The seed and the peer number that identify a learner."""


class NonFinite(RuntimeError):
    """A quantity of a learner became NaN or infinite in training."""

    def __init__(self, quantity: str, learner: SeedPeer) -> None:
        seed, peer = learner
        super().__init__(f"{quantity} of seed {seed}'s peer {peer} is NaN or infinite")
        self.quantity, self.learner = quantity, learner


class NanGuard:
    """Check the quantities of an iteration; on the CPU, immediately.

    On a GPU, checks are deferred to `check_pending` at the end of the iteration, to avoid a
    synchronization for each; an iteration that hits a NaN is then discarded.
    """

    def __init__(self, learners: Sequence[SeedPeer], device: torch.device) -> None:
        self.learners, self.at_once = learners, device.type == "cpu"
        self.pending: list[tuple[str, Tensor]] = []

    def require(self, quantity: str, value: Tensor) -> None:
        """Raise NonFinite, now or in `check_pending`, if a value [N, ...] is not finite."""
        good = torch.isfinite(value)
        self.pending.append((quantity, good.flatten(1).all(1) if good.ndim > 1 else good))
        if self.at_once:
            self.check_pending()

    def check_pending(self) -> None:
        """Raise NonFinite for the first quantity that is not finite, if any."""
        pending, self.pending = self.pending, []
        if not pending:
            return
        results = torch.stack([good for _, good in pending]).tolist()  # one synchronization
        for (quantity, _), good in zip(pending, results, strict=True):
            if not all(good):
                raise NonFinite(quantity, self.learners[good.index(False)])
