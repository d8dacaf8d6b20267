"""`dpd cooperate`: read policies, let them teach each other, and write what came of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from dpd.cooperate.outcome import Outcome, as_text, read_outcome
from dpd.cooperate.policies import read_subjects
from dpd.cooperate.report import round_line, sheets, write
from dpd.cooperate.rounds import Round, cooperate
from dpd.cooperate.simulator import Budget, Simulator
from dpd.errors import BadInput
from dpd.log.terminal import make_console
from dpd.report.tables import print_tables, require_writable

if TYPE_CHECKING:
    from dpd.cooperate.config import CooperateConfig


class Pace(ProgressColumn):
    """Simulator steps per second."""

    def render(self, task: Task) -> Text:
        """Write it."""
        return Text("" if task.speed is None else f"{task.speed:,.0f} steps/s")


def bar(console: Console) -> Progress:
    """Return a progress bar of simulator steps."""
    steps = TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps")
    columns = [TextColumn("{task.description}"), BarColumn(), steps, Pace(), TimeRemainingColumn()]
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def cooperate_paths(config: CooperateConfig) -> int:
    """Run all rounds; print tables or JSON, and write policies and figures.

    Ctrl-C leaves the policies of the last round that ended.
    """
    outcome = begun(config) if config.resume is None else read_outcome(config)
    config, budget = outcome.config, outcome.budget
    console = make_console(stderr=True, highlight=False)
    with bar(console) as progress:
        task = progress.add_task("", completed=budget.spent, total=config.total_steps)

        def tell(purpose: str, steps: int) -> None:
            progress.update(task, description=purpose, advance=steps)

        budget.tell = tell
        world = Simulator(outcome.env_id, budget, config)
        require_enough(outcome, world)
        progress.update(task, total=min(config.total_steps, budget.spent + planned(world, outcome)))
        try:
            status = run(world, outcome, console)
        finally:
            world.close()
    report(outcome)
    return status


def begun(config: CooperateConfig) -> Outcome:
    """Return the beginning: policies that fit each other, and a directory that can be written."""
    subjects, env_id = read_subjects(config)
    require_new(config.out)
    budget = Budget(config.total_steps)
    return Outcome(subjects=subjects, env_id=env_id, config=config, budget=budget)


def run(world: Simulator, outcome: Outcome, console: Console) -> int:
    """Evaluate, go through the rounds that are left, evaluate again; return the exit status."""
    config, budget, policies = outcome.config, outcome.budget, outcome.policies

    def done(found: Round) -> None:
        outcome.add(found)
        write(outcome)
        console.print(round_line(outcome), soft_wrap=True)

    try:
        budget.reserved = len(policies) * world.most_steps("evaluation")
        if outcome.before is None:
            outcome.before = world.evaluate([p.repeatable_mode for p in policies])
        first = len(outcome.rounds) + 1
        outcome.spent = cooperate(world, policies, config, done, first)
        if outcome.rounds:
            outcome.after = world.evaluate([p.repeatable_mode for p in outcome.policies])
            write(outcome)
    except KeyboardInterrupt:
        outcome.stopped = True
    return 130 if outcome.stopped else 0


def planned(world: Simulator, outcome: Outcome) -> int:
    """Return the most steps that what is left takes; counterfactuals are never so many."""
    c, k = world.config, len(outcome.subjects)
    n = k * c.probes
    held = round(c.holdout * n)
    per_round = k * min(c.probe_envs, c.probes) * c.probe_steps + (k * n + k * held) * c.horizon
    if c.wants_counterfactuals:
        per_round += 2 * (n - held) * c.horizon
    per_round += 2 * k * world.most_steps("trial")
    evaluations = 1 if outcome.rounds else 2
    left = max(c.rounds - len(outcome.rounds), 0)
    return left * per_round + evaluations * k * world.most_steps("evaluation")


def require_enough(outcome: Outcome, world: Simulator) -> None:
    """Raise BadInput where nothing is left to do, or to do it with."""
    done, config = len(outcome.rounds), outcome.config
    if done and done >= config.rounds and outcome.is_finished:
        raise BadInput(f"all {done} rounds are done; raise --rounds")
    evaluations = (1 if done else 2) * len(outcome.subjects) * world.most_steps("evaluation")
    if outcome.budget.spent + evaluations >= config.total_steps:
        used = f" and the {outcome.budget.spent:,} steps that were made" if done else ""
        when = "after" if done else "before and after"
        raise BadInput(
            f"--total-steps {config.total_steps:,} leaves nothing beside the evaluations {when}, "
            f"{evaluations:,}{used}; raise it, or lower --episodes"
        )


def require_new(out: Path) -> None:
    """Raise BadInput unless a directory can be written that holds no policies yet."""
    require_writable(out)
    if (out / "policies").exists():
        raise BadInput(f"{out} holds policies already; give --out another")


def report(outcome: Outcome) -> None:
    """Print what came of it, and where it is."""
    if outcome.config.json and not outcome.stopped:
        sys.stdout.write(as_text(outcome))
        return
    console = make_console(markup=False, highlight=False)
    if not outcome.stopped:
        for sheet in sheets(outcome):
            print_tables([sheet], (), console)
    for line in outcome.remarks():
        console.print(line, soft_wrap=True)
    if outcome.rounds:
        for what in ("policies", "cooperative.html"):
            name = "report" if what.endswith(".html") else what
            console.print(f"{name:<8}  {outcome.config.out / what}", soft_wrap=True)
