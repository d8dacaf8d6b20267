"""Runs as tasks of a Ray cluster (the extra `cluster`); the only module that imports Ray.

A mailbox, which is a Ray actor, takes the reports of all tasks and holds the signals for them.
"""

from __future__ import annotations

import logging
import math
import os
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from dpd import __version__
from dpd.errors import BadInput
from dpd.study.engine_config import EngineConfig
from dpd.study.jobs import Ended, Job, JobPool
from dpd.study.task import (
    Order,
    TaskOutcome,
    TaskReport,
    pack,
    replace_directory,
    train_order,
    write_changes,
)

FINAL = (2, 3)
"""Exit statuses that another attempt would repeat: bad input, and a NaN."""
LOCAL_STORE_BYTES = 256 * 2**20
"""Object store of a cluster that is started on this machine, whose runs need none."""


class Mailbox:
    """Reports of the tasks, and signals for them."""

    def __init__(self) -> None:
        self._reports: list[TaskReport] = []
        self._signals: dict[int | None, int] = {}

    def send(self, report: TaskReport) -> int | None:
        """Take a report; return the signal for its task, or for all."""
        self._reports.append(report)
        return self._signals.get(report.key, self._signals.get(None))

    def read(self) -> list[TaskReport]:
        """Return the new reports."""
        reports, self._reports = self._reports, []
        return reports

    def stop(self, signum: int, key: int | None) -> None:
        """Keep a signal for a task; None: for all."""
        self._signals[key] = signum


def train_task(order: Order, mailbox: Any) -> TaskOutcome:
    """Train a run as a Ray task."""
    import ray

    # Ray lends the cores of a task that waits in its main thread to the next task, which would then
    # train beside it.
    with ThreadPoolExecutor(1) as thread:

        def send(report: TaskReport) -> int | None:
            reply: int | None = thread.submit(ray.get, mailbox.send.remote(report)).result()
            return reply

        return train_order(order, send)


