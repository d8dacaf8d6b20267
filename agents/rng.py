"""Random numbers per learner, so that a row draws the same whoever stands beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpd.agents.base import CPU, State, put_back

GENERATORS = "generators"
"""What their states are called in any state."""
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


def with_own_generators(saved: State, own: State) -> State:
    """Return a saved state with the generators of another: for who reads it, and draws nothing.

    Generators of a run on a GPU do not fit into those of the CPU.
    """
    return saved | {k: x for k, x in own.items() if k.split(".")[-1] == GENERATORS}


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
        return {GENERATORS: torch.stack([g.get_state() for g in self.generators])}

    def load_state(self, state: State) -> None:
        """Put a state back. Raises ValueError where it is not one of as many generators.

        A GPU's generator has 16 bytes and the CPU's 5,056; neither goes on where the other was.
        """
        own, saved = self.state()[GENERATORS], state[GENERATORS]
        if len(own) and saved.shape[1:] != own.shape[1:]:
            raise ValueError(
                f"the saved random numbers are another kind of device's ({saved.shape[-1]} bytes a "
                f"generator, on {self.device} {own.shape[-1]}), and a run goes on on the kind "
                "that it began on; --init-from starts a new run from its policies"
            )
        put_back(self.state(), state)  # checks; what it copies into is a copy
        for generator, words in zip(self.generators, saved, strict=True):
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
