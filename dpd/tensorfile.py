"""Tensors and facts in one .safetensors file that is whole or not there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dpd.files import replacing


class BadFile(ValueError):
    """A file that is not what it should be, or not whole; the message says why."""


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Hash names, types, shapes and contents."""
    found = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        found.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        found.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], key: str, facts: Mapping[str, Any]
) -> None:
    """Write tensors, with facts as JSON under `key`; on disk before it takes its place.

    A digest goes with them: a generator's state with one wrong byte can crash the process.
    """
    tensors = {k: v.cpu().contiguous() for k, v in tensors.items()}
    said = json.dumps({**facts, "digest": digest(tensors)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=True) as draft:
        try:
            save_file(tensors, draft, metadata={key: said})
        except SafetensorError as error:
            raise OSError(None, str(error), str(path)) from error


def read_tensors(path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote. Raises BadFile where it is not whole."""
    facts = read_facts(path, key)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118, no mapping
    except (SafetensorError, OSError) as error:
        raise BadFile(f"{path} is not whole: {error}") from error
    if digest(tensors) != facts.pop("digest", None):
        raise BadFile(f"{path} is not whole: its contents have changed")
    return tensors, facts


def read_facts(path: Path, key: str) -> dict[str, Any]:
    """Read the facts of a file, and no tensors. Raises BadFile where there are none."""
    try:
        with safe_open(path, framework="pt") as file:
            said = json.loads((file.metadata() or {})[key])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise BadFile(f"{path} is not whole: {error}") from error
    if not isinstance(said, dict):
        raise BadFile(f"{path} is not whole: it says nothing of itself")
    return said
