"""`dpd study`: train all arms, evaluate them and test the differences from the subject."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpd.config import TrainConfig
from dpd.envs.make import check
from dpd.errors import BadInput
from dpd.fidelity.states import HELD_OUT, AuditSettings, random_returns
from dpd.policies.policyfile import load
from dpd.report.report import Report, print_line, require_writable, save_report
from dpd.report.stats import (
    Difference,
    Interval,
    bootstrap_interval,
    difference,
    family,
    iqm,
    paired_difference,
)
from dpd.report.studied import StudyOutcome
from dpd.run.changes import changed_settings
from dpd.run.settings import saved_settings
from dpd.run.sources import find_policies, is_best
from dpd.run.train import train
from dpd.study.compare import RunResult, comparison_notes, evaluate_runs
from dpd.study.config import SeedShare, StudyConfig
from dpd.study.engines import open_pool, run_jobs
from dpd.study.jobs import Job
from dpd.study.shares import read_arm, refuse_other_shares

LEVEL_ARM, LEVEL_SHARE = "one", 0.9
"""The level that steps are counted to: a share of this arm's gain over uniform actions."""


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """An environment and the results of all arms in it."""

    env: str
    results: dict[str, RunResult]
    """By arm, the subject first."""
    random: float
    """Mean return of uniform random actions."""

    @property
    def unit(self) -> float:
        """Gain of the best arm over uniform actions; not positive if nothing was learned."""
        means = [float(np.mean(list(r.scores.values()))) for r in self.results.values()]
        return max(means) - self.random

    def scaled(self, arm: str) -> list[float]:
        """Return an arm's scores over seeds: 0 for uniform actions, 1 for the best arm's mean."""
        return [(s - self.random) / self.unit for s in self.results[arm].scores.values()]

    @property
    def subject(self) -> RunResult:
        """Result of the arm that all others are compared with."""
        return next(iter(self.results.values()))

    @cached_property
    def gaps(self) -> dict[str, Difference]:
        """The subject's scores minus each arm's, seed by seed; one family."""
        return subtract_arms([(arm, r.scores) for arm, r in self.results.items()])

    @cached_property
    def best_gaps(self) -> dict[str, Difference]:
        """The same for each seed's best peer, if all are known; a family of its own."""
        return subtract_arms([(arm, r.best_scores) for arm, r in self.results.items()])

    @cached_property
    def area_gaps(self) -> dict[str, Difference]:
        """The same for the mean return over the steps, if known; a family of its own."""
        return subtract_arms([(arm, r.areas) for arm, r in self.results.items()])

    @cached_property
    def time_gaps(self) -> dict[str, Difference]:
        """The subject's evaluations minus each arm's after equal seconds of training, if known.

        The seconds are those that the faster of the two took in all. A family of its own.
        """
        gaps = {}
        for arm, result in list(self.results.items())[1:]:
            seconds = min(r.seconds or 0.0 for r in (self.subject, result))
            ours, theirs = (r.returns_after(seconds) for r in (self.subject, result))
            if ours is not None and theirs is not None:
                gaps[arm] = difference(theirs, ours)
        return family(gaps)

    @property
    def level(self) -> float | None:
        """The return that steps are counted to; None without the arm, or if it learned nothing."""
        if LEVEL_ARM not in self.results:
            return None
        gain = float(np.mean(list(self.results[LEVEL_ARM].scores.values()))) - self.random
        return self.random + LEVEL_SHARE * gain if gain > 0 else None


def subtract_arms(scores: Sequence[tuple[str, dict[int, float] | None]]) -> dict[str, Difference]:
    """Return the first arm's scores minus those of every other arm, if both are known."""
    (_, subject), *others = scores
    if subject is None:
        return {}
    return family({arm: difference(s, subject) for arm, s in others if s is not None})


