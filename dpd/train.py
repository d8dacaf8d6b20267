"""`dpd train`: the loop, and how it begins and ends."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console

from dpd import policyfile
from dpd.config import TrainConfig
from dpd.envs.physics import n_cores
from dpd.evaluate import evaluate_policy, print_table, summary
from dpd.files import held
from dpd.log import RunLog, read_rows
from dpd.policies import PolicySaver
from dpd.rundir import RunDir
from dpd.stop import Stopped, StopRequest
from dpd.training import NonFinite, Training


def train(config: TrainConfig) -> int:
    """Train, show progress, save policies; or go on with a run.

    Returns the exit status: 0, 130 after Ctrl-C, 143 after SIGTERM, 3 after a NaN.
    """
    training = Training(config)  # before the directory: a refused environment leaves nothing behind
    torch.set_num_threads(config.run.threads or learner_threads(config, training.agent.n_learners))
    path = config.run.resume or config.run.out or new_name(config)
    with held(path):
        run = RunDir(path, config, training)
        console = Console()
        if config.run.resume is None:
            run.begin()
        else:
            run.resume(lambda line: console.print(line, soft_wrap=True, highlight=False))
            if training.iteration == config.iterations:
                console.print(f"all {training.steps:,} steps are done; raise --total-steps")
                return 0
        return see_through(run, console)


def see_through(run: RunDir, console: Console) -> int:
    """Train to the end of the budget, or of the run, and report; return the exit status."""
    title = f"dpd train {run.config.run.env}: {run.config.method}, {run.config.algo_name}"
    start_step = None if run.config.run.resume is None else run.training.steps
    try:
        while (status := train_on(run, console, title, start_step)) is None:
            start_step = run.training.steps
    except Stopped as stopped:
        return stopped.status
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror or error}; when this is mended, {run.resume_command} goes on from "
            "the last checkpoint",
            error.filename,
        ) from error
    if status == 0:
        report(run.training, run.saver, console)
    say_where(run, console, title)
    return status


def train_on(run: RunDir, console: Console, title: str, start_step: int | None) -> int | None:
    """Run the loop; return the exit status, or None after a rollback."""
    training, c = run.training, run.config.run
    log = RunLog(
        run.path,
        training.seeds,
        c.peers,
        c.total_steps,
        run.config.as_json(),
        title,
        console,
        start_step=start_step,
    )
    with log, StopRequest() as stop:
        if start_step is None:
            log.show_start(start_facts(run.config, training, run.path))
            run.save()
        try:
            loop(run, log, stop)
        except NonFinite as error:
            log.notice(f"dpd: {named(error, training)}", style="red")
            if not run.can_roll_back():
                log.notice(
                    f"to try again from the last checkpoint: {run.resume_command} --on-nan rollback"
                )
                return 3
            row = error.row
        else:
            if stop.signum is None:
                return 0
            log.notice(
                f"stopped at {training.steps:,} steps; the policies are saved; "
                f"go on with: {run.resume_command}"
            )
            return 128 + stop.signum
    run.roll_back(row)
    say = f"back at {training.steps:,} steps: that seed's peers go on at half their learning rate"
    console.print(say, soft_wrap=True, highlight=False)
    return None


def named(error: NonFinite, training: Training) -> str:
    """Word where a NaN came up."""
    seed, peer = training.rows[error.row]
    return (
        f"{error.what} of seed {seed}'s peer {peer} became NaN or infinite "
        f"after {training.steps:,} steps; lower --lr or look at the environment's rewards"
    )


def loop(run: RunDir, log: RunLog, stop: StopRequest) -> None:
    """Iterate until the budget is used or a stop is asked for; evaluate and save on the way."""
    training, config = run.training, run.config
    eval_every = max(1, config.iterations // config.run.evals)
    record_every = -(-config.iterations // config.run.records)
    score: float | None = None
    while training.iteration < config.iterations and stop.signum is None:
        start = time.perf_counter()
        metrics = training.iterate()
        left = config.iterations - training.iteration
        score = None
        if left % eval_every == 0:
            evaluated = training.evaluate()
            metrics |= evaluated
            run.saver.save(training.steps, evaluated["eval/return"])
            score = float(evaluated["eval/return"].mean())
        spent = training.clock.flush()
        busy = time.perf_counter() - start - spent.get("time/eval", 0.0)
        total = config.steps_per_iteration * config.run.seeds
        record = {**metrics, **spent, "time/steps_per_s": total / busy}
        log.record(training.steps, record, keep=score is not None or left % record_every == 0)
        if score is not None or run.is_due():
            log.flush()
            run.save(score)
    if stop.signum is not None and score is None:
        log.flush()
        run.saver.save_last(training.steps)
        run.save()


def learner_threads(config: TrainConfig, n_learners: int) -> int:
    """Return how many threads a minibatch can use.

    Below torch's own grain of work per thread, a second one only adds waiting.
    """
    elements = n_learners * config.algo.minibatch_size * max(config.algo.hidden)
    return n_cores() if elements >= 32768 else 1


def new_name(config: TrainConfig) -> Path:
    """Name a run's directory."""
    run, stamp = config.run, datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    env = run.env.replace(":", "-").replace("/", "-")
    return Path("runs") / f"{env}-{config.method}-{config.algo_name}-seed{run.seed}-{stamp}"


