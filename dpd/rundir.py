"""A run's directory: its settings, its checkpoints, and how a run goes on from them."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from pathlib import Path

import mujoco
import torch

from dpd import __version__
from dpd.agents.base import nest, part
from dpd.checkpoint import Checkpoints, Facts
from dpd.config import BadInput, TrainConfig, refuse_changes, saved_settings
from dpd.files import replacing
from dpd.policies import PolicySaver
from dpd.training import Training

MAX_ROLLBACKS = 5
VERSIONS = {"dpd": __version__, "torch": torch.__version__, "mujoco": mujoco.__version__}


class RunDir:
    """What a run keeps, and what it goes on from."""

    def __init__(self, path: Path, config: TrainConfig, training: Training) -> None:
        self.path, self.config, self.training = path, config, training
        self.saver = PolicySaver(path, config, training.agent, training.env.spec)
        self.checkpoints = Checkpoints(path, config.run.keep)
        self.rollbacks = 0
        self._saved_at = time.monotonic()

    @property
    def resume_command(self) -> str:
        """The command that goes on with this run."""
        return f"dpd train --resume {shlex.quote(str(self.path))}"

    def begin(self) -> None:
        """Claim the directory for a new run. Raises BadInput where it holds one."""
        if (self.path / "config.json").exists():
            raise BadInput(
                f"{self.path} already holds a run; go on with it by {self.resume_command}, "
                "or give --out another directory"
            )
        self._write_settings()

    def _write_settings(self) -> None:
        with replacing(self.path / "config.json") as draft:
            draft.write_text(json.dumps(self.config.as_json(), indent=2) + "\n")

    def resume(self, say: Callable[[str], None]) -> None:
        """Go on from the newest whole checkpoint; without any, from the beginning.

        Raises BadInput where the settings differ, BadCheckpoint where all are broken.
        """
        refuse_changes(saved_settings(self.path), self.config)
        self.checkpoints.clear_drafts()
        if (found := self.checkpoints.newest()) is None:
            return
        state, facts, complaints = found
        if facts.iteration > self.config.iterations:
            raise BadInput(
                f"{self.path} has already done {facts.step:,} steps; --total-steps must not be less"
            )
        self.training.load_state(part(state, "training"))
        self.saver.load_state(part(state, "saver"))
        self.rollbacks = facts.rollbacks
        self._write_settings()
        for line in [*complaints, *self._news(facts)]:
            say(line)

    def _news(self, facts: Facts) -> list[str]:
        """Word what a user must know of a resumed run."""
        lines = [f"resumed at {facts.step:,} steps"]
        spec, now = self.training.env.spec, self._facts(None)
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
        self.checkpoints.save(state, self._facts(score))
        self._saved_at = time.monotonic()

    def can_roll_back(self) -> bool:
        """Say whether a diverged run is to be tried again."""
        return self.config.run.on_nan == "rollback" and self.rollbacks < MAX_ROLLBACKS

    def roll_back(self, row: int) -> None:
        """Go back to the last checkpoint; the learner's group gets another chance from there."""
        if (found := self.checkpoints.newest()) is None:
            raise RuntimeError(f"{self.path} has no checkpoint to go back to")
        state, facts, _ = found
        self.training.load_state(part(state, "training"))
        self.saver.load_state(part(state, "saver"))
        self.rollbacks = max(self.rollbacks, facts.rollbacks) + 1
        self.training.agent.retry(self.training.group_of(row), self.rollbacks)
        self.save(facts.score)
