"""Updates recorded as CUDA graphs: launched as one, without Python in between."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import Tensor

from dpd.agents.base import Metrics

Work = Callable[..., Metrics]
"""A function of tensors alone, that changes in place what outlives it."""


class NotRecorded(RuntimeError):
    """CUDA refused to record an update; the message says why."""


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
        recording = torch.cuda.graph(self.graph, pool=shared_pool())
        with clear_errors(), no_collection(), recording:
            self.outputs = work(*self.inputs)
        _alive.add(self)

    def replay(self, args: tuple[Tensor, ...]) -> Metrics:
        """Do the work once."""
        for kept, given in zip(self.inputs, args, strict=True):
            kept.copy_(given)
        self.graph.replay()
        return {name: x.clone() for name, x in self.outputs.items()}


_alive: WeakSet[Recording] = WeakSet()


def shared_pool() -> Any:
    """Return the handle of the memory pool that all recordings of this process share.

    They may: they run one after the other, and their results are copied at once. A pool ends with
    its last recording, and torch refuses its handle from then on, so a live recording is asked.
    """
    for recording in _alive:
        return recording.graph.pool()
    return torch.cuda.graph_pool_handle()


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python's garbage collector away; `torch.cuda.graph` does not.

    A recording or an array that it frees meanwhile is a CUDA call that breaks the recording.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn what goes wrong in a recording into NotRecorded, but for a lack of memory.

    The end of a broken recording is an error too, and hides the one that broke it.
    """
    try:
        yield
    except RuntimeError as error:
        cause = error.__context__ if isinstance(error.__context__, RuntimeError) else error
        if isinstance(cause, torch.OutOfMemoryError):
            raise cause from None
        reason = str(cause).strip().split("\n")[0]
        raise NotRecorded(f"CUDA cannot record an update as a graph: {reason}") from error


class Graphs:
    """The recordings of a stack's updates.

    A first call runs as it is, which makes workspaces; a second one is recorded. What the work
    reads beside its arguments must stay where it is, and numbers are those of the recording:
    `forget` where one has changed. On a device without graphs, and where `enabled` is set to
    False, work runs as it is.
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
