"""Checks on a policy file before and after its tensors are read; it may come from anyone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from dpd.agents.nets import Shapes
from dpd.envs.base import bounds_defect
from dpd.policies import memory
from dpd.policies.memory import MemoryMeta
from dpd.policies.metadata import NotAPolicy

# Far beyond any policy of this suite: larger files are rejected before they cost memory or time.
MAX_POLICY_FILE = 2**30  # bytes
MAX_HEADER = 2**20  # bytes of JSON: tensor names and the description


def check_sizes(path: Path) -> None:
    """Raise NotAPolicy unless the path is a regular file with a size and header within limits."""
    if not path.is_file():
        kind = "a directory" if path.is_dir() else "not a regular file"
        reason = kind if path.exists() else "no such file"
        raise NotAPolicy(f"{path} is not a policy file: {reason}")
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
        size = os.fstat(file.fileno()).st_size
    if size > MAX_POLICY_FILE or not 0 < header <= min(MAX_HEADER, size):
        raise NotAPolicy(
            f"{path} is not a policy file: it has {size} bytes and claims a header of {header}"
        )


def check_layout(path: Path, file: safe_open, expected: Shapes) -> None:
    """Raise NotAPolicy unless the file has exactly the described tensors; reads only headers."""
    actual: dict[str, tuple[int, ...]] = {}
    for name in file.keys():  # noqa: SIM118, not a mapping
        part = file.get_slice(name)
        if part.get_dtype() != "F32":
            raise NotAPolicy(
                f"{path} is not a policy file: tensor {name!r:.40} is {part.get_dtype()}, not F32"
            )
        actual[name] = tuple(part.get_shape())
    for name in sorted(expected.keys() | actual.keys()):
        if actual.get(name) != expected.get(name):
            raise NotAPolicy(
                f"{path} does not fit its description: tensor {name!r:.40} has shape "
                f"{actual.get(name)!s:.60}, expected {expected.get(name)}"
            )


def check_values(
    path: Path, tensors: Mapping[str, Tensor], stored: MemoryMeta | None = None
) -> None:
    """Raise NotAPolicy unless all numbers are finite and in the range that gives valid actions."""
    if defect := _defect(tensors, stored):
        raise NotAPolicy(f"{path} can't act: {defect}")


def _defect(tensors: Mapping[str, Tensor], stored: MemoryMeta | None) -> str | None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            return f"{name} contains NaN or infinity"
    for name in ("obs_scale", "obs_count"):
        if not (tensors[name] > 0).all():
            return f"{name} is not positive"
    if stored is not None:
        limit = 1.001 if memory.has_projection(stored) else memory.MAX_KEY
        if (tensors["memory.keys"].abs() > limit).any():
            return f"memory.keys exceeds {limit:g}"
        if (tensors["memory.actions"].abs() > 1).any():
            return "memory.actions leaves [-1, 1]"
    return bounds_defect(tensors["act_low"].numpy(), tensors["act_high"].numpy())
