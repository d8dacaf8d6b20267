"""The directory of a run: lock, settings and checkpoints; resume and rollback."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import mujoco
import torch
from rich.console import Console

from dpd import __version__
from dpd.agents.base import State, nest, part
from dpd.config import TrainConfig
from dpd.distill.teacher import Teacher
from dpd.errors import BadInput, OtherVersion, flag
from dpd.files import LOCK, replacing
from dpd.log.csv import metrics_name
from dpd.log.log import flattened
from dpd.run.changes import MAY_CHANGE, refuse_changes
from dpd.run.checkpoint import CheckpointInfo, Checkpoints, step_of
from dpd.run.config import as_name
from dpd.run.policies import PolicySaver
from dpd.run.settings import saved_settings
from dpd.run.teachers import keep_returns, keep_teacher, measure
from dpd.run.training import Training

MAX_ROLLBACKS = 5
LOCK_PATIENCE_S = 0.5  # `dpd watch` holds a shared lock for a moment
VERSIONS = {"dpd": __version__, "torch": torch.__version__, "mujoco": mujoco.__version__}


def run_path(config: TrainConfig) -> Path:
    """Return the directory of a run: the one given, or else a new one under runs/."""
    run, stamp = config.run, datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    algo = config.algo_name.replace(",", "-")
    name = f"{as_name(run.env)}-{config.method}-{algo}-seed{run.seed}-{stamp}"
    return run.resume or run.out or Path("runs") / name


def resume_command(path: Path, config: TrainConfig) -> str:
    """Return the shell command that resumes a run."""
    return f"dpd {config.command} --resume {shlex.quote(str(path))}"


@contextmanager
def opened(
    config: TrainConfig, teacher: Teacher | None, console: Console
) -> Iterator[tuple[Path, int]]:
    """Lock a run's directory and store its settings and teachers; yield it and the lock.

    The lock is that of `locked`. Raises BadInput if the directory of a new run already contains
    one, or if these settings cannot resume the run.
    """
    path, is_new = run_path(config), config.run.resume is None
    if teacher is not None and teacher.returns is None:
        # before the directory exists: a refused run leaves nothing behind
        if is_new:
            refuse_occupied(path, config)
        with console.status("measuring the teacher"):
            teacher.returns = measure(teacher, config)
    with locked(path) as lock:
        if is_new:
            refuse_occupied(path, config)
        else:
            refuse_unlike(path, config)
        if teacher is not None and teacher.returns is not None:
            if is_new:
                keep_teacher(path, teacher)
            keep_returns(path, teacher.returns)
        with replacing(path / "config.json") as draft:
            draft.write_text(json.dumps(config.as_json(), indent=2) + "\n")
        yield path, lock


def refuse_occupied(path: Path, config: TrainConfig) -> None:
    """Raise BadInput if a new run's directory already contains a run."""
    if (path / "config.json").exists():
        raise BadInput(
            f"{path} already contains a run; resume it with {resume_command(path, config)}, "
            "or give --out another directory"
        )


def refuse_unlike(path: Path, config: TrainConfig) -> None:
    """Raise BadInput if these settings cannot resume the run in a directory."""
    saved, current = saved_settings(path), config.as_json()
    if missing := flattened(current).keys() - flattened(saved).keys() - MAY_CHANGE:
        raise OtherVersion(path, f"its settings lack {flag(min(missing))}")
    refuse_changes(saved, config)
    done = max(map(step_of, (path / "checkpoints").rglob("step-*.safetensors")), default=0)
    if done > config.iterations * config.steps_per_iteration:
        raise BadInput(f"{path} has already done {done:,} steps; --total-steps must not be less")


class RunDir:
    """The files of a run, or of one of its workers: policies and checkpoints."""

    def __init__(
        self, path: Path, config: TrainConfig, training: Training, part: int | None = None
    ) -> None:
        self.path, self.config, self.training = path, config, training
        facts = training.export, training.memory, training.view
        self.saver = PolicySaver(path, config, training.spec, *facts)
        self.checkpoints = Checkpoints(path, config.run.keep, part, training.journals)
        self.metrics = metrics_name(part)
        self.rollbacks = 0
        self._saved_at = time.monotonic()

    @property
    def resume_command(self) -> str:
        """The shell command that resumes this run."""
        return resume_command(self.path, self.config)

    def resume(self) -> list[str]:
        """Resume from the newest intact checkpoint; start from the beginning if there is none.

        Returns what the user must know. Raises BadFile if all checkpoints are corrupt.
        """
        self.checkpoints.clear_drafts()
        if (newest := self._load_newest()) is None:
            self.training.begin()
            return []
        info, lines = newest
        self.rollbacks = info.rollbacks
        lines.append(f"resumed at {info.step:,} steps")
        spec, now = self.training.spec, self._info(None)
        if not spec.can_snapshot:
            lines.append(
                f"the {spec.backend} backend cannot copy its simulators, so new episodes begin; "
                "the run is not bit for bit the one that was interrupted"
            )
        if info.threads != now.threads:
            lines.append(f"{now.threads} threads, previously {info.threads}: rounding may differ")
        if info.versions != now.versions:
            lines.append(f"{now.versions}, previously {info.versions}: rounding may differ")
        return lines

    def _load_newest(self) -> tuple[CheckpointInfo, list[str]] | None:
        def load(state: State) -> None:
            self.training.load_state(part(state, "training"))
            self.saver.load_state(part(state, "saver"))

        return self.checkpoints.load_newest(load)

    def _info(self, score: float | None) -> CheckpointInfo:
        return CheckpointInfo(
            step=self.training.steps,
            iteration=self.training.iteration,
            score=score,
            rollbacks=self.rollbacks,
            threads=torch.get_num_threads(),
            versions=VERSIONS,
        )

    def is_due(self) -> bool:
        """Return True if it is time for another checkpoint."""
        return time.monotonic() - self._saved_at >= self.config.run.checkpoint_every

    def save(self, score: float | None = None) -> None:
        """Write a checkpoint; `score` is the learners' mean evaluation, if there was one."""
        state = nest(training=self.training.state(), saver=self.saver.state())
        self.checkpoints.save(state, self._info(score))
        self._saved_at = time.monotonic()

    def can_roll_back(self) -> bool:
        """Return True if a diverged run may be retried."""
        return self.config.run.on_nan == "rollback" and self.rollbacks < MAX_ROLLBACKS

    def roll_back(self, seed: int) -> None:
        """Return to the last checkpoint, and restart a seed's learners from there."""
        if (newest := self._load_newest()) is None:
            raise RuntimeError(f"{self.path} has no checkpoint to roll back to")
        info, _ = newest
        self.rollbacks = max(self.rollbacks, info.rollbacks) + 1
        self.training.retry(seed, self.rollbacks)
        self.save(info.score)


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Lock a run's directory, creating it if necessary; yield the lock's file descriptor.

    Raises BadInput while another run holds the lock. The operating system releases it when this
    process and all that inherited the descriptor have ended, however they end.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise BadInput(f"cannot write to {folder}: {error.strerror}; give --out another") from error
    try:
        take_lock(fd, folder)
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        try:
            yield fd
        finally:
            os.ftruncate(fd, 0)  # a process number that is left behind is that of a killed run
    finally:
        os.close(fd)


def take_lock(fd: int, folder: Path) -> None:
    """Lock a file. Raises BadInput if another run holds the lock, and not just a look at it."""
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() < deadline:
                time.sleep(LOCK_PATIENCE_S / 10)
                continue
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            raise BadInput(
                f"{folder} is in use by another run (process {holder}); give --out another"
            ) from error
