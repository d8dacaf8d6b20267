"""Start-up and end-of-run summaries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dpd.config import TrainConfig
from dpd.distill.teacher import Teacher
from dpd.distill.views import critic_columns
from dpd.envs.base import EnvSpec
from dpd.errors import flag
from dpd.files import replacing
from dpd.log.csv import read_rows
from dpd.log.log import flattened
from dpd.log.naming import display_names, peer_names
from dpd.policies import policyfile
from dpd.policies.policyfile import Policy
from dpd.policies.views import describe_view
from dpd.report.figures import learning_curves
from dpd.report.report import Report, Section, Table, json_text, print_report
from dpd.run.episodes import EvalResult, evaluate_together
from dpd.run.settings import preset_settings
from dpd.run.sources import Place, find_policies, is_best
from dpd.run.teachers import LAST_EPISODES
from dpd.run.updates import update_plan

STUDENTS, FIDELITY, EVALUATION = "students.png", "fidelity.json", "evaluation.json"
PHASES = {
    "time/collect": "collecting",
    "time/update": "learning",
    "time/distill": "distilling",
    "time/eval": "evaluating",
}


def title(config: TrainConfig) -> str:
    """Return the title of a run."""
    return f"dpd {config.command} {config.run.env}: {config.method}, {config.algo_name}"


def start_facts(
    config: TrainConfig,
    spec: EnvSpec,
    run_dir: Path,
    replay_bytes: int,
    teacher: Teacher | None = None,
) -> dict[str, object]:
    """Return the rows of the start-up table."""
    run, n = config.run, config.run.seeds * config.run.peers
    last = run.seed + run.seeds - 1
    seeds = f"seeds {run.seed} to {last}" if run.seeds > 1 else f"seed {run.seed}"
    where = f"{len(config.stacks)} stacks" if config.stacks[1:] else "one stack"
    where = where if run.workers == 1 else f"{run.workers} processes"
    where += "" if run.device == "cpu" else f" on {run.device}"
    shares = " and ".join(
        f"{config.members(len(stack.peers))} x {config.steps_of(stack):,}"
        for stack in config.stacks
    )
    facts = {
        **preset_facts(config),
        "budget": f"{run.total_steps:,} environment steps = {shares}"
        + (f", for each of {run.seeds} seeds" if run.seeds > 1 else ""),
        "learners": f"{n} in {where}, {seeds}",
        "iteration": "; ".join(
            (f"{stack.rounds} x " if stack.rounds > 1 else "") + stack.algo.plan
            for stack in config.stacks
        ),
        **initial_facts(config),
        "updates": update_plan(config),
        "replay": f"{replay_bytes / 1e6:,.0f} MB in memory"
        + (" at the end" if run.device == "cpu" else ""),  # a GPU buffer is allocated at once
        "simulation": f"{spec.backend}, {spec.obs_dim} observations, {spec.act_dim} actions"
        + "".join(f"; {note}" for note in spec.notes),
        **({"randomized": run.randomize} if run.randomize else {}),
        **teacher_facts(config, teacher),
        **student_facts(config, spec),
        "run": run_dir,
        "watch": f"tensorboard --logdir {run_dir / 'tb'}",
    }
    return {k: v for k, v in facts.items() if replay_bytes or k != "replay"}


def preset_facts(config: TrainConfig) -> dict[str, object]:
    """Return the presets of a run, and those of their settings that it has otherwise."""
    if config.preset is None:
        return {}
    if config.command == "distill":
        return {"preset": config.preset}
    preset = flattened(preset_settings(config.preset, config.method, config.algo_name))
    settings = flattened(config.as_json())
    other = [flag(name) for name, value in preset.items() if settings[name] != value]
    return {"preset": config.preset + (f", with other {' '.join(other)}" if other else "")}


def initial_facts(config: TrainConfig) -> dict[str, object]:
    """Return the policies that learners start from, and how long these stay as they are."""
    if not config.run.init_from:
        return {}
    names = ", ".join(file.name.removesuffix(".safetensors") for file in config.run.init_from)
    frozen = max(getattr(stack.algo, "critic_warmup", 0) for stack in config.stacks)
    wait = f"; in the first {frozen} iterations with updates, only values learn" if frozen else ""
    return {"start": names + wait}


def teacher_facts(config: TrainConfig, teacher: Teacher | None) -> dict[str, object]:
    """Return the teachers' mean returns ± std over episodes, and that of random actions."""
    if teacher is None or teacher.returns is None or config.teachers is None:
        return {}
    facts: dict[str, object] = {}
    several = len(teacher.policies) > 1
    route = teacher.route
    for k, (path, returns) in enumerate(
        zip(config.teachers.teacher, teacher.returns.teachers, strict=True)
    ):
        name = path.name.removesuffix(".safetensors")
        facts[f"teacher {k}" if several else "teacher"] = (
            f"{name}: {np.mean(returns):,.0f} ± {np.std(returns):,.0f} over {len(returns)} "
            f"episodes; random actions {teacher.returns.floor:,.0f}"
            + (f"; where {route.name} is {route.first + k}, returns of all" if route else "")
        )
    return facts


