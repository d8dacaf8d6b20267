"""Record a run: one TensorBoard sub-run per seed, metrics.csv, and the terminal."""

import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from rich.console import Console
from torch import Tensor

from dpd.display import Board, Display, Value, is_missing

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FIELDS = ("step", "seed", "peer", "metric", "value")
CHARTS = {"train/return": "returns", "eval/return": "returns"}
CHART_PREFIXES = {"loss/": "losses", "distill/": "distillation"}
TENSORBOARD_FLUSH_S = 30


class Point(NamedTuple):
    """One number: of a learner, or shared by all (then row, seed and peer are None)."""

    seed: int | None
    peer: int | None
    name: str
    value: float


class Partial(NamedTuple):
    """A metric that only some learners have."""

    rows: Sequence[int]
    values: Tensor  # one for each of these rows


Metric = Tensor | Partial | float


def to_host(metrics: Mapping[str, Metric], n_learners: int) -> dict[str, Value]:
    """Bring metrics to Python in one transfer per device and dtype; a list is per learner."""
    alike: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}
    host: dict[str, Value] = {}
    for name, value in metrics.items():
        if isinstance(value, float | int):
            host[name] = float(value)
            continue
        if isinstance(value, Partial):
            tensor, n = value.values, len(value.rows)
        else:
            tensor, n = value, n_learners
        if tensor.shape not in ((), (n,)):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; record a scalar or [{n}]")
        alike.setdefault((tensor.device, tensor.dtype), {})[name] = tensor.detach()
    for tensors in alike.values():
        flat = iter(torch.cat([tensor.reshape(-1) for tensor in tensors.values()]).tolist())
        for name, tensor in tensors.items():
            numbers = [float(next(flat)) for _ in range(tensor.numel())]
            host[name] = spread(numbers, metrics[name], n_learners) if tensor.dim() else numbers[0]
    return {name: host[name] for name in metrics}


def spread(numbers: Sequence[float], metric: Metric, n_learners: int) -> list[float | None]:
    """Put a metric's numbers into the rows of the run that have it."""
    rows = metric.rows if isinstance(metric, Partial) else range(n_learners)
    known = dict(zip(rows, numbers, strict=True))
    return [known.get(row) for row in range(n_learners)]


def flattened(hparams: Mapping[str, Any], prefix: str = "") -> dict[str, float | str]:
    """Flatten nested settings to dotted names; what is no number becomes text."""
    flat: dict[str, float | str] = {}
    for name, value in hparams.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            flat[prefix + name] = value if number else str(value)
    return flat


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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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

    Without a last line that a run is still writing.
    """
    for each in (path, *sorted(path.parent.glob(f"{path.stem}-*{path.suffix}"))):
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


def add(writer: "SummaryWriter", summary: Any, step: int | None = None) -> None:
    """Write a summary of several values as one event; the public methods take one value each."""
    writer._get_file_writer().add_summary(summary, step)


class TensorBoardLog:
    """Write one TensorBoard sub-run per seed, with charts that hold all peers."""

    def __init__(
        self,
        folder: Path,
        seeds: Sequence[int],
        peers: int,
        hparams: Mapping[str, Any],
        start_step: int | None,
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = None if start_step is None else start_step + 1
        self._peers, self._charts = peers, dict.fromkeys(CHARTS)
        self._writers: dict[int, SummaryWriter] = {}
        with ExitStack() as opened:
            for seed in seeds:
                self._writers[seed] = SummaryWriter(
                    folder / f"seed{seed}", purge_step=purge, flush_secs=TENSORBOARD_FLUSH_S
                )
                opened.callback(self._writers[seed].close)
            self._first = self._writers[seeds[0]]
            self._write_settings(flattened(hparams))
            self._write_layout()
            for writer in self._writers.values():
                writer.flush()  # a full disk is better told of now than after an hour
            self._opened = opened.pop_all()

    def tags(self, name: str) -> list[str]:
        """Name the tags of a metric, one per peer."""
        return [self._tag(name, peer) for peer in range(self._peers)]

    def write(self, step: int, points: Sequence[Point]) -> None:
        """Write a record as one event per seed: an event per number costs a file access each."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        summaries: dict[SummaryWriter, Summary] = {}
        for seed, peer, name, value in points:
            writer = self._first if seed is None else self._writers[seed]
            summary = summaries.setdefault(writer, Summary())
            summary.value.add(tag=self._tag(name, peer), simple_value=value)
        for writer, summary in summaries.items():
            add(writer, summary, step)
        self._extend_layout(points)

    def flush(self) -> None:
        """Bring all events to the files."""
        for writer in self._writers.values():
            writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            with suppress(OSError):  # the first error is already on its way up
                self._opened.close()
            return
        with self._opened:
            for writer in self._writers.values():
                add(writer, self._session_end)

    def _tag(self, name: str, peer: int | None) -> str:
        return name if peer is None or self._peers == 1 else f"{name}/peer{peer}"

    def _write_settings(self, settings: Mapping[str, float | str]) -> None:
        """Write the settings as text and for the hparams tab.

        SummaryWriter.add_hparams would open a sub-run of its own for each.
        """
        from torch.utils.tensorboard.summary import hparams

        texts = {name: str(value).replace("|", "&#124;") for name, value in settings.items()}
        rows = [f"| {name} | {text} |" for name, text in texts.items()]
        self._first.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *rows]))
        final = dict.fromkeys(self.tags("eval/return"), 0.0)  # the tab shows a tag's last value
        for seed, writer in self._writers.items():
            experiment, start, self._session_end = hparams({**settings, "seed": seed}, final)
            add(writer, experiment)
            add(writer, start)

    def _extend_layout(self, points: Sequence[Point]) -> None:
        """Give new losses and distillation metrics their charts."""
        known = len(self._charts)
        for point in points:
            if point.name.startswith(tuple(CHART_PREFIXES)):
                self._charts.setdefault(point.name)
        if len(self._charts) > known:
            self._write_layout()

    def _write_layout(self) -> None:
        """Put the peers of each metric into one chart; TensorBoard shows the last layout."""
        layout: dict[str, dict[str, list[Any]]] = {}
        for name in self._charts:
            category = CHARTS.get(name) or CHART_PREFIXES[name.partition("/")[0] + "/"]
            # Tags are regular expressions matched from the start: peer1 would find peer10.
            lines = [f"{re.escape(tag)}$" for tag in self.tags(name)]
            layout.setdefault(category, {})[name] = ["Multiline", lines]
        self._first.add_custom_scalars(layout)


