"""The loop that trains several runs at once, and the choice of the engine that does it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from dpd.log.terminal import make_console
from dpd.run.processes import POLL_S, Stopped, StopRequest
from dpd.study.display import JobsDisplay
from dpd.study.engine_config import EngineConfig
from dpd.study.jobs import Ended, Job, JobPool, ProcessPool


class JobSource(Protocol):
    """Jobs that may depend on the results of earlier ones."""

    def next_job(self) -> Job | None:
        """Return the next job; None if there is none at the moment."""

    def watch(self, pool: JobPool, display: JobsDisplay) -> None:
        """Look at the jobs that train, and stop those that need not go on."""

    def take(self, ended: Ended, display: JobsDisplay, is_stopped: bool) -> None:
        """Take a job that has ended; `is_stopped`: by the user."""


class Queue:
    """Jobs that do not depend on each other; a failed one does not end the others."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._waiting, self.statuses = deque(jobs), list[int]()

    def next_job(self) -> Job | None:
        """Return the next job."""
        return self._waiting.popleft() if self._waiting else None

    def watch(self, pool: JobPool, display: JobsDisplay) -> None:
        """Do nothing: every job goes on to its end."""

    def take(self, ended: Ended, display: JobsDisplay, is_stopped: bool) -> None:
        """Keep the exit status of a job."""
        display.end(ended, is_stopped)
        if not ended.is_again:
            self.statuses.append(ended.status)


def open_pool(
    where: EngineConfig, at_once: int | None, out: Path, is_search: bool = False
) -> JobPool:
    """Return the pool of an engine. Raises BadInput if the engine is not installed.

    `is_search`: later jobs depend on the results of earlier ones.
    """
    if not where.is_ray:
        return ProcessPool(at_once or 1)
    from dpd.study.cluster import RayPool

    return RayPool(where, at_once, out, is_search)


def drive(source: JobSource, pool: JobPool, display: JobsDisplay, stop: StopRequest) -> None:
    """Train all jobs of a source, or end those that have begun when a stop is requested."""
    is_passed_on = False
    while True:
        if stop.signum is not None and not is_passed_on:
            is_passed_on = True
            pool.stop(stop.signum)
        while stop.signum is None and pool.has_room and (job := source.next_job()) is not None:
            pool.submit(job)
        for job in pool.begun():
            display.begin(job)
        if not pool.busy:
            return
        time.sleep(POLL_S)
        display.update()
        if stop.signum is None:
            source.watch(pool, display)
        for ended in pool.ended():
            source.take(ended, display, is_stopped=stop.signum is not None)


def run_jobs(jobs: Sequence[Job], open_engine: Callable[[], JobPool]) -> int:
    """Run all jobs in a pool; return the exit status of the first that failed, or 0.

    A job that fails does not end the others. After Ctrl-C or SIGTERM, all runs are saved.
    """
    display, queue = JobsDisplay(jobs, make_console(highlight=False)), Queue(jobs)
    try:
        with StopRequest() as stop, open_engine() as pool, display:
            drive(queue, pool, display, stop)
    except Stopped as stopped:
        return stopped.status
    if stop.signum is not None:
        display.notice("stopped; rerun the study to resume its runs")
        return 128 + stop.signum
    failed = [status for status in queue.statuses if status]
    if failed:
        display.notice(f"dpd: {len(failed)} of {len(jobs)} runs failed; rerun the study to resume")
    # the status of a process that a signal ended is negative
    return next((status if status > 0 else 128 - status for status in failed), 0)
