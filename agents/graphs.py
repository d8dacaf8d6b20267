"""Updates recorded as CUDA graphs: launched as one, without Python in between."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol

import torch
from torch import Tensor

from dpd.agents.base import Metrics

Work = Callable[..., Metrics]
"""A function of tensors alone, that changes in place what outlives it."""


class Replay(Protocol):
    """Work that was recorded."""

    def replay(self, args: tuple[Tensor, ...]) -> Metrics:
        """Do the work once; the results are the caller's."""
        ...


class Recording:
    """One function at one place in memory; arguments are copied there, results from there."""

    def __init__(self, work: Work, args: tuple[Tensor, ...]) -> None:
        self.inputs = tuple(x.clone() for x in args)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = work(*self.inputs)

    def replay(self, args: tuple[Tensor, ...]) -> Metrics:
        """Do the work once."""
        for kept, given in zip(self.inputs, args, strict=True):
            kept.copy_(given)
        self.graph.replay()
        return {name: x.clone() for name, x in self.outputs.items()}


class Graphs:
    """The recordings of a stack's updates.

    A first call runs as it is, which makes workspaces; a second one is recorded. What the work
    reads beside its arguments must stay where it is, and numbers are those of the recording:
    `forget` where one has changed. On a device without graphs, work runs as it is.
    """

    def __init__(self, device: torch.device, record: Callable[..., Replay] = Recording) -> None:
        self.enabled = device.type == "cuda"
        self._record = record
        self._recordings: dict[Hashable, Replay | None] = {}

    def run(self, key: Hashable, work: Work, *args: Tensor) -> Metrics:
        """Do the work that is known by `key`; the results are the caller's."""
        if not self.enabled:
            return work(*args)
        if key not in self._recordings:
            self._recordings[key] = None
            return work(*args)
        if (recording := self._recordings[key]) is None:
            recording = self._recordings[key] = self._record(work, args)
        return recording.replay(args)

    def forget(self) -> None:
        """Record anew from now on."""
        self._recordings.clear()
