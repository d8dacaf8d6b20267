"""`dpd train`: the loop, and how it begins and ends."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from rich.console import Console

from dpd.agents.base import Metrics
from dpd.agents.graphs import NotRecorded
from dpd.config import TrainConfig
from dpd.envs.physics import n_cores
from dpd.errors import BadInput
from dpd.log.log import RunLog
from dpd.log.naming import peer_names, spoken
from dpd.log.terminal import make_console
from dpd.run.directory import RunDir, held, run_path
from dpd.run.episodes import EvaluationStopped
from dpd.run.nan_guard import NonFinite
from dpd.run.stop import Stopped, StopRequest
from dpd.run.summary import StudentReport, know_teacher, report, say_where, start_facts, title
from dpd.run.torchrun import launched, train_ranks
from dpd.run.training import Training
from dpd.run.workers import follow_parent, part_number, share, supervise

TOO_LARGE = "the GPU's memory is too small for this run; lower --n-envs, --seeds or --capacity"


def train(config: TrainConfig, report_students: StudentReport | None = None) -> int:
    """Train, show progress and save policies, or resume a run.

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
        training.begin()  # before the directory: what is refused leaves nothing behind
    with held(path := run_path(config)):
        run = RunDir(path, config, training)
        if config.run.resume is None:
            run.begin()
        elif not go_on(run, console):
            return 0
        know_teacher(path, training.teacher, config, console)
        status = see_through(run, console, is_new=config.run.resume is None)
        if status == 0:
            report(config, path, console, report_students)
        say_where(config, path, console)
        return status


def train_part(config: TrainConfig, path: Path, part: int, console: Console) -> int:
    """Train a share of a run's seeds in a directory that another process holds."""
    config = share(config, part)
    run = RunDir(path, config, make_training(config), part)
    return see_through(run, console, is_new=False) if go_on(run, console) else 0


def make_training(config: TrainConfig) -> Training:
    """Give torch its threads, and put a run's parts together.

    In this order: the parameters' first values are rounded otherwise on another number of threads.
    """
    torch.set_num_threads(config.run.threads or learner_threads(config))
    try:
        return Training(config)
    except torch.OutOfMemoryError as error:
        raise BadInput(TOO_LARGE) from error


def go_on(run: RunDir, console: Console) -> bool:
    """Load the newest checkpoint; say whether there is anything left to do."""
    run.resume(lambda line: console.print(line, soft_wrap=True, highlight=False))
    if run.training.iteration < run.config.iterations or run.training.evaluation_due:
        return True
    console.print(f"all {run.training.steps:,} steps are done; raise --total-steps")
    return False


def see_through(run: RunDir, console: Console, is_new: bool) -> int:
    """Train to the end of the budget, or of the run; return the exit status."""
    start_step = None if is_new else run.training.steps
    try:
        while (status := train_on(run, console, start_step)) is None:
            start_step = run.training.steps
    except Stopped as stopped:
        return stopped.status
    except torch.OutOfMemoryError as error:
        raise BadInput(f"{TOO_LARGE}; {run.resume_command} goes on with what there is") from error
    except NotRecorded as error:
        again = f"{run.resume_command} --no-record-updates"
        raise BadInput(f"{error}; {again} goes on without recordings") from error
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror or error}; when this is mended, {run.resume_command} goes on from "
            "the last checkpoint",
            error.filename,
        ) from error
    return status


def train_on(run: RunDir, console: Console, start_step: int | None) -> int | None:
    """Run the loop; return the exit status, or None after a rollback."""
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
            log.notice(f"dpd: {named(error, training)}", style="red")
            if not run.can_roll_back():
                log.notice(
                    f"to try again from the last checkpoint: {run.resume_command} --on-nan rollback"
                )
                return 3
            seed = error.who[0]
        else:
            if stop.signum is None:
                return 0
            log.notice(
                f"stopped at {training.steps:,} steps; the policies are saved; "
                f"go on with: {run.resume_command}"
            )
            return 128 + stop.signum
    run.roll_back(seed)
    say = f"back at {training.steps:,} steps: that seed's peers go on at half their learning rate"
    console.print(say, soft_wrap=True, highlight=False)
    return None


def named(error: NonFinite, training: Training) -> str:
    """Word where a NaN came up."""
    seed, peer = error.who
    name = spoken(peer_names(training.config))[peer]
    return (
        f"{error.what} of seed {seed}'s {name} became NaN or infinite "
        f"after {training.steps:,} steps; lower --lr or look at the environment's rewards"
    )


def loop(run: RunDir, log: RunLog, stop: StopRequest) -> None:
    """Iterate until the budget is used or a stop is asked for; evaluate and save on the way."""
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

    The resumed run then evaluates first.
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


def learner_threads(config: TrainConfig) -> int:
    """Return how many threads a minibatch can use.

    With less to do, a second one only adds waiting: ten 64-64 learners are 8 % faster on one of two
    cores (bench/train.py; ten of DDPG by a third, bench/learners.py), twenty 8 % faster on both.
    """
    elements = [
        config.run.seeds * len(stack.peers) * stack.algo.minibatch_size * max(stack.algo.hidden)
        for stack in config.stacks
    ]
    return n_cores() if max(elements) > 65536 else 1
