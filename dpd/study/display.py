"""The progress of several runs in one display: bars in a terminal, else a line per minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from dpd.log.terminal import RATE_WINDOW_S, StepsPerSecond
from dpd.study.jobs import Ended, Job

JOBS_LINE_S = 60.0  # between two plain lines


class JobsDisplay:
    """The progress of all jobs, drawn only in `update`, never from a thread.

    Jobs of a search are not known before they begin: it gives their number, `n`, and the steps of
    each one, `steps`.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        console: Console,
        clock: Callable[[], float] = time.monotonic,
        n: int | None = None,
        steps: int = 0,
    ) -> None:
        self._console, self._clock, self._done = console, clock, 0
        self._n = len(jobs) if n is None else n
        self._is_live = console.is_interactive and not console.quiet
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps"),
            StepsPerSecond(),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
            get_time=clock,
            speed_estimate_period=RATE_WINDOW_S,
            disable=not self._is_live,
        )
        self._steps = {job: job.steps() for job in jobs}
        self._tasks: dict[Job, TaskID] = {}
        self._began: dict[Job, float] = {}
        total = sum(job.total for job in jobs) if n is None else n * steps
        self._all = self._bars.add_task("", total=total, completed=sum(self._steps.values()))
        self._line_at = clock()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, job: Job) -> None:
        """Show a job that has started."""
        where = f" on {job.place}" if job.place else ""
        self.notice(f"{job.name}: training{where}; its output is in {job.log}")
        self._began[job] = self._clock()
        done, total = self._steps.setdefault(job, job.steps()), job.total
        self._tasks[job] = self._bars.add_task(job.name, completed=done, total=total)

    def end(self, ended: Ended, is_stopped: bool = False) -> None:
        """Say how a job ended, and remove its bar; `is_stopped`: by the user."""
        job, status = ended.job, ended.status
        began = self._began.pop(job, self._clock())
        if job in self._tasks:
            self._bars.remove_task(self._tasks.pop(job))
        if status == 0:
            self._done += 1
            self.notice(f"{job.name}: done in {timedelta(seconds=int(self._clock() - began))}")
        elif is_stopped:
            self.notice(f"{job.name}: stopped")
        else:
            where = f" on {job.place}" if job.place else ""
            text = f"dpd: {job.name} ended with status {status}{where}; {job.log} ends with:"
            text = f"dpd: {job.name} {ended.lost}" if ended.lost else f"{text}\n{job.failure()}"
            self.notice(text, style="red")
            if ended.is_again:
                self.notice(f"{job.name}: it begins again from its last checkpoint")

    def drop(self, job: Job, text: str) -> None:
        """Say why a job was ended early, which counts as done, and remove its bar."""
        self._bars.remove_task(self._tasks.pop(job))
        self._done += 1
        self.notice(f"{job.name}: {text}")

    def notice(self, text: str, style: str = "") -> None:
        """Print a line above the bars."""
        self._console.print(Text(text, style=style), soft_wrap=True)

    def update(self) -> None:
        """Read the progress of the running jobs and draw it."""
        for job, task in self._tasks.items():
            self._steps[job] = job.steps()
            self._bars.update(task, completed=self._steps[job])
        text = f"{self._done} of {self._n} runs done"
        self._bars.update(self._all, completed=sum(self._steps.values()), description=text)
        if self._is_live:
            self._bars.refresh()
        elif self._tasks and self._clock() - self._line_at >= JOBS_LINE_S:
            self._line_at = self._clock()
            # the line of all jobs first
            self.notice("; ".join(map(progress_text, self._bars.tasks)))


def progress_text(task: Task) -> str:
    """Return a job's progress in words: steps, steps per second and time left."""
    words = [task.description, f"{task.completed:,.0f}/{task.total or 0:,.0f} steps"]
    if task.speed and task.time_remaining is not None:
        words.append(f"{task.speed:,.0f} steps/s")
        words.append(f"{timedelta(seconds=int(task.time_remaining))} left")
    return "  ".join(words)
