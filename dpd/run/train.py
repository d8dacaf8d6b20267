"""`dpd train` and `dpd distill`: start or resume a run, the training loop, and its end."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from rich.console import Console

from dpd.agents.base import Metrics
from dpd.agents.graphs import NotRecorded
from dpd.config import TrainConfig
from dpd.errors import BadInput
from dpd.log.log import RunLog
from dpd.log.naming import display_names, peer_names
from dpd.log.terminal import make_console
from dpd.run.device import learner_threads
from dpd.run.directory import RunDir, locked, run_path
from dpd.run.episodes import EvaluationStopped
from dpd.run.nan_guard import NonFinite
from dpd.run.stop import Stopped, StopRequest
from dpd.run.summary import (
    StudentReport,
    measure_teacher,
    print_paths,
    report_run,
    start_facts,
    title,
)
from dpd.run.torchrun import launched, train_ranks
from dpd.run.training import Training
from dpd.run.workers import follow_parent, part_number, share, supervise

TOO_LARGE = "the GPU's memory is too small for this run; lower --n-envs, --seeds or --capacity"


def train(config: TrainConfig, report_students: StudentReport | None = None) -> int:
    """Start or resume a run, train to its end, and report the results.

    `report_students` compares students with their teacher at the end of `dpd distill`. Returns the
    exit status: 0, 130 after Ctrl-C, 143 after SIGTERM, 3 after a NaN.
    """
    if launched():
        return train_ranks(config, train_part, report_students)
    console = make_console(highlight=False)
    if config.run.workers > 1:
        if (part := part_number()) is None:
            return supervise(config, console, report_students)
        follow_parent()
        return train_part(config, run_path(config), part, console)
    training = make_training(config)
    if config.run.resume is None:
        training.begin()  # before the directory exists: a refused run leaves nothing behind
    with locked(path := run_path(config)):
        run = RunDir(path, config, training)
        if config.run.resume is None:
            run.begin()
        elif not load_latest(run, console):
            return 0
        measure_teacher(path, training.teacher, config, console)
        status = run_to_end(run, console, is_new=config.run.resume is None)
        if status == 0:
            report_run(config, path, console, report_students)
        print_paths(config, path, console)
        return status


def train_part(config: TrainConfig, path: Path, part: int, console: Console) -> int:
    """Train a worker's share of the seeds, in a directory that another process has locked."""
    config = share(config, part)
    run = RunDir(path, config, make_training(config), part)
    return run_to_end(run, console, is_new=False) if load_latest(run, console) else 0


def make_training(config: TrainConfig) -> Training:
    """Set torch's number of threads, make the parts of a run, and compile its kernels.

    The order matters: rounding of the initial parameters depends on the number of threads.
    """
    torch.set_num_threads(config.run.threads or learner_threads(config))
    try:
        training = Training(config)
    except torch.OutOfMemoryError as error:
        raise BadInput(TOO_LARGE) from error
    training.fuse_updates(lambda line: make_console(highlight=False).print(line))
    return training


def load_latest(run: RunDir, console: Console) -> bool:
    """Load the newest checkpoint; return False if the run is already complete."""
    run.resume(lambda line: console.print(line, soft_wrap=True, highlight=False))
    if run.training.iteration < run.config.iterations or run.training.evaluation_due:
        return True
    console.print(f"all {run.training.steps:,} steps are done; raise --total-steps")
    return False


def run_to_end(run: RunDir, console: Console, is_new: bool) -> int:
    """Train until the step budget is used or the run stops; return the exit status."""
    start_step = None if is_new else run.training.steps
    try:
        while (status := run_once(run, console, start_step)) is None:
            start_step = run.training.steps
    except Stopped as stopped:
        return stopped.status
    except torch.OutOfMemoryError as error:
        raise BadInput(f"{TOO_LARGE}; to resume the run: {run.resume_command}") from error
    except NotRecorded as error:
        command = f"{run.resume_command} --no-record-updates"
        raise BadInput(f"{error}; to resume without CUDA graphs: {command}") from error
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror or error}; fix this, then resume from the last checkpoint with "
            f"{run.resume_command}",
            error.filename,
        ) from error
    return status


