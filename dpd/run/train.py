"""`dpd train` and `dpd distill`: start or resume a run, the training loop, and its end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console

from dpd.agents.base import Metrics
from dpd.agents.graphs import NotRecorded
from dpd.config import TrainConfig
from dpd.errors import BadInput
from dpd.log.config import require_wandb
from dpd.log.log import Metric, RunLog
from dpd.log.naming import display_names, learner_name, peer_names
from dpd.log.terminal import MetricValue, make_console
from dpd.run.callback import Callback, StopTraining, TrainingState
from dpd.run.directory import RunDir, opened, run_path
from dpd.run.episodes import EvaluationStopped
from dpd.run.initial import with_initial_view
from dpd.run.processes import (
    Stopped,
    StopRequest,
    follow_parent,
    part_number,
    share,
    supervise,
    train_ranks,
)
from dpd.run.stack import LearnerStack, NonFinite
from dpd.run.summary import EVALUATION, StudentReport, report_end, start_facts, title
from dpd.run.training import Training
from dpd.run.updates import learner_threads

TOO_LARGE = "the GPU's memory is too small for this run; lower --n-envs, --seeds or --capacity"


def train(
    config: TrainConfig,
    report_students: StudentReport | None = None,
    callbacks: Sequence[Callback] = (),
    console: Console | None = None,
) -> int:
    """Start or resume a run, train to its end, and report the results.

    `report_students` compares students with their teacher at the end of `dpd distill`. Returns the
    exit status: 0, 130 after Ctrl-C, 143 after SIGTERM, 128 after a callback's stop, 3 after a NaN.
    """
    config = with_initial_view(config)
    require_wandb(config.wandb)
    console = console or make_console(highlight=False)
    refuse_unheard(config, callbacks)
    if dist.is_torchelastic_launched():
        return train_ranks(config, train_part, report_students)
    if config.run.workers > 1:
        if (part := part_number()) is None:
            return supervise(config, console, report_students)
        follow_parent()
        return train_part(config, run_path(config), part, console)
    training, is_new = make_training(config, console), config.run.resume is None
    if is_new:
        training.begin()  # before the directory exists: a refused run leaves nothing behind
    with opened(config, training.teacher, console) as (path, _):
        run = RunDir(path, config, training)
        if not is_new and not load_latest(run, console):
            return 0
        status = run_to_end(run, console, is_new, callbacks)
        report_end(config, path, status, console, report_students)
    return status


def refuse_unheard(config: TrainConfig, callbacks: Sequence[Callback]) -> None:
    """Raise BadInput for callbacks of a run whose learners train in other processes."""
    if callbacks and (config.run.workers > 1 or dist.is_torchelastic_launched()):
        raise BadInput(
            "callbacks watch a run in one process, and the learners of this one train in several; "
            "leave callbacks out, or --workers and torchrun"
        )


def train_part(config: TrainConfig, path: Path, part: int, console: Console) -> int:
    """Train a process's share of the seeds, in a directory that another process has opened."""
    config = share(config, part)
    config = replace(config, wandb=config.wandb.grouped(path.name))
    run = RunDir(path, config, make_training(config, console), part)
    return run_to_end(run, console, is_new=False) if load_latest(run, console) else 0


def make_training(config: TrainConfig, console: Console | None = None) -> Training:
    """Set torch's number of threads, make the parts of a run, and compile its kernels.

    The order matters: rounding of the initial parameters depends on the number of threads.
    """
    torch.set_num_threads(config.run.threads or learner_threads(config))
    try:
        training = Training(config)
    except torch.OutOfMemoryError as error:
        raise BadInput(TOO_LARGE) from error
    console = console or make_console(highlight=False)
    training.fuse_updates(lambda line: console.print(line, highlight=False))
    return training


def load_latest(run: RunDir, console: Console) -> bool:
    """Load the newest checkpoint; return False if the run is already complete."""
    for line in run.resume():
        console.print(line, soft_wrap=True, highlight=False)
    if run.training.iteration < run.config.iterations or run.training.evaluation_due:
        return True
    console.print(f"all {run.training.steps:,} steps are done; raise --total-steps")
    return False


