"""Consoles that do not truncate tables in pipes and files, and a progress bar of steps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

PIPE_WIDTH = 1000


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
