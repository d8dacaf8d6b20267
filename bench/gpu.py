"""Run one part of the GPU benchmarks, and lay out their results; `bench/gpu.sh PART` starts it.

python bench/gpu.py parity --jobs 6                  comparisons side by side
python bench/gpu.py speed --device cpu --quick       smoke run; its numbers are meaningless
python bench/tables.py                               docs/benchmarks.md's section from all results

The most important measurements come first, and none starts that could not finish in time. Each runs
in a separate process and is written when it ends. If one fails or crashes, its error is recorded
and the next one starts.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module, metadata
from pathlib import Path
from statistics import mean
from threading import Lock
from typing import IO, Any

import torch
from marked import table
from rich.console import Console
from timing import machine

from dpd.log.terminal import make_console

HERE = Path(__file__).resolve().parent
PARTS = {"parity": "gpu_parity", "speed": "gpu_speed", "runs": "gpu_speed"}
"""Parts and their modules; a part is a function that yields named measurements."""
Bound = dict[str, int]
GOALS: dict[str, dict[str, tuple[str, str, Bound]]] = {
    "parity": {},
    "speed": {
        "two PPO peers on HalfCheetah, environment steps per second": (
            "ppo/HalfCheetah-v5/no distillation",
            "steps_per_s",
            {"least": 1_000_000},
        ),
        "20 stacked TD3 learners, updates per second of each": (
            "updates/td3/20/recorded",
            "updates_per_s_each",
            {"least": 2_000},
        ),
    },
    "runs": {
        "two peers x 10M steps x 5 seeds on HalfCheetah, seconds, at most": (
            "HalfCheetah-v5/paper",
            "seconds",
            {"most": 300},
        ),
    },
}
"""Goals of each part -> measurement, key and bound."""
PUBLISHED = (
    ("mjlab, PPO end to end, HalfCheetah", "450,000", "RTX PRO 5000 Blackwell"),
    ("mjlab, PPO end to end, Ant", "182,000", "RTX PRO 5000 Blackwell"),
    ("mjlab, PPO end to end, Humanoid", "127,000", "RTX PRO 5000 Blackwell"),
    ("mjlab, Ant, simulation alone, 4,096 environments", "313,000", "RTX PRO 5000 Blackwell"),
    ("rl_games and envpool, PPO", "27,000 to 34,000", "Apple M5 Max"),
    ("LeanRL, TD3, one learner and environment, compiled", "936", "H100"),
)
"""Environment steps per second as published by their authors, not measured here."""
UNMEASURED = """
Nothing has been measured on a GPU yet: what `--device cuda` runs is tested on the CPU alone
(tests/agents/test_device.py says how). `bench/gpu.sh parity`, `speed` and `runs` measure, and
`python bench/tables.py` puts the results here. Goals on one H200: two PPO peers on HalfCheetah at
1,000,000 environment steps per second end to end; two peers x 10M steps x 5 seeds in five minutes;
20 stacked TD3 learners at 2,000 updates per second each. That `auto` simulates on the GPU from 512
environments on is an estimate.
"""
UNDISTURBED = {"closing frees"}
"""Measurements that run by themselves, after all others: it reads the whole device's memory."""
LONGEST_S = 450.0
SPARE_S = 25.0  # time of a measurement: the last one starts this long before the end
PATIENCE_S = 10.0  # between SIGTERM and SIGKILL
JOBS = "processes at once: of parity all work, of other parts one works and the others start up"
HOST = "host"
RUNNING: set[subprocess.Popen[bytes]] = set()
Record = dict[str, Any]
ERRORS = (RuntimeError, ValueError, OSError, AssertionError, subprocess.SubprocessError)


def host(device: torch.device) -> dict[str, object]:
    """Return the machine, device and versions behind the numbers."""
    about: dict[str, object] = {**machine(), "device": str(device)}
    for name in ("warp-lang", "mujoco-warp"):
        about[name] = metadata.version(name)
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        about |= {"device": facts.name, "memory_gb": facts.total_memory / 1e9}
        about |= {"cuda": torch.version.cuda, "capability": f"{facts.major}.{facts.minor}"}
    return about


