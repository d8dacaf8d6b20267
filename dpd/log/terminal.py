"""The terminal: consoles, progress bars, and a run's progress as a live table or plain lines."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

MetricValue = float | list[float | None]
"""A metric on the host: one float, or one per learner (None: the learner lacks the metric)."""

PIPE_WIDTH = 1000
REFRESH_S = 0.25  # between two drawings of the live table
LINE_S = 15.0  # between two plain lines
PLAIN_LINES = 20  # over the run, at least
MAX_ROWS = 8  # with more learners, a row is the median over seeds
RATE_WINDOW_S = 300.0  # long enough for several of the slowest iterations

METRIC_HEADINGS = {
    "train/return": "train",
    "eval/return": "eval",
    "distill/action_distance": "disagreement",
    "distill/peer_ahead": "peer ahead",
    "distill/agree_0.1": "agreement",
}
WIDTH, WIDTH_WITHOUT_LOSSES, LOSS_WIDTH = 100, 62, 14


def make_console(**settings: Any) -> Console:
    """Make a rich console from rich's settings.

    Rich assumes 80 columns for a pipe or a file, and truncates table cells to fit. This console is
    wide enough for any table, unless the environment variable COLUMNS sets a width.
    """
    console = Console(**settings)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        console.width = settings.get("width") or PIPE_WIDTH
    return console


class StepsPerSecond(ProgressColumn):
    """Progress column with the speed; empty before the first step."""

    def render(self, task: Task) -> Text:
        """Return the speed in steps per second."""
        return Text("" if task.speed is None else f"{task.speed:,.0f} steps/s")


@contextmanager
def steps_progress(
    console: Console, total: int, done: int = 0
) -> Iterator[Callable[[str, int], None]]:
    """Show a bar of steps in a terminal; yield a function that takes a purpose and new steps."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps"),
        StepsPerSecond(),
        TimeRemainingColumn(),
    )
    is_hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=is_hidden) as bar:
        task = bar.add_task("", completed=done, total=total)
        yield lambda purpose, steps: bar.update(task, description=purpose, advance=steps)


def is_missing(name: str, value: float | None) -> bool:
    """Return True if a learner lacks the metric, or no episode has ended yet.

    A NaN loss is not missing: it must be shown.
    """
    return value is None or (name.startswith("train/") and math.isnan(value))


class Board:
    """The latest value of every metric, laid out by learner or by peer."""

    def __init__(
        self, seeds: Sequence[int], peers: int, names: Sequence[str] | None = None
    ) -> None:
        self.seeds, self.peers = tuple(seeds), peers
        self.names = names or [f"peer {peer}" for peer in range(peers)]
        self.latest: dict[str, MetricValue] = {}

    def update(self, values: Mapping[str, MetricValue]) -> None:
        """Store new values; a learner without a new one keeps its last."""
        for name, value in values.items():
            old = self.latest.get(name)
            if isinstance(value, list) and isinstance(old, list):
                value = [o if is_missing(name, v) else v for o, v in zip(old, value, strict=True)]
            self.latest[name] = value

    def by_peer(self, name: str) -> list[float | None]:
        """Return the median over seeds for every peer."""
        value = self.latest[name]
        if not isinstance(value, list):
            return [value] * self.peers
        return [median(value[peer :: self.peers]) for peer in range(self.peers)]

    def table(self, width: int) -> Table | None:
        """Lay out the latest values, one row per learner or per peer; None before the first.

        Shows as many losses as the width allows.
        """
        room = max(width - WIDTH_WITHOUT_LOSSES, 0) // LOSS_WIDTH
        losses = [name for name in self.latest if name.startswith("loss/")][:room]
        headings = {"train/return": "", "eval/return": ""}
        headings |= {name: name.removeprefix("loss/") + " loss" for name in losses}
        names = [name for name in headings | METRIC_HEADINGS if name in self.latest]
        if not names:
            return None
        medians = len(self.seeds) * self.peers > MAX_ROWS
        table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column(f"median of {len(self.seeds)}" if medians else "", no_wrap=True)
        for name in names:
            heading = (headings | METRIC_HEADINGS)[name]
            table.add_column(heading, justify="right", no_wrap=True)
        for row in range(self.peers if medians else len(self.seeds) * self.peers):
            group, peer = divmod(row, self.peers)
            seed = f"seed {self.seeds[group]}  " if len(self.seeds) > 1 and not medians else ""
            cells = (self.cell(name, None if medians else row, peer) for name in names)
            table.add_row(seed + self.names[peer], *cells)
        return table

    def cell(self, name: str, learner: int | None, peer: int) -> str:
        """Format a learner's value; with learner None, the median of its peers."""
        value = self.latest[name]
        if learner is None or not isinstance(value, list):
            return formatted(name, self.by_peer(name)[peer])
        return formatted(name, value[learner])


