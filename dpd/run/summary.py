"""What a run says at its beginning and at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from rich.console import Console

from dpd.config import StackConfig, TrainConfig
from dpd.distill.teacher import Teacher
from dpd.envs.base import EnvKwargs, EnvSpec
from dpd.log.csv import read_rows
from dpd.log.naming import peer_names, spoken
from dpd.log.terminal import make_console
from dpd.policies import policyfile
from dpd.policies.policyfile import Policy
from dpd.run.episodes import (
    Outcome,
    evaluate_together,
)
from dpd.run.sources import Place, find_policies, is_best
from dpd.run.teachers import LAST_EPISODES, keep_returns

STUDENTS, FIDELITY = "students.png", "fidelity.json"
PHASES = {
    "time/collect": "collecting",
    "time/update": "learning",
    "time/distill": "distilling",
    "time/eval": "evaluating",
}


def title(config: TrainConfig) -> str:
    """Name a run."""
    return f"dpd {config.command} {config.run.env}: {config.method}, {config.algo_name}"


def start_facts(
    config: TrainConfig,
    spec: EnvSpec,
    run_dir: Path,
    replay_bytes: int,
    teacher: Teacher | None = None,
) -> dict[str, object]:
    """Return what the start-up table says."""
    run, n = config.run, config.run.seeds * config.run.peers
    last = run.seed + run.seeds - 1
    seeds = f"seeds {run.seed} to {last}" if run.seeds > 1 else f"seed {run.seed}"
    where = f"{len(config.stacks)} stacks" if config.stacks[1:] else "one stack"
    where = where if run.workers == 1 else f"{run.workers} processes"
    where += "" if run.device == "cpu" else f" on {run.device}"
    each = " and ".join(
        f"{len(stack.peers)} peers x {config.steps_of(stack):,}" for stack in config.stacks
    )
    facts = {
        "budget": f"{run.total_steps:,} environment steps = {each}"
        + (f", for each of {run.seeds} seeds" if run.seeds > 1 else ""),
        "learners": f"{n} in {where}, {seeds}",
        "iteration": "; ".join(plan(stack) for stack in config.stacks),
        "replay": f"{replay_bytes / 1e6:,.0f} MB in memory"
        + (" at the end" if run.device == "cpu" else ""),  # a GPU's is taken at once
        "simulation": f"{spec.backend}, {spec.obs_dim} observations, {spec.act_dim} actions"
        + "".join(f"; {note}" for note in spec.notes),
        **teacher_facts(config, teacher),
        "run": run_dir,
        "watch": f"tensorboard --logdir {run_dir / 'tb'}",
    }
    return {k: v for k, v in facts.items() if replay_bytes or k != "replay"}


def know_teacher(
    run_dir: Path, teacher: Teacher | None, config: TrainConfig, console: Console
) -> None:
    """Measure what a run's teachers get, unless the run knows."""
    if teacher is not None:
        with console.status("measuring the teacher"):
            keep_returns(run_dir, teacher, config)


def teacher_facts(config: TrainConfig, teacher: Teacher | None) -> dict[str, object]:
    """Say what teachers get, with the standard deviation over episodes, and random actions."""
    if teacher is None or teacher.returns is None or config.teachers is None:
        return {}
    facts: dict[str, object] = {}
    several = len(teacher.policies) > 1
    for k, (path, got) in enumerate(
        zip(config.teachers.teacher, teacher.returns.teachers, strict=True)
    ):
        name = path.name.removesuffix(".safetensors")
        facts[f"teacher {k}" if several else "teacher"] = (
            f"{name}: {np.mean(got):,.0f} ± {np.std(got):,.0f} over {len(got)} episodes; "
            f"random actions {teacher.returns.floor:,.0f}"
        )
    return facts


def plan(stack: StackConfig) -> str:
    """Say what a stack does in an iteration."""
    rounds = f"{stack.rounds} x " if stack.rounds > 1 else ""
    return f"{rounds}{stack.algo.plan}"


StudentReport = Callable[[TrainConfig, Path, Mapping[Path, Outcome], Console], None]
"""Compare the students of a run, by their last policies and outcomes, with their teacher."""


