"""The commands as functions: `dpd.train(...)`, `dpd.distill(...)`, `dpd.evaluate(...)` and others.

Keyword arguments are the flags of the command, with underscores, the same defaults and the same
checks. Values are Python's: lists, dictionaries, paths. A group of flags with a prefix is a nested
dictionary, as in config.json: `--distill.alpha 2 --peer1.lr 1e-4` is
`distill={"alpha": 2}, peer1={"lr": 1e-4}`. Bad input raises `dpd.errors.BadInput`. Importing this
module loads no torch; the first call does.
"""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, overload

from dpd.api.settings import command_settings, cooperation_settings, run_settings
from dpd.errors import BadInput, Diverged, flag

if TYPE_CHECKING:
    from typing import Unpack

    from dpd.api.keywords import (
        CompareKeywords,
        CooperateKeywords,
        DistillKeywords,
        EvaluateKeywords,
        ExportKeywords,
        FidelityKeywords,
        GroupsKeywords,
        PushKeywords,
        ReportKeywords,
        StudyKeywords,
        SweepKeywords,
        TrainKeywords,
        TuneKeywords,
        WatchKeywords,
    )
    from dpd.hub.outcome import PullOutcome, PushOutcome
    from dpd.policies.policyfile import Policy
    from dpd.report.outcome import EvaluationOutcome, ExportOutcome, GroupsOutcome, PageOutcome
    from dpd.report.studied import (
        ComparisonOutcome,
        CooperationOutcome,
        FidelityOutcome,
        StudyOutcome,
        SweepOutcome,
    )
    from dpd.run.callback import Callback
    from dpd.run.outcome import TrainOutcome
    from dpd.tune.outcome import TuneOutcome
    from dpd.watch.outcome import WatchOutcome

FilePath = str | PathLike[str]
ENDS = {130: "Ctrl-C", 143: "SIGTERM"}
"""Exit statuses of a command that a signal stopped."""


def train(
    env: str | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    verbose: bool = False,
    **settings: Unpack[TrainKeywords],
) -> TrainOutcome:
    """Train peers that teach each other while they learn: `dpd train`.

    `env`: a Gymnasium id, by default HalfCheetah-v5. `callbacks` watch every iteration and
    evaluation, and can stop the run. `verbose`: print the progress and the table of the command.
    `settings`: its flags, such as `total_steps=200_000, peers=2, algo="sac", out="runs/first",
    distill={"alpha": 2.0}`; `resume=path` continues a run, and `**outcome.settings` repeats one.

    Returns the run: its directory, policies, returns, metrics and figures. Ctrl-C saves the run and
    raises KeyboardInterrupt. Raises BadInput for wrong settings, Diverged after a NaN.
    """
    return _train("train", env, callbacks, verbose, settings)


def distill(
    env: str | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    verbose: bool = False,
    **settings: Unpack[DistillKeywords],
) -> TrainOutcome:
    """Distil a trained policy into students: `dpd distill`.

    Takes what `train` takes, and the flags of the command, such as `teacher="runs/first",
    student_sizes=[16, 32, 64], method="dagger"`. The returned run has `sizes`: return, fidelity and
    cost of the students by size.
    """
    return _train("distill", env, callbacks, verbose, settings)


def cooperate(
    *policies: FilePath, verbose: bool = False, **settings: Unpack[CooperateKeywords]
) -> CooperationOutcome:
    """Let saved policies teach each other where one earns more return: `dpd cooperate`.

    `policies`: at least two policy files or runs; none with `resume=path`. Returns a row for each
    policy, before and after, and for each lesson. Ctrl-C keeps the last round and raises
    KeyboardInterrupt.
    """
    given = {**settings, **({"paths": policies} if policies else {})}
    with _refusing():
        config = cooperation_settings(given)
    return _run("cooperate", config, verbose)


def evaluate(
    *policies: FilePath, verbose: bool = False, **settings: Unpack[EvaluateKeywords]
) -> EvaluationOutcome:
    """Play deterministic episodes of saved policies: `dpd evaluate`.

    `policies`: policy files, Stable-Baselines3 zips, or run directories. Returns a row for each
    policy, with the return of every episode.
    """
    return _plain("evaluate", {**settings, "paths": policies}, verbose)


