"""What a run says at its beginning and at its end."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from dpd import policyfile
from dpd.config import TrainConfig
from dpd.envs.base import EnvSpec
from dpd.evaluate import evaluate_together, print_table, summary
from dpd.log import read_rows
from dpd.sources import find_policies


def title(config: TrainConfig) -> str:
    """Name a run."""
    return f"dpd train {config.run.env}: {config.method}, {config.algo_name}"


def start_facts(
    config: TrainConfig, spec: EnvSpec, run_dir: Path, replay_bytes: int
) -> dict[str, object]:
    """Return what the start-up table says."""
    run, n = config.run, config.run.seeds * config.run.peers
    last = run.seed + run.seeds - 1
    seeds = f"seeds {run.seed} to {last}" if run.seeds > 1 else f"seed {run.seed}"
    where = "one stack" if run.workers == 1 else f"{run.workers} processes"
    each = run.total_steps // run.peers
    facts = {
        "budget": f"{run.total_steps:,} environment steps = {run.peers} peers x {each:,}"
        + (f", for each of {run.seeds} seeds" if run.seeds > 1 else ""),
        "learners": f"{n} in {where}, {seeds}",
        "iteration": config.algo.plan,
        "replay": f"{replay_bytes / 1e6:,.0f} MB in memory at the end",
        "simulation": f"{spec.backend}, {spec.obs_dim} observations, {spec.act_dim} actions",
        "run": run_dir,
        "watch": f"tensorboard --logdir {run_dir / 'tb'}",
    }
    return {k: v for k, v in facts.items() if replay_bytes or k != "replay"}


def report(config: TrainConfig, run_dir: Path, console: Console) -> None:
    """Evaluate the saved policies on episodes no evaluation in training used; print a table."""
    run, files = config.run, find_policies(run_dir)
    policies = [policyfile.load(file) for file in files]
    with console.status("evaluating the saved policies"):
        outcomes = evaluate_together(
            policies, run.env, run.final_episodes, run.seed + 1_000_000, run.threads
        )
    print_table(
        [
            summary(file.stem, run.env, policy, outcome)
            for file, policy, outcome in zip(files, policies, outcomes, strict=True)
        ]
    )


def say_where(config: TrainConfig, run_dir: Path, console: Console) -> None:
    """Say where the run's files are, and draw its curves."""
    policies = run_dir / "policies"
    places = {"policies": policies if policies.exists() else None}
    places["curves"] = draw_curves(run_dir, title(config))
    for name, place in places.items():
        if place is not None:
            console.print(f"{name:<12} {place}", soft_wrap=True)
    console.print(f"TensorBoard  tensorboard --logdir {run_dir / 'tb'}", soft_wrap=True)


def draw_curves(run_dir: Path, title: str) -> Path | None:
    """Draw the learning curves, if there is anything to draw."""
    from dpd.plots import learning_curves

    metrics, picture = run_dir / "metrics.csv", run_dir / "curves.png"
    if not any(row["metric"].endswith("/return") for row in read_rows(metrics)):
        return None  # stopped before the first episode ended
    learning_curves(metrics, picture, title)
    return picture
