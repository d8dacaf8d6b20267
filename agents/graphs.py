"""Updates recorded as CUDA graphs: one launch per update, with no Python in between."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor

UpdateResult = TypeVar("UpdateResult")
"""The result of an update: a tensor, or tensors in dicts and tuples."""


class NotRecorded(RuntimeError):
    """CUDA refused to record an update; the message gives the reason."""


class Recording:
    """One recorded update. Arguments are copied to its memory, and results from it.

    The update is a function of tensors only; it changes persistent state in place.
    """

    def __init__(self, work: Callable[..., Any], args: tuple[Tensor, ...]) -> None:
        self.inputs = tuple(x.clone() for x in args)
        self.graph = torch.cuda.CUDAGraph()
        recording = torch.cuda.graph(self.graph, pool=shared_pool())
        with clear_errors(), no_collection(), recording:
            self.outputs = work(*self.inputs)
        _alive.add(self)

    def replay(self, args: tuple[Tensor, ...]) -> Any:
        """Run the update once; the caller owns the results."""
        for kept, given in zip(self.inputs, args, strict=True):
            kept.copy_(given)
        self.graph.replay()
        return cloned(self.outputs)


_alive: WeakSet[Recording] = WeakSet()


def cloned(result: Any) -> Any:
    """Copy a result: a tensor, or tensors in dicts and tuples."""
    if isinstance(result, dict):
        return {name: cloned(x) for name, x in result.items()}
    return tuple(map(cloned, result)) if isinstance(result, tuple) else result.clone()


def shared_pool() -> Any:
    """Return the handle of the memory pool that all recordings of this process share.

    Sharing is safe: recordings run one after the other, and their results are copied at once. A
    pool dies with its last recording, and torch then rejects its handle, so the handle is taken
    from a live recording.
    """
    for recording in _alive:
        return recording.graph.pool()
    return torch.cuda.graph_pool_handle()


@contextmanager
def no_collection() -> Iterator[None]:
    """Disable Python's garbage collector, which `torch.cuda.graph` does not.

    If it frees another recording or a CUDA array meanwhile, that CUDA call breaks the recording.
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
    """Turn an error during a recording into NotRecorded, except for a lack of memory.

    Ending a broken recording raises a second error, which hides the first; that one is reported.
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

    The first call of an update runs it directly, which allocates workspaces; the second call
    records it. Tensors that the update reads besides its arguments must stay at their addresses,
    and plain numbers are fixed at recording time: call `forget` after one of them has changed.
    Updates run directly on a device without graphs, and if `enabled` is set to False.
    """

    def __init__(self, device: torch.device, record: Callable[..., Any] = Recording) -> None:
        self.enabled = device.type == "cuda"
        self._record = record
        self._recordings: dict[Hashable, Any] = {}

    def run(self, key: Hashable, work: Callable[..., UpdateResult], *args: Tensor) -> UpdateResult:
        """Run the update known by `key`; the caller owns the results."""
        if not self.enabled:
            return work(*args)
        if key not in self._recordings:
            self._recordings[key] = None
            return work(*args)
        if (recording := self._recordings[key]) is None:
            recording = self._recordings[key] = self._record(work, args)
        result: UpdateResult = recording.replay(args)
        return result

    def forget(self) -> None:
        """Discard all recordings; later calls record anew."""
        self._recordings.clear()
