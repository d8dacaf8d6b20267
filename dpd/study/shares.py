"""Shares of an arm's seeds that train as runs of their own, and the one run that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dpd.errors import BadInput
from dpd.run.sources import Records, Run, read_run
from dpd.study.config import StudyConfig


def read_arm(config: StudyConfig, env: str, arm: str) -> Run:
    """Read the run of an arm, or join the runs of its shares."""
    runs = [read_run(share.path, arm) for share in config.shares_of(env, arm)]
    return runs[0] if len(runs) == 1 else join_runs(config, env, runs)


def join_runs(config: StudyConfig, env: str, runs: Sequence[Run]) -> Run:
    """Return the run that trained the seeds of all shares.

    Rows of a stack do not depend on each other, so it does not matter which seeds were stacked.
    """
    return replace(
        runs[0],
        path=config.path(env, runs[0].name),
        members=tuple(member for run in runs for member in run.members),
        records=join_records([run.records for run in runs]),
    )


def join_records(shares: Sequence[Records | None]) -> Records | None:
    """Join the evaluations of shares; their seconds add up, as if they had trained in turn."""
    known = [records for records in shares if records is not None]
    if len(known) < len(shares):
        return None
    seconds = [records.seconds for records in known if records.seconds is not None]
    return Records(
        {learner: e for records in known for learner, e in records.evaluations.items()},
        known[0].interval,
        sum(seconds) if len(seconds) == len(known) else None,
    )


def refuse_other_shares(config: StudyConfig, env: str, arm: str) -> None:
    """Raise BadInput if an arm's directory holds its seeds in other shares than asked for."""
    path, planned = config.path(env, arm), {share.path for share in config.shares_of(env, arm)}
    if config.shares > 1 and (path / "config.json").is_file():
        raise BadInput(
            f"{path} holds one run of all seeds; leave --shares out, or give another directory as "
            "--out"
        )
    others = sorted(p.parent for p in path.glob("seeds*/config.json") if p.parent not in planned)
    if others:
        raise BadInput(
            f"{others[0]} is a share of other seeds than those of --shares {config.shares} --seed "
            f"{config.seed} --seeds {config.seeds}; give the same numbers, or another directory "
            "as --out"
        )
