"""Results of `dpd.watch`, for Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dpd.log.naming import learner_name, peer_names
from dpd.report.outcome import Outcome, Rows, make_rows
from dpd.report.panels import Curves, draw_metric
from dpd.report.report import Report, Section
from dpd.watch.records import RETURN_METRICS, WatchedRun


@dataclass(frozen=True)
class ProgressRow:
    """Progress of a run."""

    path: Path
    command: str
    """train or distill."""
    env: str
    method: str
    algo: str
    state: str
    """running, evaluating, finished, stopped, or killed (process NUMBER)."""
    step: int
    """Recorded environment steps of the seed that is behind."""
    total: int
    """Environment steps of a seed at the end."""
    steps_per_s: float | None
    """Of all seeds; None before the first record."""
    seconds_left: float | None
    """At this speed; None unless it is training."""
    mean: float | None
    """Mean return over all learners at the latest evaluation that all have; None before that."""


@dataclass(frozen=True)
class LearnerRow:
    """Latest values of a learner."""

    path: Path
    """Its run."""
    learner: str
    """Its name in policy files, such as seed0-peer1."""
    seed: int
    peer: int
    mean: float | None
    """Return of its latest evaluation; None before the first."""
    best: float | None
    """Return of its best evaluation."""
    metrics: dict[str, float]
    """Latest value of everything that is recorded of it, by metric."""


@dataclass(frozen=True, kw_only=True)
class WatchOutcome(Outcome):
    """Results of `dpd.watch`."""

    draw: Callable[[], None]
    """Prints a frame; does nothing if the frames were shown already."""

    def show(self, as_json: bool = False) -> None:
        """Print a frame."""
        self.draw()

    @property
    def runs(self) -> Rows[ProgressRow]:
        """A row for each run."""
        return make_rows(ProgressRow, self.data["runs"])

    @property
    def learners(self) -> Rows[LearnerRow]:
        """A row for each learner of each run."""
        return make_rows(LearnerRow, self.data["learners"])


def watch_report(runs: Sequence[WatchedRun]) -> Report:
    """Report on the state of runs; the figures are the returns of each."""
    learners = [learner_row(run, seed, peer) for run in runs for seed, peer in run.learners]
    data: dict[str, Any] = {
        "runs": [asdict(progress_row(run)) for run in runs],
        "learners": [asdict(row) for row in learners],
    }
    sections = [Section(heading=str(run.path), panels=return_figures(run)) for run in runs]
    return Report(sections=sections, data=data)


def progress_row(run: WatchedRun) -> ProgressRow:
    """Return the progress of a run."""
    config, speed = run.config, run.speed
    return ProgressRow(
        path=run.path,
        command=config.command,
        env=config.run.env,
        method=config.method,
        algo=config.algo_name,
        state=run.state,
        step=run.step,
        total=run.total,
        steps_per_s=None if speed is None else speed.total,
        seconds_left=run.seconds_left,
        mean=next(reversed(run.mean_curve().values()), None),
    )


def learner_row(run: WatchedRun, seed: int, peer: int) -> LearnerRow:
    """Return the latest values of a learner."""
    learner = seed, peer
    known = {name: run.latest(learner, name) for name in sorted(run.metrics())}
    return LearnerRow(
        path=run.path,
        learner=learner_name(seed, peer_names(run.config)[peer]),
        seed=seed,
        peer=peer,
        mean=known.get("eval/return"),
        best=max(run.curve(learner, "eval/return").values(), default=None),
        metrics={name: value for name, value in known.items() if value is not None},
    )


def return_figures(run: WatchedRun) -> list[Callable[[], Any]]:
    """Return functions that draw the returns of a run: by evaluation, and in training."""
    drawn = ((metric, curves_of(run, metric)) for metric in RETURN_METRICS)
    styles = {name: k for k, name in enumerate(run.names)}
    return [partial(draw_metric, metric, curves, styles) for metric, curves in drawn if curves]


def curves_of(run: WatchedRun, metric: str) -> Curves:
    """Return the values of all seeds by step, for each peer that has some."""
    curves: dict[str, dict[int, list[float]]] = {}
    for seed, peer in run.learners:
        for step, value in run.curve((seed, peer), metric).items():
            curves.setdefault(run.names[peer], {}).setdefault(step, []).append(value)
    return curves
