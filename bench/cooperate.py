"""Let saved policies teach each other, with controls, from several seeds.

python bench/cooperate.py runs/ppo runs/sac --json bench/results/cooperate-halfcheetah.json

The seed determines probe states, proxies and minibatches of all rounds, and the episodes before and
after. All variants have the same budget; a control does not spend the steps that it skips.
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
from marked import report, table
from timing import machine, write_json

from dpd.cooperate.cooperation import gain_verdict
from dpd.report.stats import family, paired_difference

ALL = ("--trial-episodes", "0")  # keep every lesson
VARIANTS = {
    "focused": ALL,
    "no counterfactuals": ("--no-counterfactuals", *ALL),
    "unfocused": ("--control", "unfocused", *ALL),
    "focused, on trial": (),
}
"""Names in the table -> flags."""

Record = dict[str, Any]


def cooperate(name: str, seed: int, args: argparse.Namespace, out: Path) -> Record:
    """Run one variant from one seed; return the JSON of `dpd cooperate`."""
    command = [sys.executable, "-m", "dpd", "cooperate", *map(str, args.policies), "--json"]
    command += ["--seed", str(seed), "--out", str(out), *VARIANTS[name]]
    for flag in ("rounds", "probes", "horizon", "episodes", "total-steps", "threads"):
        command += [f"--{flag}", str(getattr(args, flag.replace("-", "_")))]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    record: Record = json.loads(done.stdout)
    return {"variant": name, "seed": seed} | record


def summary(runs: Sequence[Record], name: str, k: int) -> Record:
    """Return a policy's returns by seed of a variant, and its gain over their episodes.

    Seeds are strata: the gain refers to these trained policies in random episodes.
    """
    results = [run["policies"][k] for run in runs if run["variant"] == name]
    episodes = [
        [a - b for a, b in zip(p["returns_after"], p["returns_before"], strict=True)]
        for p in results
    ]
    gains = [p["gain"] for p in results]
    return {
        "variant": name,
        "policy": k,
        "name": results[0]["name"],
        "algo": results[0]["algo"],
        "before": float(np.mean([p["return_before"] for p in results])),
        "after": float(np.mean([p["return_after"] for p in results])),
        "gains": gains,
        "gain": paired_difference(episodes),
    }


def summaries(runs: Sequence[Record]) -> Iterator[Record]:
    """Yield a row per variant and policy; all rows form one family of tests."""
    names = dict.fromkeys(run["variant"] for run in runs)
    rows = [summary(runs, name, k) for name in names for k in range(len(runs[0]["policies"]))]
    judged = family({str(n): row["gain"] for n, row in enumerate(rows)})
    for row, gain in zip(rows, judged.values(), strict=True):
        test = {k: getattr(gain, k) for k in ("interval", "p", "p_adjusted")}
        verdict = {"verdict": gain_verdict(gain), "episodes": gain.seeds}
        yield row | {"gain": gain.mean} | test | verdict


def lines(data: Record) -> list[str]:
    """Lay out returns before and after, a row per variant and policy."""
    settings, runs = data["settings"], data["runs"]
    lead = (
        f"{runs[0]['env']}: {settings['episodes']} episodes each, "
        f"{settings['probes']} probe states "
        f"per policy, {settings['rounds']} rounds, horizon {settings['horizon']}; about "
        f"{steps(runs):,} simulator steps a run."
    )
    head = ["variant", "policy", "before", "after", "gain (95 % over episodes)"]
    head += ["p", "p adj.", "verdict", "gain of each seed"]
    rows = []
    for row in summaries(runs):
        low, high = row["interval"]
        cells = [row["variant"], f"{row['policy']}: {row['name']}"]
        cells += [f"{row['before']:,.0f}", f"{row['after']:,.0f}"]
        cells.append(f"{row['gain']:+,.0f} ({low:+,.0f} to {high:+,.0f})")
        cells += [*(f"{row[k]:.2g}" for k in ("p", "p_adjusted")), row["verdict"]]
        rows.append([*cells, ", ".join(f"{gain:+,.0f}" for gain in row["gains"])])
    return [lead, "", *table(head, "llrrrrrlr", rows), "", *gap_lines(runs)]


def steps(runs: Sequence[Record]) -> int:
    """Return the mean simulator steps per run, rounded to thousands."""
    return int(round(float(np.mean([run["steps"]["total"] for run in runs])), -3))


def gap_lines(runs: Sequence[Record]) -> list[str]:
    """Lay out the gaps at held-out deficient states, a row per variant."""
    rows = []
    for name in dict.fromkeys(run["variant"] for run in runs):
        rounds = [r for run in runs if run["variant"] == name for r in run["rounds"]]
        pairs = [p for r in rounds for p in r["pairs"] if p["gap_before"] is not None]
        drift = [d for r in rounds for d in r["drift_competent"] if d is not None]
        up = [p["cf_gap_up"] for r in rounds for p in r["pairs"] if p["cf_gap_up"] is not None]
        figures = [[p["gap_before"] for p in pairs], [p["gap_after"] for p in pairs], drift, up]
        rows.append([name, *(f"{np.mean(x):.3g}" if x else "-" for x in figures)])
    return table(["variant", "gap before", "after", "drift", "gap up"], "lrrrr", rows)


def parse() -> argparse.Namespace:
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
    parser.add_argument("--json", type=Path, required=True, help="all results by run")
    return parser.parse_args()


def write(args: argparse.Namespace, runs: Sequence[Record]) -> Record:
    """Write and return all results so far."""
    settings = {k: v for k, v in vars(args).items() if k not in ("policies", "json")}
    data = {"machine": machine(), "settings": settings, "summary": list(summaries(runs))}
    write_json(args.json, data | {"runs": runs})
    return data | {"runs": runs}


def main() -> int:
    """Run all variants, seed by seed; write the results after each run."""
    args, data = parse(), Record()
    for seed in range(args.seeds):
        for name in args.variants:
            with tempfile.TemporaryDirectory() as folder:
                run = cooperate(name, seed, args, Path(folder) / "out")
            gains = " ".join(f"{p['gain']:+,.0f}" for p in run["policies"])
            sys.stdout.write(f"{name}, seed {seed}: {gains}\n")
            sys.stdout.flush()
            data = write(args, [*data.get("runs", []), run])
    report(None, {}, lines(data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
