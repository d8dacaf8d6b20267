"""A run shared by processes that torchrun started, on one host or several with one file system.

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
from dpd.run.directory import claim, held, run_path, write_settings
from dpd.run.settings import saved_settings
from dpd.run.summary import StudentReport, know_teacher, report, say_where
from dpd.run.workers import inspect

PATIENCE = timedelta(days=365)  # the ends of long runs may lie far apart

TrainPart = Callable[[TrainConfig, Path, int, Console], int]


def launched() -> bool:
    """Whether torchrun started this process."""
    return dist.is_torchelastic_launched()


def train_ranks(
    config: TrainConfig, train_part: TrainPart, report_students: StudentReport | None
) -> int:
    """Train this process's share of the seeds; return the worst exit status of all.

    They speak at the beginning and at the end alone. The first one holds the directory, and shows
    its own seeds; every seed learns what it would learn under `--workers`.
    """
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        rank, world = dist.get_rank(), dist.get_world_size()
        config = replace(config, run=replace(config.run, workers=as_workers(config, world)))
        console = make_console(quiet=rank > 0, highlight=False)
        with ExitStack() as kept:
            path = agreed(lambda: claimed(config, console, kept))
            status = worst(train_part(config, path, rank, console))
            if rank == 0:
                if status == 0:
                    report(config, path, console, report_students)
                say_where(config, path, console)
        return status
    finally:
        dist.destroy_process_group()


def as_workers(config: TrainConfig, world: int) -> int:
    """Return how many processes share the run. Raises BadInput where that is not so many."""
    if config.run.workers not in (1, world):
        raise BadInput(
            f"torchrun started {world} processes, and --workers {config.run.workers} asks for "
            "others; leave --workers out, and resume a run by as many processes as began it"
        )
    return world


def claimed(config: TrainConfig, console: Console, kept: ExitStack) -> Path:
    """Claim the run's directory, or find that it can go on, and hold it.

    Raises BadInput or UnsupportedEnv, and leaves nothing behind, where the run can't be.
    """
    _, _, teacher = inspect(config)
    path = run_path(config)
    kept.enter_context(held(path))
    if config.run.resume is None:
        claim(path, config)
    else:
        refuse_changes(saved_settings(path), config)
        write_settings(path, config)
    know_teacher(path, teacher, config, console)
    return path


def agreed(decide: Callable[[], Path]) -> Path:
    """Let the first process decide; all return what it did, or raise BadInput as it did."""
    said: list[str | None] = [None, None]
    if dist.get_rank() == 0:
        try:
            said[0] = str(decide())
        except (ValueError, OSError) as error:
            said[1] = str(error)
    dist.broadcast_object_list(said)
    path, complaint = said
    if path is None:
        raise BadInput(complaint if dist.get_rank() == 0 else "the first process refused the run")
    return Path(path)


def worst(status: int) -> int:
    """Return the largest exit status of all processes; waits for them."""
    found: list[int | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, status)
    return max(s or 0 for s in found)
