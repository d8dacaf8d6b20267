"""The state of a run, read from its directory while it trains."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

from dpd.config import TrainConfig
from dpd.files import read_lock
from dpd.log.csv import CsvTail, metrics_name
from dpd.log.naming import display_names, peer_names

ReadSettings = Callable[[Path], TrainConfig]
Learner = tuple[int, int]
"""Seed and peer."""

RECENT = 20
"""Records whose median speed is the speed of the run."""
RETURN_METRICS = ("eval/return", "train/return")
SPEED = "time/steps_per_s"


class Speed(NamedTuple):
    """Environment steps per second."""

    total: float
    """Of all seeds."""
    seed: float
    """Of one seed, of the slowest process."""


class PartRecords:
    """The records of a run, or of one of its workers: curves of returns, and the latest values."""

    def __init__(self, path: Path) -> None:
        self._tail = CsvTail(path)
        self._forget()

    def _forget(self) -> None:
        self.step = 0
        self.curves: dict[str, dict[Learner, dict[int, float]]] = {
            name: {} for name in RETURN_METRICS
        }
        self.latest: dict[str, dict[Learner, float]] = {}
        self.speeds: deque[float] = deque(maxlen=RECENT)

    def read_new(self) -> None:
        """Read the new rows; if the file was written anew, as by a resume, read it all again."""
        rows, is_other = self._tail.read_new()
        if is_other:
            self._forget()
        for step, seed, peer, metric, value in rows:
            self.step = int(step)
            if metric == SPEED:
                self.speeds.append(float(value))
            if not seed:
                continue
            learner = int(seed), int(peer)
            self.latest.setdefault(metric, {})[learner] = float(value)
            if metric in self.curves:
                self.curves[metric].setdefault(learner, {})[self.step] = float(value)


class WatchedRun:
    """A run directory that a process may be writing to."""

    def __init__(self, path: Path, read_settings: ReadSettings) -> None:
        self.path, self.config = path, read_settings(path)
        self.names = display_names(peer_names(self.config))
        self.parts = [
            PartRecords(path / metrics_name(part)) for part in range(self.config.run.workers)
        ]
        self.state = ""

    def read_new(self) -> None:
        """Read what the run has written since the last call."""
        lock = read_lock(self.path)  # before the records: a run that ends in between is read whole
        for part in self.parts:
            part.read_new()
        if lock.is_held:
            self.state = "evaluating" if self.is_done else "running"
        elif self.is_done:
            self.state = "finished"
        else:
            self.state = f"killed (process {lock.process})" if lock.process else "stopped"

    @property
    def is_held(self) -> bool:
        """True while a process works on the run."""
        return self.state in ("running", "evaluating")

    @property
    def total(self) -> int:
        """Environment steps of one seed at the end."""
        return self.config.iterations * self.config.steps_per_iteration

    @property
    def step(self) -> int:
        """Recorded environment steps of the seed that is behind."""
        return min(part.step for part in self.parts)

    @property
    def is_done(self) -> bool:
        """True if all steps are recorded."""
        return self.step >= self.total

    @property
    def speed(self) -> Speed | None:
        """The speed over the latest records; None before the first."""
        speeds = [median(part.speeds) for part in self.parts if part.speeds]
        if len(speeds) < len(self.parts):
            return None
        seeds = [len(self.config.run.seeds_of(part)) for part in range(len(self.parts))]
        return Speed(sum(speeds), min(s / n for s, n in zip(speeds, seeds, strict=True)))

    @property
    def seconds_left(self) -> float | None:
        """Seconds of training until the end at this speed; None if unknown or not running."""
        if self.state != "running" or self.speed is None or self.speed.seed <= 0:
            return None
        return (self.total - self.step) / self.speed.seed

    @property
    def learners(self) -> list[Learner]:
        """Seed and peer of every learner."""
        run = self.config.run
        seeds = range(run.seed, run.seed + run.seeds)
        return [(seed, peer) for seed in seeds for peer in range(run.peers)]

    def curve(self, learner: Learner, metric: str) -> dict[int, float]:
        """Return a learner's values of one of RETURN_METRICS by step; empty if there are none."""
        return next((p.curves[metric][learner] for p in self._with(metric, learner)), {})

    def latest(self, learner: Learner, metric: str) -> float | None:
        """Return a learner's latest value of a metric; None if there is none."""
        values = (p.latest[metric] for p in self.parts if metric in p.latest)
        return next((own[learner] for own in values if learner in own), None)

    def metrics(self) -> set[str]:
        """Return the names of all metrics that learners have."""
        return {name for part in self.parts for name in part.latest}

    def mean_curve(self) -> dict[int, float]:
        """Return the mean evaluation over the learners by step, where all were evaluated."""
        curves = [self.curve(learner, "eval/return") for learner in self.learners]
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        return {step: sum(curve[step] for curve in curves) / len(curves) for step in steps}

    def _with(self, metric: str, learner: Learner) -> Iterator[PartRecords]:
        return (part for part in self.parts if learner in part.curves[metric])
