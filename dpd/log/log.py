"""The log of a run: metrics.csv, one TensorBoard run per learner, and the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from rich.console import Console
from torch import Tensor

from dpd.log.config import WandbConfig
from dpd.log.csv import CsvLog, Point, last_step, metrics_name
from dpd.log.naming import display_names, learner_name
from dpd.log.terminal import Board, Display, MetricValue, is_missing, make_console
from dpd.log.wandb import WandbLog

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

HPARAMS_METRIC = "eval/return"  # the hparams tab shows its last value
FLUSH_S = 30


class Partial(NamedTuple):
    """A metric that only some learners have."""

    rows: Sequence[int]
    values: Tensor  # [len(rows)]


Metric = Tensor | Partial | float


def to_host(metrics: Mapping[str, Metric], n_learners: int) -> dict[str, MetricValue]:
    """Copy metrics to the host, in one transfer per device and dtype; lists are per learner."""
    alike: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}
    host: dict[str, MetricValue] = {}
    for name, value in metrics.items():
        if isinstance(value, float | int):
            host[name] = float(value)
            continue
        tensor = value.values if isinstance(value, Partial) else value
        n = len(rows_of(value, n_learners))
        if tensor.shape not in ((), (n,)):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; record a scalar or [{n}]")
        alike.setdefault((tensor.device, tensor.dtype), {})[name] = tensor.detach()
    for tensors in alike.values():
        flat = iter(torch.cat([tensor.reshape(-1) for tensor in tensors.values()]).tolist())
        for name, tensor in tensors.items():
            if not tensor.dim():
                host[name] = float(next(flat))
                continue
            known = {row: float(next(flat)) for row in rows_of(metrics[name], n_learners)}
            host[name] = [known.get(row) for row in range(n_learners)]
    return {name: host[name] for name in metrics}


def rows_of(metric: Metric, n_learners: int) -> Sequence[int]:
    """Return the rows of the run that have a metric."""
    return metric.rows if isinstance(metric, Partial) else range(n_learners)


class RunLog:
    """Write a run's metrics to TensorBoard, metrics.csv, the terminal and, if asked to, W&B.

    `peers` are the peers' names, used in files too. A resumed run starts at `start_step`; rows that
    the interrupted run wrote after it are dropped.
    """

    def __init__(
        self,
        run_dir: Path,
        seeds: Sequence[int],
        peers: Sequence[str],
        total_steps: int,
        hparams: Mapping[str, Any],
        title: str,
        console: Console | None = None,
        start_step: int | None = None,
        metrics: str = metrics_name(),
        wandb: WandbConfig | None = None,
    ) -> None:
        self.run_dir, self._seeds, self._peers = run_dir, tuple(seeds), len(peers)
        self._is_resumed = start_step is not None
        board = Board(seeds, len(peers), display_names(peers))
        # Each worker of a run has its own TensorBoard run for metrics that are not per learner.
        shared = Path(metrics).stem.replace("metrics", "run")
        self._display = Display(
            board, total_steps, title, console or make_console(), start_step or 0
        )
        with ExitStack() as opened, self._clear_errors():
            run_dir.mkdir(parents=True, exist_ok=True)
            known = last_step(run_dir / metrics)  # of the interrupted run
            self._csv = opened.enter_context(CsvLog(run_dir / metrics, start_step))
            names = {
                (seed, peer): learner_name(seed, name)
                for seed in seeds
                for peer, name in enumerate(peers)
            }
            self._tensorboard = opened.enter_context(
                TensorBoardLog(run_dir / "tb", names, hparams, start_step, shared)
            )
            self._wandb: WandbLog | None = None
            if wandb is not None and wandb.is_on:
                file = f"{shared.replace('run', 'wandb', 1)}.json"
                self._wandb = opened.enter_context(
                    WandbLog(run_dir, names, hparams, wandb, file, known)
                )
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        if self._wandb is not None and self._is_resumed:
            self.notice(f"W&B  {self._wandb.address}")
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

    def record(
        self, step: int, metrics: Mapping[str, Metric], keep: bool = True
    ) -> dict[str, MetricValue]:
        """Record metrics at `step` environment steps per seed: [N] per learner, scalars shared.

        If `keep` is False, they are shown but not written to the files. Returns them on the host.
        """
        values = to_host(metrics, len(self._seeds) * self._peers)
        if keep:
            points = list(self._points(values))
            with self._clear_errors():
                self._csv.write(step, points)
                self._tensorboard.write(step, points)
                if self._wandb is not None:
                    self._wandb.write(step, points)
        self._display.update(step, values)
        return values

    def flush(self) -> None:
        """Flush all records to the files; call it before a checkpoint, so that the two agree."""
        with self._clear_errors():
            self._tensorboard.flush()

    def show_start(self, facts: Mapping[str, object]) -> None:
        """Print the title and the start-up facts."""
        wandb = {} if self._wandb is None else {"W&B": self._wandb.address}
        self._display.show_start({**facts, **wandb})

    def notice(self, text: str, style: str = "") -> None:
        """Print a line above the live table."""
        self._display.notice(text, style)

    def _points(self, values: Mapping[str, MetricValue]) -> Iterator[Point]:
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
        """Name the run in the error of a failed write."""
        try:
            yield
        except FileExistsError:
            raise
        except OSError as error:
            reason = error.strerror or str(error)
            text = f"cannot write the run's log ({reason}); its records end here"
            raise OSError(error.errno, text, str(self.run_dir)) from error


class TensorBoardLog:
    """Write one TensorBoard run per learner, so that peers share a chart in different colours.

    `names` maps the seed and the peer of each learner to the name of its run. The run called
    `shared` contains the settings as text, and metrics that are not per learner (time/...).
    """

    def __init__(
        self,
        folder: Path,
        names: Mapping[tuple[int, int], str],
        hparams: Mapping[str, Any],
        start_step: int | None,
        shared: str,
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = None if start_step is None else start_step + 1

        def open_writer(name: str) -> SummaryWriter:
            writer = SummaryWriter(folder / name, purge_step=purge, flush_secs=FLUSH_S)
            opened.callback(writer.close)
            return writer

        with ExitStack() as opened:
            self._shared = open_writer(shared)
            self._writers = {learner: open_writer(name) for learner, name in names.items()}
            self._write_settings(flattened(hparams))
            self.flush()  # fail now, rather than after an hour, if the disk is full
            self._opened = opened.pop_all()

    def write(self, step: int, points: Sequence[Point]) -> None:
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
