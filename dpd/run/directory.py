"""The directory of a run: lock, settings and checkpoints; resume and rollback."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import mujoco
import torch

from dpd import __version__
from dpd.agents.base import State, nest, part
from dpd.config import TrainConfig, as_name, refuse_changes
from dpd.errors import BadInput
from dpd.files import replacing
from dpd.log.csv import metrics_name
from dpd.run.checkpoint import CheckpointInfo, Checkpoints
from dpd.run.policies import PolicySaver
from dpd.run.settings import saved_settings
from dpd.run.teachers import keep_teacher, read_run_teacher
from dpd.run.training import Training

MAX_ROLLBACKS = 5
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


def claim(path: Path, config: TrainConfig) -> None:
    """Write the settings and the teachers of a new run into its directory.

    Raises BadInput if the directory already contains a run.
    """
    if (path / "config.json").exists():
        raise BadInput(
            f"{path} already contains a run; resume it with {resume_command(path, config)}, "
            "or give --out another directory"
        )
    if (teacher := read_run_teacher(config)) is not None:
        keep_teacher(path, teacher)
    write_settings(path, config)


def write_settings(path: Path, config: TrainConfig) -> None:
    """Write config.json, which `--config` and `--resume` read."""
    with replacing(path / "config.json") as draft:
        draft.write_text(json.dumps(config.as_json(), indent=2) + "\n")


class RunDir:
    """The files of a run, or of one of its workers: policies and checkpoints."""

    def __init__(
        self, path: Path, config: TrainConfig, training: Training, part: int | None = None
    ) -> None:
        self.path, self.config, self.training, self.part = path, config, training, part
        self.saver = PolicySaver(path, config, training.spec, training.export, training.memory)
        self.checkpoints = Checkpoints(path, config.run.keep, part)
        self.metrics = metrics_name(part)
        self.rollbacks = 0
        self._saved_at = time.monotonic()

    @property
    def resume_command(self) -> str:
        """The shell command that resumes this run."""
        return resume_command(self.path, self.config)

    def begin(self) -> None:
        """Claim the directory for a new run. Raises BadInput if it already contains one."""
        claim(self.path, self.config)

    def resume(self, notify: Callable[[str], None]) -> None:
        """Resume from the newest intact checkpoint; start from the beginning if there is none.

        Raises BadInput if the settings differ, BadFile if all checkpoints are corrupt.
        """
        if self.part is None:  # otherwise it was done before the workers started
            refuse_changes(saved_settings(self.path), self.config)
        self.checkpoints.clear_drafts()
        if (newest := self._load_newest()) is None:
            self.training.begin()
            return
        info, complaints = newest
        if info.iteration > self.config.iterations:
            raise BadInput(
                f"{self.path} has already done {info.step:,} steps; --total-steps must not be less"
            )
        self.rollbacks = info.rollbacks
        if self.part is None:
            write_settings(self.path, self.config)
        for line in [*complaints, *self._resume_notes(info)]:
            notify(line)

    def _load_newest(self) -> tuple[CheckpointInfo, list[str]] | None:
        def load(state: State) -> None:
            self.training.load_state(part(state, "training"))
            self.saver.load_state(part(state, "saver"))

        return self.checkpoints.load_newest(load, self.training.journals)

    def _resume_notes(self, info: CheckpointInfo) -> list[str]:
        """Return what the user must know about a resumed run."""
        lines = [f"resumed at {info.step:,} steps"]
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
        self.checkpoints.save(state, self._info(score), self.training.journals)
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
        fd = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise BadInput(f"cannot write to {folder}: {error.strerror}; give --out another") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            raise BadInput(
                f"{folder} is in use by another run (process {holder}); give --out another"
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield fd
    finally:
        os.close(fd)
