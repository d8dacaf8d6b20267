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
    family,
    paired_difference,
    trimmed,
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
        """How far the subject's scores lie above every arm's, seed by seed; one family."""
        subject = self.subject.scores
        return family({arm: difference(r.scores, subject) for arm, r in self._others.items()})

    @cached_property
    def best_gaps(self) -> dict[str, Difference]:
        """The same for the peers that training chose, where it chose; a family of their own."""
        best = {arm: r.best_scores for arm, r in self._others.items()}
        subject = self.subject.best_scores
        if subject is None:
            return {}
        return family({arm: difference(s, subject) for arm, s in best.items() if s is not None})


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
        gaps = family({arm: self._whole_gap(arm) for arm in self.others})
        return {arm: self._whole(arm, gaps.get(arm)) for arm in self.config.chosen}

    def _whole(self, arm: str, gap: Difference | None) -> Whole:
        scores = [task.scaled(arm) for task in self.tasks]
        iqm = float(joint_iqm(*map(np.array, scores), axis=-1))
        return Whole(iqm, bootstrap_interval(joint_iqm, scores, self.config.seed), gap)

    def _whole_gap(self, arm: str) -> Difference:
        """Return how far the subject lies above an arm, with the tasks as strata."""
        subject = self.config.subject
        gaps = [np.subtract(task.scaled(subject), task.scaled(arm)) for task in self.tasks]
        return paired_difference([gap.tolist() for gap in gaps])


def joint_iqm(*tasks: np.ndarray, axis: int) -> Any:
    """Take the interquartile mean over the seeds of all tasks (Agarwal et al. 2021)."""
    return trimmed(np.concatenate(tasks, axis=axis), axis)


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
        tasks.append(Task(env=env, results=results, random=float(random.mean())))
        notes += [note for note in remarks(runs) if note not in notes]
    return Findings(config=config, tasks=tasks, notes=notes)
