"""metrics.csv: a run's numbers in long format, one row each."""

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

FIELDS = ("step", "seed", "peer", "metric", "value")


class Point(NamedTuple):
    """One number: of a learner, or shared by all (then row, seed and peer are None)."""

    seed: int | None
    peer: int | None
    name: str
    value: float


class CsvLog:
    """Append points to a long-format csv file, on disk after every record."""

    def __init__(self, path: Path, start_step: int | None) -> None:
        if start_step is None and path.exists():
            raise FileExistsError(f"{path} holds another run; resume it or choose a new folder")
        if start_step is not None and path.exists():
            drop_after(path, start_step)
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file, lineterminator="\n")
        if self._file.tell() == 0:
            self._writer.writerow(FIELDS)

    def write(self, step: int, points: Sequence[Point]) -> None:
        """Append one record; nine digits hold a float32 exactly."""
        self._writer.writerows((step, *point[:3], f"{point.value:.9g}") for point in points)
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._file.close()
        else:  # closing retries a failed write: the first error is already on its way up
            with suppress(OSError):
                self._file.close()


def metrics_name(part: int | None = None) -> str:
    """Return what the log of a run, or of one of its processes, is called."""
    return "metrics.csv" if not part else f"metrics-{part}.csv"


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """Read metrics.csv, and those beside it of a run's other processes, row by row.

    Without a last line that a run is still writing. A process that was stopped before its first
    record has no file.
    """
    for each in (path, *sorted(path.parent.glob(f"{path.stem}-*{path.suffix}"))):
        if not each.exists():
            continue
        with each.open(newline="", encoding="utf-8") as file:
            yield from csv.DictReader(line for line in file if line.endswith("\n"))


def drop_after(path: Path, step: int) -> None:
    """Remove the rows a resumed run is going to write again."""
    kept = path.with_suffix(".kept")
    with path.open(newline="", encoding="utf-8") as source, kept.open("w", newline="") as target:
        rows, writer = csv.reader(source), csv.writer(target, lineterminator="\n")
        for row in rows:  # a killed run may have left half a line at the end
            if len(row) == len(FIELDS) and (row[0] == FIELDS[0] or int(row[0]) <= step):
                writer.writerow(row)
    os.replace(kept, path)
