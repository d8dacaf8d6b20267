"""A run that several torchrun processes share, on one host or on several with one file system.

torchrun --nproc-per-node 2 -m dpd train HalfCheetah-v5 --seeds 10
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from rich.console import Console

from dpd.config import TrainConfig, refuse_changes
from dpd.errors import BadInput
from dpd.log.terminal import make_console
from dpd.run.directory import claim, locked, run_path, write_settings
from dpd.run.settings import saved_settings
from dpd.run.summary import StudentReport, measure_teacher, print_paths, report_run
from dpd.run.workers import check_run

PATIENCE = timedelta(days=365)  # one process may end long before another

TrainPart = Callable[[TrainConfig, Path, int, Console], int]


def launched() -> bool:
    """Return True if torchrun started this process."""
    return dist.is_torchelastic_launched()


def train_ranks(
    config: TrainConfig, train_part: TrainPart, report_students: StudentReport | None
) -> int:
    """Train this process's share of the seeds; return the worst exit status of all processes.

    Processes communicate only at start and end. The first one locks the directory and displays its
    own seeds. The results are those of `--workers`.
    """
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        rank, world = dist.get_rank(), dist.get_world_size()
        config = replace(config, run=replace(config.run, workers=n_workers(config, world)))
        console = make_console(quiet=rank > 0, highlight=False)
        with ExitStack() as kept:
            path = decide_together(lambda: prepare_directory(config, console, kept))
            status = worst_status(train_part(config, path, rank, console))
            if rank == 0:
                if status == 0:
                    report_run(config, path, console, report_students)
                print_paths(config, path, console)
        return status
    finally:
        dist.destroy_process_group()


def n_workers(config: TrainConfig, world: int) -> int:
    """Return the number of processes. Raises BadInput if --workers disagrees with torchrun."""
    if config.run.workers not in (1, world):
        raise BadInput(
            f"torchrun started {world} processes, but --workers is {config.run.workers}; leave "
            "--workers out, and resume a run with as many processes as it began with"
        )
    return world


def prepare_directory(config: TrainConfig, console: Console, kept: ExitStack) -> Path:
    """Lock the run's directory until `kept` closes; claim it, or check that it can be resumed.

    Raises BadInput or UnsupportedEnv if the run is impossible, before it has a directory.
    """
    _, _, teacher = check_run(config)
    path = run_path(config)
    kept.enter_context(locked(path))
    if config.run.resume is None:
        claim(path, config)
    else:
        refuse_changes(saved_settings(path), config)
        write_settings(path, config)
    measure_teacher(path, teacher, config, console)
    return path


def decide_together(decide: Callable[[], Path]) -> Path:
    """Call `decide` in the first process; in all of them, return its result or raise BadInput."""
    message: list[str | None] = [None, None]  # path, error
    if dist.get_rank() == 0:
        try:
            message[0] = str(decide())
        except (ValueError, OSError) as error:
            message[1] = str(error)
    dist.broadcast_object_list(message)
    path, complaint = message
    if path is None:
        raise BadInput(complaint if dist.get_rank() == 0 else "the first process refused the run")
    return Path(path)


def worst_status(status: int) -> int:
    """Wait for all processes; return the largest of their exit statuses."""
    statuses: list[int | None] = [None] * dist.get_world_size()
    dist.all_gather_object(statuses, status)
    return max(s or 0 for s in statuses)
