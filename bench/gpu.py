"""One part of what is to be shown and timed on a GPU host; `bench/gpu.sh PART` starts it.

python bench/gpu.py parity --json gpu-parity.json
python bench/gpu.py speed --device cpu --quick       a smoke run, its numbers mean nothing

Measurements come in the order of their worth, and none begins that would not end in time. Each is
written as soon as it is there; one that fails says why, and the next goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
import traceback
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from timing import machine

from dpd.terminal import make_console

RESULTS = Path(__file__).parent / "results"
PARTS = ("parity", "speed", "runs")
LONGEST_S = 450.0
SPARE_S = 25.0  # a measurement may take; the last one to begin begins so long before the end
ERRORS = (RuntimeError, ValueError, OSError, AssertionError, subprocess.SubprocessError)


def host(device: torch.device) -> dict[str, object]:
    """Say what the numbers were measured on."""
    found: dict[str, object] = {**machine(), "device": str(device)}
    for name in ("warp-lang", "mujoco-warp"):
        found[name] = metadata.version(name)
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        found |= {"device": facts.name, "memory_gb": facts.total_memory / 1e9}
        found |= {"cuda": torch.version.cuda, "capability": f"{facts.major}.{facts.minor}"}
    return found


def write(path: Path, record: dict[str, Any]) -> None:
    """Write what there is, so that a reader never sees half of it."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(record, indent=1) + "\n")
    draft.replace(path)


def run(part: Any, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure until the time is up."""
    begin, device = time.perf_counter(), torch.device(args.device)
    found: dict[str, Any] = {}
    record = {"part": args.part, "quick": args.quick, "host": host(device), "found": found}
    measures: Iterator[tuple[str, Any]] = part.measures(device, args.quick)
    for name, measure in measures:
        if args.only and args.only not in name:
            continue
        if time.perf_counter() - begin > args.seconds - SPARE_S:
            record["out_of_time_before"] = name
            break
        start = time.perf_counter()
        try:
            found[name] = measure()
        except ERRORS as error:
            found[name] = {"error": f"{type(error).__name__}: {error}"[:600]}
            found[name]["where"] = traceback.format_exc()[-1200:]
        found[name]["seconds_taken"] = round(time.perf_counter() - start, 2)
        record["goals"] = part.goals(found) if hasattr(part, "goals") else []
        write(args.json, record)
        console.print(f"{name}: {json.dumps(found[name])[:400]}", markup=False, soft_wrap=True)
    return record


def parse() -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(description="Show and time what a GPU does.")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--seconds", type=float, default=LONGEST_S, help="begin nothing after")
    parser.add_argument("--only", help="measure only what has this in its name")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--json", type=Path, help="default: bench/results/gpu-PART.json")
    args = parser.parse_args()
    args.json = args.json or RESULTS / f"gpu-{args.part}.json"
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device; --device cpu --quick tries the script")
    return args


def main() -> int:
    """Measure one part."""
    args = parse()
    run(import_module(f"gpu_{args.part}"), args, make_console())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
