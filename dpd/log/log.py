"""The log of a run: metrics.csv, one TensorBoard run per learner, and the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from rich.console import Console
from torch import Tensor

from dpd.log.csv import CsvLog, Point, metrics_name
from dpd.log.display import Board, Display, MetricValue, is_missing
from dpd.log.naming import display_names
from dpd.log.tensorboard import TensorBoardLog
from dpd.log.terminal import make_console


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
            host[name] = (
                fill_rows(numbers, metrics[name], n_learners) if tensor.dim() else numbers[0]
            )
    return {name: host[name] for name in metrics}


def fill_rows(numbers: Sequence[float], metric: Metric, n_learners: int) -> list[float | None]:
    """Assign a metric's numbers to the rows of the run; None for learners that lack the metric."""
    rows = metric.rows if isinstance(metric, Partial) else range(n_learners)
    known = dict(zip(rows, numbers, strict=True))
    return [known.get(row) for row in range(n_learners)]


class RunLog:
    """Write a run's metrics to TensorBoard, to metrics.csv and to the terminal.

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
        quiet: bool = False,
        start_step: int | None = None,
        metrics: str = metrics_name(),
    ) -> None:
        self.run_dir, self._seeds, self._peers = run_dir, tuple(seeds), len(peers)
        console = make_console(quiet=True) if quiet else console or make_console()
        board = Board(seeds, len(peers), display_names(peers))
        folder, table = run_dir / "tb", run_dir / metrics
        # Each worker of a run has its own TensorBoard run for metrics that are not per learner.
        shared = table.stem.replace("metrics", "run")
        self._display = Display(board, total_steps, title, console, start_step or 0)
        with ExitStack() as opened, self._clear_errors():
            run_dir.mkdir(parents=True, exist_ok=True)
            self._csv = opened.enter_context(CsvLog(table, start_step))
            self._tensorboard = opened.enter_context(
                TensorBoardLog(folder, self._seeds, peers, hparams, start_step, table, shared)
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

        If `keep` is False, they are shown but not written to the files.
        """
        values = to_host(metrics, len(self._seeds) * self._peers)
        if keep:
            points = list(self._points(values))
            with self._clear_errors():
                self._csv.write(step, points)
                self._tensorboard.write(step, points)
        self._display.update(step, values)

    def flush(self) -> None:
        """Flush all records to the files; call it before a checkpoint, so that the two agree."""
        with self._clear_errors():
            self._tensorboard.flush()

    def show_start(self, facts: Mapping[str, object]) -> None:
        """Print the title and the start-up facts."""
        self._display.show_start(facts)

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