class Aggregate(NamedTuple):
    """An arm's statistics over all tasks, in the tasks' units."""

    iqm: float
    interval: Interval | None
    gap: Difference | None
    """The subject minus this arm; None for the subject itself."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Results of a study."""

    config: StudyConfig
    tasks: list[TaskResult]
    notes: list[str]

    @property
    def others(self) -> list[str]:
        """Names of the arms that the subject is compared with."""
        return [arm for arm in self.config.chosen if arm != self.config.subject]

    @cached_property
    def aggregates(self) -> dict[str, Aggregate]:
        """Every arm over all tasks; empty for one task, or if nothing was learned in one."""
        if len(self.tasks) < 2 or min(task.unit for task in self.tasks) <= 0:
            return {}
        gaps = family({arm: self._gap(arm) for arm in self.others})
        return {arm: self._aggregate(arm, gaps.get(arm)) for arm in self.config.chosen}

    def _aggregate(self, arm: str, gap: Difference | None) -> Aggregate:
        scores = [task.scaled(arm) for task in self.tasks]
        middle = float(joint_iqm(*map(np.array, scores), axis=-1))
        return Aggregate(middle, bootstrap_interval(joint_iqm, scores, self.config.seed), gap)

    def _gap(self, arm: str) -> Difference:
        """Return the subject minus an arm, with the tasks as strata."""
        subject = self.config.subject
        gaps = [np.subtract(task.scaled(subject), task.scaled(arm)) for task in self.tasks]
        return paired_difference([gap.tolist() for gap in gaps])


def joint_iqm(*tasks: np.ndarray, axis: int) -> Any:
    """Return the interquartile mean over the seeds of all tasks (Agarwal et al. 2021)."""
    return iqm(np.concatenate(tasks, axis=axis), axis)


def worst_quarter(scores: Sequence[float]) -> float:
    """Return the mean of the lowest quarter of the scores, rounded up to whole scores."""
    return float(np.mean(sorted(scores)[: math.ceil(len(scores) / 4)]))


def evaluate_study(config: StudyConfig) -> Findings:
    """Evaluate every last policy on fresh episodes, which all arms share for each seed."""
    tasks, notes = [], []
    for env in config.envs:
        runs = [read_arm(config, env, arm) for arm in config.chosen]
        results = {r.run.name: r for r in evaluate_runs(runs, config)}
        meta = runs[0].members[0].policy.meta
        setting = AuditSettings(
            env_id=meta.env_id,
            env_kwargs=meta.env_kwargs,
            episodes=config.episodes,
            seed=config.seed,
            threads=config.threads,
        )
        random = float(random_returns(setting, meta.act_dim, HELD_OUT).mean())
        tasks.append(TaskResult(env=env, results=results, random=random))
        notes += [note for note in comparison_notes(runs) if note not in notes]
    return Findings(config=config, tasks=tasks, notes=notes)


Parse = Callable[[Sequence[str]], TrainConfig]
Plans = Mapping[SeedShare, TrainConfig]
"""Settings of the runs: one for each arm of each environment, or one for each share of it."""


def study(config: StudyConfig, parse: Parse) -> StudyOutcome:
    """Train and compare all arms and write the report, or only plan.

    `parse` turns arguments of `dpd train` into settings. A run that ends early ends the study; the
    same command resumes it.
    """
    from dpd.study.report import plan_study, study_report

    if config.plan is not None:
        return StudyOutcome(report=plan_study(config.out, config.plan), out=config.out)
    plans = plan_runs(config, parse)
    require_writable(config.out)
    with redirect_stdout(sys.stderr) if config.json else nullcontext():
        status = train_all(config, plans, parse)
    if status:
        return StudyOutcome(report=Report(sections=[], data={}), status=status, out=config.out)
    report = study_report(evaluate_study(config))
    page = save_report(report, config.out, "study")
    lines = [f"report  {page}", f"TensorBoard  tensorboard --logdir {config.out}"]
    return StudyOutcome(report=report, page=page, lines=lines, out=config.out)


def plan_runs(config: StudyConfig, parse: Parse) -> Plans:
    """Return the settings of all runs. Raises BadInput if one is invalid, before any starts."""
    plans: dict[SeedShare, TrainConfig] = {}
    for env in config.envs:
        firsts = {arm: plan_shares(config, env, arm, parse, plans) for arm in config.chosen}
        refuse_equal_arms(firsts)
        run = firsts[config.subject].run
        check(env, run.backend, run.parsed_env_kwargs())
    return plans