def compare(
    *runs: FilePath, verbose: bool = False, **settings: Unpack[CompareKeywords]
) -> ComparisonOutcome:
    """Compare runs with the first one on fresh episodes: `dpd compare`.

    Returns a row for each run, and for each difference with its interval, p and verdict. Writes the
    picture of the learning curves, `out`.
    """
    return _plain("compare", {**settings, "paths": runs}, verbose)


def study(
    *envs: str,
    flags: str | Sequence[str] = (),
    verbose: bool = False,
    **settings: Unpack[StudyKeywords],
) -> StudyOutcome:
    """Train a method and its controls with equal steps, and compare them: `dpd study`.

    `flags`: what the command takes after a lone --, flags of `dpd train` for every run, as in
    `"--epochs 20"`. Finished runs in `out` are not trained again. Returns a row for each arm and
    difference; with `plan=effect`, it trains nothing and returns the number of seeds that would
    show the effect. Ctrl-C saves the runs and raises KeyboardInterrupt; RuntimeError names the
    directory of a study of which a run failed.
    """
    given = {**settings, **({"envs": envs} if envs else {}), "flags": _words(flags)}
    return _plain("study", given, verbose)


def tune(
    env: str | None = None,
    *,
    space: FilePath | Mapping[str, Any],
    flags: str | Sequence[str] = (),
    verbose: bool = False,
    **settings: Unpack[TuneKeywords],
) -> TuneOutcome:
    """Search flags of `dpd train` with Optuna: `dpd tune`.

    `space`: a TOML file, or its contents as a dictionary, as in `{"lr": {"low": 1e-4, "high": 1e-2,
    "log": True}, "gamma": [0.98, 0.99]}`. `flags`: as in `study`, for every trial. Returns a row
    for each trial; `dpd.train(**search.settings)` trains with the best ones. The same call goes on
    with a search that was stopped: Ctrl-C saves it and raises KeyboardInterrupt.
    """
    given = {**settings, **({} if env is None else {"env": env}), "flags": _words(flags)}
    if isinstance(space, Mapping):
        given["ranges"] = space
    given["space"] = "space" if isinstance(space, Mapping) else space
    return _plain("tune", given, verbose)


def fidelity(
    teacher: FilePath,
    *students: FilePath,
    verbose: bool = False,
    **settings: Unpack[FidelityKeywords],
) -> FidelityOutcome:
    """Measure how closely students follow their teacher: `dpd fidelity`.

    Returns a row for each student, and for each of its measures on each set of states; figures show
    agreement, errors and actions. Writes the report into `out`.
    """
    return _plain("fidelity", {**settings, "teacher": teacher, "students": students}, verbose)


def sweep(
    teacher: FilePath, *, verbose: bool = False, **settings: Unpack[SweepKeywords]
) -> SweepOutcome:
    """Measure what makes a student follow its teacher: `dpd sweep`.

    Returns a row for each student, and the correlation of fidelity with return. Writes the report
    into `out`.
    """
    return _plain("sweep", {**settings, "teacher": teacher}, verbose)


def export(
    path: FilePath,
    format: Literal["onnx", "torchscript", "c", "c-int8", "sb3", "dpd"],
    *,
    verbose: bool = False,
    **settings: Unpack[ExportKeywords],
) -> ExportOutcome:
    """Write a policy as an ONNX, TorchScript, C, SB3 or dpd file: `dpd export`.

    The file is read again and its actions are compared with the policy's. Returns its path.
    """
    return _plain("export", {**settings, "path": path, "format": format}, verbose)


def push(
    path: FilePath, repo: str, *, verbose: bool = False, **settings: Unpack[PushKeywords]
) -> PushOutcome:
    """Publish policies on the Hugging Face hub, with a model card: `dpd push`.

    `path`: a run directory or a policy file; `repo`: OWNER/NAME. With `preview=directory`, writes
    the files there and publishes nothing. Returns the card, the address, and the returns on it.
    """
    return _plain("push", {**settings, "path": path, "repo": repo}, verbose)


