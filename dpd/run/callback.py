"""Callbacks of a training: watch its iterations and evaluations, and stop it; torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


class StopTraining(Exception):
    """Raise it in a callback to stop the training, as Ctrl-C does: the run can be resumed."""


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """A training after an iteration. Do not change its contents, which the log shares."""

    path: Path
    """The run directory."""
    iteration: int
    """Iterations done."""
    iterations: int
    """Iterations of the whole run."""
    steps: int
    """Environment steps of a seed's peers so far."""
    learners: Sequence[str]
    """Names of the learners, such as seed0-peer1; values of metrics are in this order."""
    metrics: Mapping[str, float | list[float | None]]
    """What the iteration recorded, by the names of metrics.csv: a number for each learner, or one
    for all. None: the learner lacks the metric. train/... is NaN before an episode has ended."""

    def of(self, learner: str) -> dict[str, float]:
        """Return a learner's metrics."""
        row = self.learners.index(learner)
        own = {k: v[row] for k, v in self.metrics.items() if isinstance(v, list)}
        return {name: value for name, value in own.items() if value is not None}


class Callback:
    """Base class of callbacks; overwrite the methods that you need.

    They run in the process that trains. Return True to stop the training after this iteration, or
    raise StopTraining: the run is then saved, and `dpd.train(resume=path)` continues it bit for
    bit. Any other exception saves the run too, and then leaves `dpd.train`.
    """

    def on_iteration(self, state: TrainingState) -> bool | None:
        """Called after every iteration, and after the evaluation of one that has it."""

    def on_evaluation(self, state: TrainingState) -> bool | None:
        """Called after every deterministic evaluation, when its policies and checkpoint are saved.

        `state.metrics` then has eval/return, the mean return of each learner.
        """
