"""Arms that train at once: a child process with a log of its own for each, and one display."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from dpd.config import TrainConfig
from dpd.envs.physics import n_cores
from dpd.log.terminal import RATE_WINDOW_S, StepsPerSecond, make_console
from dpd.run.processes import POLL_S, Stopped, StopRequest, WorkerProgress, nth_device

JOB_LOG = "train.log"
LAST_LINES = 5
JOBS_LINE_S = 60.0  # between two plain lines
# `dpd train`, which also stops when the study has ended, even by kill -9
CHILD = (
    "import sys; from dpd.run.processes import follow_parent; follow_parent(); "
    "from dpd.cli import main; sys.exit(main(sys.argv[1:]))"
)


class Job:
    """An arm that a child process trains."""

    def __init__(self, name: str, path: Path, words: Sequence[str], plan: TrainConfig) -> None:
        self.name, self.path, self.plan, self._words = name, path, plan, words
        self._progress = WorkerProgress(plan, path)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def total(self) -> int:
        """Environment steps of all seeds."""
        return self.plan.iterations * self.plan.steps_per_iteration * self.plan.run.seeds

    @property
    def log(self) -> Path:
        """The file with the output of the child."""
        return self.path / JOB_LOG

    def steps(self) -> int:
        """Return the recorded environment steps of all seeds."""
        self._progress.read_new()
        return self._progress.step * self.plan.run.seeds

    def command(self, slot: int, jobs: int) -> list[str]:
        """Return the child's command: its share of the cores, and the GPU of its slot."""
        run = self.plan.run
        is_started = (self.path / "config.json").is_file()
        words = ["--resume", str(self.path)] if is_started else list(self._words)
        if run.threads is None:
            words += ["--threads", str(max(1, n_cores() // (jobs * run.workers)))]
        if run.workers == 1 and (device := nth_device(run.device, slot)) != run.device:
            words += ["--device", device]
        return [sys.executable, "-c", CHILD, "train", *words]

    def start(self, slot: int, jobs: int) -> None:
        """Start the child; it begins the run or resumes it."""
        self.path.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(slot, jobs),
                stdin=subprocess.PIPE,  # closes when this process ends, see follow_parent
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches it only through us, once
            )

    def failure(self) -> str:
        """Return the last lines of the log."""
        lines = self.log.read_text(errors="replace").split("\n")
        return "\n".join([line for line in lines if line.strip()][-LAST_LINES:]) or "no output"


class JobPool(AbstractContextManager["JobPool"]):
    """Jobs of which a number run at once; children that still run at the end are killed."""

    def __init__(self, jobs: Sequence[Job], slots: int) -> None:
        self._waiting, self._n_slots = deque(jobs), slots
        self._slots: list[Job | None] = [None] * min(slots, len(jobs))

    @property
    def running(self) -> list[Job]:
        """Jobs that have a child."""
        return [job for job in self._slots if job is not None]

    def fill(self) -> list[Job]:
        """Start waiting jobs in free slots, and return them."""
        started = []
        for slot, job in enumerate(self._slots):
            if job is None and self._waiting:
                new = self._waiting.popleft()
                new.start(slot, self._n_slots)
                self._slots[slot] = new
                started.append(new)
        return started

    def reap(self) -> list[tuple[Job, int]]:
        """Free the slots of jobs that have ended; return them with their exit statuses."""
        ended = []
        for slot, job in enumerate(self._slots):
            if job is not None and job.process and (status := job.process.poll()) is not None:
                self._slots[slot] = None
                ended.append((job, status))
        return ended

    def stop(self, signum: int) -> None:
        """Start no further job, and pass a signal on to the children."""
        self._waiting.clear()
        for job in self.running:
            if job.process is not None:
                job.process.send_signal(signum)

    def __exit__(self, *_: object) -> None:
        for job in self.running:
            if job.process is not None:
                job.process.kill()
                job.process.wait()


class JobsDisplay:
    """The progress of all jobs: bars in a terminal, else a line per minute.

    Drawn only in `update`, never from a thread.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        console: Console,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._clock, self._n, self._done = console, clock, len(jobs), 0
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
        total = sum(job.total for job in jobs)
        self._all = self._bars.add_task("", total=total, completed=sum(self._steps.values()))
        self._line_at = clock()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, job: Job) -> None:
        """Show a job that has started."""
        self.notice(f"{job.name}: training; its output is in {job.log}")
        self._began[job] = self._clock()
        done, total = self._steps[job], job.total
        self._tasks[job] = self._bars.add_task(job.name, completed=done, total=total)

    def end(self, job: Job, status: int, is_stopped: bool = False) -> None:
        """Say how a job ended, and remove its bar; `is_stopped`: by the user."""
        spent = timedelta(seconds=int(self._clock() - self._began.pop(job)))
        self._bars.remove_task(self._tasks.pop(job))
        if status == 0:
            self._done += 1
            self.notice(f"{job.name}: done in {spent}")
        elif is_stopped:
            self.notice(f"{job.name}: stopped")
        else:
            text = f"dpd: {job.name} ended with status {status}; {job.log} ends with:"
            self.notice(f"{text}\n{job.failure()}", style="red")

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


def run_jobs(jobs: Sequence[Job], slots: int) -> int:
    """Run all jobs, `slots` at once; return the exit status of the first that failed, or 0.

    A job that fails does not end the others. After Ctrl-C or SIGTERM, all runs are saved.
    """
    display = JobsDisplay(jobs, make_console(highlight=False))
    try:
        with StopRequest() as stop, JobPool(jobs, slots) as pool, display:
            statuses = list(exit_statuses(pool, display, stop))
    except Stopped as stopped:
        return stopped.status
    if stop.signum is not None:
        display.notice("stopped; rerun the study to resume its runs")
        return 128 + stop.signum
    failed = [status for status in statuses if status]
    if failed:
        display.notice(f"dpd: {len(failed)} of {len(jobs)} runs failed; rerun the study to resume")
    # the status of a process that a signal ended is negative
    return next((status if status > 0 else 128 - status for status in failed), 0)


def exit_statuses(pool: JobPool, display: JobsDisplay, stop: StopRequest) -> Iterator[int]:
    """Run all jobs of a pool, or those that have begun when a stop is requested.

    Yields their exit statuses.
    """
    is_passed_on = False
    while True:
        if stop.signum is not None and not is_passed_on:
            is_passed_on = True
            pool.stop(stop.signum)
        for job in pool.fill():
            display.begin(job)
        if not pool.running:
            return
        time.sleep(POLL_S)
        display.update()
        for job, status in pool.reap():
            display.end(job, status, is_stopped=stop.signum is not None)
            yield status
