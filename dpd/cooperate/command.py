"""`dpd cooperate`: read policies, let them teach each other, and write the results."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING

from rich.console import Console

from dpd.cooperate.outcome import (
    Cooperation,
    cooperation_text,
    new_cooperation,
    read_cooperation,
)
from dpd.cooperate.report import cooperation_tables, round_line, write_cooperation
from dpd.cooperate.rounds import Round, cooperate
from dpd.cooperate.simulator import Simulator
from dpd.errors import BadInput
from dpd.log.terminal import make_console, steps_progress
from dpd.report.tables import print_tables

if TYPE_CHECKING:
    from dpd.cooperate.config import CooperateConfig


def cooperate_paths(config: CooperateConfig) -> int:
    """Run all rounds; print tables or JSON, and write the policies and the report.

    Ctrl-C keeps the policies of the last completed round.
    """
    outcome = new_cooperation(config) if config.resume is None else read_cooperation(config)
    budget, console = outcome.budget, make_console(stderr=True, highlight=False)
    with closing(Simulator(outcome.env_id, budget, outcome.config)) as world:
        total = min(budget.total, budget.spent + most_steps_left(world, outcome))
        with steps_progress(console, total, budget.spent) as budget.tell:
            status = run_rounds(world, outcome, console)
    print_cooperation(outcome)
    return status


def run_rounds(world: Simulator, outcome: Cooperation, console: Console) -> int:
    """Evaluate, run the remaining rounds and evaluate again; return the exit status."""
    budget = outcome.budget

    def done(finished: Round) -> None:
        outcome.rounds.append(finished)
        outcome.steps.append(budget.spent)
        write_cooperation(outcome)
        console.print(round_line(outcome), soft_wrap=True)

    try:
        budget.reserved = len(outcome.subjects) * world.most_steps("evaluation")
        if outcome.before is None:
            outcome.before = world.evaluate([p.repeatable_mode for p in outcome.policies])
        first = len(outcome.rounds) + 1
        outcome.ended_by = cooperate(world, outcome.policies, outcome.config, done, first)
        if outcome.rounds:
            outcome.after = world.evaluate([p.repeatable_mode for p in outcome.policies])
            write_cooperation(outcome)
    except KeyboardInterrupt:
        outcome.stopped = True
    return 130 if outcome.stopped else 0


def most_steps_left(world: Simulator, outcome: Cooperation) -> int:
    """Return an upper bound on the remaining simulator steps.

    Raises BadInput if all rounds are done or the budget allows none.
    """
    # k: policies; n: probe states of all of them
    c, k, done = outcome.config, len(outcome.subjects), len(outcome.rounds)
    if done and done >= c.rounds and outcome.is_finished:
        raise BadInput(f"all {done} rounds are done; raise --rounds")
    evaluations = (1 if done else 2) * k * world.most_steps("evaluation")
    if outcome.budget.spent + evaluations >= c.total_steps:
        used = f" and the {outcome.budget.spent:,} steps already taken" if done else ""
        when = "after" if done else "before and after"
        raise BadInput(
            f"--total-steps {c.total_steps:,} only covers the evaluations {when}, which take "
            f"{evaluations:,} steps{used}; raise it, or lower --episodes"
        )
    n = k * c.probes
    held = round(c.holdout * n)
    per_round = k * min(c.probe_envs, c.probes) * c.probe_steps + (k * n + k * held) * c.horizon
    if c.wants_counterfactuals:
        per_round += 2 * (n - held) * c.horizon
    per_round += 2 * k * world.most_steps("trial")
    return max(c.rounds - done, 0) * per_round + evaluations


def print_cooperation(outcome: Cooperation) -> None:
    """Print the results and the paths of the files."""
    if outcome.config.json and not outcome.stopped:
        sys.stdout.write(cooperation_text(outcome))
        return
    console = make_console(markup=False, highlight=False)
    if not outcome.stopped:
        print_tables(list(cooperation_tables(outcome)), (), console)
    for line in outcome.remarks():
        console.print(line, soft_wrap=True)
    if outcome.rounds:
        console.print(f"policies  {outcome.config.out / 'policies'}", soft_wrap=True)
        console.print(f"report    {outcome.config.out / 'cooperative.html'}", soft_wrap=True)
