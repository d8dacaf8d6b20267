"""Random numbers per learner, so that a row draws the same whoever stands beside it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Stream(IntEnum):
    """What a learner's generator is for; each has a seed of its own."""

    INIT = 0
    EXPLORE = 1
    BATCH = 2
    DISTILL = 3


class RowRandom:
    """One generator per learner, drawn in blocks."""

    def __init__(self, seeds: Sequence[Sequence[int]], stream: Stream) -> None:
        self.generators = []
        for seed in seeds:
            word = np.random.SeedSequence([*seed, int(stream)]).generate_state(1, np.uint64)[0]
            self.generators.append(torch.Generator().manual_seed(int(word >> np.uint64(1))))

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw standard normals [N, *shape]."""
        return torch.stack([torch.randn(*shape, generator=g, dtype=dtype) for g in self.generators])

    def permutation(self, size: int) -> Tensor:
        """Draw a permutation of range(size) per learner [N, size]."""
        return torch.stack([torch.randperm(size, generator=g) for g in self.generators])

    def integers(self, high: int, *shape: int) -> Tensor:
        """Draw integers in [0, high) [N, *shape]."""
        return torch.stack([torch.randint(high, shape, generator=g) for g in self.generators])
