"""The trials of a search: Optuna proposes them, and judges those that train by evaluation.

The only module that imports Optuna. Trials and their evaluations are in Optuna's journal in the
directory of the search, which only this process writes.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from dpd.errors import BadInput
from dpd.study.display import JobsDisplay
from dpd.study.jobs import Ended, Job, JobPool
from dpd.study.study import Parse
from dpd.tune.config import TuneConfig
from dpd.tune.space import Choices, FlagRange, Space, Value, space_words, text_of

if TYPE_CHECKING:
    import optuna

JOURNAL = "optuna.journal"
SEARCH_NAME = "dpd"
STOPPED = (-signal.SIGTERM, 128 + signal.SIGTERM)
"""Exit statuses of a trial that was told to stop, before and after it heeds signals."""
RUNNING, COMPLETE, PRUNED, FAILED = "running", "complete", "pruned", "failed"
TRIAL_STATES = {"RUNNING": RUNNING, "COMPLETE": COMPLETE, "PRUNED": PRUNED, "FAIL": FAILED}


def require_optuna() -> None:
    """Raise BadInput if Optuna is not installed."""
    if find_spec("optuna") is None:
        raise BadInput("dpd tune needs Optuna; install it: pip install 'dpd[tune]'")


def open_search(config: TuneConfig, space: Space) -> optuna.Study:
    """Create the search in a directory, or go on with it. Raises BadInput if it is another one."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    backend = JournalFileBackend(str(config.out / JOURNAL))
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name=SEARCH_NAME,
        direction="maximize",
        pruner=make_pruner(config),
        load_if_exists=True,
    )
    now = config.as_saved() | {"space": {name: str(entry) for name, entry in space.items()}}
    saved = study.user_attrs.get("settings")
    if saved is None:
        study.set_user_attr("settings", now)
    elif changed := [name for name in now if now[name] != saved.get(name)]:
        name = changed[0]
        raise BadInput(
            f"{config.out} holds a search with other settings, such as {name} {saved.get(name)}; "
            "give the same settings, or another directory as --out"
        )
    return study


def make_pruner(config: TuneConfig) -> optuna.pruners.BasePruner:
    """Return the rule that stops trials; its resource is the number of evaluations."""
    from optuna import pruners

    if config.pruner == "none":
        return pruners.NopPruner()
    if config.pruner == "asha":
        return pruners.SuccessiveHalvingPruner(
            min_resource=1, reduction_factor=config.reduction, min_early_stopping_rate=0
        )
    return pruners.HyperbandPruner(
        min_resource=1, max_resource=config.evals, reduction_factor=config.reduction
    )


