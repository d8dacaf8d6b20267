"""`--workers`: a run shared by independent processes, each of which trains some of the seeds."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from dpd.config import TrainConfig, refuse_changes
from dpd.distill.teacher import Teacher
from dpd.envs.base import EnvSpec
from dpd.envs.make import check
from dpd.envs.physics import n_cores
from dpd.log.csv import CSV_FIELDS, metrics_name
from dpd.log.naming import display_names, peer_names
from dpd.log.terminal import Board, Display, MetricValue
from dpd.run.device import gpu_memory_bytes, n_devices, nth_device, require_device
from dpd.run.directory import claim, locked, resume_command, run_path, write_settings
from dpd.run.settings import saved_settings
from dpd.run.stop import Stopped, StopRequest
from dpd.run.summary import (
    StudentReport,
    measure_teacher,
    print_paths,
    report_run,
    start_facts,
    title,
)
from dpd.run.teachers import read_run_teacher, refuse_unfit

PART_VARIABLE = "DPD_PART"  # environment variable of worker processes: the worker's index
POLL_S = 0.25
Worker = subprocess.Popen[bytes]


def part_number() -> int | None:
    """Return the index of this worker process; None if a user started the process."""
    return int(os.environ[PART_VARIABLE]) if PART_VARIABLE in os.environ else None


def follow_parent() -> None:
    """Stop gracefully when the parent process of this worker has ended, even by kill -9."""

    def wait() -> None:
        os.read(0, 1)  # returns when the parent's end closes; sys.stdin would block our own exit
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def share(config: TrainConfig, part: int) -> TrainConfig:
    """Return the settings of worker `part`: its seeds, its cores and its GPU."""
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


def supervise(config: TrainConfig, console: Console, report_students: StudentReport | None) -> int:
    """Start the workers, display their joint progress, report; return the exit status."""
    run = config.run
    spec, device, teacher = check_run(config)
    gpu_bytes = gpu_memory_bytes(device, n_devices(run.device, run.workers))
    memory, path = config.replay_bytes(spec, gpu_bytes), run_path(config)
    with locked(path) as lock:
        if run.resume is None:
            claim(path, config)
        else:
            refuse_changes(saved_settings(path), config)
            write_settings(path, config)
        measure_teacher(path, teacher, config, console)
        seeds = range(run.seed, run.seed + run.seeds)
        board = Board(seeds, run.peers, display_names(peer_names(config)))
        display = Display(board, run.total_steps, title(config), console)
        display.show_start(start_facts(config, spec, path, memory, teacher))
        status = run_workers(config, path, lock, display)
        if status == 0:
            report_run(config, path, console, report_students)
        print_paths(config, path, console)
    return status


def check_run(config: TrainConfig) -> tuple[EnvSpec, torch.device, Teacher | None]:
    """Return a run's environment, device and teachers, before it has a directory.

    Raises BadInput or UnsupportedEnv if one does not exist or does not fit.
    """
    run = config.run
    device = require_device(run.device)
    n_envs = sum(len(stack.peers) * stack.algo.n_envs for stack in config.stacks)
    n_envs *= -(-run.seeds // run.workers)
    spec = check(run.env, run.backend, run.parsed_env_kwargs(), device, n_envs)
    if (teacher := read_run_teacher(config)) is not None:
        refuse_unfit(teacher, config, spec)
    return spec, device, teacher


def run_workers(config: TrainConfig, path: Path, lock: int, display: Display) -> int:
    """Run all workers to their end; return the exit status."""
    try:
        with StopRequest() as stop, started(path, config, lock) as workers, display:
            watch(workers, Progress(config, path), display, stop)
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


def watch(
    workers: Sequence[Worker], progress: Progress, display: Display, stop: StopRequest
) -> None:
    """Display progress until all workers have ended; forward a stop signal to them."""
    is_forwarded = False
    while any(worker.poll() is None for worker in workers):
        if stop.signum is not None and not is_forwarded:
            is_forwarded = True
            for worker in workers:
                worker.send_signal(stop.signum)
        time.sleep(POLL_S)
        if progress.read_new():
            display.update(progress.step, progress.values)


def report_failures(path: Path, statuses: Sequence[int], display: Display) -> int:
    """Print the last output line of every worker that failed; return the first bad status, or 0."""
    for part, status in enumerate(statuses):
        if status:
            lines = log_path(path, part).read_text(errors="replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "no output")
            display.notice(f"dpd: worker {part} exited with status {status}: {last}", style="red")
    return next((status for status in statuses if status), 0)


class Progress:
    """The latest values of all learners, read from the metrics files that workers write."""

    def __init__(self, config: TrainConfig, path: Path) -> None:
        run = config.run
        self.seed, self.peers, self.n = run.seed, run.peers, run.seeds * run.peers
        self.files = [path / metrics_name(part) for part in range(run.workers)]
        self.offsets, self.steps = [0] * run.workers, [0] * run.workers
        self.values: dict[str, MetricValue] = {}

    @property
    def step(self) -> int:
        """Environment steps of the slowest worker."""
        return min(self.steps)

    def read_new(self) -> bool:
        """Read new rows of all files; return True if there were any."""
        return any([self._read(part) for part in range(len(self.files))])

    def _read(self, part: int) -> bool:
        if not self.files[part].exists():
            return False
        with self.files[part].open("rb") as file:
            if file.seek(0, os.SEEK_END) < self.offsets[part]:
                self.offsets[part] = 0  # a resumed worker truncated its file
            file.seek(self.offsets[part])
            whole, newline, _ = file.read().rpartition(b"\n")
        self.offsets[part] += len(whole) + len(newline)
        for row in csv.reader(whole.decode().splitlines()):
            if row != list(CSV_FIELDS):
                self._store(part, *row)
        return bool(newline)

    def _store(self, part: int, step: str, seed: str, peer: str, metric: str, value: str) -> None:
        self.steps[part] = int(step)
        if not seed:
            self.values[metric] = float(value)
            return
        row = self.values.setdefault(metric, [None] * self.n)
        if isinstance(row, list):
            row[(int(seed) - self.seed) * self.peers + int(peer)] = float(value)