def start_facts(config: TrainConfig, training: Training, run_dir: Path) -> dict[str, object]:
    """Return what the start-up table says."""
    run, algo, spec = config.run, config.algo, training.env.spec
    seeds = f"seeds {run.seed} to {training.seeds[-1]}" if run.seeds > 1 else f"seed {run.seed}"
    each = run.total_steps // run.peers
    return {
        "budget": f"{run.total_steps:,} environment steps = {run.peers} peers x {each:,}"
        + (f", for each of {run.seeds} seeds" if run.seeds > 1 else ""),
        "learners": f"{training.agent.n_learners} in one stack, {seeds}",
        "iteration": f"{algo.n_envs} envs x {algo.n_steps} steps = {algo.samples:,} a learner, "
        f"{algo.epochs} epochs of {algo.minibatch_size}",
        "simulation": f"{spec.backend}, {spec.obs_dim} observations, {spec.act_dim} actions",
        "run": run_dir,
        "watch": f"tensorboard --logdir {run_dir / 'tb'}",
    }


def report(training: Training, saver: PolicySaver, console: Console) -> None:
    """Evaluate the saved policies on fresh episodes and print a table."""
    with console.status("evaluating the saved policies"):
        rows = [final_row(training, f) for f in saver.files()]
    print_table(rows)


def say_where(run: RunDir, console: Console, title: str) -> None:
    """Say where the run's files are, and draw its curves."""
    places = {"policies": run.saver.dir if run.saver.files() else None}
    places["curves"] = draw_curves(run.path, title)
    for name, place in places.items():
        if place is not None:
            console.print(f"{name:<12} {place}", soft_wrap=True)
    console.print(f"TensorBoard  tensorboard --logdir {run.path / 'tb'}", soft_wrap=True)


def draw_curves(run_dir: Path, title: str) -> Path | None:
    """Draw the learning curves, if there is anything to draw."""
    from dpd.plots import learning_curves

    metrics, picture = run_dir / "metrics.csv", run_dir / "curves.png"
    if not any(row["metric"].endswith("/return") for row in read_rows(metrics)):
        return None  # stopped before the first episode ended
    learning_curves(metrics, picture, title)
    return picture


def final_row(training: Training, file: Path) -> dict[str, object]:
    """Evaluate one saved policy on episodes no evaluation in training used."""
    policy = policyfile.load(file)
    run = training.run
    outcome = evaluate_policy(
        policy, run.env, run.final_episodes, run.seed + 1_000_000, run.threads
    )
    return summary(file.name.removesuffix(".safetensors"), run.env, policy, outcome)
