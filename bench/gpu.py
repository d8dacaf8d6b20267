"""Run one part of the GPU benchmarks; `bench/gpu.sh PART` starts it.

python bench/gpu.py parity --json gpu-parity.json
python bench/gpu.py speed --device cpu --quick       smoke run; its numbers are meaningless

The most important measurements come first, and none starts that could not finish in time. Each runs
in a separate process and is written when it ends. If one fails or crashes, its error is recorded
and the next one starts.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import IO, Any

import torch
from rich.console import Console
from timing import machine

from dpd.log.terminal import make_console

RESULTS = Path(__file__).parent / "results"
PARTS = ("parity", "speed", "runs")
LONGEST_S = 450.0
SPARE_S = 25.0  # time of a measurement: the last one starts this long before the end
PATIENCE_S = 10.0  # between SIGTERM and SIGKILL
HOST = "host"
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


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a record atomically, so that no reader sees half of it."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(record, indent=1) + "\n")
    draft.replace(path)


def run(part: Any, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure until the time is up, each measurement in a separate process."""
    end = time.perf_counter() + args.seconds
    found: dict[str, Any] = {}
    record = {"part": args.part, "quick": args.quick, "found": found}
    record["host"] = alone(HOST, args, args.seconds)
    for name, _ in part.measures(torch.device(args.device), args.quick, args.seconds):
        if args.only and args.only not in name:
            continue
        if (left := end - time.perf_counter()) < SPARE_S:
            record["out_of_time_before"] = name
            break
        found[name] = alone(name, args, left)
        record["goals"] = part.goals(found) if hasattr(part, "goals") else []
        write(args.json, record)
        console.print(f"{name}: {json.dumps(found[name])[:400]}", markup=False, soft_wrap=True)
    return record


def alone(name: str, args: argparse.Namespace, left: float) -> dict[str, Any]:
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
            result: dict[str, Any] = json.loads(answer.read_text())
            return result
        why = "it took too long" if status is None else f"its process ended with {status}"
        return {"error": why, "where": output.read_text(errors="replace")[-1200:]}


def ended(argv: list[str], output: IO[bytes], limit: float) -> int | None:
    """Run a command, end it with this process, and return its status, or None after `limit` s."""
    with subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            process.terminate()  # it ends its own children
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def measure(part: Any, args: argparse.Namespace) -> None:
    """Take one measurement in this process, and write the result or the error."""
    device = torch.device(args.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # CUDA graphs record on the current device
    measures: dict[str, Callable[[], Any]] = {HOST: lambda: host(device)}
    measures |= part.measures(device, args.quick, args.seconds)
    start = time.perf_counter()
    try:
        found = measures[args.measure]()
    except ERRORS as error:
        found = {"error": f"{type(error).__name__}: {error}"[:600]}
        found["where"] = traceback.format_exc()[-1200:]
    found["seconds_taken"] = round(time.perf_counter() - start, 2)
    write(args.json, found)


def parse() -> argparse.Namespace:
    """Parse the flags."""
    parser = argparse.ArgumentParser(description="Test and time dpd on a GPU.")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--seconds", type=float, default=LONGEST_S, help="start nothing later")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # for the separate process
    parser.add_argument("--only", help="measure only names that contain this")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to test the script")
    parser.add_argument("--json", type=Path, help="default: bench/results/gpu-PART.json")
    args = parser.parse_args()
    args.json = args.json or RESULTS / f"gpu-{args.part}.json"
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device; --device cpu --quick tests the script")
    return args


def main() -> int:
    """Measure one part."""
    args = parse()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # runs the finally blocks
    part = import_module(f"gpu_{args.part}")
    if args.measure:
        measure(part, args)
    else:
        run(part, args, make_console())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