def write(path: Path, record: Record) -> None:
    """Write a record atomically, so that no reader sees half of it."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(record, indent=1) + "\n")
    draft.replace(path)


def measures(args: argparse.Namespace) -> Any:
    """Yield the named measurements of a part, the most important first."""
    part = getattr(import_module(PARTS[args.part]), args.part)
    return part(torch.device(args.device), args.quick, args.seconds)


def goals(part: str, found: Record) -> list[Record]:
    """Return the goals of a part and their measurements, None for those of unfinished runs."""
    rows = []
    for goal, (name, key, bound) in GOALS[part].items():
        each = found.get(name, {})
        measured = None if each.get("status") else each.get(key)
        rows.append({"goal": goal, **bound, "measured": measured})
    return rows


def run(args: argparse.Namespace, console: Console) -> Record:
    """Measure until the time is up, each measurement in a separate process."""
    end = time.perf_counter() + args.seconds
    found: Record = {}
    record = {"part": args.part, "quick": args.quick, "found": found}
    record["host"] = alone(HOST, args, args.seconds)
    names = [name for name, _ in measures(args) if (args.only or "") in name]

    def take(name: str) -> None:
        if (left := end - time.perf_counter()) < SPARE_S:
            record.setdefault("out_of_time_before", name)
            return
        answer = alone(name, args, left)
        with writing:
            found[name] = answer
            ordered = {name: found[name] for name in names if name in found}
            record.update(found=ordered, goals=goals(args.part, found))
            write(args.json, record)
            console.print(f"{name}: {json.dumps(answer)[:400]}", markup=False, soft_wrap=True)

    writing = Lock()
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(take, [name for name in names if name not in UNDISTURBED]))
    for name in UNDISTURBED & set(names):
        take(name)
    write(args.json, record)
    return record


def alone(name: str, args: argparse.Namespace, left: float) -> Record:
    """Measure in a separate process; return the measurement or the error.

    The process is separate because a CUDA error breaks all later GPU calls of its process.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer, output = Path(folder) / "answer.json", Path(folder) / "output"
        argv = [sys.executable, __file__, args.part, "--device", args.device, "--measure", name]
        argv += ["--seconds", str(left), "--json", str(answer), *(["--quick"] * args.quick)]
        with output.open("wb") as file:
            status = ended(argv, file, left + SPARE_S)
        if answer.exists():
            result: Record = json.loads(answer.read_text())
            return result
        why = "it took too long" if status is None else f"its process ended with {status}"
        return {"error": why, "where": output.read_text(errors="replace")[-1200:]}


def ended(argv: list[str], output: IO[bytes], limit: float) -> int | None:
    """Run a command, end it with this process, and return its status, or None after `limit` s."""
    with subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT) as process:
        RUNNING.add(process)
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            RUNNING.discard(process)
            process.terminate()  # it ends its own children
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def stop(*_: object) -> None:
    """End the measurements' processes with this one."""
    for process in tuple(RUNNING):
        process.terminate()
    sys.exit(128 + signal.SIGTERM)


def measure(args: argparse.Namespace) -> None:
    """Take one measurement in this process, and write the result or the error."""
    device = torch.device(args.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # CUDA graphs record on the current device
    named: dict[str, Callable[[], Any]] = {HOST: lambda: host(device), **dict(measures(args))}
    with turn(args.part):
        start = time.perf_counter()
        try:
            found = named[args.measure]()
        except ERRORS as error:
            found = {"error": f"{type(error).__name__}: {error}"[:600]}
            found["where"] = traceback.format_exc()[-1200:]
    found["seconds_taken"] = round(time.perf_counter() - start, 2)
    write(args.json, found)


@contextmanager
def turn(part: str) -> Iterator[None]:
    """Wait until no other process measures times; starting up takes longer than most of them."""
    with Path(__file__).open() as file:
        if part != "parity":
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Test and time dpd on a GPU.")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--seconds", type=float, default=LONGEST_S, help="start nothing later")
    parser.add_argument("--jobs", type=int, default=2, help=JOBS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # for the separate process
    parser.add_argument("--only", help="measure only names that contain this")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to test the script")
    parser.add_argument("--json", type=Path, help="default: bench/results/gpu-PART.json")
    args = parser.parse_args()
    args.json = args.json or HERE / "results" / f"gpu-{args.part}.json"
    on_gpu = torch.device(args.device).type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device; --device cpu --quick tests the script")
    return args


def section(parts: dict[str, Record]) -> list[str]:
    """Return the section; without measurements, the plan."""
    lines = ["## On a GPU", ""]
    if not parts:
        lines += [*textwrap.wrap(UNMEASURED.strip(), 96), ""]
    for name, make in (("speed", speed), ("runs", runs), ("parity", parity)):
        if name in parts:
            lines += [*heading(name, parts[name]), *make(parts[name]["found"]), ""]
    lines += ["As published by others (environment steps per second):", ""]
    return lines + table(("", "steps/s", "on"), "lrr", PUBLISHED)


def heading(name: str, part: Record) -> list[str]:
    """Name the device of a part, and the measurement at which time ran out."""
    host = part["host"]
    text = f"`bench/gpu.sh {name}` on {host['device']}, torch {host['torch']}, "
    text += f"commit {str(host['commit'])[:10]}."
    if stopped := part.get("out_of_time_before"):
        text += f" Out of time before `{stopped}`."
    goals = [goal_line(goal) for goal in part.get("goals", [])]
    return [f"### {name.capitalize()}", "", text, "", *goals, *([""] if goals else [])]


def goal_line(goal: Record) -> str:
    """Format a goal and its measurement."""
    value, bound = goal["measured"], goal.get("least", goal.get("most"))
    if value is None:
        return f"* {goal['goal']}: {bound:,}; not measured"
    met = value >= bound if "least" in goal else value <= bound
    return f"* {goal['goal']}: {bound:,}; measured {value:,.0f}, {'met' if met else 'not met'}"


def named(found: Record, prefix: str) -> Record:
    """Return the measurements with a prefix, without the prefix."""
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}


