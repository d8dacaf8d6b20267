"""Random numbers per learner: a row's draws do not depend on the other rows of its stack."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpd.agents.base import CPU, LearnerId, State, Stateful, put_back

GENERATORS = "generators"
"""The key of generator states in checkpoint states."""
WIDE = 2**62  # a draw below it, modulo a number of samples, is as good as uniform


class Stream(IntEnum):
    """The purpose of a generator; each purpose gets a seed of its own."""

    INIT = 0
    EXPLORE = 1
    BATCH = 2
    DISTILL = 3
    TEACHER = 4
    STAGGER = 5
    TURNS = 6
    SENSOR = 7
    ENCODER = 8


def _word(learner: LearnerId, stream: Stream, *attempt: int) -> int:
    word = np.random.SeedSequence([*learner, int(stream), *attempt]).generate_state(1, np.uint64)[0]
    return int(word >> np.uint64(1))


def with_own_generators(saved: State, own: State) -> State:
    """Return a saved state with its generators replaced by those of `own`.

    This lets the CPU read a state saved on a GPU, whose generators have another format. It is for
    readers that draw no random numbers.
    """
    return saved | {k: x for k, x in own.items() if k.split(".")[-1] == GENERATORS}


def uniform_from_normal(noise: Tensor) -> Tensor:
    """Map standard normals to numbers uniform in [-1, 1]."""
    return torch.erf(noise * math.sqrt(0.5))


class RowRandom(Stateful):
    """One generator per learner, drawn in blocks; CPU and GPU draw different numbers."""

    def __init__(
        self, ids: Sequence[LearnerId], stream: Stream, device: torch.device = CPU
    ) -> None:
        self._ids, self._stream, self.device = ids, stream, device
        home = device if device.type == "cuda" else CPU  # the meta device has no generators
        self.generators = [torch.Generator(home).manual_seed(_word(i, stream)) for i in ids]

    def state(self) -> State:
        """Return the generators' states [N, bytes]."""
        return {GENERATORS: torch.stack([g.get_state() for g in self.generators])}

    def load_state(self, state: State) -> None:
        """Restore a state. Raises ValueError for another number or kind of generators.

        A GPU's generator has 16 bytes and the CPU's 5,056; they are not convertible.
        """
        own, saved = self.state()[GENERATORS], state[GENERATORS]
        if len(own) and saved.shape[1:] != own.shape[1:]:
            raise ValueError(
                f"the random generators were saved on another kind of device ({saved.shape[-1]} "
                f"bytes each, {own.shape[-1]} on {self.device}); resume the run on the kind "
                "of device it began on, or start a new run from its policies with --init-from"
            )
        put_back(self.state(), state)  # only checks the shape: state() returns copies
        for generator, words in zip(self.generators, saved, strict=True):
            generator.set_state(words.clone())  # a clone: set_state ignores the offset of a view

    def reseed(self, rows: Sequence[int], attempt: int) -> None:
        """Give rows new random numbers for a retry."""
        for row in rows:
            self.generators[row].manual_seed(_word(self._ids[row], self._stream, attempt))

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