def student_facts(config: TrainConfig, spec: EnvSpec) -> dict[str, object]:
    """Return what students or policies see, if it is not all that their environment shows."""
    if not config.has_views:
        return {}
    view = config.views.resolve(spec, 1)
    frames = ", ".join(map(str, config.histories)) or "1"
    seen = f"{describe_view(view)}; {len(view.columns)} of {spec.obs_dim} observations"
    facts: dict[str, object] = {f"{config.views.PLURAL} see": f"{seen}, frames: {frames}"}
    if (encoder := config.stacks[0].algo.encoder_layers) is not None:
        facts[f"{config.views.PLURAL} see"] = f"{seen}, frames: {frames}; {encoder}"
    words = {getattr(stack.algo, "critic_obs", "actor") for stack in config.stacks} - {"actor"}
    for word in sorted(words):
        some, every = len(critic_columns(word, spec)), f"{spec.obs_dim} observations"
        facts["values see"] = f"{word}; {some} of {every}" if some else f"all {every}"
    return facts


StudentReport = Callable[[TrainConfig, Path, Mapping[Path, EvalResult], Console], None]
"""A function that compares the last policies of a run, and their returns, with the teacher."""


def report_end(
    config: TrainConfig,
    run_dir: Path,
    status: int,
    console: Console,
    report_students: StudentReport | None,
) -> None:
    """Report the policies of a run that is complete; print the paths of the files of any run."""
    if status == 0:
        report_run(config, run_dir, console, report_students)
    print_paths(config, run_dir, console)


def report_run(
    config: TrainConfig, run_dir: Path, console: Console, report_students: StudentReport | None
) -> None:
    """Evaluate the saved policies on episodes that training did not use; print and keep a table.

    If the run has a teacher, `report_students` then compares the students with it.
    """
    run, files, episodes = config.run, find_policies(run_dir), config.evaluation.final_episodes
    policies = [policyfile.load(file) for file in files]
    place = Place(run.env, run.parsed_env_kwargs())
    with console.status("evaluating the saved policies"):
        results = evaluate_together(
            policies, run.env, episodes, run.seed + LAST_EPISODES, run.threads
        )
    rows = [
        summary(file.stem, place, policy, result)
        for file, policy, result in zip(files, policies, results, strict=True)
    ]
    report = evaluation_report(rows)
    print_report(report, console=console)
    with replacing(run_dir / EVALUATION) as draft:
        draft.write_text(json_text(report))
    if config.teachers is not None and report_students is not None:
        last = {f: r for f, r in zip(files, results, strict=True) if not is_best(f)}
        report_students(config, run_dir, last, console)


def print_paths(config: TrainConfig, run_dir: Path, console: Console) -> None:
    """Draw the learning curves; print the paths of the run's files and how it spent its time."""
    names, curves = display_names(peer_names(config)), run_dir / "curves.png"
    learning_curves(run_dir / "metrics.csv", curves, title(config), names)
    places = {"policies": run_dir / "policies", "curves": curves}
    places |= {"students": run_dir / STUDENTS, "fidelity": run_dir / FIDELITY}
    for name, place in places.items():
        if place.exists():
            console.print(f"{name:<12} {place}", soft_wrap=True)
    if spent := ", ".join(f"{k} {v:.1%}" for k, v in time_shares(run_dir).items()):
        console.print(f"{'time':<12} {spent}", soft_wrap=True, highlight=False)
    console.print(f"TensorBoard  tensorboard --logdir {run_dir / 'tb'}", soft_wrap=True)


def time_shares(run_dir: Path) -> dict[str, float]:
    """Return each phase's share of the recorded time."""
    spent: dict[str, float] = {}
    for row in read_rows(run_dir / "metrics.csv"):
        phase = PHASES.get(row["metric"])
        if phase is not None:
            spent[phase] = spent.get(phase, 0.0) + float(row["value"])
    total = sum(spent.values())
    return {phase: seconds / total for phase, seconds in spent.items()} if total > 0 else {}


def summary(name: str, place: Place, policy: Policy, result: EvalResult) -> dict[str, Any]:
    """Return a policy's row for tables and JSON: statistics of its returns, and its source."""
    r = result.returns[0]
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
        "length": float(result.lengths.mean()),
        "returns": r.tolist(),
    }


def evaluation_report(rows: Sequence[dict[str, Any]]) -> Report:
    """Report on the rows made by `summary`."""
    places = [str(Place(row["env"], row["env_kwargs"])) for row in rows]
    envs = sorted(set(places))
    episodes = sorted({str(row["episodes"]) for row in rows})
    title = f"Deterministic evaluation: {', '.join(envs)}, {'/'.join(episodes)} episodes each"
    cells = [
        [
            row["policy"] + (f"  {place}" if len(envs) > 1 else ""),
            *(f"{row[k]:,.0f}" for k in ("mean", "std", "min", "max", "length")),
        ]
        for row, place in zip(rows, places, strict=True)
    ]
    table = Table(title, ["policy", "return", "± std", "min", "max", "length"], cells)
    return Report(sections=[Section(tables=[table])], data=rows, framed=True)