def number(record: Record, key: str) -> str:
    """Format a measurement, or its error."""
    return f"{record[key]:,.0f}" if key in record else record.get("error", "-")[:60]


def speed(found: Record) -> list[str]:
    """Return the tables of speed."""
    ends = [
        (name, number(each, "steps_per_s"), f"{each.get('in_use_gb', float('nan')):.1f}")
        for name, each in found.items()
        if name.partition("/")[0] in ("ppo", "td3", "sac")
    ]
    updates = [
        (name, number(each, "updates_per_s_each"), number(each, "updates_per_s_all"))
        for name, each in named(found, "updates/").items()
    ]
    lines = table(("`dpd train`, two peers", "steps/s", "GB in use"), "lrr", ends)
    heads = ("stacked updates, 256-256", "of each /s", "of all /s")
    lines += ["", *table(heads, "lrr", updates)]
    for prefix in ("envs/", "few/"):
        rates = {
            (env_id, backend): by_size
            for env_id, each in named(found, prefix).items()
            for backend, by_size in each.items()
            if isinstance(by_size, dict)
        }
        sizes = list(dict.fromkeys(size for by_size in rates.values() for size in by_size))
        head = ["simulation alone, environments", *(f"{int(n):,}" for n in sizes)]
        rows = [
            [f"{env_id}, {backend}", *(number(by_size, n) for n in sizes)]
            for (env_id, backend), by_size in rates.items()
        ]
        lines += ["", *table(head, "l" + "r" * len(sizes), rows)] if rows else []
    return lines


def runs(found: Record) -> list[str]:
    """Return the table of returns."""
    rows = []
    for name, each in found.items():
        values = sorted(each.get("returns", {}).values())
        shown = f"{mean(values):,.0f} ({values[0]:,.0f} to {values[-1]:,.0f})" if values else "-"
        steps = number(each, "steps_of_both_peers")
        rows.append((name, steps, number(each, "seconds"), str(len(values)), shown))
    head = ("run", "steps of both peers", "seconds", "learners", "return on the CPU (range)")
    return table(head, "lrrrr", rows)


def parity(found: Record) -> list[str]:
    """Return the table of comparisons."""
    rows = [(name, said(each)) for name, each in found.items()]
    return table(("compared", "found"), "ll", rows)


def said(each: Record) -> str:
    """Say in words what a comparison found."""
    match each:
        case {"error": error}:
            return f"error: {error[:100]}".replace("|", "/")
        case {"within 1e-3": within, "reward": reward, "terminated": ended}:
            parts = [f"{k} {each[k]['max']:.0e}" for k in ("qpos", "qvel", "further") if k in each]
            largest = ", ".join([*parts, f"reward {reward['max']:.0e}"])
            unlike = f"{each['terminated unlike']} of {ended} ends differ"
            return f"largest errors: {largest}; {within:.2%} of states within 1e-3; {unlike}"
        case {"moved": moved, "largest_difference": difference}:
            return f"parameters move by {moved:.0e} and differ by {difference:.0e}"
        case {"largest_difference": difference}:
            return f"largest difference {difference:.0e}" if difference else "the same bits"
        case {"iterations_without_waiting": n}:
            return f"{n} iterations without waiting for the device"
        case {"taken_mb": taken, "kept_mb": kept}:
            return f"{taken:.0f} MB taken, {kept:.0f} MB kept after closing"
        case {"status": status}:
            return f"exit status {status}"
    return json.dumps(each)[:160].replace("|", "/")


def read(folder: Path) -> dict[str, Record]:
    """Read the measured parts, without smoke runs."""
    found = {file.stem[4:]: json.loads(file.read_text()) for file in folder.glob("gpu-*.json")}
    return {name: part for name, part in found.items() if not part["quick"]}


def main() -> int:
    """Measure one part."""
    args = parse()
    signal.signal(signal.SIGTERM, stop)
    if args.measure:
        measure(args)
    else:
        run(args, make_console())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
