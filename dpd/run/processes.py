"""A run shared by several processes, each of which trains some of the seeds.

`--workers` starts and supervises them on this machine. torchrun starts them itself, on one host or
on several with one file system:

torchrun --nproc-per-node 2 -m dpd train HalfCheetah-v5 --seeds 10
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
import torch.distributed as dist
from rich.console import Console

from dpd.agents.base import LearnerId
from dpd.config import TrainConfig
from dpd.distill.teacher import Teacher
from dpd.envs.base import EnvSpec
from dpd.envs.make import check
from dpd.envs.physics import n_cores
from dpd.errors import BadInput
from dpd.log.csv import CsvTail, metrics_name
from dpd.log.naming import display_names, peer_names
from dpd.log.terminal import Board, Display, MetricValue, make_console
from dpd.run.directory import opened, resume_command
from dpd.run.summary import StudentReport, report_end, start_facts, title
from dpd.run.teachers import read_run_teacher, refuse_unfit
from dpd.run.training import gpu_memory_bytes, require_device

PART_VARIABLE = "DPD_PART"  # environment variable of worker processes: the worker's index
POLL_S = 0.25
PATIENCE = timedelta(days=365)  # one process may end long before another
SIGNALS = (signal.SIGINT, signal.SIGTERM)
Worker = subprocess.Popen[bytes]
TrainPart = Callable[[TrainConfig, Path, int, Console], int]
"""Trains one process's share of the seeds in a directory; returns the exit status."""


class Stopped(KeyboardInterrupt):
    """The run must end now; the process exits with `status`."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.status = 128 + signum


class StopRequest:
    """Record SIGINT or SIGTERM within a `with` block; the second signal raises Stopped at once."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise Stopped(signum)
        self.signum = signum
        # Bypass the console: the signal may have interrupted its drawing.
        with suppress(OSError):
            os.write(2, b"\nfinishing the iteration to save it; a second signal stops at once\n")

    def request(self) -> None:
        """Request a stop without a signal, unless one is requested already."""
        self.signum = 0 if self.signum is None else self.signum

    def __enter__(self) -> Self:
        # Python allows handlers in the main thread only; elsewhere, signals are not ours.
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._handle) for s in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)


