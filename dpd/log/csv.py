"""metrics.csv: a run's metrics in long format, one number per row."""

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

CSV_FIELDS = ("step", "seed", "peer", "metric", "value")
LAST_BYTES = 4096  # more than a row


class Point(NamedTuple):
    """One number of a learner, or shared by all learners (then seed and peer are None)."""

    seed: int | None
    peer: int | None
    name: str
    value: float


class CsvLog:
    """Append points to a long-format csv file, flushed after every record."""

    def __init__(self, path: Path, start_step: int | None) -> None:
        if start_step is None and path.exists():
            raise FileExistsError(
                f"{path} already contains a run; resume it or choose another directory"
            )
        if start_step is not None and path.exists():
            drop_after(path, start_step)
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file, lineterminator="\n")
        if self._file.tell() == 0:
            self._writer.writerow(CSV_FIELDS)

    def write(self, step: int, points: Sequence[Point]) -> None:
        """Append one record. Nine digits represent a float32 exactly."""
        self._writer.writerows((step, *point[:3], f"{point.value:.9g}") for point in points)
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._file.close()
        else:  # closing retries a failed write; the first error is already propagating
            with suppress(OSError):
                self._file.close()


def metrics_name(part: int | None = None) -> str:
    """Return the file name of a run's metrics, or of those that worker `part` writes."""
    return "metrics.csv" if not part else f"metrics-{part}.csv"


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """Read the rows of metrics.csv and of the files of the run's other workers next to it.

    Skips an incomplete last line, which a run is still writing. A worker that was stopped before
    its first record has no file.
    """
    for table in tables_of(path):
        yield from read_table(table)


def tables_of(path: Path) -> list[Path]:
    """Return a run's metrics.csv and the files of its other workers, as far as they exist."""
    others = sorted(path.parent.glob(f"{path.stem}-*{path.suffix}"))
    return [table for table in (path, *others) if table.exists()]


def read_table(path: Path) -> Iterator[dict[str, str]]:
    """Read the rows of one file, without an incomplete last line."""
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(line for line in file if line.endswith("\n"))


class CsvTail:
    """Read the rows that a run appends to a file of metrics, each once."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self._inode = path, 0, 0

    def read_new(self) -> tuple[list[list[str]], bool]:
        """Return the new whole rows, and whether they are those of another file from its start.

        A resumed run replaces its file by one without the rows that it writes again.
        """
        if not self._path.exists():
            return [], False
        with self._path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            is_other = inode != self._inode or file.seek(0, os.SEEK_END) < self._offset
            self._offset, self._inode = 0 if is_other else self._offset, inode
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        rows = list(csv.reader(whole.decode().splitlines()))
        return [row for row in rows if row[0] != CSV_FIELDS[0]], is_other


def last_step(path: Path) -> int | None:
    """Return the step of the last whole row of one file; None if it has none."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - LAST_BYTES, 0))
        rows = file.read().rpartition(b"\n")[0].splitlines()
    step = rows[-1].partition(b",")[0] if rows else b""
    return int(step) if step.isdigit() else None


def drop_after(path: Path, step: int) -> None:
    """Remove the rows after `step`, which a resumed run writes again."""
    kept = path.with_suffix(".kept")
    with path.open(newline="", encoding="utf-8") as source, kept.open("w", newline="") as target:
        rows, writer = csv.reader(source), csv.writer(target, lineterminator="\n")
        for row in rows:  # the last line of a killed run may be incomplete
            if len(row) == len(CSV_FIELDS) and (row[0] == CSV_FIELDS[0] or int(row[0]) <= step):
                writer.writerow(row)
    os.replace(kept, path)
