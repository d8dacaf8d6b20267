"""Checkpoints: tensors and metadata in a .safetensors file, and replay segments next to it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dpd.agents.base import State
from dpd.agents.replay import Replay
from dpd.errors import OtherVersion
from dpd.files import DRAFT, replacing


class BadFile(ValueError):
    """A file is corrupt, or not of the expected kind; the message gives the reason."""


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Hash names, dtypes, shapes and contents."""
    sha = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        sha.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        sha.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], key: str, metadata: Mapping[str, Any]
) -> None:
    """Write tensors, and metadata as JSON under `key`, atomically and durably.

    The metadata includes a digest: a generator state with one wrong byte can crash the process.
    """
    tensors = {k: v.cpu().contiguous() for k, v in tensors.items()}
    text = json.dumps({**metadata, "digest": digest(tensors)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=True) as draft:
        try:
            save_file(tensors, draft, metadata={key: text})
        except SafetensorError as error:
            raise OSError(None, str(error), str(path)) from error


def read_tensors(path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and metadata that `write_tensors` wrote. Raises BadFile if they are corrupt."""
    metadata = read_metadata(path, key)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118, no mapping
    except (SafetensorError, OSError) as error:
        raise BadFile(f"{path} is corrupt: {error}") from error
    if digest(tensors) != metadata.pop("digest", None):
        raise BadFile(f"{path} is corrupt: its contents have changed")
    return tensors, metadata


def read_metadata(path: Path, key: str) -> dict[str, Any]:
    """Read a file's metadata, without its tensors. Raises BadFile if there is none."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[key])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise BadFile(f"{path} is corrupt: {error}") from error
    if not isinstance(metadata, dict):
        raise BadFile(f"{path} is corrupt: its metadata is not an object")
    return metadata


SEGMENT_KEY = "dpd replay"


class Segment(NamedTuple):
    """A file with the replay steps from `begin` to `end`, counted from the start of the run."""

    begin: int
    end: int
    stack: int

    @property
    def name(self) -> str:
        """The name of the segment's file."""
        return f"replay{self.stack}-{self.begin:012d}-{self.end:012d}.safetensors"


class JournalFiles:
    """The replay of one stack on disk, in segments.

    A checkpoint writes only the steps since the last one, not the whole replay.
    """

    def __init__(self, folder: Path, stack: int = 0) -> None:
        self.dir, self.stack = folder, stack

    def segments(self) -> list[Segment]:
        """Return the segments on disk, oldest first."""
        pattern = re.compile(rf"replay{self.stack}-(\d{{12}})-(\d{{12}})\.safetensors")
        matches = (pattern.fullmatch(file.name) for file in self.dir.glob("replay*"))
        return sorted(Segment(int(m[1]), int(m[2]), self.stack) for m in matches if m)

    def save(self, journal: Replay) -> list[str]:
        """Write the steps that no file contains yet; return the files with all of them.

        These are the names that `load` needs.
        """
        oldest = journal.total - journal.held
        begin = max([oldest, *(s.end for s in self.segments())])
        if begin < journal.total:
            path = self.dir / Segment(begin, journal.total, self.stack).name
            write_tensors(path, {"rows": journal.since(begin)}, SEGMENT_KEY, {})
        return [s.name for s in self.segments() if s.end > oldest]

    def read(self, names: Collection[str]) -> tuple[int, list[Tensor]]:
        """Return the first step in the named files, and their rows [N, T, E, W], oldest first.

        Raises BadFile if one is missing or corrupt.
        """
        expected = sum(name.startswith(f"replay{self.stack}-") for name in names)
        found = [s for s in self.segments() if s.name in names]
        if missing := expected - len(found):
            raise BadFile(f"{self.dir} lacks {missing} replay files of the checkpoint")
        rows = [read_tensors(self.dir / s.name, SEGMENT_KEY)[0]["rows"] for s in found]
        return found[0].begin if found else 0, rows

    def load(self, journal: Replay, names: Collection[str]) -> None:
        """Restore the journal from the named files, and remove those that end after its last step.

        Raises BadFile as `read` does.
        """
        begin, rows = self.read(names)
        journal.restart(begin)
        for segment in rows:
            journal.extend(segment)
        self.remove([s.name for s in self.segments() if s.end <= journal.total])

    def remove(self, keep: Collection[str]) -> None:
        """Remove all segments except those in `keep`."""
        for segment in self.segments():
            if segment.name not in keep:
                (self.dir / segment.name).unlink(missing_ok=True)


CHECKPOINT_FORMAT = 3
CHECKPOINT_KEY = "dpd checkpoint"


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """Metadata of a checkpoint."""

    step: int
    """Environment steps of one seed's peers."""
    iteration: int
    score: float | None
    """Mean evaluation return of all learners, if they were evaluated at this iteration."""
    rollbacks: int
    threads: int
    """Number of torch threads; with a different number, sums may round differently."""
    versions: dict[str, str]
    replay: list[str] = field(default_factory=list)
    """Names of the files with the replays."""
    format: int = CHECKPOINT_FORMAT


def folder_of(run_dir: Path, part: int | None) -> Path:
    """Return the directory of a run's checkpoints, or of those that worker `part` writes."""
    return run_dir / "checkpoints" / ("" if part is None else f"part{part}")


def file_of(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint at `step`."""
    return folder / f"step-{step:012d}.safetensors"


def step_of(file: Path) -> int:
    """Return the step of a checkpoint from its name."""
    return int(file.stem.removeprefix("step-"))


class Checkpoints:
    """Checkpoints of a run or of one of its workers: the latest few, the best, their replays.

    `journals` are the replays of the stacks; None for a stack without one.
    """

    def __init__(
        self,
        run_dir: Path,
        keep: int,
        part: int | None = None,
        journals: Sequence[Replay | None] = (),
    ) -> None:
        self.dir, self.keep = folder_of(run_dir, part), keep
        self.journals = [
            (JournalFiles(self.dir, k), journal)
            for k, journal in enumerate(journals)
            if journal is not None
        ]

    def files(self) -> list[Path]:
        """Return the paths of the checkpoints, newest first."""
        return sorted(self.dir.glob("step-*.safetensors"), reverse=True)

    def save(self, state: State, info: CheckpointInfo) -> None:
        """Write a checkpoint, then remove those that are no longer needed."""
        # The segments come first: a checkpoint never refers to files that do not exist.
        names = [name for files, journal in self.journals for name in files.save(journal)]
        metadata = asdict(replace(info, replay=names))
        write_tensors(file_of(self.dir, info.step), state, CHECKPOINT_KEY, metadata)
        self._remove_old()

    def _remove_old(self) -> None:
        known: dict[Path, CheckpointInfo] = {}
        for file in self.files():
            with suppress(BadFile, OtherVersion):  # removed with the others; reading it complains
                known[file] = _parse_info(file, read_metadata(file, CHECKPOINT_KEY))
        scores = {f: info.score for f, info in known.items() if info.score is not None}
        best = max(scores, key=scores.__getitem__, default=None)
        for file in self.files()[self.keep :]:
            if file != best:
                file.unlink(missing_ok=True)
                known.pop(file, None)
        for files, _ in self.journals:
            files.remove({name for info in known.values() for name in info.replay})

    def clear_drafts(self) -> None:
        """Remove the drafts of files that a killed run did not finish."""
        for draft in self.dir.glob(f"{DRAFT}*"):
            with suppress(OSError):
                draft.unlink()

    def load_newest(self, load: Callable[[State], None]) -> tuple[CheckpointInfo, list[str]] | None:
        """Load the newest intact checkpoint; return None if there is no checkpoint at all.

        Returns its metadata and a complaint about each corrupt one that was skipped. Raises BadFile
        if all are corrupt, OtherVersion if another version of dpd wrote the newest.
        """
        complaints: list[str] = []
        for file in self.files():
            try:
                state, info = read(file)
                for files, journal in self.journals:
                    files.load(journal, info.replay)
            except BadFile as error:
                complaints.append(str(error))
                continue
            load(state)
            return info, complaints
        if complaints:
            raise BadFile("; ".join(complaints))
        return None


def read(path: Path) -> tuple[State, CheckpointInfo]:
    """Read a checkpoint. Raises BadFile if it is corrupt, OtherVersion if its format differs."""
    state, metadata = read_tensors(path, CHECKPOINT_KEY)
    return state, _parse_info(path, metadata)


def _parse_info(path: Path, metadata: dict[str, Any]) -> CheckpointInfo:
    if (version := metadata.get("format")) != CHECKPOINT_FORMAT:
        reason = f"checkpoint format {version}, and this version reads {CHECKPOINT_FORMAT}"
        raise OtherVersion(path, reason)
    try:
        return CheckpointInfo(**{k: v for k, v in metadata.items() if k != "digest"})
    except TypeError as error:
        raise BadFile(f"{path} is corrupt: {error}") from error
