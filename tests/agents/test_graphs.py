"""Recordings of updates: what torch is asked for, with a stand-in for its CUDA graphs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any
from weakref import ref

import pytest
import torch

from dpd.agents.graphs import NotRecorded, Recording, shared_pool

X = torch.tensor([1.0])


class Graph:
    """A graph that notes the pool it was recorded in."""

    handle: object = None

    def pool(self) -> object:
        return self.handle

    def replay(self) -> None:
        pass


class Capture:
    """`torch.cuda.graph`, whose end fails where what was recorded did."""

    collects: list[bool] = []  # noqa: RUF012

    def __init__(self, graph: Graph, pool: object) -> None:
        graph.handle = pool

    def __enter__(self) -> None:
        Capture.collects.append(gc.isenabled())

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, RuntimeError):
            raise RuntimeError("operation failed due to a previous error during capture")


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    Capture.collects.clear()
    was_enabled = gc.isenabled()
    yield
    (gc.enable if was_enabled else gc.disable)()


def twice(x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"twice": 2 * x}


def test_no_garbage_is_collected_while_an_update_is_recorded() -> None:
    gc.enable()
    Recording(twice, (X,))
    assert Capture.collects == [False] and gc.isenabled()
    gc.disable()
    Recording(twice, (X,))
    assert not gc.isenabled()  # left as it was


def test_recordings_share_a_pool_and_the_last_one_takes_it_along() -> None:
    first, second = Recording(twice, (X,)), Recording(twice, (X,))
    assert first.graph.pool() is second.graph.pool() is shared_pool()
    old = second.graph.pool()
    del first
    assert shared_pool() is old
    del second
    assert shared_pool() is not old  # its handle is void: torch would refuse it


def test_a_recording_that_is_forgotten_is_freed_without_the_collector() -> None:
    gc.disable()
    recording = Recording(twice, (X,))
    assert torch.equal(recording.replay((X,))["twice"], 2 * X)
    gone = ref(recording)
    del recording
    assert gone() is None


def test_what_cuda_refuses_to_record_is_named() -> None:
    def copies(x: torch.Tensor) -> dict[str, torch.Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA says more")

    with pytest.raises(NotRecorded) as found:
        Recording(copies, (X,))
    assert str(found.value) == (
        "CUDA cannot record an update as a graph: operation not permitted when stream is capturing"
    )
    assert gc.isenabled()


def test_a_lack_of_memory_stays_one() -> None:
    def large(x: torch.Tensor) -> dict[str, torch.Tensor]:
        raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    with pytest.raises(torch.OutOfMemoryError, match="80 GiB"):
        Recording(large, (X,))


def test_a_mistake_in_the_work_itself_stays_one() -> None:
    def wrong(x: torch.Tensor) -> dict[str, torch.Tensor]:
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        Recording(wrong, (X,))
