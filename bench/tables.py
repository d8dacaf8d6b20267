"""Write every table of docs/benchmarks.md and docs/results.md that comes from bench/results.

python bench/tables.py

A table lies between marks with the name of its benchmark; the prose around it is written by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cooperate
import curves
import distill
import error_rates
import gpu
import learners
import neighbours
import study_table
import train
import variants
from marked import fill

import envs

HERE = Path(__file__).resolve().parent
RESULTS, DOCS = HERE / "results", HERE.parent / "docs"
GPU = "bench/gpu.py"

Made = tuple[Callable[..., list[str]], str]
"""Function of the contents of result files -> lines, and the files' names."""
BENCHMARKS: dict[str, Made] = {
    "bench/train.py": (train.lines, "train"),
    "bench/train.py, cost": (train.cost_lines, "train"),
    "bench/learners.py": (learners.lines, "learners"),
    "bench/learners.py, end to end": (learners.lines, "learners-end-to-end"),
    "bench/variants.py": (variants.lines, "variants-td3 variants-ddpg"),
    "bench/distill.py time": (distill.share_lines, "dagger"),
    "bench/envs.py": (envs.lines, "envs"),
    "bench/curves.py, PPO": (curves.lines, "curves-ppo"),
    "bench/curves.py, more PPO": (curves.further_lines, "curves-ppo curves-ppo-400k"),
    "bench/curves.py, replay": (curves.lines, "curves-td3 curves-sac"),
    "bench/curves.py, replay, in training": (curves.training_lines, "curves-td3 curves-sac"),
}
STUDIES = ("study-ppo-500k", "study-cheetah-500k", "study-cheetah-1m")
FINDINGS: dict[str, Made] = {
    "bench/error_rates.py": (error_rates.lines, "error-rates"),
    **{f"bench/study_table.py {name}": (study_table.lines, name) for name in STUDIES},
    "bench/distill.py methods": (distill.lines, "distill"),
    "bench/distill.py guide": (distill.lines, "scaffold"),
    "bench/neighbours.py": (neighbours.lines, "neighbours"),
    "bench/cooperate.py HalfCheetah-v5": (cooperate.lines, "cooperate-halfcheetah"),
    "bench/cooperate.py Walker2d-v5": (cooperate.lines, "cooperate-walker2d"),
}
PAGES = {"benchmarks.md": BENCHMARKS, "results.md": FINDINGS}


def read(name: str) -> Any:
    """Return the contents of a result file."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def written(page: str) -> str:
    """Return a page's text with all of its tables made anew."""
    text = (DOCS / page).read_text()
    for name, (make, files) in PAGES[page].items():
        text = fill(text, name, make(*map(read, files.split())))
    return fill(text, GPU, gpu.section(gpu.read(RESULTS))) if f"<!-- {GPU}" in text else text


def main() -> int:
    """Write the pages."""
    for page in PAGES:
        (DOCS / page).write_text(written(page))
        sys.stdout.write(f"{DOCS / page}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
