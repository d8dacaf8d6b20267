"""Let saved policies teach each other, with controls, from several seeds.

python bench/cooperate.py runs/ppo runs/sac --json bench/results/cooperate-halfcheetah.json
python bench/cooperate.py --json bench/results/cooperate-halfcheetah.json --docs docs/results.md

The first runs and writes the file, the second writes its tables into the page.

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
from marked import fill
from timing import machine

from dpd.cooperate.outcome import gain_verdict
from dpd.report.stats import family, paired_difference

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
    """Return a policy's returns over the seeds of a variant, and its gain over their episodes.

    Seeds are strata: the gain is that of these very policies in any episodes.
    """
    mine = [run["policies"][k] for run in runs if run["variant"] == name]
    episodes = [
        [a - b for a, b in zip(p["returns_after"], p["returns_before"], strict=True)] for p in mine
    ]
    gains = [p["gain"] for p in mine]
    return {
        "variant": name,
        "policy": k,
        "name": mine[0]["name"],
        "algo": mine[0]["algo"],
        "before": float(np.mean([p["return_before"] for p in mine])),
        "after": float(np.mean([p["return_after"] for p in mine])),
        "gains": gains,
        "gain": paired_difference(episodes),
    }


def summaries(runs: Sequence[Found]) -> Iterator[Found]:
    """Return a row per variant and policy, all of which are one family."""
    names = dict.fromkeys(run["variant"] for run in runs)
    rows = [summary(runs, name, k) for name in names for k in range(len(runs[0]["policies"]))]
    judged = family({str(n): row["gain"] for n, row in enumerate(rows)})
    for row, gain in zip(rows, judged.values(), strict=True):
        said = {"verdict": gain_verdict(gain), "episodes": gain.seeds}
        names_of = ("interval", "p", "p_adjusted")
        yield row | {"gain": gain.mean} | {k: getattr(gain, k) for k in names_of} | said


def lines_of(data: Found) -> list[str]:
    """Lay out returns before and after, a line per variant and policy."""
    said, runs = data["settings"], data["runs"]
    lines = [
        f"{runs[0]['env']}: {said['episodes']} episodes each, {said['probes']} probe states per "
        f"policy, {said['rounds']} rounds, horizon {said['horizon']}; about {steps(runs):,} "
        "simulator steps a run.",
        "",
        "| variant | policy | before | after | gain (95 % over episodes) | p | p adj. | verdict "
        "| gain of each seed |",
        "|---|---|---:|---:|---:|---:|---:|---|---:|",
    ]
    for row in summaries(runs):
        low, high = row["interval"]
        each = ", ".join(f"{gain:+,.0f}" for gain in row["gains"])
        cells = [row["variant"], f"{row['policy']}: {row['name']}"]
        cells += [f"{row['before']:,.0f}", f"{row['after']:,.0f}"]
        cells.append(f"{row['gain']:+,.0f} ({low:+,.0f} to {high:+,.0f})")
        cells += [*(f"{row[k]:.2g}" for k in ("p", "p_adjusted")), row["verdict"], each]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", *gap_lines(runs)]


def steps(runs: Sequence[Found]) -> int:
    """Return the mean number of a run's simulator steps, to the thousand."""
    return int(round(float(np.mean([run["steps"]["total"] for run in runs])), -3))


def gap_lines(runs: Sequence[Found]) -> list[str]:
    """Say what became of the gaps at held-out deficient states, variant by variant."""
    lines = ["| variant | gap before | after | drift | gap up |", "|---|---:|---:|---:|---:|"]
    for name in dict.fromkeys(run["variant"] for run in runs):
        rounds = [r for run in runs if run["variant"] == name for r in run["rounds"]]
        pairs = [p for r in rounds for p in r["pairs"] if p["gap_before"] is not None]
        drift = [d for r in rounds for d in r["drift_competent"] if d is not None]
        up = [p["cf_gap_up"] for r in rounds for p in r["pairs"] if p["cf_gap_up"] is not None]
        figures = [[p["gap_before"] for p in pairs], [p["gap_after"] for p in pairs], drift, up]
        cells = [f"{np.mean(x):.3g}" if x else "-" for x in figures]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return lines


def parse() -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(description="Cooperation of saved policies, with controls.")
    parser.add_argument("policies", nargs="*", type=Path, help="none: only write the table")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--probes", type=int, default=256)
    parser.add_argument("--horizon", type=int, default=50)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--total-steps", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True, help="everything found, run by run")
    parser.add_argument("--docs", type=Path, help="write the tables of --json into this page")
    return parser.parse_args()


def run_all(args: argparse.Namespace) -> None:
    """Run all variants, seed by seed; write after each."""
    runs: list[Found] = []
    for seed in range(args.seeds):
        for name in args.variants:
            with tempfile.TemporaryDirectory() as folder:
                runs.append(cooperate(name, seed, args, Path(folder) / "out"))
            gains = " ".join(f"{p['gain']:+,.0f}" for p in runs[-1]["policies"])
            sys.stdout.write(f"{name}, seed {seed}: {gains}\n")
            sys.stdout.flush()
            write(args, runs)


def write(args: argparse.Namespace, runs: Sequence[Found]) -> None:
    """Write everything found so far."""
    settings = {k: v for k, v in vars(args).items() if k not in ("policies", "json", "docs")}
    data = {"machine": machine(), "settings": settings, "summary": list(summaries(runs))}
    args.json.write_text(json.dumps(data | {"runs": runs}, indent=1) + "\n")


def main() -> int:
    """Cooperate, or write the tables; print them."""
    args = parse()
    if args.policies:
        run_all(args)
    data = json.loads(args.json.read_text())
    lines = lines_of(data)
    if args.docs is not None:
        fill(args.docs, f"bench/cooperate.py {data['runs'][0]['env']}", lines)
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