def median(values: Sequence[float | None]) -> float:
    """Return the median of the values, ignoring None and NaN."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return statistics.median(known) if known else math.nan


def formatted(name: str, value: float | None) -> str:
    """Format a value according to its metric: returns to a tenth, shares in per cent."""
    if value is None or is_missing(name, value):
        return "-"
    if name.endswith("/return"):
        return f"{value:,.1f}"
    if name in ("distill/peer_ahead", "distill/agree_0.1"):
        return f"{value:.0%}".replace("%", " %")
    return f"{value:.2f}" if name == "distill/action_distance" else f"{value:.3g}"


class Display:
    """Draw a run's progress on the console; only in `update`, never from a thread."""

    def __init__(
        self,
        board: Board,
        total_steps: int,
        title: str,
        console: Console,
        start_step: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._board, self._total, self._title = board, total_steps, title
        self._console, self._clock = console, clock
        # rich's rate leaves out the first interval, which includes compilation and cold caches.
        self._progress = Progress(
            BarColumn(bar_width=None),
            TextColumn("{task.description}"),
            auto_refresh=False,
            expand=True,
            get_time=clock,
            speed_estimate_period=RATE_WINDOW_S,
        )
        self._progress.add_task("", total=total_steps, completed=start_step)
        (self._task,) = self._progress.tasks
        self._drawn_at, self._drawn_part, self._pending = -math.inf, -1, False
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_interactive and not self._console.quiet:
            self._live = Live(self._picture(), console=self._console, auto_refresh=False)
            self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._pending:
                self._draw()
        finally:
            if self._live is not None:
                self._live.stop()
                self._live = None

    def show_start(self, facts: Mapping[str, object]) -> None:
        """Print the title and the start-up facts."""
        self._console.print(Text(self._title, style="bold"), soft_wrap=True)
        width = max((len(name) for name in facts), default=0)
        for name, fact in facts.items():
            line = Text(f"  {name:<{width}}  ", style="dim") + Text(str(fact), style="default")
            self._console.print(line, soft_wrap=True)

    def notice(self, text: str, style: str = "") -> None:
        """Print a line above the live table."""
        self._console.print(Text(text, style=style), soft_wrap=True)

    def update(self, step: int, values: Mapping[str, MetricValue]) -> None:
        """Store a record, and draw it if the last drawing is old enough."""
        self._board.update(values)
        self._progress.update(self._task.id, completed=step)
        self._pending = True
        age = self._clock() - self._drawn_at
        new_part = self._part() > self._drawn_part
        if age >= REFRESH_S if self._live else new_part or age >= LINE_S:
            self._draw()

    def _part(self) -> int:
        """Return how many of the run's `PLAIN_LINES` equal parts are done."""
        return int(PLAIN_LINES * self._task.completed // self._total)

    def _draw(self) -> None:
        if self._live is not None:
            self._live.update(self._picture(), refresh=True)
        else:
            self._console.print(Text(self._line()), soft_wrap=True)
        self._drawn_at, self._drawn_part, self._pending = self._clock(), self._part(), False

    def _words(self) -> list[str]:
        """Return the progress as words: per cent, steps, steps per second, time left."""
        task, seeds = self._task, len(self._board.seeds)
        words = [f"{task.percentage:5.1f} %", f"{task.completed:,}/{self._total:,} steps"]
        if task.speed and task.time_remaining is not None:
            words.append(f"{task.speed:,.0f} steps/s" + (f" x {seeds} seeds" if seeds > 1 else ""))
            words.append(f"{timedelta(seconds=int(task.time_remaining))} left")
        return words

    def _line(self) -> str:
        """Format the latest record as one line; a slash separates peers."""
        words, board = self._words(), self._board
        for name in (name for name in METRIC_HEADINGS if name in board.latest):
            if name.endswith("/return"):
                peers = "/".join(formatted(name, value) for value in board.by_peer(name))
                text = peers.replace(",", "")
            else:
                text = formatted(name, median(board.by_peer(name)))
            words.append(f"{METRIC_HEADINGS[name]} {text}")
        return "  ".join(words)

    def _picture(self) -> RenderableType:
        """Lay out the progress bar above the table."""
        width = min(self._console.width, WIDTH)
        self._progress.update(self._task.id, description="  ".join(self._words()).strip())
        bar = Table.grid()
        bar.width = width
        bar.add_column(ratio=1)
        bar.add_row(self._progress.get_renderable())
        table = self._board.table(width)
        return bar if table is None else Group(bar, table)
