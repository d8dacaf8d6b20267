"""Compare students fine-tuned by reward with PPO that sees as little from the start.

python bench/finetune.py tuned=runs/tuned student=runs/student --json bench/results/finetune.json

Each group is a name and a run, or several runs separated by commas; the first one is compared with
the others. The last policies of a group, or those whose name contains a word after an @, as in
student=runs/frames@h4, play the same episodes. One policy a seed: seeds pair the groups.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from marked import report, table
from views import centre, contents

import dpd
from dpd.log.naming import parse_policy_name
from dpd.report.stats import difference, family

Record = dict[str, Any]


def group(text: str, episodes: int) -> Record:
    """Play the policies of a group `name=run,run@word` -> the mean return of every seed."""
    name, _, where = text.partition("=")
    runs, _, word = where.partition("@")
    returns: dict[int, float] = {}
    for run in map(Path, runs.split(",")):
        files = [f for f in sorted((run / "policies").glob("*.safetensors")) if word in f.stem]
        last = [file for file in files if not parse_policy_name(file.stem).is_best]
        played = dpd.evaluate(*last, episodes=episodes).policies
        for file, row in zip(last, played, strict=True):
            returns[dpd.load(file).meta.provenance["seed"]] = float(np.mean(row.returns))
    config = contents(run / "config.json")
    settings = {key: config.get(key) for key in ("env", "total_steps", "lr", "minibatch_size")}
    return {"group": name, "returns": returns, "settings": settings}


def lines(data: Record) -> list[str]:
    """Lay out a row per group, and the first one's difference from each."""
    first, *others = data["groups"]
    gaps = family({row["group"]: difference(numbers(row), numbers(first)) for row in others})
    rows = []
    for row in data["groups"]:
        cells = [row["group"], str(len(row["returns"])), centre(list(row["returns"].values()))]
        if (gap := gaps.get(row["group"])) is None:
            rows.append([*cells, "", "", ""])
            continue
        low, high = gap.interval or (math.nan, math.nan)
        text = f"{gap.mean:,.0f} ({low:,.0f} to {high:,.0f})".replace("-", "−")
        rows.append([*cells, text, f"{gap.p_adjusted:.2g}", gap.verdict])
    head = ["policies", "seeds", "return", f"{first['group']} minus it", "p adj.", "verdict"]
    return table(head, "lrrrrl", rows)


def numbers(row: Record) -> dict[int, float]:
    """Return a group's returns by seed; keys of JSON are text."""
    return {int(seed): value for seed, value in row["returns"].items()}


def main() -> int:
    """Play all groups, and print and write their table."""
    parser = argparse.ArgumentParser(description="Compare groups of policies, seed by seed.")
    parser.add_argument("groups", nargs="+", metavar="NAME=RUN[,RUN][@WORD]")
    parser.add_argument("--episodes", type=int, default=20, help="of every policy")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = [group(text, args.episodes) for text in args.groups]
    data = {"episodes": args.episodes, "groups": found}
    report(args.json, data, lines(data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
