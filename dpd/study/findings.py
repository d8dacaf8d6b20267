"""What a study found: scores of every arm, how far the subject lies from each, over all tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from dpd.commands import CompareConfig
from dpd.compare import Result, play, remarks
from dpd.fidelity.states import HELD_OUT, Setting, uniform, visit
from dpd.intervals import (
    Difference,
    Interval,
    bootstrap_interval,
    difference,
    trimmed,
    verdict,
)
from dpd.runs import read_run
from dpd.study.config import StudyConfig


@dataclass(frozen=True, kw_only=True)
class Task:
    """An environment, and how every arm did there."""

    env: str
    results: dict[str, Result]
    """By arm, the subject first."""
    random: float
    """Mean return of uniform actions."""
    seed: int = 0
    """Of the bootstrap."""

    @property
    def unit(self) -> float:
        """What the best arm gains over uniform actions; not positive where nothing was learned."""
        means = [float(np.mean(list(r.scores.values()))) for r in self.results.values()]
        return max(means) - self.random

    def scaled(self, arm: str) -> list[float]:
        """Return an arm's scores over seeds: 0 for uniform actions, 1 for the best arm's mean."""
        return [(s - self.random) / self.unit for s in self.results[arm].scores.values()]

    @property
    def subject(self) -> Result:
        """How the arm did that all others are compared with."""
        return next(iter(self.results.values()))

    @property
    def _others(self) -> dict[str, Result]:
        return dict(list(self.results.items())[1:])

    @cached_property
    def gaps(self) -> dict[str, Difference]:
        """How far the subject's scores lie above every arm's, seed by seed."""
        subject = self.subject.scores
        return {k: difference(own.scores, subject, self.seed) for k, own in self._others.items()}

    @cached_property
    def best_gaps(self) -> dict[str, Difference | None]:
        """The same for the peers that training chose, where it chose."""
        return {arm: self._best_gap(own) for arm, own in self._others.items()}

    def _best_gap(self, other: Result) -> Difference | None:
        own, chosen = other.best_scores, self.subject.best_scores
        return None if own is None or chosen is None else difference(own, chosen, self.seed)


class Whole(NamedTuple):
    """An arm over all tasks, in their units."""

    iqm: float
    interval: Interval | None
    gap: Difference | None
    """How far the subject lies above it; none for itself."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything found."""

    config: StudyConfig
    tasks: list[Task]
    notes: list[str]

    @property
    def others(self) -> list[str]:
        """The arms that the subject is compared with."""
        return [arm for arm in self.config.chosen if arm != self.config.subject]

    @cached_property
    def whole(self) -> dict[str, Whole]:
        """Every arm over all tasks; nothing for one task, or where one taught nothing."""
        if len(self.tasks) < 2 or min(task.unit for task in self.tasks) <= 0:
            return {}
        return {arm: self._whole(arm) for arm in self.config.chosen}

    def _whole(self, arm: str) -> Whole:
        seed, subject = self.config.seed, self.config.subject
        scores = [task.scaled(arm) for task in self.tasks]
        iqm = float(joint_iqm(*map(np.array, scores), axis=-1))
        interval = bootstrap_interval(joint_iqm, scores, seed)
        if arm == subject:
            return Whole(iqm, interval, None)
        gaps = [
            np.subtract(task.scaled(subject), own).tolist()
            for task, own in zip(self.tasks, scores, strict=True)
        ]
        within = bootstrap_interval(joint_mean, gaps, seed)
        mean = float(joint_mean(*map(np.array, gaps), axis=-1))
        gap = Difference(mean, within, True, verdict(within, self.config.seeds))
        return Whole(iqm, interval, gap)


def joint_iqm(*tasks: np.ndarray, axis: int) -> Any:
    """Take the interquartile mean over the seeds of all tasks (Agarwal et al. 2021)."""
    return trimmed(np.concatenate(tasks, axis=axis), axis)


def joint_mean(*tasks: np.ndarray, axis: int) -> Any:
    """Take the mean over the seeds of all tasks."""
    return np.concatenate(tasks, axis=axis).mean(axis=axis)


def worst_quarter(scores: Sequence[float]) -> float:
    """Take the mean of the lowest quarter of scores, one of them at least."""
    return float(np.mean(sorted(scores)[: math.ceil(len(scores) / 4)]))


def examine(config: StudyConfig) -> Findings:
    """Play fresh episodes of every last policy, the same ones for all arms of a seed."""
    tasks, notes = [], []
    for env in config.envs:
        runs = [read_run(config.path(env, arm), arm) for arm in config.chosen]
        asked = CompareConfig(
            paths=tuple(run.path for run in runs),
            episodes=config.episodes,
            seed=config.seed,
            threads=config.threads,
        )
        results = {r.run.name: r for r in play(runs, asked)}
        meta = runs[0].members[0].policy.meta
        setting = Setting(
            env_id=meta.env_id,
            env_kwargs=meta.env_kwargs,
            episodes=config.episodes,
            seed=config.seed,
            threads=config.threads,
        )
        random = visit(setting, uniform(setting, meta.act_dim), 0, HELD_OUT).returns
        tasks.append(Task(env=env, results=results, random=float(random.mean()), seed=config.seed))
        notes += [note for note in remarks(runs) if note not in notes]
    return Findings(config=config, tasks=tasks, notes=notes)
