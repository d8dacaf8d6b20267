"""Replays on disk: each checkpoint adds a file with what is new, and shares the others' files."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from dpd.agents.learners import Journal
from dpd.tensorfile import BadFile, read_tensors, write_tensors

KEY = "dpd replay"


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

    def save(self, journal: Journal) -> list[str]:
        """Write what no file holds yet; return the files that hold all that the journal does."""
        oldest = journal.total - journal.held
        written = max((s.end for s in self.segments()), default=0)
        begin = max(written, oldest)
        if begin < journal.total:
            path = self.dir / Segment(begin, journal.total, self.stack).name
            write_tensors(path, {"rows": journal.since(begin)}, KEY, {})
        return [s.name for s in self.segments() if s.end > oldest]

    def read(self, names: Collection[str]) -> tuple[int, list[Tensor]]:
        """Return the step that files begin with, and their rows [N, T, E, W], oldest first.

        Raises BadFile where one is missing or not whole.
        """
        mine = [name for name in names if self.pattern.fullmatch(name)]
        wanted = [s for s in self.segments() if s.name in mine]
        if len(wanted) < len(mine):
            raise BadFile(f"{self.dir} lacks {len(mine) - len(wanted)} files of the replay")
        rows = [read_tensors(self.dir / s.name, KEY)[0]["rows"] for s in wanted]
        return wanted[0].begin if wanted else 0, rows

    def load(self, journal: Journal, names: Collection[str]) -> None:
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
