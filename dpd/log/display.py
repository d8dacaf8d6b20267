"""Show a run's progress: a live table in a terminal, plain lines in a pipe or a file."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

MetricValue = float | list[float | None]
"""A metric on the host: one float, or one per learner (None: the learner lacks the metric)."""

REFRESH_S = 0.25  # between two drawings of the live table
LINE_S = 15.0  # between two plain lines
PLAIN_LINES = 20  # over the run, at least
MAX_ROWS = 8  # with more learners, a row is the median over seeds
RATE_WINDOW_S = 30.0  # time constant of the exponential average

METRIC_HEADINGS = {
    "train/return": "train",
    "eval/return": "eval",
    "distill/action_distance": "disagreement",
    "distill/peer_ahead": "peer ahead",
    "distill/agree_0.1": "agreement",
}
WIDTH, WIDTH_WITHOUT_LOSSES, LOSS_WIDTH = 100, 62, 14


def is_missing(name: str, value: float | None) -> bool:
    """Return True if a learner lacks the metric, or no episode has ended yet.

    A NaN loss is not missing: it must be shown.
    """
    return value is None or (name.startswith("train/") and math.isnan(value))


def duration(seconds: float) -> str:
    """Format seconds as 1:42, 1:02:03 or 2 d 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
    return f"{days} d {clock}" if days else clock


class StepRate:
    """Estimate environment steps per second by an exponential average over intervals."""

    def __init__(self, start_step: int, clock: Callable[[], float]) -> None:
        self._start_step, self._clock = start_step, clock
        self._step, self._time = start_step, math.nan
        self._steps, self._seconds = 0.0, 0.0

    def advance(self, step: int) -> None:
        """Count the interval since the last call, except the first one that made progress."""
        if step <= self._start_step:
            return
        now = self._clock()
        if not math.isnan(self._time):  # the first interval includes compilation and cold caches
            keep = math.exp((self._time - now) / RATE_WINDOW_S)
            self._steps = self._steps * keep + step - self._step
            self._seconds = self._seconds * keep + now - self._time
        self._step, self._time = step, now

    @property
    def value(self) -> float | None:
        """Steps per second; None before two intervals have passed."""
        return self._steps / self._seconds if self._seconds > 0 and self._steps > 0 else None

    def seconds_left(self, total: int) -> float | None:
        """Return the seconds until `total` steps at the current rate."""
        return None if self.value is None else max(total - self._step, 0) / self.value


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

    def rows(self) -> list[tuple[str, int | None]]:
        """Return the name of each row and its learner; None if the row is a peer's median."""
        if len(self.seeds) * self.peers > MAX_ROWS:
            return [(name, None) for name in self.names]
        several = len(self.seeds) > 1
        names = [
            (f"seed {seed}  " if several else "") + name
            for seed in self.seeds
            for name in self.names
        ]
        return [(name, row) for row, name in enumerate(names)]

    def columns(self, width: int) -> dict[str, str]:
        """Map the metrics recorded so far to their headings; as many losses as the width allows."""
        room = max(width - WIDTH_WITHOUT_LOSSES, 0) // LOSS_WIDTH
        losses = [name for name in self.latest if name.startswith("loss/")][:room]
        names = {name: name.replace("loss/", "") + " loss" for name in losses}
        ordered = {"train/return": "", "eval/return": ""} | names | METRIC_HEADINGS
        return {name: heading for name, heading in ordered.items() if name in self.latest}

    def cell(self, name: str, learner: int | None, peer: int) -> str:
        """Format one table cell."""
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
        if total_steps < 1:
            raise ValueError(f"total_steps is {total_steps}; a run needs at least one")
        self._board, self._total, self._title = board, total_steps, title
        self._console, self._clock = console, clock
        self._step, self._rate = start_step, StepRate(start_step, clock)
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
        self._rate.advance(step)
        self._step, self._pending = step, True
        age = self._clock() - self._drawn_at
        new_part = self._part() > self._drawn_part
        if age >= REFRESH_S if self._live else new_part or age >= LINE_S:
            self._draw()

    def _part(self) -> int:
        """Return how many of the run's `PLAIN_LINES` equal parts are done."""
        return PLAIN_LINES * self._step // self._total

    def _draw(self) -> None:
        if self._live is not None:
            self._live.update(self._picture(), refresh=True)
        else:
            self._console.print(Text(self._line()), soft_wrap=True)
        self._drawn_at, self._drawn_part, self._pending = self._clock(), self._part(), False

    def _progress(self) -> list[str]:
        """Return the progress as words: per cent, steps, steps per second, time left."""
        words = [f"{self._step / self._total:6.1%}".replace("%", " %")]
        words.append(f"{self._step:,}/{self._total:,} steps")
        rate, left = self._rate.value, self._rate.seconds_left(self._total)
        if rate is not None and left is not None:
            seeds = len(self._board.seeds)
            words.append(f"{rate:,.0f} steps/s" + (f" x {seeds} seeds" if seeds > 1 else ""))
            words.append(f"{duration(left)} left")
        return words

    def _line(self) -> str:
        """Format the latest record as one line; a slash separates peers."""
        words, board = self._progress(), self._board
        for name in ("train/return", "eval/return"):
            if name in board.latest:
                peers = "/".join(formatted(name, value) for value in board.by_peer(name))
                words.append(f"{METRIC_HEADINGS[name]} {peers.replace(',', '')}")
        for name in (name for name in METRIC_HEADINGS if name.startswith("distill/")):
            if name in board.latest:
                words.append(
                    f"{METRIC_HEADINGS[name]} {formatted(name, median(board.by_peer(name)))}"
                )
        return "  ".join(words)

    def _picture(self) -> RenderableType:
        """Lay out the progress bar above the table."""
        width = min(self._console.width, WIDTH)
        bar = Table.grid(padding=(0, 2, 0, 0))
        bar.width = width
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        progress = ProgressBar(total=self._total, completed=self._step)
        bar.add_row(progress, "  ".join(self._progress()).strip())
        columns = self._board.columns(width)
        return Group(bar, self._table(columns)) if columns else bar

    def _table(self, columns: Mapping[str, str]) -> Table:
        """Lay out the latest values, one row per learner or per peer."""
        table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
        rows = self._board.rows()
        medians = rows[0][1] is None
        label = f"median of {len(self._board.seeds)}" if medians else ""
        table.add_column(label, no_wrap=True)
        for heading in columns.values():
            table.add_column(heading, justify="right", no_wrap=True)
        for index, (row, learner) in enumerate(rows):
            peer = index % self._board.peers
            table.add_row(row, *(self._board.cell(name, learner, peer) for name in columns))
        return table
