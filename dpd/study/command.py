"""`dpd study`: train what is not trained yet, compare all, and write what was found."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

from dpd.config import BadInput, TrainConfig, changed_settings
from dpd.envs.make import check
from dpd.policyfile import load
from dpd.settings import saved_settings
from dpd.sheets import Report, deliver, require_writable
from dpd.sources import find_policies, is_best
from dpd.study.config import StudyConfig
from dpd.study.findings import examine
from dpd.terminal import make_console
from dpd.train import train

Parse = Callable[[Sequence[str]], TrainConfig]
Plans = Mapping[tuple[str, str], TrainConfig]
"""The runs, by environment and arm."""


def study(config: StudyConfig, parse: Parse) -> int:
    """Train, compare, write a page and JSON, or only plan; return the exit status.

    `parse` makes a run's settings of the arguments of `dpd train`. A run that ends early ends the
    study; the same command goes on with it.
    """
    from dpd.study.page import page
    from dpd.study.plan import plan_study
    from dpd.study.tables import as_json, sheets

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
    deliver(report, config.out, config.json)
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
