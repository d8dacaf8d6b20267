"""Checkpoints: a run's whole state, from which it goes on exactly where it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dpd.agents.base import State
from dpd.agents.learners import Journal
from dpd.files import DRAFT
from dpd.journal import JournalFiles
from dpd.tensorfile import BadFile, read_facts, read_tensors, write_tensors

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

    def _replays(self, journals: Sequence[Journal | None]) -> list[tuple[JournalFiles, Journal]]:
        """Return the files of every stack that has a replay."""
        self.journals = [JournalFiles(self.dir, k) for k in range(len(journals))]
        both = zip(self.journals, journals, strict=True)
        return [(files, journal) for files, journal in both if journal is not None]

    def files(self) -> list[Path]:
        """Return the checkpoints, newest first."""
        return sorted(self.dir.glob("step-*.safetensors"), reverse=True)

    def save(self, state: State, facts: Facts, journals: Sequence[Journal | None] = ()) -> Path:
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
        self, load: Callable[[State], None], journals: Sequence[Journal | None]
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