@overload
def pull(repo: str, file: str | None = None, revision: str | None = None) -> Policy: ...
@overload
def pull(
    repo: str, *, out: FilePath, revision: str | None = None, verbose: bool = False
) -> PullOutcome: ...
def pull(
    repo: str,
    file: str | None = None,
    revision: str | None = None,
    *,
    out: FilePath | None = None,
    verbose: bool = False,
) -> Policy | PullOutcome:
    """Download one policy of the Hugging Face hub and load it; with `out`, all: `dpd pull`.

    `repo` is OWNER/NAME. None as `file`: the best policy, if `dpd push` made the repository, or the
    only one. The client keeps the file in its cache. With `out`, a new directory, downloads into it
    what the command downloads, and returns the names of the files. Nothing in them is executed.
    Raises BadInput if there is no such repository or policy, and NotAPolicy if the file is none.
    """
    if out is not None:
        if file is not None:
            raise BadInput("file names one policy, and out takes all; leave one of them out")
        given = {"repo": repo, "out": out, "revision": revision}
        outcome: PullOutcome = _plain("pull", given, verbose)
        return outcome
    from dpd.hub.pull import pull_policy

    return pull_policy(repo, file, revision)


def watch(
    *paths: FilePath, verbose: bool = False, **settings: Unpack[WatchKeywords]
) -> WatchOutcome:
    """Read how far running or finished runs are, and how they do: `dpd watch`.

    `paths`: run directories, or directories that contain runs. Returns at once, with a row for each
    run and each learner, and figures of the returns. With `verbose`, prints a frame; in a terminal
    it then stays until all runs have ended or Ctrl-C, unless `once=True`.
    """
    if not verbose:
        if settings:
            raise BadInput(f"{flag(next(iter(settings)))} does nothing without verbose=True")
        settings = {"once": True}
    return _plain("watch", {**settings, "paths": paths}, verbose)


def groups(env: str, *, verbose: bool = False, **settings: Unpack[GroupsKeywords]) -> GroupsOutcome:
    """Return the named groups of an environment's observation: `dpd groups`."""
    return _plain("groups", {**settings, "env": env}, verbose)


def report(
    path: FilePath, *, verbose: bool = False, **settings: Unpack[ReportKeywords]
) -> PageOutcome:
    """Write one page about a run, or about all runs in a directory: `dpd report`.

    The returned `page` is an HTML file that loads nothing from elsewhere.
    """
    return _plain("report", {**settings, "path": path}, verbose)


def _words(flags: str | Sequence[str]) -> list[str]:
    """Return flags for every run as words."""
    return shlex.split(flags) if isinstance(flags, str) else list(flags)


def _train(
    command: str,
    env: str | None,
    callbacks: Sequence[Callback],
    verbose: bool,
    settings: Mapping[str, Any],
) -> TrainOutcome:
    with _refusing():
        config = run_settings(command, {**settings, **({} if env is None else {"env": env})})
        from dpd.cli import train_run
        from dpd.log.terminal import make_console

        outcome = train_run(config, callbacks, make_console(highlight=False, quiet=not verbose))
    again = f"dpd.{command}(resume={str(outcome.path)!r}"
    if outcome.status in ENDS:
        raise KeyboardInterrupt(f"{ENDS[outcome.status]}: the run is saved; {again}) continues it")
    if outcome.status == 3:
        raise Diverged(f"a learner diverged; {again}, on_nan='rollback') retries")
    if outcome.status and not outcome.is_stopped:
        raise RuntimeError(f"{outcome.path} ended with status {outcome.status}; see its part*.log")
    return outcome


def _plain(name: str, given: Mapping[str, Any], verbose: bool) -> Any:
    from dpd.cli import PLAIN_COMMANDS

    with _refusing():
        config: Any = command_settings(PLAIN_COMMANDS[name][0], given)
    return _run(name, config, verbose)


@contextmanager
def _refusing() -> Iterator[None]:
    """Raise BadInput for the errors that the command line prints as one line."""
    try:
        yield
    except BadInput:
        raise
    except ValueError as error:
        if hasattr(error, "__notes__"):  # a callback's own error
            raise
        raise BadInput(re.sub(r"\s+", " ", str(error))) from error


def _run(name: str, config: Any, verbose: bool) -> Any:
    """Run a command; raise an exception where the command line would return an exit status."""
    from dpd.cli import run_plain

    # the runs of a study print as `dpd train` does
    with _refusing(), nullcontext() if verbose else redirect_stdout(io.StringIO()):
        outcome = run_plain(name, config, lambda got: got.show() if verbose else None)
    if outcome.status in ENDS:
        raise KeyboardInterrupt(f"{ENDS[outcome.status]}: {config.out} is saved and can be resumed")
    if outcome.status:
        raise RuntimeError(f"a run in {config.out} ended with status {outcome.status}")
    return outcome