class RunLog:
    """Record what a run reports, for TensorBoard, as csv and on the terminal.

    `start_step` says where a resumed run goes on: later rows of the interrupted one are dropped.
    """

    def __init__(
        self,
        run_dir: Path,
        seeds: Sequence[int],
        peers: int,
        total_steps: int,
        hparams: Mapping[str, Any],
        title: str,
        console: Console | None = None,
        quiet: bool = False,
        start_step: int | None = None,
        metrics: str = metrics_name(),
    ) -> None:
        self.run_dir, self._seeds, self._peers = run_dir, tuple(seeds), peers
        console = Console(quiet=True) if quiet else console or Console()
        board = Board(seeds, peers)
        self._display = Display(board, total_steps, title, console, start_step or 0)
        with ExitStack() as opened, self._clear_errors():
            run_dir.mkdir(parents=True, exist_ok=True)
            self._csv = opened.enter_context(CsvLog(run_dir / metrics, start_step))
            self._tensorboard = opened.enter_context(
                TensorBoardLog(run_dir / "tb", self._seeds, peers, hparams, start_step)
            )
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        self._opened.enter_context(self._display)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._clear_errors():
            self._opened.__exit__(kind, error, trace)

    def record(self, step: int, metrics: Mapping[str, Metric], keep: bool = True) -> None:
        """Record metrics at `step` environment steps per seed: [N] per learner, scalars shared.

        Without `keep` they are only shown.
        """
        values = to_host(metrics, len(self._seeds) * self._peers)
        if keep:
            points = list(self._points(values))
            with self._clear_errors():
                self._csv.write(step, points)
                self._tensorboard.write(step, points)
        self._display.update(step, values)

    def flush(self) -> None:
        """Bring all records to the files, so that a checkpoint never knows more than they do."""
        with self._clear_errors():
            self._tensorboard.flush()

    def show_start(self, facts: Mapping[str, object]) -> None:
        """Print the title and what is about to run."""
        self._display.show_start(facts)

    def notice(self, text: str, style: str = "") -> None:
        """Print a line above the live table."""
        self._display.notice(text, style)

    def _points(self, values: Mapping[str, Value]) -> Iterator[Point]:
        for name, value in values.items():
            if not isinstance(value, list):
                if not is_missing(name, value):
                    yield Point(None, None, name, value)
                continue
            for row, number in enumerate(value):
                if number is not None and not is_missing(name, number):
                    group, peer = divmod(row, self._peers)
                    yield Point(self._seeds[group], peer, name, number)

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """Say of a failed write whose it was."""
        try:
            yield
        except FileExistsError:
            raise
        except OSError as error:
            reason = error.strerror or str(error)
            text = f"the run's log cannot be written ({reason}); its records end here"
            raise OSError(error.errno, text, str(self.run_dir)) from error