def run_to_end(
    run: RunDir, console: Console, is_new: bool, callbacks: Sequence[Callback] = ()
) -> int:
    """Train until the step budget is used or the run stops; return the exit status."""
    start_step = None if is_new else run.training.steps
    (run.path / EVALUATION).unlink(missing_ok=True)  # of the policies that this replaces
    try:
        while (status := run_once(run, console, start_step, callbacks)) is None:
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


def run_once(
    run: RunDir, console: Console, start_step: int | None, callbacks: Sequence[Callback]
) -> int | None:
    """Run the training loop; return the exit status, or None after a rollback."""
    training, config, names = run.training, run.config, peer_names(run.config)
    with open_log(run, console, start_step) as log, StopRequest() as stop:
        if start_step is None:
            spec, memory = training.spec, training.replay_bytes
            log.show_start(start_facts(config, spec, run.path, memory, training.teacher))
            run.save()
        try:
            loop(run, log, stop, callbacks)
        except NonFinite as error:
            seed, peer = error.learner
            log.notice(
                f"dpd: {error.quantity} of seed {seed}'s {display_names(names)[peer]} became NaN "
                f"or infinite after {training.steps:,} steps; lower --lr or look at the "
                "environment's rewards",
                style="red",
            )
            if not run.can_roll_back():
                log.notice(
                    f"to retry from the last checkpoint: {run.resume_command} --on-nan rollback"
                )
                return 3
        else:
            if stop.signum is None:
                return 0
            log.notice(
                f"stopped at {training.steps:,} steps; the policies are saved; "
                f"resume with: {run.resume_command}"
            )
            return 128 + stop.signum
    roll_back(run, seed, console)
    return None


def open_log(run: RunDir, console: Console, start_step: int | None) -> RunLog:
    """Return the log of a run, new or continued at a step."""
    config = run.config
    return RunLog(
        run.path,
        run.training.seeds,
        peer_names(config),
        config.run.total_steps,
        config.as_json(),
        title(config),
        console,
        start_step=start_step,
        metrics=run.metrics,
        wandb=config.wandb,
    )


def roll_back(run: RunDir, seed: int, console: Console) -> None:
    """Return to the last checkpoint after a seed's learners diverged, and say so."""
    run.roll_back(seed)
    console.print(
        f"rolled back to {run.training.steps:,} steps: seed {seed}'s learners continue with half "
        "their learning rate",
        soft_wrap=True,
        highlight=False,
    )


