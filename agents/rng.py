"""Random numbers per learner, so that a row draws the same whoever stands beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpd.agents.base import CPU, State, put_back

WIDE = 2**62  # modulo a count of samples, as good as uniform


class Stream(IntEnum):
    """What a learner's generator is for; each has a seed of its own."""

    INIT = 0
    EXPLORE = 1
    BATCH = 2
    DISTILL = 3
    TEACHER = 4
    STAGGER = 5


def _word(seed: Sequence[int], stream: Stream, *attempt: int) -> int:
    word = np.random.SeedSequence([*seed, int(stream), *attempt]).generate_state(1, np.uint64)[0]
    return int(word >> np.uint64(1))


class RowRandom:
    """One generator per learner, drawn in blocks; a device has numbers of its own."""

    def __init__(
        self, seeds: Sequence[Sequence[int]], stream: Stream, device: torch.device = CPU
    ) -> None:
        self._seeds, self._stream, self.device = seeds, stream, device
        home = device if device.type == "cuda" else CPU  # a device without memory has none
        self.generators = [torch.Generator(home).manual_seed(_word(s, stream)) for s in seeds]

    def state(self) -> State:
        """Return the generators' states [N, bytes]."""
        return {"generators": torch.stack([g.get_state() for g in self.generators])}

    def load_state(self, state: State) -> None:
        """Put a state back. Raises ValueError where it is not one of as many generators."""
        put_back(self.state(), state)  # checks; what it copies into is a copy
        for generator, words in zip(self.generators, state["generators"], strict=True):
            generator.set_state(words.clone())  # it reads a view from its base

    def reseed(self, rows: Sequence[int], attempt: int) -> None:
        """Give rows random numbers of their own for an attempt after the first."""
        for row in rows:
            self.generators[row].manual_seed(_word(self._seeds[row], self._stream, attempt))

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw standard normals [N, *shape]."""
        return self._stack(torch.randn, *shape, dtype=dtype)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw numbers in [0, 1) [N, *shape]."""
        return self._stack(torch.rand, *shape, dtype=dtype)

    def permutation(self, size: int) -> Tensor:
        """Draw a permutation of range(size) per learner [N, size]."""
        return self._stack(torch.randperm, size)

    def integers(self, high: int, *shape: int) -> Tensor:
        """Draw integers in [0, high) [N, *shape]."""
        return self._stack(torch.randint, high, shape)

    def _stack(self, draw: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        home = self.device
        return torch.stack(
            [draw(*args, generator=g, device=home, **kwargs) for g in self.generators]
        )