def plan_shares(
    config: StudyConfig, env: str, arm: str, parse: Parse, plans: dict[SeedShare, TrainConfig]
) -> TrainConfig:
    """Add the settings of an arm's runs to `plans`; return those of the first one."""
    shares = config.shares_of(env, arm)
    for share in shares:
        try:
            plans[share] = parse(config.words(env, arm, share))
            config.where.refuse_unfit(plans[share])
        except ValueError as error:
            raise BadInput(f"arm {arm}: {error}") from error
        refuse_other_settings(share.path, plans[share])
    refuse_other_shares(config, env, arm)
    return plans[shares[0]]


def refuse_equal_arms(plans: Mapping[str, TrainConfig]) -> None:
    """Raise BadInput if two arms would make the same run, whose difference means nothing."""
    seen: dict[str, str] = {}
    for arm, plan in plans.items():
        other = seen.setdefault(json.dumps(replace(plan, preset=None).as_json()), arm)
        if other != arm:
            raise BadInput(
                f"arms {other} and {arm} have the same settings; name the arms without one of "
                "them: --arms"
            )


def refuse_other_settings(path: Path, plan: TrainConfig) -> None:
    """Raise BadInput if a directory holds a run with settings other than planned."""
    if not (path / "config.json").is_file():
        return
    saved = saved_settings(path)
    refuse_other_seeds(path, saved, plan)
    changed = list(changed_settings(saved, plan))
    if saved.get("total_steps") != plan.run.total_steps:  # it sets the learning-rate schedule
        changed.append("total_steps")
    if changed:
        name = changed[0]
        raise BadInput(
            f"{path} holds a run with other settings, such as {name} {saved.get(name)}; give the "
            "same settings, or another directory as --out"
        )


def refuse_other_seeds(path: Path, saved: Mapping[str, Any], plan: TrainConfig) -> None:
    """Raise BadInput if a directory holds a run of other seeds."""
    first, count, run = saved.get("seed"), saved.get("seeds"), plan.run
    if (
        isinstance(first, int)
        and isinstance(count, int)
        and (first, count) != (run.seed, run.seeds)
    ):
        raise BadInput(
            f"{path} holds {named_seeds(first, count)}, and a finished or stopped run gains no "
            f"seeds; give --seed {first} --seeds {count} for these, or another directory as --out "
            f"for {named_seeds(run.seed, run.seeds)}"
        )


def named_seeds(first: int, count: int) -> str:
    """Format a range of seeds."""
    return f"seeds {first} to {first + count - 1}" if count > 1 else f"seed {first}"


def train_all(config: StudyConfig, plans: Plans, parse: Parse) -> int:
    """Train the unfinished runs; return the exit status of the first that failed, or 0."""
    if config.at_once == 1 and not config.where.is_ray:
        return train_in_turn(config, plans, parse)
    jobs = [
        Job(run_name(config, share), share.path, config.words(share.env, share.arm, share), plan)
        for share, plan in plans.items()
        if not is_done(share.path, plan)
    ]
    if not jobs:
        return 0
    at_once = config.at_once and min(config.at_once, len(plans))
    return run_jobs(jobs, lambda: open_pool(config.where, at_once, config.out))


def run_name(config: StudyConfig, share: SeedShare) -> str:
    """Name a run in messages."""
    name = f"{share.env} {share.arm}"
    return name if config.shares == 1 else f"{name} {share.path.name}"


def train_in_turn(config: StudyConfig, plans: Plans, parse: Parse) -> int:
    """Train the unfinished runs in this process; one that ends early ends the study."""
    for k, (share, plan) in enumerate(plans.items(), 1):
        words = config.words(share.env, share.arm, share)
        if is_done(share.path, plan):
            continue
        print_line(f"\n{k}/{len(plans)}  {share.arm}: dpd train {shlex.join(words)}")
        is_started = (share.path / "config.json").is_file()
        status = train(parse(["--resume", str(share.path)]) if is_started else plan)
        if status:
            print_line("rerun the study to resume this run")
            return status
    return 0


def is_done(path: Path, plan: TrainConfig) -> bool:
    """Return whether all learners of a run have taken all their steps."""
    if not (path / "policies").is_dir():
        return False
    last = [file for file in find_policies(path) if not is_best(file)]
    budget = plan.iterations * plan.steps_per_iteration
    done = [file for file in last if load(file).meta.provenance.get("steps") == budget]
    return len(done) == plan.run.seeds * plan.run.peers
