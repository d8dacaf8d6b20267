"""`dpd watch`: find runs, read them, and draw them until they end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from dpd.errors import BadInput
from dpd.files import SETTINGS_FILE, run_folders
from dpd.log.terminal import PIPE_WIDTH, make_console
from dpd.watch.config import WatchConfig
from dpd.watch.outcome import WatchOutcome, watch_report
from dpd.watch.picture import frame
from dpd.watch.records import ReadSettings, WatchedRun


class Watched:
    """The runs under some paths; those that begin later join in."""

    def __init__(self, paths: Sequence[Path], read_settings: ReadSettings) -> None:
        self._paths, self._read_settings = paths, read_settings
        self.runs: dict[Path, WatchedRun] = {}
        self._refused: dict[Path, str] = {}

    def read_new(self) -> None:
        """Find new runs, and read what all of them have written.

        Raises BadInput if a path has no run that can be read.
        """
        for path in [file for given in self._paths for file in watched_folders(given)]:
            if path not in self.runs and path not in self._refused:
                self._add(path)
        if not self.runs:
            raise BadInput(next(iter(self._refused.values())))
        for run in self.runs.values():
            run.read_new()

    def _add(self, path: Path) -> None:
        try:
            self.runs[path] = WatchedRun(path, self._read_settings)
        except ValueError as error:  # a run of another version must not hide the others
            self._refused[path] = f"{path}: {error}"

    @property
    def goes_on(self) -> bool:
        """True if more is to be expected: a run is going on, or a directory may get another run."""
        is_open = any(path not in self.runs for path in self._paths)
        return is_open or any(run.is_held for run in self.runs.values())

    def picture(self, console: Console) -> RenderableType:
        """Return the present frame."""
        unicode = console.encoding.startswith("utf")
        width = console.width if console.is_terminal else PIPE_WIDTH
        notes = [Text(f"note: {line}") for line in self._refused.values()]
        return Group(frame(list(self.runs.values()), width, unicode), *notes)


def watched_folders(path: Path) -> list[Path]:
    """Return the run directories at or below a path. Raises BadInput if there is none."""
    if not path.exists():
        raise BadInput(f"{path} does not exist; give a run directory, or one that contains runs")
    found = run_folders(path)
    if not found:
        raise BadInput(f"{path} contains no run: there is no {SETTINGS_FILE} in it or below it")
    return found


def watch_paths(config: WatchConfig, read_settings: ReadSettings) -> WatchOutcome:
    """Draw the runs until all have ended or Ctrl-C; once if asked to, or without a terminal.

    Returns their last state; the frame that is drawn once is that of its `show`.
    """
    console, watched = make_console(highlight=False), Watched(config.paths, read_settings)
    watched.read_new()
    is_live = console.is_terminal and not config.once
    if is_live:
        draw_live(watched, console, config.every)
    report = watch_report(list(watched.runs.values()))

    def draw() -> None:
        if not is_live:
            console.print(watched.picture(console))

    return WatchOutcome(report=report, draw=draw)


def draw_live(watched: Watched, console: Console, every: float) -> None:
    """Draw the runs until all have ended or Ctrl-C."""
    try:
        with Live(watched.picture(console), console=console, auto_refresh=False) as live:
            while watched.goes_on:
                time.sleep(every)
                watched.read_new()
                live.update(watched.picture(console), refresh=True)
    except KeyboardInterrupt:  # the way to leave a view
        pass
