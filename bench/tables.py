"""Write every table of docs/benchmarks.md and docs/results.md that comes from bench/results.

python bench/tables.py

A table lies between marks with the name of its benchmark; the prose around it is written by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cooperate
import curves
import distill
import error_rates
import finetune
import gpu
import learners
import neighbours
import train
import variants
import views
from marked import fill, table
from timing import Record

import envs
from dpd.study.learning import reach_cells

HERE = Path(__file__).resolve().parent
RESULTS, DOCS = HERE / "results", HERE.parent / "docs"
GPU = "bench/gpu.py"

COLUMNS = ("arm", "mean", "IQM", "worst ¼", "best peer", "{} minus it", "p", "p adj.", "verdict")
LEARNING_COLUMNS = ("arm", "area", "{} minus it", "verdict", "to 90 %", "seeds", "seconds")
TIMED_COLUMNS = ("{} minus it after equal seconds", "verdict")


def figure(value: float | None, interval: list[float] | None = None) -> str:
    """Format a number and its interval."""
    if value is None:
        return "-"
    low_high = "" if interval is None else " ({} to {})".format(*map(figure, interval))
    text = f"{value:,.0f}" if abs(value) >= 10 else f"{value:.2f}"
    return text.replace("-", "−") + low_high


def arm_rows(arms: Record) -> list[list[str]]:
    """Lay out a row per arm."""
    rows = []
    for arm, of_arm in arms.items():
        gap = of_arm.get("gap")
        cells = [figure(of_arm.get("mean")), figure(of_arm["iqm"], of_arm["interval"])]
        cells += [figure(of_arm.get(k)) for k in ("worst_quarter", "best_peer")]
        if gap:
            p = [f"{gap[k]:.2g}" for k in ("p", "p_adjusted")]
            cells += [figure(gap["mean"], gap["interval"]), *p, gap["verdict"]]
        rows.append([arm, *cells, *[""] * (len(COLUMNS) - 1 - len(cells))])
    return rows


def learning_lines(subject: str, arms: Record, timed: bool) -> list[str]:
    """Lay out the arms' learning, if the study has their evaluations; see `TIMED`."""
    if all(of_arm.get("area") is None for of_arm in arms.values()):
        return []
    rows = []
    for arm, of_arm in arms.items():
        cells = [figure(of_arm["area"], of_arm["area_interval"]), *gap_cells(of_arm, "area_gap")]
        steps, interval, seeds = reach_cells(of_arm["reach"], len(of_arm["seeds"]))
        interval = "" if interval == "-" else f" ({interval.replace('…', ' to ')})"
        cells += [steps + interval, seeds, figure(of_arm["seconds"])]
        rows.append([arm, *cells, *(gap_cells(of_arm, "time_gap") if timed else [])])
    columns = LEARNING_COLUMNS + (TIMED_COLUMNS if timed else ())
    head = [column.format(subject) for column in columns]
    return ["Learning:", "", *table(head, "lrrlrrrrl"[: len(head)], rows), ""]


def gap_cells(of_arm: Record, name: str) -> list[str]:
    """Lay out the subject's difference from an arm, and the verdict."""
    gap = of_arm.get(name)
    return [figure(gap["mean"], gap["interval"]), gap["verdict"]] if gap else ["", ""]


def study_lines(data: Record, timed: bool = False) -> list[str]:
    """Lay out the tables of `dpd study`: a row per arm, for each task and over all."""
    head = [column.format(data["subject"]) for column in COLUMNS]
    parts: list[tuple[str, Record]] = [
        (
            f"{task['env']}, {data['algo'].upper()}, {data['total_steps']:,} steps per seed, "
            f"{data['seeds']} seeds; uniform actions get {figure(task['random'])}:",
            {k: v | {"interval": v["iqm_interval"]} for k, v in task["arms"].items()},
        )
        for task in data["tasks"]
    ]
    if data["whole"]:
        title = f"Over {len(parts)} tasks; 0 is uniform actions, 1 the best arm's mean in each:"
        parts.append((title, data["whole"]))
    laid_out: list[str] = []
    for title, arms in parts:
        laid_out += [title, "", *table(head, "l" + "r" * (len(head) - 2) + "l", arm_rows(arms)), ""]
        laid_out += learning_lines(data["subject"], arms, timed)
    return laid_out[:-1]


Made = tuple[Callable[..., list[str]], str]
"""Function of the contents of result files -> lines, and the files' names."""
BENCHMARKS: dict[str, Made] = {
    "bench/train.py": (train.lines, "train"),
    "bench/train.py, cost": (train.cost_lines, "train"),
    "bench/train.py, sharing": (train.lines, "train-sharing"),
    "bench/train.py, sharing cost": (train.cost_lines, "train-sharing"),
    "bench/learners.py": (learners.lines, "learners"),
    "bench/learners.py, end to end": (learners.lines, "learners-end-to-end"),
    "bench/learners.py, SAC with kernels": (learners.lines, "learners-sac"),
    "bench/learners.py, TD3 and DDPG with kernels": (learners.lines, "learners-replay"),
    "bench/variants.py": (variants.lines, "variants-td3 variants-ddpg"),
    "bench/distill.py time": (distill.share_lines, "dagger"),
    "bench/envs.py": (envs.lines, "envs"),
    "bench/envs.py, rollouts": (envs.rollout_lines, "envs-rollouts"),
    "bench/curves.py, PPO": (curves.lines, "curves-ppo"),
    "bench/curves.py, more PPO": (curves.further_lines, "curves-ppo curves-ppo-400k"),
    "bench/curves.py, replay": (curves.lines, "curves-td3 curves-sac"),
    "bench/curves.py, replay, in training": (curves.training_lines, "curves-td3 curves-sac"),
}
STUDIES = (
    *("study-ppo-500k", "study-cheetah-500k", "study-cheetah-1m", "study-share-500k"),
    *("study-share-1m", "study-share-1m-more", "study-share-1m-ant", "study-parts-500k"),
    *("study-peers-500k", "study-four-500k", "study-critic-500k", "study-peers-more"),
    *("study-leash-hopper", "study-leash-walker2d"),
    *("study-pool-200k", "study-pool-hybrid", "study-pool-fresh", "study-pool-20"),
    "study-pool-hopper",
)
TIMED = {"study-share-1m", "study-share-1m-more", "study-share-1m-ant"}
"""Studies whose arms trained two at once, beside little else; other seconds compare nothing."""
FINDINGS: dict[str, Made] = {
    "bench/error_rates.py": (error_rates.lines, "error-rates"),
    **{f"dpd {name}": (partial(study_lines, timed=name in TIMED), name) for name in STUDIES},
    "bench/distill.py methods": (distill.lines, "distill"),
    "bench/distill.py guide": (distill.lines, "scaffold"),
    "bench/neighbours.py": (neighbours.lines, "neighbours"),
    "bench/views.py": (views.lines, "views"),
    "bench/finetune.py": (finetune.lines, "finetune"),
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
        if all((RESULTS / f"{file}.json").is_file() for file in files.split()):  # it was measured
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
