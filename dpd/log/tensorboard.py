"""TensorBoard logs: one run per learner, so that peers share a chart in different colours."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from dpd.log.csv import CSV_FIELDS, Point
from dpd.log.naming import learner_name

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

HPARAMS_METRIC = "eval/return"  # the hparams tab shows its last value
FLUSH_S = 30


def flattened(hparams: Mapping[str, Any], prefix: str = "") -> dict[str, float | str]:
    """Flatten nested settings to dotted names; convert values that are not numbers to text."""
    flat: dict[str, float | str] = {}
    for name, value in hparams.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            flat[prefix + name] = value if number else str(value)
    return flat


def add_event(writer: SummaryWriter, summary: Any, step: int | None = None) -> None:
    """Write a summary of several values as one event; the public methods write one value each."""
    writer._get_file_writer().add_summary(summary, step)


def add_scalars(writer: SummaryWriter, values: Mapping[str, float | None], step: int) -> None:
    """Write the values that are not None as one event; every event costs a file access."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    summary = Summary()
    for tag, value in values.items():
        if value is not None:
            summary.value.add(tag=tag, simple_value=value)
    add_event(writer, summary, step)


class TensorBoardLog:
    """Write one TensorBoard run per learner, and one for the metrics that all of them share.

    The runs are in `folder` as seed0-peer0, seed0-peer1, ... and use the same tags. The run called
    `shared` contains the settings as text, and metrics that are not per learner (time/...).
    """

    def __init__(
        self,
        folder: Path,
        seeds: Sequence[int],
        peers: Sequence[str],
        hparams: Mapping[str, Any],
        start_step: int | None,
        table: Path,
        shared: str = "run",
    ) -> None:
        """Open all runs; `table` is the metrics.csv with the same points up to `start_step`."""
        from torch.utils.tensorboard import SummaryWriter

        purge = None if start_step is None else start_step + 1
        names = {
            (seed, peer): learner_name(seed, name)
            for seed in seeds
            for peer, name in enumerate(peers)
        }
        old = [] if start_step is None else old_runs(folder, seeds)
        if old:  # runs in the new layout are then left over from an interrupted conversion
            for name in (shared, *names.values()):
                shutil.rmtree(folder / name, ignore_errors=True)

        def open_writer(name: str) -> SummaryWriter:
            writer = SummaryWriter(folder / name, purge_step=purge, flush_secs=FLUSH_S)
            opened.callback(writer.close)
            return writer

        with ExitStack() as opened:
            self._shared = open_writer(shared)
            self._writers = {learner: open_writer(name) for learner, name in names.items()}
            self._write_settings(flattened(hparams))
            if old:
                self._convert(old, table)
            self.flush()  # fail now, rather than after an hour, if the disk is full
            self._opened = opened.pop_all()

    def write(self, step: int, points: Iterable[Point]) -> None:
        """Write a record as one event per learner."""
        records: dict[SummaryWriter, dict[str, float | None]] = {}
        for seed, peer, name, value in points:
            is_shared = seed is None or peer is None
            writer = self._shared if is_shared else self._writers[seed, peer]  # type: ignore[index]
            records.setdefault(writer, {})[name] = value
        for writer, values in records.items():
            add_scalars(writer, values, step)

    def flush(self) -> None:
        """Flush all events to the files."""
        for writer in (self._shared, *self._writers.values()):
            writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            with suppress(OSError):  # the first error is already propagating
                self._opened.close()
            return
        with self._opened:
            for writer in self._writers.values():
                add_event(writer, self._session_end)

    def _convert(self, old: Sequence[Path], table: Path) -> None:
        """Write a resumed run's points again from its table, then remove the old runs."""
        for step, points in records(table):
            self.write(step, points)
        self.flush()
        for run in old:
            shutil.rmtree(run)

    def _write_settings(self, settings: Mapping[str, float | str]) -> None:
        """Write the settings as text and for the hparams tab.

        SummaryWriter.add_hparams is not used, because it opens another sub-run per learner.
        """
        from torch.utils.tensorboard.summary import hparams

        texts = {name: str(value).replace("|", "&#124;") for name, value in settings.items()}
        rows = [f"| {name} | {text} |" for name, text in texts.items()]
        self._shared.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *rows]))
        for (seed, peer), writer in self._writers.items():
            learner = {"seed": seed, "peer": peer}
            experiment, start, self._session_end = hparams(
                {**settings, **learner}, {HPARAMS_METRIC: 0.0}
            )
            add_event(writer, experiment)
            add_event(writer, start)


def old_runs(folder: Path, seeds: Sequence[int]) -> list[Path]:
    """Return runs that an earlier version wrote: one per seed, tags like eval/return/peer1."""
    return [run for seed in seeds if (run := folder / f"seed{seed}").is_dir()]


def records(table: Path) -> Iterator[tuple[int, list[Point]]]:
    """Read the points of a metrics.csv, record by record."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, CSV_FIELDS)
        next(rows)  # the header
        for step, record in groupby(rows, key=lambda row: int(row["step"])):
            yield step, [parse_point(row) for row in record]


def parse_point(row: Mapping[str, str]) -> Point:
    """Parse a row of metrics.csv."""
    seed, peer = (int(row[name]) if row[name] else None for name in ("seed", "peer"))
    return Point(seed, peer, row["metric"], float(row["value"]))
