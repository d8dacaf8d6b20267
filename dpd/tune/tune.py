"""`dpd tune`: search flags of `dpd train`, and write the best trial as a configuration file."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, redirect_stdout
from typing import Any

from dpd.config import TrainConfig
from dpd.envs.make import check
from dpd.errors import BadInput
from dpd.files import replacing
from dpd.log.terminal import make_console
from dpd.report.report import Report, require_writable, save_report
from dpd.run.directory import locked
from dpd.run.processes import Stopped, StopRequest
from dpd.study.arms import name_of, split_flags
from dpd.study.display import JobsDisplay
from dpd.study.engines import drive, open_pool
from dpd.study.study import Parse
from dpd.tune.config import SET_BY_TUNE, TuneConfig
from dpd.tune.outcome import BEST_FILE, TuneOutcome
from dpd.tune.report import SearchTrial, read_trials, tune_report
from dpd.tune.search import Search, open_search, require_optuna
from dpd.tune.space import Choices, Space, read_space, space_words

OF_ONE_RUN = (
    *("seeds", "seed", "total_steps", "evals", "eval_episodes", "final_episodes", "threads"),
    *("workers", "records", "checkpoint_every", "keep", "keep_checkpoints", "init_from"),
)
"""Settings of a trial that are no part of what the search found."""


def tune(config: TuneConfig, parse: Parse) -> TuneOutcome:
    """Run a search, or go on with it; write its report and its best trial.

    `parse` turns arguments of `dpd train` into settings. The status of the outcome is 0, 130 after
    Ctrl-C, 143 after SIGTERM. Raises BadInput if no trial was complete.
    """
    require_optuna()
    space = read_space(config.space, config.ranges)
    first = check_space(config, space, parse)
    require_writable(config.out)
    with redirect_stdout(sys.stderr) if config.json else nullcontext(), locked(config.out):
        study = open_search(config, space)
        status = train_trials(config, Search(config, space, study, parse), first)
        trials = read_trials(study, space)
        best = write_best(config, trials, parse)
    if status:
        stopped = Report(sections=[], data={})
        return TuneOutcome(report=stopped, status=status, out=config.out, flags=[])
    if best is None:
        raise BadInput(f"no trial of {config.out} was complete; see the ends of their logs above")
    report = tune_report(config, space, trials)
    page = save_report(report, config.out, "tune")
    flags = [*config.flags, *space_words(best.values)]
    lines = [f"report  {page}", *next_steps(config, flags)]
    return TuneOutcome(report=report, page=page, lines=lines, out=config.out, flags=flags)


def train_trials(config: TuneConfig, search: Search, plan: TrainConfig) -> int:
    """Train all trials that are left; return the exit status of a search that was stopped, or 0."""
    steps = plan.iterations * plan.steps_per_iteration * plan.run.seeds
    missing = config.trials - len([s for s in search.states() if s != "running"])
    if missing <= 0:
        return 0
    console = make_console(highlight=False)
    display = JobsDisplay([], console, n=missing, steps=steps)
    display.notice(config.seeds_text)
    try:
        with (
            StopRequest() as stop,
            open_pool(config.where, config.at_once, config.out, is_search=True) as pool,
            display,
        ):
            drive(search, pool, display, stop)
    except Stopped as stopped:
        return stopped.status
    if stop.signum is None:
        return 0
    ended = len([s for s in search.states() if s != "running"])
    display.notice(
        f"stopped after {ended} of {config.trials} trials; the same command goes on, with those "
        "that have begun"
    )
    return 128 + stop.signum


def check_space(config: TuneConfig, space: Space, parse: Parse) -> TrainConfig:
    """Return the settings of one possible trial.

    Raises BadInput if `dpd train` refuses a value at an end of a range, or a choice.
    """
    given = {*map(name_of, split_flags(config.flags)), *SET_BY_TUNE}
    given -= {"algo"} if config.algo is None else set()
    for name in space:
        if name in given:
            raise BadInput(f"{config.space}: --{name} is fixed already; leave it out of one place")
    plan = None
    for values in corners(space):
        try:
            plan = parse(config.words(0, space_words(values)))
            config.where.refuse_unfit(plan)
        except ValueError as error:
            shown = " ".join(space_words(values))
            raise BadInput(f"{config.space} makes the trial {shown}: {error}") from error
    assert plan is not None
    refuse_whole_numbers(config, space, plan)
    run = plan.run
    check(run.env, run.backend, run.parsed_env_kwargs())
    return plan


def corners(space: Space) -> Iterator[dict[str, Any]]:
    """Yield trials in which every end of a range and every choice occurs once."""
    most = max(len(entry.ends) for entry in space.values())
    for k in range(most):
        yield {name: entry.ends[min(k, len(entry.ends) - 1)] for name, entry in space.items()}


def refuse_whole_numbers(config: TuneConfig, space: Space, plan: TrainConfig) -> None:
    """Raise BadInput if a range of whole numbers is given for a setting that takes fractions."""
    for name, entry in space.items():
        value: Any = plan.as_json()
        for key in name.replace("-", "_").split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, float) and not isinstance(entry, Choices) and entry.is_whole:
            raise BadInput(
                f"{config.space}: --{name} takes fractions, but its range is of whole numbers; "
                f"write low = {float(entry.low)}, high = {float(entry.high)}"
            )


def write_best(config: TuneConfig, trials: list[SearchTrial], parse: Parse) -> SearchTrial | None:
    """Write the settings of the best complete trial, for --config; return it, or None."""
    best = next((trial for trial in trials if trial.is_complete), None)
    if best is not None:
        settings = parse(config.words(best.number, space_words(best.values))).as_json()
        kept = {name: value for name, value in settings.items() if name not in OF_ONE_RUN}
        with replacing(config.out / BEST_FILE) as draft:
            draft.write_text(json.dumps(kept, indent=2) + "\n")
    return best


def next_steps(config: TuneConfig, flags: Sequence[str]) -> list[str]:
    """Return lines with the file of the best settings, and how to report on these flags."""
    algo = [] if config.algo is None else ["--algo", config.algo]
    study = ["dpd", "study", config.env, *algo]
    if config.study_seeds is not None:
        study += ["--seed", str(config.study_seeds[0]), "--seeds", str(config.study_seeds[1])]
    return [
        f"best    dpd train --config {config.out / BEST_FILE}",
        f"confirm {shlex.join([*study, '--', *flags])}",
    ]
