"""A run shared by several processes: each trains some of the seeds, and knows of no other."""

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
from dpd.log.csv import FIELDS, metrics_name
from dpd.log.display import Board, Display, Value
from dpd.log.naming import peer_names, spoken
from dpd.run.device import find_device, memory_of, n_devices, nth_device
from dpd.run.directory import claim, held, resume_command, run_path, write_settings
from dpd.run.settings import saved_settings
from dpd.run.stop import Stopped, StopRequest
from dpd.run.summary import StudentReport, know_teacher, report, say_where, start_facts, title
from dpd.run.teachers import read_teacher, refuse_unfit

PART = "DPD_PART"  # the environment variable by which a process knows that it is one
LOOK_S = 0.25
Part = subprocess.Popen[bytes]


def part_number() -> int | None:
    """Return which part of a run this process is to train; None: it was started by a user."""
    return int(os.environ[PART]) if PART in os.environ else None


def follow_parent() -> None:
    """Stop in order when the process that started this part is gone, however it went."""

    def wait() -> None:
        os.read(0, 1)  # returns when the other end is closed; sys.stdin would block our own exit
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def share(config: TrainConfig, part: int) -> TrainConfig:
    """Return the settings of one part: its seeds, as even as can be, its cores and its GPU."""
    run = config.run
    seeds = run.seeds_of(part)
    here = int(os.environ.get("LOCAL_RANK", part))  # torchrun counts the processes of a host
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", run.workers))
    mine = replace(
        run,
        seed=seeds.start,
        seeds=len(seeds),
        workers=1,
        threads=run.threads or max(1, n_cores() // beside),
        device=nth_device(run.device, here),
    )
    return replace(config, run=mine)


def supervise(config: TrainConfig, console: Console, report_students: StudentReport | None) -> int:
    """Start the parts of a run, show their progress together, report; return the exit status."""
    run = config.run
    spec, device, teacher = inspect(config)
    there = memory_of(device, n_devices(run.device, run.workers))
    memory, path = config.replay_bytes(spec, there), run_path(config)
    with held(path) as lock:
        if run.resume is None:
            claim(path, config)
        else:
            refuse_changes(saved_settings(path), config)
            write_settings(path, config)
        know_teacher(path, teacher, config, console)
        seeds = range(run.seed, run.seed + run.seeds)
        board = Board(seeds, run.peers, spoken(peer_names(config)))
        display = Display(board, run.total_steps, title(config), console)
        display.show_start(start_facts(config, spec, path, memory, teacher))
        status = run_parts(config, path, lock, display)
        if status == 0:
            report(config, path, console, report_students)
        say_where(config, path, console)
    return status


def inspect(config: TrainConfig) -> tuple[EnvSpec, torch.device, Teacher | None]:
    """Return a run's environment, its device and its teachers, before it has a directory.

    Raises BadInput or UnsupportedEnv where one is not there, or does not fit.
    """
    run = config.run
    device = find_device(run.device)
    n_envs = sum(len(stack.peers) * stack.algo.n_envs for stack in config.stacks)
    n_envs *= -(-run.seeds // run.workers)
    spec = check(run.env, run.backend, run.parsed_env_kwargs(), device, n_envs)
    if (teacher := read_teacher(config)) is not None:
        refuse_unfit(teacher, config, spec)
    return spec, device, teacher


def run_parts(config: TrainConfig, path: Path, lock: int, display: Display) -> int:
    """Run all parts to their end; return the exit status."""
    try:
        with StopRequest() as stop, started(path, config, lock) as parts, display:
            watch(parts, Progress(config, path), display, stop)
    except Stopped as stopped:
        return stopped.status
    if stop.signum is not None:
        display.notice(f"stopped; go on with: {resume_command(path, config)}")
        return 128 + stop.signum
    return say_what_went_wrong(path, [part.returncode for part in parts], display)


@contextmanager
def started(path: Path, config: TrainConfig, lock: int) -> Iterator[list[Part]]:
    """Start all parts, each with a log of its own; kill those that are left at the end.

    They inherit the hold on the directory: while one lives, no other run gets in.
    """
    command = [sys.executable, "-m", "dpd", config.command, "--resume", str(path)]
    parts: list[Part] = []
    try:
        for k in range(config.run.workers):
            with log_path(path, k).open("wb") as log:
                part = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,  # its end is ours, see follow_parent
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | {PART: str(k)},
                    pass_fds=[lock],
                    start_new_session=True,  # Ctrl-C comes through us, once
                )
            parts.append(part)
        yield parts
    finally:
        for part in parts:
            part.kill()
            part.wait()


def log_path(path: Path, part: int) -> Path:
    """Return where a part writes what it has to say."""
    return path / f"part{part}.log"


def watch(parts: Sequence[Part], progress: Progress, display: Display, stop: StopRequest) -> None:
    """Show progress until all parts have ended; hand a signal on to them."""
    told = False
    while any(part.poll() is None for part in parts):
        if stop.signum is not None and not told:
            told = True
            for part in parts:
                part.send_signal(stop.signum)
        time.sleep(LOOK_S)
        if progress.look():
            display.update(progress.step, progress.values)


def say_what_went_wrong(path: Path, statuses: Sequence[int], display: Display) -> int:
    """Print the last line of every part that failed; return the first bad status, or 0."""
    for part, status in enumerate(statuses):
        if status:
            lines = log_path(path, part).read_text(errors="replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
            display.notice(f"dpd: part {part} left with {status}: {last}", style="red")
    return next((status for status in statuses if status), 0)


class Progress:
    """The latest values of all learners, read from the logs that the parts are writing."""

    def __init__(self, config: TrainConfig, path: Path) -> None:
        run = config.run
        self.seed, self.peers, self.n = run.seed, run.peers, run.seeds * run.peers
        self.files = [path / metrics_name(part) for part in range(run.workers)]
        self.offsets, self.steps = [0] * run.workers, [0] * run.workers
        self.values: dict[str, Value] = {}

    @property
    def step(self) -> int:
        """How far the slowest part is."""
        return min(self.steps)

    def look(self) -> bool:
        """Read what is new; say whether anything was."""
        return any([self._read(part) for part in range(len(self.files))])

    def _read(self, part: int) -> bool:
        if not self.files[part].exists():
            return False
        with self.files[part].open("rb") as file:
            if file.seek(0, os.SEEK_END) < self.offsets[part]:
                self.offsets[part] = 0  # a resumed part cut its log back
            file.seek(self.offsets[part])
            whole, newline, _ = file.read().rpartition(b"\n")
        self.offsets[part] += len(whole) + len(newline)
        for row in csv.reader(whole.decode().splitlines()):
            if row != list(FIELDS):
                self._take(part, *row)
        return bool(newline)

    def _take(self, part: int, step: str, seed: str, peer: str, metric: str, value: str) -> None:
        self.steps[part] = int(step)
        if not seed:
            self.values[metric] = float(value)
            return
        row = self.values.setdefault(metric, [None] * self.n)
        if isinstance(row, list):
            row[(int(seed) - self.seed) * self.peers + int(peer)] = float(value)
