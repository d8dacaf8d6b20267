"""`dpd cooperate`: read policies, let them teach each other, and write the results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from dpd.cooperate.outcome import Cooperation, read_cooperation
from dpd.cooperate.policies import read_policies
from dpd.cooperate.report import cooperation_report, round_line, write_cooperation
from dpd.cooperate.rounds import Round, cooperate
from dpd.cooperate.simulator import Budget, Simulator
from dpd.errors import BadInput
from dpd.log.terminal import make_console
from dpd.report.report import print_line, print_report, require_writable

if TYPE_CHECKING:
    from dpd.cooperate.config import CooperateConfig


class StepsPerSecond(ProgressColumn):
    """Progress column with the simulator steps per second."""

    def render(self, task: Task) -> Text:
        """Return the speed, or nothing before the first step."""
        return Text("" if task.speed is None else f"{task.speed:,.0f} steps/s")


def steps_progress(console: Console) -> Progress:
    """Return a progress bar of simulator steps."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps"),
        StepsPerSecond(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def cooperate_paths(config: CooperateConfig) -> int:
    """Run all rounds; print tables or JSON, and write the policies and the report.

    Ctrl-C keeps the policies of the last completed round.
    """
    outcome = new_cooperation(config) if config.resume is None else read_cooperation(config)
    config, budget = outcome.config, outcome.budget
    console = make_console(stderr=True, highlight=False)
    with steps_progress(console) as progress:
        task = progress.add_task("", completed=budget.spent, total=config.total_steps)

        def tell(purpose: str, steps: int) -> None:
            progress.update(task, description=purpose, advance=steps)

        budget.tell = tell
        world = Simulator(outcome.env_id, budget, config)
        require_enough(outcome, world)
        progress.update(
            task, total=min(config.total_steps, budget.spent + max_steps_left(world, outcome))
        )
        try:
            status = run_rounds(world, outcome, console)
        finally:
            world.close()
    print_cooperation(outcome)
    return status


def new_cooperation(config: CooperateConfig) -> Cooperation:
    """Start a cooperation: read policies that fit each other and check the output directory."""
    subjects, env_id = read_policies(config)
    require_writable(config.out)
    if (config.out / "policies").exists():
        raise BadInput(f"{config.out} already holds policies; choose another --out")
    budget = Budget(config.total_steps)
    return Cooperation(subjects=subjects, env_id=env_id, config=config, budget=budget)


def run_rounds(world: Simulator, outcome: Cooperation, console: Console) -> int:
    """Evaluate, run the remaining rounds and evaluate again; return the exit status."""
    config, budget, policies = outcome.config, outcome.budget, outcome.policies

    def done(finished: Round) -> None:
        outcome.add(finished)
        write_cooperation(outcome)
        console.print(round_line(outcome), soft_wrap=True)

    try:
        budget.reserved = len(policies) * world.most_steps("evaluation")
        if outcome.before is None:
            outcome.before = world.evaluate([p.repeatable_mode for p in policies])
        first = len(outcome.rounds) + 1
        outcome.ended_by = cooperate(world, policies, config, done, first)
        if outcome.rounds:
            outcome.after = world.evaluate([p.repeatable_mode for p in outcome.policies])
            write_cooperation(outcome)
    except KeyboardInterrupt:
        outcome.stopped = True
    return 130 if outcome.stopped else 0


def max_steps_left(world: Simulator, outcome: Cooperation) -> int:
    """Return an upper bound on the remaining simulator steps."""
    # k: policies; n: probe states of all of them
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


def require_enough(outcome: Cooperation, world: Simulator) -> None:
    """Raise BadInput if all rounds are done or the budget allows none."""
    done, config = len(outcome.rounds), outcome.config
    if done and done >= config.rounds and outcome.is_finished:
        raise BadInput(f"all {done} rounds are done; raise --rounds")
    evaluations = (1 if done else 2) * len(outcome.subjects) * world.most_steps("evaluation")
    if outcome.budget.spent + evaluations >= config.total_steps:
        used = f" and the {outcome.budget.spent:,} steps already taken" if done else ""
        when = "after" if done else "before and after"
        raise BadInput(
            f"--total-steps {config.total_steps:,} only covers the evaluations {when}, which take "
            f"{evaluations:,} steps{used}; raise it, or lower --episodes"
        )


def print_cooperation(outcome: Cooperation) -> None:
    """Print the results and the paths of the files."""
    if not outcome.stopped:
        print_report(cooperation_report(outcome), outcome.config.json)
        if outcome.config.json:
            return
    for line in outcome.remarks():
        print_line(line)
    if outcome.rounds:
        print_line(f"policies  {outcome.config.out / 'policies'}")
        print_line(f"report    {outcome.config.out / 'cooperative.html'}")