def run_once(run: RunDir, console: Console, start_step: int | None) -> int | None:
    """Run the training loop; return the exit status, or None after a rollback."""
    training, config = run.training, run.config
    log = RunLog(
        run.path,
        training.seeds,
        peer_names(config, run.path),
        config.run.total_steps,
        config.as_json(),
        title(config),
        console,
        start_step=start_step,
        metrics=run.metrics,
    )
    with log, StopRequest() as stop:
        if start_step is None:
            spec, memory = training.spec, training.replay_bytes
            log.show_start(start_facts(config, spec, run.path, memory, training.teacher))
            run.save()
        try:
            loop(run, log, stop)
        except NonFinite as error:
            log.notice(f"dpd: {nan_message(error, training)}", style="red")
            if not run.can_roll_back():
                log.notice(
                    f"to retry from the last checkpoint: {run.resume_command} --on-nan rollback"
                )
                return 3
            seed, _ = error.learner
        else:
            if stop.signum is None:
                return 0
            log.notice(
                f"stopped at {training.steps:,} steps; the policies are saved; "
                f"resume with: {run.resume_command}"
            )
            return 128 + stop.signum
    run.roll_back(seed)
    text = (
        f"rolled back to {training.steps:,} steps: seed {seed}'s peers continue with half their "
        "learning rate"
    )
    console.print(text, soft_wrap=True, highlight=False)
    return None


def nan_message(error: NonFinite, training: Training) -> str:
    """Return the message for a NaN, with the display name of its learner."""
    seed, peer = error.learner
    name = display_names(peer_names(training.config))[peer]
    return (
        f"{error.quantity} of seed {seed}'s {name} became NaN or infinite "
        f"after {training.steps:,} steps; lower --lr or look at the environment's rewards"
    )


def loop(run: RunDir, log: RunLog, stop: StopRequest) -> None:
    """Iterate until the budget is used or a stop is requested; evaluate, log and save."""
    training, config = run.training, run.config
    eval_every = max(1, config.iterations // config.run.evals)
    record_every = -(-config.iterations // config.run.records)
    score: float | None = None
    if training.evaluation_due and (evaluated := evaluate(run, log, stop)) is not None:
        score = float(evaluated["eval/return"].mean())
        log.record(training.steps, evaluated)
        log.flush()
        run.save(score)
    while training.iteration < config.iterations and stop.signum is None:
        start = time.perf_counter()
        metrics = training.iterate()
        left = config.iterations - training.iteration
        score, is_due = None, left % eval_every == 0
        if is_due and (evaluated := evaluate(run, log, stop)) is not None:
            metrics |= evaluated
            score = float(evaluated["eval/return"].mean())
        spent = training.clock.flush()
        busy = time.perf_counter() - start - spent.get("time/eval", 0.0)
        total = config.steps_per_iteration * config.run.seeds
        record = {**metrics, **spent, "time/steps_per_s": total / busy}
        log.record(training.steps, record, keep=is_due or left % record_every == 0)
        if score is not None or run.is_due():
            log.flush()
            run.save(score)
    if stop.signum is not None and score is None:
        log.flush()
        run.saver.save_last(training.steps)
        run.save()


def evaluate(run: RunDir, log: RunLog, stop: StopRequest) -> Metrics | None:
    """Evaluate the learners and save their policies; return None if a stop cut it short.

    In that case, the resumed run begins with this evaluation.
    """
    training = run.training
    try:
        evaluated = training.evaluate(lambda: stop.signum is not None)
    except EvaluationStopped:
        return None
    for line in training.trouble():
        log.notice(f"warning: {line}", style="yellow")
    run.saver.save(training.steps, evaluated["eval/return"])
    return evaluated