def share(config: TrainConfig, part: int) -> TrainConfig:
    """Return the settings of process `part`: its seeds, its cores and its GPU."""
    run = config.run
    seeds = run.seeds_of(part)
    # Under torchrun, the processes of this host share its cores and GPUs.
    local_rank = int(os.environ.get("LOCAL_RANK", part))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", run.workers))
    share_of_run = replace(
        run,
        seed=seeds.start,
        seeds=len(seeds),
        workers=1,
        threads=run.threads or max(1, n_cores() // local_size),
        device=nth_device(run.device, local_rank),
    )
    return replace(config, run=share_of_run)


def nth_device(name: str, n: int) -> str:
    """Return the device of a host's n-th process; plain `cuda` spreads them over all GPUs.

    On a machine without GPUs it stays `cuda`, which `require_device` rejects.
    """
    count = torch.cuda.device_count() if name == "cuda" else 0
    return f"cuda:{n % count}" if count else name


def n_devices(name: str, processes: int) -> int:
    """Return how many GPUs `nth_device` assigns to a host's processes."""
    return max(1, min(processes, torch.cuda.device_count())) if name == "cuda" else 1


def check_run(config: TrainConfig) -> tuple[EnvSpec, torch.device, Teacher | None]:
    """Return a run's environment, device and teachers, before it has a directory.

    Raises BadInput or UnsupportedEnv if one does not exist or does not fit.
    """
    run = config.run
    device = require_device(run.device)
    n_envs = sum(len(stack.peers) * stack.algo.n_envs for stack in config.stacks)
    n_envs *= -(-run.seeds // run.workers)
    spec = check(run.env, run.backend, run.parsed_env_kwargs(), device, n_envs)
    for stack in config.stacks:
        config.views_of(stack, spec)
    if (teacher := read_run_teacher(config, spec)) is not None:
        refuse_unfit(teacher, config, spec)
    return spec, device, teacher


def train_ranks(
    config: TrainConfig, train_part: TrainPart, report_students: StudentReport | None
) -> int:
    """Train this torchrun process's share; return the worst exit status of all processes.

    Processes communicate only at start and end. The first one locks the directory and displays its
    own seeds. The results are those of `--workers`.
    """
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        rank, world = dist.get_rank(), dist.get_world_size()
        if config.run.workers not in (1, world):
            raise BadInput(
                f"torchrun started {world} processes, but --workers is {config.run.workers}; leave "
                "--workers out, and resume a run with as many processes as it began with"
            )
        config = replace(config, run=replace(config.run, workers=world))
        console = make_console(quiet=rank > 0, highlight=False)
        with ExitStack() as kept:

            def open_directory() -> Path:
                _, _, teacher = check_run(config)
                path, _ = kept.enter_context(opened(config, teacher, console))
                return path

            path = decide_together(open_directory)
            status = worst_status(train_part(config, path, rank, console))
            if rank == 0:
                report_end(config, path, status, console, report_students)
        return status
    finally:
        dist.destroy_process_group()


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


def part_number() -> int | None:
    """Return the index of this worker process; None if a user started the process."""
    return int(os.environ[PART_VARIABLE]) if PART_VARIABLE in os.environ else None


def follow_parent() -> None:
    """Stop gracefully when the parent process of this worker has ended, even by kill -9."""

    def wait() -> None:
        os.read(0, 1)  # returns when the parent's end closes; sys.stdin would block our own exit
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def supervise(config: TrainConfig, console: Console, report_students: StudentReport | None) -> int:
    """Start the workers, display their joint progress, report; return the exit status."""
    run = config.run
    spec, device, teacher = check_run(config)
    gpu_bytes = gpu_memory_bytes(device, n_devices(run.device, run.workers))
    memory = config.replay_bytes(spec, gpu_bytes)
    with opened(config, teacher, console) as (path, lock):
        seeds = range(run.seed, run.seed + run.seeds)
        board = Board(seeds, run.peers, display_names(peer_names(config)))
        display = Display(board, run.total_steps, title(config), console)
        display.show_start(start_facts(config, spec, path, memory, teacher))
        status = run_workers(config, path, lock, display)
        report_end(config, path, status, console, report_students)
    return status


def run_workers(config: TrainConfig, path: Path, lock: int, display: Display) -> int:
    """Run all workers to their end; return the exit status."""
    progress, is_forwarded = WorkerProgress(config, path), False
    try:
        with StopRequest() as stop, started(path, config, lock) as workers, display:
            while any(worker.poll() is None for worker in workers):
                if stop.signum is not None and not is_forwarded:
                    is_forwarded = True
                    for worker in workers:
                        worker.send_signal(stop.signum)
                time.sleep(POLL_S)
                if progress.read_new():
                    display.update(progress.step, progress.values)
    except Stopped as stopped:
        return stopped.status
    if stop.signum is not None:
        display.notice(f"stopped; resume with: {resume_command(path, config)}")
        return 128 + stop.signum
    return report_failures(path, [worker.returncode for worker in workers], display)


@contextmanager
def started(path: Path, config: TrainConfig, lock: int) -> Iterator[list[Worker]]:
    """Start all workers, each with its own log; kill those still running at the end.

    They inherit the lock of the directory: no other run can use it while one of them is alive.
    """
    command = [sys.executable, "-m", "dpd", config.command, "--resume", str(path)]
    workers: list[Worker] = []
    try:
        for k in range(config.run.workers):
            with log_path(path, k).open("wb") as log:
                worker = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,  # closes when this process ends, see follow_parent
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | {PART_VARIABLE: str(k)},
                    pass_fds=[lock],
                    start_new_session=True,  # Ctrl-C reaches it only through us, once
                )
            workers.append(worker)
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def log_path(path: Path, part: int) -> Path:
    """Return the file with the output of worker `part`."""
    return path / f"part{part}.log"


def report_failures(path: Path, statuses: Sequence[int], display: Display) -> int:
    """Print the last output line of every worker that failed; return the first bad status, or 0."""
    for part, status in enumerate(statuses):
        if status:
            output = log_path(path, part).read_text(errors="replace").strip() or "no output"
            last = output.splitlines()[-1]
            display.notice(f"dpd: worker {part} exited with status {status}: {last}", style="red")
    return next((status for status in statuses if status), 0)


class WorkerProgress:
    """The latest values of all learners, read from the metrics files that workers write."""

    def __init__(self, config: TrainConfig, path: Path) -> None:
        run = config.run
        self.seed, self.peers, self.n = run.seed, run.peers, run.seeds * run.peers
        self.tails = [CsvTail(path / metrics_name(part)) for part in range(run.workers)]
        self.steps = [0] * run.workers
        self.values: dict[str, MetricValue] = {}
        self.evaluations: dict[int, dict[LearnerId, float]] = {}
        """The eval/return of every learner by step; a step may still lack some learners."""

    @property
    def step(self) -> int:
        """Environment steps of the slowest worker."""
        return min(self.steps)

    def read_new(self) -> bool:
        """Read new rows of all files; return True if there were any."""
        return any([self._read(part) for part in range(len(self.tails))])

    def _read(self, part: int) -> bool:
        rows, _ = self.tails[part].read_new()
        for step, seed, peer, metric, value in rows:
            self.steps[part] = int(step)
            if not seed:
                self.values[metric] = float(value)
            elif isinstance(row := self.values.setdefault(metric, [None] * self.n), list):
                row[(int(seed) - self.seed) * self.peers + int(peer)] = float(value)
            if metric == "eval/return":
                self.evaluations.setdefault(int(step), {})[int(seed), int(peer)] = float(value)
        return bool(rows)