def on_this_node() -> Any:
    """Return the strategy that places an actor where the caller is: no other node can lose it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


class RayPool(JobPool):
    """Jobs as tasks of a Ray cluster, at most `limit` at once.

    None: all of them, and those that find no place wait; with `is_search`, as many as find one,
    because a later proposal of a search is a better one.
    """

    def __init__(
        self, where: EngineConfig, limit: int | None, out: Path, is_search: bool = False
    ) -> None:
        if find_spec("ray") is None:
            raise BadInput("--engine ray needs Ray; install it: pip install 'dpd[cluster]'")
        self._where, self._limit, self._is_search = where, limit, is_search
        self._token = out.resolve() / f".shared-{uuid.uuid4().hex}"
        self._keys: dict[Job, int] = {}
        self._tasks: dict[Any, Job] = {}
        self._attempts: dict[Job, int] = {}
        self._has_begun: set[Job] = set()
        self._news: list[Job] = []
        self._is_stopping: set[Job] = set()

    def __enter__(self) -> Self:
        import ray

        self._owns = not ray.is_initialized()
        if self._owns:
            connect(self._where)
        try:
            refuse_too_small(self._where)
        except BadInput:
            self._disconnect()
            raise
        self._token.parent.mkdir(parents=True, exist_ok=True)
        self._token.touch()
        self._mailbox = ray.remote(num_cpus=0, scheduling_strategy=on_this_node())(Mailbox).remote()
        self._train = ray.remote(
            num_cpus=self._where.cpus, num_gpus=self._where.gpus, max_retries=0
        )(train_task)
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for task in self._tasks:
            ray.cancel(task, force=True)
        ray.kill(self._mailbox)
        self._token.unlink(missing_ok=True)
        self._disconnect()

    def _disconnect(self) -> None:
        import ray

        if self._owns:
            ray.shutdown()

    @property
    def busy(self) -> Sequence[Job]:
        """Jobs that have a task, which may still wait for a node."""
        return list(self._tasks.values())

    @property
    def has_room(self) -> bool:
        """True unless as many tasks as allowed exist."""
        limit = places(self._where) if self._is_search and self._limit is None else self._limit
        return limit is None or len(self._tasks) < limit

    def submit(self, job: Job) -> None:
        """Give a job to the cluster."""
        self._keys.setdefault(job, len(self._keys))
        self._start(job)

    def _start(self, job: Job, with_files: bool = False) -> None:
        has_begun = (job.path / "config.json").is_file()
        order = Order(
            key=self._keys[job],
            words=without_out(job.words),
            hardware=job.with_threads(self._where.cpus)[len(job.words) :],
            path=str(job.path.resolve()),
            token=str(self._token),
            cwd=os.getcwd(),
            kept=None,
            has_begun=has_begun,
            version=__version__,
        )
        if with_files:
            order = order._replace(kept=pack(job.path))
        self._tasks[self._train.remote(order, self._mailbox)] = job

    def begun(self) -> list[Job]:
        """Read the mailbox, and return the jobs that began since the last call."""
        self._read_mailbox()
        begun, self._news = self._news, []
        return begun

    def _read_mailbox(self) -> None:
        """Write the changes of files, and note the jobs that began."""
        jobs = {key: job for job, key in self._keys.items()}
        for report in answer_of(self._mailbox.read.remote()):
            job = jobs[report.key]
            job.place = report.place
            if report.changes:
                write_changes(job.path, report.changes)
            if job in self.busy and job not in self._has_begun:
                self._has_begun.add(job)
                self._news.append(job)

    def ended(self) -> list[Ended]:
        """Return the jobs whose tasks ended; a lost one begins again, if it may."""
        import ray

        if not self._tasks:
            return []
        ready, _ = ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0)
        ended = [self._judge(self._tasks.pop(task), task) for task in ready]
        return [each for each in ended if each is not None]

    def _judge(self, job: Job, task: Any) -> Ended | None:
        import ray

        try:
            outcome: TaskOutcome = ray.get(task)
        except ray.exceptions.RayError as error:
            outcome, lost = TaskOutcome(1), f"was lost: {reason_of(error)}"
        else:
            lost = outcome.complaint
        if outcome.wants_run:
            self._start(job, with_files=True)
            return None
        if outcome.files is not None:
            replace_directory(outcome.files, job.path)
        self._has_begun.discard(job)
        return self._ended(job, outcome.status, lost)

    def _ended(self, job: Job, status: int, lost: str) -> Ended:
        attempts = self._attempts[job] = self._attempts.get(job, 0) + 1
        may = job not in self._is_stopping and attempts < self._where.attempts
        is_again = may and status not in (0, *FINAL)
        if is_again:
            self._start(job)
        return Ended(job, status, lost, is_again)

    def stop(self, signum: int, job: Job | None = None) -> None:
        """Leave a signal for a task, or for all of them; those without a node end at once."""
        import ray

        self._is_stopping |= set(self._keys) if job is None else {job}
        key = None if job is None else self._keys[job]
        answer_of(self._mailbox.stop.remote(signum, key))
        # A task that reported before that trains, and saves its run at the signal; one that reports
        # later is told at once, and trains nothing.
        self._read_mailbox()
        for task, each in list(self._tasks.items()):
            if each in self._is_stopping and each not in self._has_begun:
                ray.cancel(task)
                del self._tasks[task]


def answer_of(asked: Any) -> Any:
    """Return the answer of the mailbox. Raises BadInput if the cluster is gone."""
    import ray

    try:
        return ray.get(asked)
    except ray.exceptions.RayError as error:
        raise BadInput(
            f"the Ray cluster no longer answers ({reason_of(error)}); run the same command again "
            "to resume its runs"
        ) from error


def connect(where: EngineConfig) -> None:
    """Connect to a cluster, or start one on this machine. Raises BadInput if none answers."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    is_local = where.address is None and "RAY_ADDRESS" not in os.environ
    own = {"include_dashboard": False, "object_store_memory": LOCAL_STORE_BYTES}
    try:
        ray.init(
            address=where.address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **(own if is_local else {}),
        )
    except Exception as error:  # Ray raises a plain one if its processes start too slowly
        place = "on this machine" if is_local else f"at {where.address or 'RAY_ADDRESS'}"
        raise BadInput(
            f"no Ray cluster {place}: {reason_of(error)}; start one with ray start --head, and "
            "give --address auto"
        ) from error


def resources_of_nodes() -> list[dict[str, float]]:
    """Return the resources of every node of the cluster, used or not."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def places(where: EngineConfig) -> int:
    """Return the number of tasks that the cluster can train at once."""
    of_nodes = [
        min(
            n.get("CPU", 0) // where.cpus,
            n.get("GPU", 0) // where.gpus if where.gpus else math.inf,
        )
        for n in resources_of_nodes()
    ]
    return int(sum(of_nodes))


def refuse_too_small(where: EngineConfig) -> None:
    """Raise BadInput if no node of the cluster has the resources of one task."""
    if not places(where):
        nodes = resources_of_nodes()
        most = [max(n.get(kind, 0) for n in nodes) for kind in ("CPU", "GPU")]
        raise BadInput(
            f"no node of the Ray cluster has {where.cpus} CPUs and {where.gpus:g} GPUs for a task; "
            f"the largest has {most[0]:g} and {most[1]:g}: lower --task-cpus or --task-gpus"
        )


def without_out(words: Sequence[str]) -> list[str]:
    """Return arguments of `dpd train` without --out, which they end with."""
    flags, (name, _) = list(words[:-2]), words[-2:]
    assert name == "--out"
    return flags


def reason_of(error: Exception) -> str:
    """Return the first line of an error, or the last one of a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    has_traceback = any(line.startswith("Traceback") or " File " in f" {line}" for line in lines)
    return lines[-1 if has_traceback else 0] if lines else type(error).__name__
