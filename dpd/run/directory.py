"""A run's directory: its settings, its checkpoints, and how a run goes on from them."""

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
from dpd.run.checkpoint import Checkpoints, Facts
from dpd.run.policies import PolicySaver
from dpd.run.settings import saved_settings
from dpd.run.teachers import keep_teacher, read_teacher
from dpd.run.training import Training

MAX_ROLLBACKS = 5
VERSIONS = {"dpd": __version__, "torch": torch.__version__, "mujoco": mujoco.__version__}


def run_path(config: TrainConfig) -> Path:
    """Return the directory of a run, a new one under runs/ where none is given."""
    run, stamp = config.run, datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    algo = config.algo_name.replace(",", "-")
    name = f"{as_name(run.env)}-{config.method}-{algo}-seed{run.seed}-{stamp}"
    return run.resume or run.out or Path("runs") / name


def resume_command(path: Path, config: TrainConfig) -> str:
    """Return the command that goes on with a run."""
    return f"dpd {config.command} --resume {shlex.quote(str(path))}"


def claim(path: Path, config: TrainConfig) -> None:
    """Write a new run's settings into its directory, and its teachers.

    Raises BadInput where it holds a run.
    """
    if (path / "config.json").exists():
        raise BadInput(
            f"{path} already holds a run; go on with it by {resume_command(path, config)}, "
            "or give --out another directory"
        )
    if (teacher := read_teacher(config)) is not None:
        keep_teacher(path, teacher)
    write_settings(path, config)


def write_settings(path: Path, config: TrainConfig) -> None:
    """Write a run's settings, as `--config` and `--resume` read them."""
    with replacing(path / "config.json") as draft:
        draft.write_text(json.dumps(config.as_json(), indent=2) + "\n")


class RunDir:
    """What a run keeps, and what it goes on from."""

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
        """The command that goes on with this run."""
        return resume_command(self.path, self.config)

    def begin(self) -> None:
        """Claim the directory for a new run. Raises BadInput where it holds one."""
        claim(self.path, self.config)

    def resume(self, say: Callable[[str], None]) -> None:
        """Go on from the newest whole checkpoint; without any, from the beginning.

        Raises BadInput where the settings differ, BadFile where all are broken.
        """
        if self.part is None:  # or it was done before the parts began
            refuse_changes(saved_settings(self.path), self.config)
        self.checkpoints.clear_drafts()
        if (found := self._load_newest()) is None:
            self.training.begin()
            return
        facts, complaints = found
        if facts.iteration > self.config.iterations:
            raise BadInput(
                f"{self.path} has already done {facts.step:,} steps; --total-steps must not be less"
            )
        self.rollbacks = facts.rollbacks
        if self.part is None:
            write_settings(self.path, self.config)
        for line in [*complaints, *self._news(facts)]:
            say(line)

    def _load_newest(self) -> tuple[Facts, list[str]] | None:
        def load(state: State) -> None:
            self.training.load_state(part(state, "training"))
            self.saver.load_state(part(state, "saver"))

        return self.checkpoints.load_newest(load, self.training.journals)

    def _news(self, facts: Facts) -> list[str]:
        """Word what a user must know of a resumed run."""
        lines = [f"resumed at {facts.step:,} steps"]
        spec, now = self.training.spec, self._facts(None)
        if not spec.can_snapshot:
            lines.append(
                f"the {spec.backend} backend cannot copy its simulators: new episodes begin, so "
                "what follows is not bit for bit what would have been"
            )
        if facts.threads != now.threads:
            lines.append(f"{now.threads} threads, before {facts.threads}: rounding may differ")
        if facts.versions != now.versions:
            lines.append(f"{now.versions}, before {facts.versions}: rounding may differ")
        return lines

    def _facts(self, score: float | None) -> Facts:
        return Facts(
            step=self.training.steps,
            iteration=self.training.iteration,
            score=score,
            rollbacks=self.rollbacks,
            threads=torch.get_num_threads(),
            versions=VERSIONS,
        )

    def is_due(self) -> bool:
        """Say whether the last checkpoint is old enough for another."""
        return time.monotonic() - self._saved_at >= self.config.run.checkpoint_every

    def save(self, score: float | None = None) -> None:
        """Write a checkpoint; `score` is the learners' mean evaluation, if it was just taken."""
        state = nest(training=self.training.state(), saver=self.saver.state())
        self.checkpoints.save(state, self._facts(score), self.training.journals)
        self._saved_at = time.monotonic()

    def can_roll_back(self) -> bool:
        """Say whether a diverged run is to be tried again."""
        return self.config.run.on_nan == "rollback" and self.rollbacks < MAX_ROLLBACKS

    def roll_back(self, seed: int) -> None:
        """Go back to the last checkpoint; a seed's learners get another chance from there."""
        if (found := self._load_newest()) is None:
            raise RuntimeError(f"{self.path} has no checkpoint to go back to")
        facts, _ = found
        self.rollbacks = max(self.rollbacks, facts.rollbacks) + 1
        self.training.retry(seed, self.rollbacks)
        self.save(facts.score)


@contextmanager
def held(folder: Path) -> Iterator[int]:
    """Hold a run's directory, made if it isn't there. Raises BadInput while another run has it.

    The system releases it however this process ends, and those that inherit the descriptor given.
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
