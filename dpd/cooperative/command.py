"""`dpd cooperate`: read policies, let them teach each other, and write what came of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from dpd.config import BadInput
from dpd.cooperative.report import Outcome, as_text, write
from dpd.cooperative.rounds import Round, cooperate
from dpd.cooperative.simulator import Simulator
from dpd.cooperative.subjects import read_subjects
from dpd.cooperative.tables import print_tables, round_line
from dpd.cooperative.world import Budget
from dpd.fidelity.report import require_writable

if TYPE_CHECKING:
    from dpd.cooperative.config import CooperateConfig


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
    subjects, env_id = read_subjects(config)
    require_new(config.out)
    console = Console(stderr=True, highlight=False)
    with bar(console) as progress:
        task = progress.add_task("", total=config.total_steps)

        def tell(purpose: str, steps: int) -> None:
            progress.update(task, description=purpose, advance=steps)

        budget = Budget(config.total_steps, tell)
        world = Simulator(env_id, budget, config)
        require_more_than(2 * len(subjects) * world.evaluation_steps, config.total_steps)
        progress.update(task, total=min(config.total_steps, planned(world, len(subjects))))
        outcome = Outcome(subjects=subjects, env_id=env_id, config=config, budget=budget)
        try:
            status = run(world, outcome, console)
        finally:
            world.close()
    report(outcome)
    return status


def run(world: Simulator, outcome: Outcome, console: Console) -> int:
    """Evaluate, go through the rounds, evaluate again; return the exit status."""
    config, budget, policies = outcome.config, outcome.budget, [s.policy for s in outcome.subjects]

    def done(found: Round) -> None:
        outcome.add(found)
        write(outcome)
        console.print(round_line(outcome), soft_wrap=True)

    try:
        budget.reserved = len(policies) * world.evaluation_steps
        outcome.before = world.evaluate([p.mode for p in policies])
        outcome.spent = cooperate(world, policies, config, done)
        if outcome.rounds:
            outcome.after = world.evaluate([p.mode for p in outcome.rounds[-1].policies])
            write(outcome)
    except KeyboardInterrupt:
        outcome.stopped = True
    return 130 if outcome.stopped else 0


def planned(world: Simulator, k: int) -> int:
    """Return the most steps that all of it takes; counterfactuals are never so many."""
    c, n = world.config, k * world.config.probes
    held = round(c.holdout * n)
    per_round = k * min(c.probe_envs, c.probes) * c.probe_steps + (k * n + k * held) * c.horizon
    if c.wants_counterfactuals:
        per_round += 2 * (n - held) * c.horizon
    return c.rounds * per_round + 2 * k * world.evaluation_steps


def require_more_than(evaluations: int, total: int) -> None:
    """Raise BadInput where the evaluations before and after take the whole budget."""
    if evaluations >= total:
        raise BadInput(
            f"--total-steps {total:,} leaves nothing beside the evaluations before and after, "
            f"{evaluations:,}; raise it, or lower --episodes"
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
    console = Console(highlight=False, markup=False)
    if not outcome.stopped:
        print_tables(outcome, console)
    for line in outcome.remarks():
        console.print(line, soft_wrap=True)
    if outcome.rounds:
        console.print(f"policies  {outcome.config.out / 'policies'}", soft_wrap=True)
