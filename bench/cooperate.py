"""Let saved policies teach each other, with controls, from several seeds.

python bench/cooperate.py runs/ppo runs/sac --json bench/results/cooperate-halfcheetah.json
python bench/cooperate.py runs/a runs/b runs/c runs/d --probes 128 --seeds 2

A seed draws the probe states, the proxies and the minibatches of all rounds, and the episodes
before and after. The budget is the same for all; what a control leaves out, it does not spend.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from timing import machine

from dpd.intervals import bootstrap_interval

ALL = ("--trial-episodes", "0")  # every lesson is kept
VARIANTS = {
    "focused": ALL,
    "no counterfactuals": ("--no-counterfactuals", *ALL),
    "unfocused": ("--control", "unfocused", *ALL),
    "focused, on trial": (),
}
"""What the table says -> flags."""

Found = dict[str, Any]


def cooperate(name: str, seed: int, args: argparse.Namespace, out: Path) -> Found:
    """Run one variant from one seed; return what `dpd cooperate` found."""
    command = [sys.executable, "-m", "dpd", "cooperate", *map(str, args.policies), "--json"]
    command += ["--seed", str(seed), "--out", str(out), *VARIANTS[name]]
    for flag in ("rounds", "probes", "horizon", "episodes", "total-steps", "threads"):
        command += [f"--{flag}", str(getattr(args, flag.replace("-", "_")))]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    found: Found = json.loads(done.stdout)
    return {"variant": name, "seed": seed} | found


def summary(runs: Sequence[Found], name: str, k: int) -> Found:
    """Return a policy's returns over the seeds of a variant, and the interval of its gain."""
    mine = [run["policies"][k] for run in runs if run["variant"] == name]
    episodes = [
        [a - b for a, b in zip(p["returns_after"], p["returns_before"], strict=True)] for p in mine
    ]
    gains = [p["gain"] for p in mine]
    return {
        "variant": name,
        "policy": k,
        "algo": mine[0]["algo"],
        "before": float(np.mean([p["return_before"] for p in mine])),
        "after": float(np.mean([p["return_after"] for p in mine])),
        "gain": float(np.mean(gains)),
        "interval_episodes": bootstrap_interval(np.mean, [np.concatenate(episodes).tolist()], 0),
        "range_seeds": [min(gains), max(gains)],
    }


def summaries(runs: Sequence[Found]) -> Iterator[Found]:
    """Return a row per variant and policy."""
    for name in dict.fromkeys(run["variant"] for run in runs):
        for k in range(len(runs[0]["policies"])):
            yield summary(runs, name, k)


def table(rows: Sequence[Found], title: str) -> Table:
    """Lay out returns before and after."""
    result = Table(title=title, title_justify="left")
    for name in ("variant", "policy", "before", "after", "gain", "95 % (episodes)", "seeds"):
        result.add_column(name, justify="left" if name in ("variant", "policy") else "right")
    for row in rows:
        low, high = row["interval_episodes"]
        least, most = row["range_seeds"]
        numbers = [f"{row['before']:,.0f}", f"{row['after']:,.0f}", f"{row['gain']:+,.0f}"]
        numbers += [f"{low:+,.0f}…{high:+,.0f}", f"{least:+,.0f}…{most:+,.0f}"]
        result.add_row(row["variant"], f"{row['policy']} {row['algo']}", *numbers)
    return result


def parse() -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(description="Cooperation of saved policies, with controls.")
    parser.add_argument("policies", nargs="+", type=Path)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--probes", type=int, default=256)
    parser.add_argument("--horizon", type=int, default=50)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--total-steps", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write everything found here, run by run")
    return parser.parse_args()


def main() -> int:
    """Run all variants, seed by seed; print, write after each."""
    args, console = parse(), Console()
    runs: list[Found] = []
    for seed in range(args.seeds):
        for name in args.variants:
            with tempfile.TemporaryDirectory() as folder:
                runs.append(cooperate(name, seed, args, Path(folder) / "out"))
            gains = " ".join(f"{p['gain']:+,.0f}" for p in runs[-1]["policies"])
            console.print(f"{name}, seed {seed}: {gains}, {runs[-1]['steps']['total']:,} steps")
            if args.json:
                write(args, runs)
    rows = list(summaries(runs))
    console.print(table(rows, f"{runs[0]['env']}: {args.seeds} seeds, {args.episodes} episodes"))
    return 0


def write(args: argparse.Namespace, runs: Sequence[Found]) -> None:
    """Write everything found so far."""
    settings = {k: v for k, v in vars(args).items() if k not in ("policies", "json")}
    data = {"machine": machine(), "settings": settings, "summary": list(summaries(runs))}
    args.json.write_text(json.dumps(data | {"runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