def distributions(space: Space) -> dict[str, optuna.distributions.BaseDistribution]:
    """Return Optuna's form of a space. Choices are JSON texts, since they may be lists."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    made: dict[str, Any] = {}
    for name, entry in space.items():
        if isinstance(entry, Choices):
            made[name] = CategoricalDistribution([json.dumps(v) for v in entry.values])
        elif entry.is_whole:
            step = 1 if entry.step is None else int(entry.step)
            made[name] = IntDistribution(int(entry.low), int(entry.high), log=entry.log, step=step)
        else:
            made[name] = FloatDistribution(entry.low, entry.high, log=entry.log, step=entry.step)
    return made


def values_in(space: Space, params: Mapping[str, Any]) -> dict[str, Value]:
    """Return a trial's values by flag, from Optuna's form of them."""
    return {
        name: params[name] if isinstance(entry, FlagRange) else json.loads(params[name])
        for name, entry in space.items()
    }


class TrialJob(Job):
    """The run of a trial."""

    def __init__(
        self, trial: optuna.Trial, config: TuneConfig, values: Mapping[str, Value], parse: Parse
    ) -> None:
        words = config.words(trial.number, space_words(values))
        path = config.path(trial.number)
        super().__init__(f"trial {trial.number}", path, words, parse(words))
        self.trial, self.values = trial, values
        self.reported = set(trial.study.trials[trial.number].intermediate_values)
        self.is_pruned = False

    def scores(self) -> list[tuple[int, float]]:
        """Return steps and mean returns of the evaluations so far, which all learners have."""
        run = self.plan.run
        known = sorted(self.progress.evaluations.items())
        return [
            (step, float(np.mean(list(of_learners.values()))))
            for step, of_learners in known
            if len(of_learners) == run.seeds * run.peers
        ]


class Search:
    """The trials as the work of an engine."""

    def __init__(self, config: TuneConfig, space: Space, study: optuna.Study, parse: Parse) -> None:
        self._config, self._space, self._study, self._parse = config, space, study, parse
        self._distributions = distributions(space)
        self._jobs: dict[int, TrialJob] = {}

    def states(self) -> list[str]:
        """Return the states of all trials."""
        return [
            TRIAL_STATES[t.state.name] for t in self._study.trials if t.state.name in TRIAL_STATES
        ]

    def next_job(self) -> Job | None:
        """Return a trial that an earlier call left unfinished, or a new one; None after the last.

        Proposals are drawn from the seed and the trial's number, so that a search that was stopped
        goes on as one that was not, if trials train in turn.
        """
        import optuna

        for frozen in self._study.trials:
            if TRIAL_STATES.get(frozen.state.name) == RUNNING and frozen.number not in self._jobs:
                return self._job_of(optuna.Trial(self._study, frozen._trial_id))
        if (number := len(self._study.trials)) >= self._config.trials:
            return None
        words = np.random.SeedSequence([self._config.search_seed, number]).generate_state(1)
        self._study.sampler = optuna.samplers.TPESampler(seed=int(words[0]))
        return self._job_of(self._study.ask(self._distributions))

    def _job_of(self, trial: optuna.Trial) -> TrialJob:
        values = values_in(self._space, trial.params)
        job = self._jobs[trial.number] = TrialJob(trial, self._config, values, self._parse)
        return job

    def watch(self, pool: JobPool, display: JobsDisplay) -> None:
        """Report new evaluations, and stop trials that fall behind."""
        for job in pool.busy:
            if isinstance(job, TrialJob) and not job.is_pruned and self._falls_behind(job):
                job.is_pruned = True
                pool.stop(signal.SIGTERM, job)

    def _falls_behind(self, job: TrialJob) -> bool:
        """Report a trial's new evaluations but the last; return whether one is too low."""
        for k, (_, score) in enumerate(job.scores(), 1):
            if k in job.reported or not math.isfinite(score):
                continue
            job.trial.report(score, k)
            job.reported.add(k)
            if k < self._config.evals and job.trial.should_prune():
                return True
        return False

    def take(self, ended: Ended, display: JobsDisplay, is_stopped: bool) -> None:
        """Tell Optuna how a trial ended; one that the user stopped goes on later."""
        job, status = ended.job, ended.status
        assert isinstance(job, TrialJob)
        job.steps()
        if status == 0 and job.scores():
            self._falls_behind(job)  # its last evaluation
            self._study.tell(job.trial, job.scores()[-1][1])
            display.end(ended)
            display.notice(f"{job.name}: return {job.scores()[-1][1]:,.4g}, {self._named(job)}")
        elif job.is_pruned and status in STOPPED:
            self._study.tell(job.trial, state=state("PRUNED"))
            text = f"stopped after {max(job.reported)} of {self._config.evals} evaluations"
            display.drop(job, f"{text}, {self._named(job)}")
        else:
            display.end(ended, is_stopped)
            if not is_stopped and not ended.is_again:
                job.trial.set_user_attr("reason", ended.lost or last_line(job))
                self._study.tell(job.trial, state=state("FAIL"))
            return
        # nothing resumes a trial that has ended, and a replay is large
        shutil.rmtree(job.path / "checkpoints", ignore_errors=True)

    @staticmethod
    def _named(job: TrialJob) -> str:
        return ", ".join(f"{name} {text_of(value)}" for name, value in job.values.items())


def state(name: str) -> optuna.trial.TrialState:
    """Return Optuna's state of a trial."""
    from optuna.trial import TrialState

    return TrialState[name]


def last_line(job: Job) -> str:
    """Return the last line of a job's log."""
    return job.failure().splitlines()[-1]
