"""What a run says at its beginning and at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from dpd import policyfile
from dpd.config import StackConfig, TrainConfig
from dpd.csvlog import read_rows
from dpd.distill.teacher import Teacher
from dpd.envs.base import EnvSpec
from dpd.evaluate import Outcome, evaluate_together, print_table, summary
from dpd.fidelity.sizes import by_size, notes, sizes_sheet, write_json
from dpd.fidelity.sizes_plot import draw_sizes
from dpd.fidelity.subjects import one_thread
from dpd.naming import peer_names, spoken
from dpd.sheets import print_sheets
from dpd.sources import Place, find_policies, is_best
from dpd.teachers import LAST_EPISODES, keep_returns, kept_teacher

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


def report(config: TrainConfig, run_dir: Path, console: Console) -> None:
    """Evaluate the saved policies on episodes no evaluation in training used; print a table."""
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
    if config.teachers is not None:
        last = {f: o for f, o in zip(files, outcomes, strict=True) if not is_best(f)}
        report_sizes(config, run_dir, last, console)


def report_sizes(
    config: TrainConfig, run_dir: Path, last: Mapping[Path, Outcome], console: Console
) -> None:
    """Compare students with their teacher by size: a table, fidelity.json, and a picture."""
    with console.status("comparing the students with their teacher"), one_thread():
        found = by_size(config, kept_teacher(run_dir), list(last), list(last.values()))
    print_sheets([sizes_sheet(found)], notes(found), console)
    write_json(found, run_dir / FIDELITY)
    if len(found.sizes) > 1:
        draw_sizes(found, run_dir / STUDENTS, title(config))


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
    from dpd.plots import learning_curves

    metrics, picture = run_dir / "metrics.csv", run_dir / "curves.png"
    if not any(row["metric"].endswith("/return") for row in read_rows(metrics)):
        return None  # stopped before the first episode ended
    learning_curves(metrics, picture, title, names)
    return picture