def loop(run: RunDir, log: RunLog, stop: StopRequest, callbacks: Sequence[Callback] = ()) -> None:
    """Iterate until the budget is used or a stop is requested; evaluate, log and save."""
    training, config = run.training, run.config
    eval_every = max(1, config.iterations // config.evaluation.evals)
    record_every = -(-config.iterations // config.run.records)
    evaluated: Metrics | None = None
    if training.evaluation_due and (evaluated := evaluate_learners(run, log, stop)) is not None:
        values = log.record(training.steps, evaluated)
        log.flush()
        run.save(score_of(evaluated))
        if callbacks:
            call(callbacks, run, log, stop, values)
    while training.iteration < config.iterations and stop.signum is None:
        start = time.perf_counter()
        metrics = iterate(training)
        left = config.iterations - training.iteration
        is_due = left % eval_every == 0
        evaluated = evaluate_learners(run, log, stop) if is_due else None
        spent = training.clock.flush()
        busy = time.perf_counter() - start - spent.get("time/eval", 0.0)
        total = config.steps_per_iteration * config.run.seeds
        record = {**metrics, **(evaluated or {}), **spent, "time/steps_per_s": total / busy}
        values = log.record(training.steps, record, keep=is_due or left % record_every == 0)
        if evaluated is not None or run.is_due():
            log.flush()
            run.save(score_of(evaluated))
        if callbacks:
            call(callbacks, run, log, stop, values)
    if stop.signum is not None and evaluated is None:
        save_stopped(run, log)


def save_stopped(run: RunDir, log: RunLog) -> None:
    """Save the policies and a checkpoint of a run that stops after this iteration."""
    log.flush()
    run.saver.save_last(run.training.steps)
    run.save()


def call(
    callbacks: Sequence[Callback],
    run: RunDir,
    log: RunLog,
    stop: StopRequest,
    values: Mapping[str, MetricValue],
) -> None:
    """Call the callbacks with what was logged, and request a stop if one asks for it."""
    training, names = run.training, peer_names(run.config)
    state = TrainingState(
        path=run.path,
        iteration=training.iteration,
        iterations=run.config.iterations,
        steps=training.steps,
        learners=[learner_name(seed, names[peer]) for seed, peer in training.ids],
        metrics=values,
    )
    is_evaluated = "eval/return" in values
    try:
        asked = [c.on_evaluation(state) for c in callbacks] if is_evaluated else []
        asked += [c.on_iteration(state) for c in callbacks]
    except StopTraining:
        asked = [True]
    except Exception as error:
        if not is_evaluated:
            save_stopped(run, log)
        error.add_note(f"in a callback; the run is saved: {run.resume_command}")
        raise
    if any(asked) and training.iteration < run.config.iterations:
        stop.request()


def iterate(training: Training) -> dict[str, Metric]:
    """Let every stack collect, learn and distil; return metrics [N], or of some rows."""
    metrics = []
    for stack in training.stacks:
        # Stacks with fewer steps between updates take several rounds.
        rounds = [
            learn(training, stack, is_first=training.iteration == k == 0)
            for k in range(stack.config.rounds)
        ]
        metrics.append(mean_metrics(rounds) | stack.episodes.metrics())
    training.iteration += 1
    return training.joined(metrics)


def learn(training: Training, stack: LearnerStack, is_first: bool) -> Metrics:
    """Collect, learn and distil once with a stack; return metrics [N]."""
    clock, agent, method = training.clock, stack.agent, stack.method
    with clock("collect"):
        stack.collect()
    with clock("update"):
        # The first rollout updates the statistics before it is used: otherwise the critic
        # would start on a reward scale that it never sees again.
        if is_first:
            agent.observe(stack.rollout)
        batch = agent.prepare(stack.rollout)
    with clock("distill"):
        for other in training.stacks:
            if other is not stack:
                other.method.on_peer_batch(agent, batch)
        method.on_returns([each.episodes.returns for each in training.stacks])
        method.on_batch(batch, training.progress)
    with clock("update"):
        metrics = agent.update(batch, training.progress, method.loss)
        # Check before distillation: a peer must not learn from a learner that has diverged.
        stack.guard.require("parameters after the update", agent.nets.flat)
    with clock("distill"):
        metrics |= method.step()
    with clock("update"):
        if not is_first:
            agent.observe(stack.rollout)
    stack.check(metrics)
    return metrics


def mean_metrics(rounds: Sequence[Metrics]) -> Metrics:
    """Average each metric over the rounds that have it."""
    if len(rounds) == 1:
        return rounds[0]
    names = dict.fromkeys(name for metrics in rounds for name in metrics)
    return {name: torch.stack([m[name] for m in rounds if name in m]).mean(0) for name in names}


def evaluate_learners(run: RunDir, log: RunLog, stop: StopRequest) -> Metrics | None:
    """Evaluate the learners and save their policies; return None if a stop cut it short.

    In that case, the resumed run begins with this evaluation.
    """
    training = run.training
    try:
        evaluated = training.evaluate(lambda: stop.signum is not None)
    except EvaluationStopped:
        return None
    for line in training.warnings():
        log.notice(f"warning: {line}", style="yellow")
    run.saver.save(training.steps, evaluated["eval/return"])
    return evaluated


def score_of(evaluated: Metrics | None) -> float | None:
    """Return the mean evaluation return of all learners, if they were evaluated."""
    return None if evaluated is None else float(evaluated["eval/return"].mean())