def report(
    config: TrainConfig, run_dir: Path, console: Console, report_students: StudentReport | None
) -> None:
    """Evaluate the saved policies on episodes no evaluation in training used; print a table.

    `report_students` adds a table of students beside their teacher, if the run has one.
    """
    run, files = config.run, find_policies(run_dir)
    policies = [policyfile.load(file) for file in files]
    place = Place(run.env, run.parsed_env_kwargs())
    with console.status("evaluating the saved policies"):
        outcomes = evaluate_together(
            policies, run.env, run.final_episodes, run.seed + LAST_EPISODES, run.threads
        )
    print_table(
        [
            summary(file.stem, place, policy, outcome)
            for file, policy, outcome in zip(files, policies, outcomes, strict=True)
        ]
    )
    if config.teachers is not None and report_students is not None:
        last = {f: o for f, o in zip(files, outcomes, strict=True) if not is_best(f)}
        report_students(config, run_dir, last, console)


def say_where(config: TrainConfig, run_dir: Path, console: Console) -> None:
    """Say where the run's files are, and draw its curves."""
    policies = run_dir / "policies"
    places = {"policies": policies if policies.exists() else None}
    places["curves"] = draw_curves(run_dir, title(config), spoken(peer_names(config)))
    for name, file in (("students", STUDENTS), ("fidelity", FIDELITY)):
        places[name] = run_dir / file if (run_dir / file).exists() else None
    for name, place in places.items():
        if place is not None:
            console.print(f"{name:<12} {place}", soft_wrap=True)
    if spent := ", ".join(f"{k} {v:.1%}" for k, v in time_shares(run_dir).items()):
        console.print(f"{'time':<12} {spent}", soft_wrap=True, highlight=False)
    console.print(f"TensorBoard  tensorboard --logdir {run_dir / 'tb'}", soft_wrap=True)


def time_shares(run_dir: Path) -> dict[str, float]:
    """Return each phase's share of the time that the run's records tell of."""
    spent: dict[str, float] = {}
    for row in read_rows(run_dir / "metrics.csv"):
        phase = PHASES.get(row["metric"])
        if phase is not None:
            spent[phase] = spent.get(phase, 0.0) + float(row["value"])
    whole = sum(spent.values())
    return {phase: seconds / whole for phase, seconds in spent.items()} if whole > 0 else {}


def draw_curves(run_dir: Path, title: str, names: Sequence[str]) -> Path | None:
    """Draw the learning curves, if there is anything to draw."""
    from dpd.report.figures import learning_curves

    metrics, picture = run_dir / "metrics.csv", run_dir / "curves.png"
    if not any(row["metric"].endswith("/return") for row in read_rows(metrics)):
        return None  # stopped before the first episode ended
    learning_curves(metrics, picture, title, names)
    return picture


def summary(name: str, place: Place, policy: Policy, outcome: Outcome) -> dict[str, object]:
    """Return a policy's row: returns over episodes, and where it comes from."""
    r = outcome.returns[0]
    return {
        "policy": name,
        "env": place.env_id,
        "env_kwargs": place.env_kwargs,
        "steps": policy.meta.provenance.get("steps"),
        "episodes": len(r),
        "mean": float(r.mean()),
        "std": float(r.std(ddof=1)) if len(r) > 1 else 0.0,
        "min": float(r.min()),
        "max": float(r.max()),
        "length": float(outcome.lengths.mean()),
        "returns": r.tolist(),
    }


def print_table(rows: Sequence[dict[str, object]], title: str = "Deterministic evaluation") -> None:
    """Print rows of `summary` as a table."""
    from rich.table import Table

    places = [str(Place(str(row["env"]), cast(EnvKwargs, row["env_kwargs"]))) for row in rows]
    envs = sorted(set(places))
    episodes = sorted({str(row["episodes"]) for row in rows})
    table = Table(
        title=f"{title}: {', '.join(envs)}, {'/'.join(episodes)} episodes each",
        title_justify="left",
    )
    table.add_column("policy", overflow="fold")
    for name in ("return", "± std", "min", "max", "length"):
        table.add_column(name, justify="right", no_wrap=True)
    for row, place in zip(rows, places, strict=True):
        numbers = [f"{row[k]:,.0f}" for k in ("mean", "std", "min", "max", "length")]
        name = str(row["policy"]) + (f"  {place}" if len(envs) > 1 else "")
        table.add_row(name, *numbers)
    make_console(highlight=False).print(table)
