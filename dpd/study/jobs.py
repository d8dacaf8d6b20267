"""Runs that train at once: a job for each, and the pool that trains them, here by processes.

Another engine is another `JobPool`; the loop in `dpd/study/engines.py` knows no more of it.
"""

from __future__ import annotations

import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

from dpd.config import TrainConfig
from dpd.envs.physics import n_cores
from dpd.run.processes import WorkerProgress, nth_device

Child = subprocess.Popen[bytes]
JOB_LOG = "train.log"
LAST_LINES = 5
# `dpd train`, which also stops when the study has ended, even by kill -9. Ray blocks SIGINT for its
# workers, and a shell ignores it for jobs in the background; children inherit both.
CHILD = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT]); "
    "from dpd.run.processes import follow_parent; follow_parent(); "
    "from dpd.cli import main; sys.exit(main(sys.argv[1:]))"
)


class Job:
    """A run that a child process trains; `words` are the arguments of `dpd train`."""

    def __init__(self, name: str, path: Path, words: Sequence[str], plan: TrainConfig) -> None:
        self.name, self.path, self.plan, self.words = name, path, plan, list(words)
        self.progress = WorkerProgress(plan, path)
        self.place = ""
        """Name of the machine, if it is another one."""

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
        self.progress.read_new()
        return self.progress.step * self.plan.run.seeds

    def with_threads(self, cores: int) -> list[str]:
        """Return the words with this number of cores as threads, unless they name a number."""
        run = self.plan.run
        if run.threads is not None:
            return list(self.words)
        return [*self.words, "--threads", str(max(1, cores // run.workers))]

    def command(self, slot: int, jobs: int) -> list[str]:
        """Return the child's command: its share of the cores, and the GPU of its slot."""
        run, words = self.plan.run, self.with_threads(n_cores() // jobs)
        if run.workers == 1 and (device := nth_device(run.device, slot)) != run.device:
            words += ["--device", device]
        return child_command(resumed(self.path, self.words, words))

    def failure(self) -> str:
        """Return the last lines of the log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        lines = [line for line in text.split("\n") if line.strip()]
        return "\n".join(lines[-LAST_LINES:]) or "no output"


def resumed(path: Path, words: Sequence[str], with_hardware: Sequence[str]) -> list[str]:
    """Return the arguments that begin a run, or resume the one that a directory holds.

    `with_hardware` are the `words` of a new run and the flags of this machine behind them.
    """
    if not (path / "config.json").is_file():
        return list(with_hardware)
    return ["--resume", str(path), *with_hardware[len(words) :]]


def child_command(words: Sequence[str]) -> list[str]:
    """Return the command of a child with these arguments of `dpd train`."""
    return [sys.executable, "-c", CHILD, "train", *words]


def start_child(command: Sequence[str], log: Path, cwd: str | None = None) -> Child:
    """Start a child whose output is appended to a log, in whose directory it trains."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.PIPE,  # closes when this process ends, see follow_parent
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches it only through us, once
        )


class Ended(NamedTuple):
    """A job that has ended."""

    job: Job
    status: int
    """Exit status of the child; negative if a signal ended it."""
    lost: str = ""
    """Reason, if the child could not say it, as in 'was lost with its node'."""
    is_again: bool = False
    """True if the pool begins the job again by itself."""


class JobPool(ABC):
    """Jobs that train at once: the interface of an engine.

    Leaving it ends the jobs that still train.
    """

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(self, *_: object) -> None: ...

    @property
    @abstractmethod
    def busy(self) -> Sequence[Job]:
        """Jobs that were submitted and have not ended."""

    @property
    @abstractmethod
    def has_room(self) -> bool:
        """True if another job may be submitted."""

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Begin a job, or resume it, as soon as there is a place for it."""

    @abstractmethod
    def begun(self) -> list[Job]:
        """Return the jobs that began to train since the last call."""

    @abstractmethod
    def ended(self) -> list[Ended]:
        """Return the jobs that ended since the last call."""

    @abstractmethod
    def stop(self, signum: int, job: Job | None = None) -> None:
        """Pass a signal on to a job, or to all of them; it ends soon, and its run is saved."""


class ProcessPool(JobPool):
    """Jobs in child processes of this one, a number of `slots` at once."""

    def __init__(self, slots: int) -> None:
        self._slots: list[Job | None] = [None] * slots
        self._children: dict[Job, Child] = {}
        self._begun: list[Job] = []

    @property
    def busy(self) -> Sequence[Job]:
        """Jobs that have a child."""
        return list(self._children)

    @property
    def has_room(self) -> bool:
        """True if a slot is free."""
        return None in self._slots

    def submit(self, job: Job) -> None:
        """Start a child in the first free slot."""
        slot = self._slots.index(None)
        command = job.command(slot, len(self._slots))
        self._children[job] = start_child(command, job.log)
        self._slots[slot] = job
        self._begun.append(job)

    def begun(self) -> list[Job]:
        """Return the jobs that were submitted since the last call."""
        begun, self._begun = self._begun, []
        return begun

    def ended(self) -> list[Ended]:
        """Free the slots of jobs that have ended."""
        ended = []
        for slot, job in enumerate(self._slots):
            if job is not None and (status := self._children[job].poll()) is not None:
                self._slots[slot] = None
                del self._children[job]
                ended.append(Ended(job, status))
        return ended

    def stop(self, signum: int, job: Job | None = None) -> None:
        """Send a signal to a child, or to all."""
        for each in self.busy if job is None else [job]:
            self._children[each].send_signal(signum)

    def __exit__(self, *_: object) -> None:
        for child in self._children.values():
            child.kill()
            child.wait()
