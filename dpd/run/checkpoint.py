"""Tensors and facts in one .safetensors file that is whole or not there."""

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
from dpd.files import DRAFT, replacing


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


SEGMENT_KEY = "dpd replay"


class Segment(NamedTuple):
    """A file with the steps from `begin` to `end`, counted from the beginning of the run."""

    begin: int
    end: int
    stack: int

    @property
    def name(self) -> str:
        """The file's name."""
        return f"replay{self.stack}-{self.begin:012d}-{self.end:012d}.safetensors"


class JournalFiles:
    """The segments of the replay of one of a run's stacks."""

    def __init__(self, folder: Path, stack: int = 0) -> None:
        self.dir, self.stack = folder, stack
        self.pattern = re.compile(rf"replay{stack}-(\d{{12}})-(\d{{12}})\.safetensors")

    def segments(self) -> list[Segment]:
        """Return what is on disk, oldest first."""
        found = (self.pattern.fullmatch(file.name) for file in self.dir.glob("replay*"))
        return sorted(Segment(int(m[1]), int(m[2]), self.stack) for m in found if m)

    def save(self, journal: Replay) -> list[str]:
        """Write what no file holds yet; return the files that hold all that the journal does."""
        oldest = journal.total - journal.held
        written = max((s.end for s in self.segments()), default=0)
        begin = max(written, oldest)
        if begin < journal.total:
            path = self.dir / Segment(begin, journal.total, self.stack).name
            write_tensors(path, {"rows": journal.since(begin)}, SEGMENT_KEY, {})
        return [s.name for s in self.segments() if s.end > oldest]

    def read(self, names: Collection[str]) -> tuple[int, list[Tensor]]:
        """Return the step that files begin with, and their rows [N, T, E, W], oldest first.

        Raises BadFile where one is missing or not whole.
        """
        mine = [name for name in names if self.pattern.fullmatch(name)]
        wanted = [s for s in self.segments() if s.name in mine]
        if len(wanted) < len(mine):
            raise BadFile(f"{self.dir} lacks {len(mine) - len(wanted)} files of the replay")
        rows = [read_tensors(self.dir / s.name, SEGMENT_KEY)[0]["rows"] for s in wanted]
        return wanted[0].begin if wanted else 0, rows

    def load(self, journal: Replay, names: Collection[str]) -> None:
        """Put back what files hold, and forget those behind them. Raises BadFile as `read` does."""
        begin, rows = self.read(names)
        journal.restart(begin)
        for part in rows:
            journal.extend(part)
        self.remove([s.name for s in self.segments() if s.end <= journal.total])

    def remove(self, kept: Collection[str]) -> None:
        """Remove all files but these."""
        for segment in self.segments():
            if segment.name not in kept:
                (self.dir / segment.name).unlink(missing_ok=True)


FORMAT = 2
KEY = "dpd checkpoint"


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
    replay: list[str] = field(default_factory=list)
    """Files that hold the replays."""
    format: int = FORMAT


def folder_of(run_dir: Path, part: int | None) -> Path:
    """Return where a run's checkpoints are, or those of one of its parts (`--workers`)."""
    return run_dir / "checkpoints" / ("" if part is None else f"part{part}")


def file_of(folder: Path, step: int) -> Path:
    """Return the checkpoint of a step."""
    return folder / f"step-{step:012d}.safetensors"


class Checkpoints:
    """The latest few checkpoints of a run, or of a part of it, its best, and their replay."""

    def __init__(self, run_dir: Path, keep: int, part: int | None = None) -> None:
        self.dir, self.keep = folder_of(run_dir, part), keep
        self.journals: list[JournalFiles] = []

    def _replays(self, journals: Sequence[Replay | None]) -> list[tuple[JournalFiles, Replay]]:
        """Return the files of every stack that has a replay."""
        self.journals = [JournalFiles(self.dir, k) for k in range(len(journals))]
        both = zip(self.journals, journals, strict=True)
        return [(files, journal) for files, journal in both if journal is not None]

    def files(self) -> list[Path]:
        """Return the checkpoints, newest first."""
        return sorted(self.dir.glob("step-*.safetensors"), reverse=True)

    def save(self, state: State, facts: Facts, journals: Sequence[Replay | None] = ()) -> Path:
        """Write a checkpoint, then remove those that it makes superfluous."""
        path = file_of(self.dir, facts.step)
        names = [name for files, each in self._replays(journals) for name in files.save(each)]
        facts = replace(facts, replay=names)
        write_tensors(path, state, KEY, asdict(facts))
        self._remove_old()
        return path

    def _remove_old(self) -> None:
        known = {f: said for f in self.files() if (said := _facts_if_whole(f)) is not None}
        scores = {f: said.score for f, said in known.items() if said.score is not None}
        best = max(scores, key=scores.__getitem__, default=None)
        for file in self.files()[self.keep :]:
            if file != best:
                file.unlink(missing_ok=True)
                known.pop(file, None)
        for files in self.journals:
            files.remove({name for said in known.values() for name in said.replay})

    def clear_drafts(self) -> None:
        """Remove what a killed run left half written."""
        for draft in self.dir.glob(f"{DRAFT}*"):
            with suppress(OSError):
                draft.unlink()

    def load_newest(
        self, load: Callable[[State], None], journals: Sequence[Replay | None]
    ) -> tuple[Facts, list[str]] | None:
        """Load the newest whole checkpoint, if there is any.

        Returns its facts, and what is wrong with those passed over. Raises BadFile where all are
        broken.
        """
        complaints: list[str] = []
        for file in self.files():
            try:
                state, facts = read(file)
                for files, journal in self._replays(journals):
                    files.load(journal, facts.replay)
            except BadFile as error:
                complaints.append(str(error))
                continue
            load(state)
            return facts, complaints
        if complaints:
            raise BadFile("; ".join(complaints))
        return None


def _facts_if_whole(path: Path) -> Facts | None:
    try:
        return _facts(path, read_facts(path, KEY))
    except BadFile:
        return None  # it goes when its turn comes, and is named if it is read


def read(path: Path) -> tuple[State, Facts]:
    """Read a checkpoint. Raises BadFile where it is not whole."""
    state, said = read_tensors(path, KEY)
    return state, _facts(path, said)


def _facts(path: Path, said: dict[str, Any]) -> Facts:
    if said.get("format") != FORMAT:
        raise BadFile(
            f"{path} has checkpoint format {said.get('format')}; this version reads {FORMAT}"
        )
    try:
        return Facts(**{k: v for k, v in said.items() if k != "digest"})
    except TypeError as error:
        raise BadFile(f"{path} is not whole: {error}") from error
