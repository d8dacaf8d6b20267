"""Checkpoints: one .safetensors file each, from which a run goes on exactly where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dpd.agents.base import State
from dpd.files import DRAFT, replacing

FORMAT = 1
KEY = "dpd checkpoint"


class BadCheckpoint(ValueError):
    """A file that is no whole checkpoint; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a checkpoint says of itself, beside its tensors."""

    step: int
    """Environment steps of one group."""
    iteration: int
    score: float | None
    """Mean evaluation return of all learners, if they were evaluated just then."""
    rollbacks: int
    threads: int
    """Torch's threads: with another number, sums may round differently."""
    versions: dict[str, str]
    format: int = FORMAT


class Checkpoints:
    """The checkpoints of a run: its latest few and its best."""

    def __init__(self, run_dir: Path, keep: int) -> None:
        self.dir, self.keep = run_dir / "checkpoints", keep

    def files(self) -> list[Path]:
        """Return the checkpoints, newest first."""
        return sorted(self.dir.glob("step-*.safetensors"), reverse=True)

    def save(self, state: State, facts: Facts) -> Path:
        """Write a checkpoint, then remove those that it makes superfluous."""
        path = self.dir / f"step-{facts.step:012d}.safetensors"
        self.dir.mkdir(exist_ok=True)
        tensors = {k: v.contiguous() for k, v in state.items()}
        said = json.dumps(asdict(facts) | {"digest": digest(tensors)})
        with replacing(path, durable=True) as draft:
            try:
                save_file(tensors, draft, metadata={KEY: said})
            except SafetensorError as error:
                raise OSError(None, str(error), str(path)) from error
        self._remove_old()
        return path

    def _remove_old(self) -> None:
        files = self.files()
        scores = {f: score for f in files if (score := _score(f)) is not None}
        kept = set(files[: self.keep]) | set(sorted(scores, key=scores.__getitem__)[-1:])
        for file in files:
            if file not in kept:
                file.unlink(missing_ok=True)

    def clear_drafts(self) -> None:
        """Remove what a killed run left half written."""
        for draft in self.dir.glob(f"{DRAFT}*"):
            with suppress(OSError):
                draft.unlink()

    def newest(self) -> tuple[State, Facts, list[str]] | None:
        """Read the newest whole checkpoint, and say what is wrong with those passed over."""
        complaints: list[str] = []
        for file in self.files():
            try:
                return *read(file), complaints
            except BadCheckpoint as error:
                complaints.append(str(error))
        if complaints:
            raise BadCheckpoint("; ".join(complaints))
        return None


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash names, types, shapes and contents."""
    found = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        found.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        found.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def read(path: Path) -> tuple[State, Facts]:
    """Read a checkpoint. Raises BadCheckpoint where it is not whole."""
    facts, promised = _read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118, no mapping
    except (SafetensorError, OSError) as error:
        raise BadCheckpoint(f"{path} is no whole checkpoint: {error}") from error
    if digest(state) != promised:
        raise BadCheckpoint(f"{path} is no whole checkpoint: its contents have changed")
    return state, facts


def read_facts(path: Path) -> Facts:
    """Read what a checkpoint says of itself. Raises BadCheckpoint where it is none."""
    return _read_header(path)[0]


def _score(path: Path) -> float | None:
    try:
        return read_facts(path).score
    except BadCheckpoint:
        return None  # it goes when its turn comes, and is named if it is read


def _read_header(path: Path) -> tuple[Facts, str]:
    try:
        with safe_open(path, framework="pt") as file:
            said: dict[str, Any] = json.loads((file.metadata() or {})[KEY])
        promised = said.pop("digest")
        if said.get("format") != FORMAT:
            raise BadCheckpoint(
                f"{path} has checkpoint format {said.get('format')}; this version reads {FORMAT}"
            )
        return Facts(**said), promised
    except (SafetensorError, OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, BadCheckpoint):
            raise
        raise BadCheckpoint(f"{path} is no whole checkpoint: {error}") from error
