"""Train for long and measure growth: resident memory, files, and TensorBoard's reading time.

python bench/long.py --json long.json        about 15 minutes

Every set-up runs `dpd train` in a separate process. Memory is read four times a second: early is
the median over the second tenth of the run, late over the last tenth.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from rich.table import Table
from timing import machine, write_json

from dpd.log.csv import read_rows
from dpd.log.terminal import make_console

SETUPS = {
    "2 peers, 2M steps": "--total-steps 2000000 --evals 4",
    "10 seeds x 2 peers, 200k steps each": "--seeds 10 --total-steps 200000 --evals 4",
}
MB = 2**20


def watch(argv: list[str], run_dir: Path) -> list[tuple[int, int]]:
    """Run a command to its end; return samples of (environment steps, resident bytes)."""
    samples: list[tuple[int, int]] = []
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as process:
        own = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                samples.append((last_step(run_dir / "metrics.csv"), own.memory_info().rss))
            except psutil.NoSuchProcess:
                break
            time.sleep(0.25)
    if process.returncode:
        raise RuntimeError(f"{shlex.join(argv)} exited with {process.returncode}")
    return samples


def last_step(metrics: Path) -> int:
    """Return the step of the last complete record in a log that is still written."""
    if not metrics.exists():
        return 0
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 4096))
        lines = file.read().split(b"\n")[:-1]
    first = lines[-1].split(b",")[0] if lines else b""
    return int(first) if first.isdigit() else 0


def measure(flags: str) -> dict[str, Any]:
    """Train once and return memory, file sizes and times."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "dpd", "train", "HalfCheetah-v5", *shlex.split(flags)]
        begin = time.perf_counter()
        samples = watch([*command, "--out", str(out)], out)
        seconds = time.perf_counter() - begin
        end = max(step for step, _ in samples)
        tenths = [[rss for s, rss in samples if min(10 * s // end, 9) == k] for k in range(10)]
        return {
            "flags": flags,
            "seconds": seconds,
            "early_mb": median(tenths[1]) / MB,
            "late_mb": median(tenths[9]) / MB,
            "peak_mb": max(rss for _, rss in samples) / MB,
            "files_mb": sizes(out),
            "tensorboard": read_tensorboard(out / "tb"),
            "records": len({row["step"] for row in read_rows(out / "metrics.csv")}),
        }


def sizes(run_dir: Path) -> dict[str, float]:
    """Return the megabytes of each file and folder of a run."""
    return {
        entry.name: sum(f.stat().st_size for f in [entry, *entry.rglob("*")] if f.is_file()) / MB
        for entry in sorted(run_dir.iterdir())
    }


def read_tensorboard(folder: Path) -> dict[str, float]:
    """Read all of a run's sub-runs as TensorBoard does; return seconds, tags and points."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    begin, tags, points = time.perf_counter(), 0, 0
    for run in sorted(folder.iterdir()):
        events = EventAccumulator(str(run), size_guidance={"scalars": 0})
        events.Reload()
        names = events.Tags()["scalars"]
        tags += len(names)
        points += sum(len(events.Scalars(name)) for name in names)
    return {"seconds": time.perf_counter() - begin, "tags": tags, "points": points}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--shorter", type=int, default=1, help="divide all budgets by this")
    args = parser.parse_args()
    table = Table("set-up", "MB early", "MB late", "growth", "csv MB", "tb MB", "tb read s")
    results = {}
    for name, flags in SETUPS.items():
        words = flags.split()
        i = words.index("--total-steps") + 1
        words[i] = str(int(words[i]) // args.shorter)
        m = results[name] = measure(shlex.join(words))
        growth = f"{m['late_mb'] / m['early_mb'] - 1:+.1%}"
        files, read = m["files_mb"], m["tensorboard"]
        figures = [m["early_mb"], m["late_mb"], growth, files["metrics.csv"], files["tb"]]
        cells = [f if isinstance(f, str) else f"{f:.1f}" for f in [*figures, read["seconds"]]]
        table.add_row(name, *cells)
    make_console().print(table)
    write_json(args.json, {"setups": results, "machine": machine()})


if __name__ == "__main__":
    main()
