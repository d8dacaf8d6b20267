"""A device without numbers, to show on any machine what would go wrong on a GPU.

On `meta`, whatever reads a value back raises: there is none. What it lets pass are copies from the
host, for which CUDA waits as well, and which break a recording: `Elsewhere` and `NothingFromHost`
refuse those. `on_device` is both of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
ADAM = torch.ops.aten._fused_adam_.tensor_lr  # which CUDA has, and meta has not
TRANSFERS = {torch.ops.aten.copy_, torch.ops.aten._to_copy}
MAKERS = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
INDEXING = (Tensor.__getitem__, Tensor.__setitem__)
MASKS = (torch.bool, torch.uint8)


class Elsewhere(TorchDispatchMode):
    """Refuse operations between devices, and copies between them that the host waits for.

    A number of the CPU's counts as a number. While an update is recorded, so do all copies from
    the host, which a replay would read from memory long freed, and random numbers, which it would
    repeat.
    """

    def __init__(self, recording: bool = False) -> None:
        super().__init__()
        self.recording = recording

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if func.overloadpacket in TRANSFERS:
            self._check_transfer(func, tensors, args, kwargs)
        else:
            devices = {x.device.type for x in tensors if x.dim() > 0}
            assert len(devices) < 2, f"{func} mixes {devices}"
        if self.recording:
            is_random = torch.Tag.nondeterministic_seeded in func.tags
            assert not is_random, f"{func} draws random numbers inside a recording"
        return None if func == ADAM else func(*args, **kwargs)

    def _check_transfer(self, func: Any, tensors: list[Tensor], args: Any, kwargs: Any) -> None:
        to = torch.device(kwargs.get("device") or args[0].device)
        if all(x.device.type == to.type for x in tensors):
            return
        waits = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
        assert not waits, f"{func} copies to {to}, and the host waits for it"
        assert not self.recording, f"{func} copies from the host inside a recording"


class NothingFromHost(TorchFunctionMode):
    """Refuse calls that copy from the host unseen by `Elsewhere`.

    These are indexing by a list, an array or a tensor of the CPU; by a boolean mask, whose count
    the host must know; assigning a number to one element; and `torch.tensor` and its like.
    `device` is the kind that is not the host: for code that meta can't run, the CPU itself.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in MAKERS:
            self._refuse_made_from_host(func, args, kwargs)
        elif func in INDEXING and args[0].device.type == self.device:
            refuse_index_from_host(args[0], args[1])
            if func is Tensor.__setitem__:
                refuse_value_from_host(*args)
        elif func is torch.where:
            where = {x.device.type for x in (*args, *kwargs.values()) if isinstance(x, Tensor)}
            assert len(where) < 2, f"where() copies a number from the host: {where}"
        return func(*args, **kwargs)

    def _refuse_made_from_host(self, func: Any, args: Any, kwargs: Any) -> None:
        device = kwargs.get("device")
        if device is None:
            device = args[0].device if func is Tensor.new_tensor else "cpu"
        given = args[1] if func is Tensor.new_tensor else args[0]
        is_there = isinstance(given, Tensor) and given.device.type == self.device
        is_copied = torch.device(device).type == self.device and not is_there
        assert not is_copied, f"{func.__name__} copies from the host to {device}"


def refuse_index_from_host(x: Tensor, index: Any) -> None:
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, Tensor):
            assert part.device == x.device, f"indexed by a tensor of the {part.device}"
            assert part.dtype not in MASKS, "indexed by a mask, whose count the host must know"
        else:
            is_list = isinstance(part, Sequence | np.ndarray)
            assert not is_list, f"indexed by {part}, which is copied from the host"


def refuse_value_from_host(x: Tensor, index: Any, value: Any) -> None:
    """Of a number, CUDA fills a slice by a kernel, but copies it into a single element."""
    if isinstance(value, Tensor):
        assert value.device == x.device, f"a value from the {value.device} is copied"
    else:
        assert x[index].dim() > 0, "a number is copied from the host into one element"


@contextmanager
def on_device(recording: bool = False) -> Iterator[None]:
    """Refuse what would make the host wait for a GPU; recording: also what a replay can't do."""
    with Elsewhere(recording), NothingFromHost():
        yield


class Recorded:
    """A recording without a GPU: the same work, in which only what a replay repeats is allowed."""

    made = 0

    def __init__(self, work: Any, args: Any) -> None:
        self.work = work
        Recorded.made += 1

    def replay(self, args: Any) -> Any:
        with on_device(recording=True):
            return self.work(*args)
