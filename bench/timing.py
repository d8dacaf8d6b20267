"""Check for a quiet machine, time contenders in turns, and write results with their versions."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from dpd.envs.physics import n_cores

MAX_LOAD_PER_CORE = 0.75
MAX_CPU_PERCENT = 20.0

Record = dict[str, Any]
Work = Callable[[], int]
"""Does one unit of work and returns its number of steps."""
Clock = Callable[[], float]
"""Returns seconds of wall-clock or CPU time; other programs hardly affect CPU time."""


def load_of_others(seconds: float = 1.0) -> tuple[float, float]:
    """Return the 1-minute load and the CPU percent of all cores while this process sleeps."""
    import psutil  # optional on a GPU host

    return os.getloadavg()[0], psutil.cpu_percent(interval=seconds)


def require_quiet(force: bool) -> Record:
    """Return load and CPU percent; exit if the machine is busy, unless `force`."""
    load, percent = load_of_others()
    limit = MAX_LOAD_PER_CORE * (os.cpu_count() or 1)
    if (load > limit or percent > MAX_CPU_PERCENT) and not force:
        sys.exit(
            f"the machine is busy: load {load:.2f} (limit {limit:.2f}), CPU {percent:.0f} % "
            f"(limit {MAX_CPU_PERCENT:.0f} %); try again later, or measure anyway with --force"
        )
    return {"load": load, "cpu_percent": percent}


def parse_timed(
    parser: argparse.ArgumentParser, repeats: int, seconds: float
) -> argparse.Namespace:
    """Add the flags of every timing, with these defaults, and parse all flags."""
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--seconds", type=float, default=seconds, help="per set-up and repeat")
    parser.add_argument("--quick", action="store_true", help="one repeat of a second: a smoke run")
    parser.add_argument("--json", type=Path, help="write raw repeats and versions here")
    parser.add_argument("--force", action="store_true", help="measure on a busy machine too")
    args = parser.parse_args()
    if args.quick:
        args.repeats, args.seconds = 1, 1.0
    if args.repeats < 1 or args.seconds <= 0:
        parser.error("--repeats and --seconds must be positive")
    return args


def rate(work: Work, seconds: float, clock: Clock = time.perf_counter) -> float:
    """Repeat work for at least `seconds`; return steps per second."""
    n_steps, begin = 0, clock()
    while (elapsed := clock() - begin) < seconds:
        n_steps += work()
    return n_steps / elapsed


def interleaved_rates(
    contenders: Mapping[str, Work],
    repeats: int,
    seconds: float,
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Time all contenders in turns, so that a slow minute affects all; return their rates."""
    for work in contenders.values():
        work()
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, work in contenders.items():
            rates[name].append(rate(work, seconds, clock))
    return rates


def median_ratio(rates: Mapping[str, list[float]], name: str, base: str) -> float:
    """Return the median over rounds of one contender's rate divided by another's."""
    return statistics.median(a / b for a, b in zip(rates[name], rates[base], strict=True))


def run_at_once(commands: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Run commands in parallel; return the JSON on each command's last line."""
    # A thread count in the caller's environment would change the default number of threads.
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    running = [
        subprocess.Popen(
            c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for c in commands
    ]
    try:
        outputs = [process.communicate() for process in running]
    finally:
        for process in running:
            process.kill()
    for command, process, (_, stderr) in zip(commands, running, outputs, strict=True):
        if process.returncode:
            raise RuntimeError(f"{shlex.join(command)} failed:\n{stderr[-2000:]}")
    return [json.loads(stdout.splitlines()[-1]) for stdout, _ in outputs]


def machine() -> dict[str, object]:
    """Return the machine and the versions behind the numbers."""
    packages = ("torch", "mujoco", "gymnasium", "stable-baselines3", "numpy")
    commit = ["git", "-C", str(Path(__file__).parent), "describe"]
    commit += ["--always", "--dirty", "--abbrev=40", "--exclude=*"]
    found = subprocess.run(commit, capture_output=True, text=True, check=False)
    return {
        "cpu": cpu_model(),
        "cores": n_cores(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        **{d.name: d.version for d in metadata.distributions() if d.name in ("sbx-rl", "jax")},
        "commit": found.stdout.strip() or None,
    }


def cpu_model() -> str:
    """Return the processor's name, if the system provides it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def write_json(path: Path | None, data: object) -> None:
    """Write results, if a path is given."""
    if path is not None:
        path.write_text(json.dumps(data, indent=1) + "\n")


def in_rounds(
    repeats: int, contenders: Mapping[str, Callable[[], Record]], unit: str, console: Any
) -> tuple[dict[str, list[Record]], list[dict[str, float]]]:
    """Measure all contenders in turns, so that a slow minute affects all.

    A record has a rate, `steps_per_s` for the unit "steps". Returns the records of each contender,
    and the load of other programs before each round.
    """
    found: dict[str, list[Record]] = {name: [] for name in contenders}
    rounds = []
    for i in range(repeats):
        load, percent = load_of_others()
        console.print(f"round {i + 1} of {repeats}; others use {percent:.0f} % of the CPU")
        rounds.append({"load": load, "cpu_percent": percent})
        for name, measure in contenders.items():
            found[name].append(measure())
            console.print(f"  {name}: {found[name][-1][f'{unit}_per_s']:,.0f} {unit}/s")
    return found, rounds


def fastest(rates: Mapping[str, list[float]], names: Iterable[str]) -> str:
    """Return the contender with the highest median rate, among those that were measured."""
    return max((n for n in names if n in rates), key=lambda n: statistics.median(rates[n]))


def least_goal(text: str, measured: float, least: float) -> Record:
    """Return a goal with its measurement."""
    return {"goal": f"{text} >= {least}", "measured": measured, "met": measured >= least}
