"""What a study found: scores of every arm, how far the subject lies from each, over all tasks."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpd.config import TrainConfig, changed_settings
from dpd.envs.make import check
from dpd.errors import BadInput
from dpd.fidelity.states import HELD_OUT, Setting, uniform, visit
from dpd.log.terminal import make_console
from dpd.policies.policyfile import load
from dpd.report.stats import (
    Difference,
    Interval,
    bootstrap_interval,
    difference,
    family,
    paired_difference,
    trimmed,
)
from dpd.report.tables import Report, require_writable, write_report
from dpd.run.runs import read_run
from dpd.run.settings import saved_settings
from dpd.run.sources import find_policies, is_best
from dpd.run.train import train
from dpd.study.compare import Result, play, remarks
from dpd.study.config import CompareConfig, StudyConfig


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


Parse = Callable[[Sequence[str]], TrainConfig]
Plans = Mapping[tuple[str, str], TrainConfig]
"""The runs, by environment and arm."""


def study(config: StudyConfig, parse: Parse) -> int:
    """Train, compare, write a page and JSON, or only plan; return the exit status.

    `parse` makes a run's settings of the arguments of `dpd train`. A run that ends early ends the
    study; the same command goes on with it.
    """
    from dpd.study.plan import plan_study
    from dpd.study.report import as_json, page, sheets

    if config.plan is not None:
        plan_study(config.out, config.plan, config.json)
        return 0
    plans = planned(config, parse)
    require_writable(config.out)
    with redirect_stdout(sys.stderr) if config.json else nullcontext():
        status = train_all(config, plans, parse)
    if status:
        return status
    found = examine(config)
    report = Report("study", as_json(found), page(found), sheets(found), found.notes)
    write_report(report, config.out, config.json)
    if not config.json:
        say(f"TensorBoard  tensorboard --logdir {config.out}")
    return 0


def planned(config: StudyConfig, parse: Parse) -> Plans:
    """Return all runs. Raises BadInput where one cannot be, before any has begun."""
    plans: dict[tuple[str, str], TrainConfig] = {}
    for env in config.envs:
        for arm in config.chosen:
            try:
                plan = parse(config.words(env, arm))
            except ValueError as error:
                raise BadInput(f"arm {arm}: {error}") from error
            plans[env, arm] = plan
            refuse_other(config.path(env, arm), plan)
        run = plan.run
        check(env, run.backend, run.parsed_env_kwargs())
    return plans


def refuse_other(path: Path, plan: TrainConfig) -> None:
    """Raise BadInput where a directory holds a run of other settings than are planned."""
    if not (path / "config.json").is_file():
        return
    saved = saved_settings(path)
    changed = list(changed_settings(saved, plan))
    if saved.get("total_steps") != plan.run.total_steps:  # a longer run is annealed otherwise
        changed.append("total_steps")
    if changed:
        name = changed[0]
        raise BadInput(
            f"{path} holds a run of other settings, such as {name} {saved.get(name)}; give the "
            "same, or --out another directory"
        )


def train_all(config: StudyConfig, plans: Plans, parse: Parse) -> int:
    """Train what is not done; return the status of the first run that ended early, or 0."""
    for k, ((env, arm), plan) in enumerate(plans.items(), 1):
        path = config.path(env, arm)
        if is_done(path, plan):
            continue
        say(f"\n{k}/{len(plans)}  {arm}: dpd train {shlex.join(config.words(env, arm))}")
        begun = (path / "config.json").is_file()
        status = train(parse(["--resume", str(path)]) if begun else plan)
        if status:
            say("the study goes on with this run when it is started again")
            return status
    return 0


def say(line: str) -> None:
    """Print a line as it is."""
    make_console(markup=False, highlight=False).print(line, soft_wrap=True)


def is_done(path: Path, plan: TrainConfig) -> bool:
    """Say whether all learners of a run have taken all their steps."""
    if not (path / "policies").is_dir():
        return False
    last = [file for file in find_policies(path) if not is_best(file)]
    whole = plan.iterations * plan.steps_per_iteration
    done = [file for file in last if load(file).meta.provenance.get("steps") == whole]
    return len(done) == plan.run.seeds * plan.run.peers
