"""Recompute every interval, p value and verdict from the raw returns in result files.

python bench/rejudge.py bench/results/study-*.json bench/results/cooperate-*.json

Reads files of `dpd study` and bench/cooperate.py, and rewrites them with the verdicts of the
current code. Measurements do not change.
"""

from __future__ import annotations

import json
import sys
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cooperate
import numpy as np

from dpd.cooperate.cooperation import Cooperation, policies_json
from dpd.report.report import indented_json
from dpd.run.sources import Records, Run, SavedLearner
from dpd.study.arms import ARMS
from dpd.study.compare import EvaluatedPolicy, RunResult, comparison_notes
from dpd.study.config import StudyConfig
from dpd.study.report import aggregate_json, task_json
from dpd.study.study import Findings, TaskResult

Data = dict[str, Any]


def rejudged(data: Data) -> Data:
    """Return the file that the current code would write for the same returns."""
    new = study(data) if "subject" in data else cooperation(data)
    again: Data = json.loads(json.dumps(new, allow_nan=False))
    return again


def study(data: Data) -> Data:
    """Recompute the verdicts of a study."""
    own = tuple(f"{name}={arm['flags']}" for name, arm in data["arms"].items() if name not in ARMS)
    config = StudyConfig(
        envs=tuple(task["env"] for task in data["tasks"]),
        arms=tuple(data["arms"]),
        own=own,
        **{name: data[name] for name in ("algo", "subject", "seeds", "seed", "total_steps")},
        episodes=data["episodes"],
    )
    tasks = [
        TaskResult(
            env=task["env"],
            random=task["random"],
            results={arm: result(found) for arm, found in task["arms"].items()},
        )
        for task in data["tasks"]
    ]
    runs = [[r.run for r in task.results.values()] for task in tasks]
    notes = list(dict.fromkeys(note for of_task in runs for note in comparison_notes(of_task)))
    found = Findings(config=config, tasks=tasks, notes=notes)
    return data | {
        "tasks": [task_json(found, task) for task in tasks],
        "whole": {arm: aggregate_json(a) for arm, a in found.aggregates.items()},
        "notes": notes,
    }


def result(arm: Data) -> RunResult:
    """Rebuild the result of an arm from its file."""
    steps, commits = cycle(arm["steps"] or [None]), cycle(arm["git"] or [None])
    seeds, evaluations = {}, {}
    at = arm.get("evaluation_steps", [])
    for seed in arm["seeds"]:
        peers = []
        for peer in seed["peers"]:
            meta = SimpleNamespace(provenance={"steps": next(steps), "git": next(commits)})
            policy: Any = SimpleNamespace(meta=meta)
            file, evaluation = Path(peer["policy"]), peer["last_evaluation"]
            member = SavedLearner(seed["seed"], peer["peer"], file, policy, evaluation)
            peers.append(EvaluatedPolicy(member, np.array(peer["returns"])))
            if at:
                values = dict(zip(at, peer["evaluations"], strict=True))
                evaluations[seed["seed"], peer["peer"]] = values
        seeds[seed["seed"]] = peers
    members = tuple(played.member for peers in seeds.values() for played in peers)
    name, path, budget = arm["run"], Path(arm["path"]), arm["budget"]
    # a study reports finished runs only, so the interval of the records is of no account
    records = Records(evaluations, budget or 0, arm.get("seconds")) if at else None
    run = Run(path=path, name=name, members=members, budget=budget, records=records)
    return RunResult(run, seeds)


def cooperation(data: Data) -> Data:
    """Recompute the verdicts of bench/cooperate.py."""
    runs = [run | {"policies": policies(run["policies"])} for run in data["runs"]]
    return data | {"runs": runs, "summary": list(cooperate.summaries(runs))}


def policies(found: list[Data]) -> list[Data]:
    """Recompute the verdicts of a run of `dpd cooperate`."""
    nothing: Any = None
    outcome = Cooperation(
        subjects=[SimpleNamespace(origin=policy, file="") for policy in found],  # type: ignore[misc]
        env_id="",
        config=nothing,
        budget=nothing,
        before=np.array([policy["returns_before"] for policy in found]),
        after=np.array([policy["returns_after"] for policy in found]),
    )
    new = policies_json(outcome)
    return [
        {k: v for k, v in policy.items() if k != "file" or k in old}
        for policy, old in zip(new, found, strict=True)
    ]


def main() -> int:
    """Rewrite every file given."""
    for path in map(Path, sys.argv[1:]):
        text = path.read_text()
        indent = len(text.splitlines()[1]) - len(text.splitlines()[1].lstrip())
        path.write_text(indented_json(rejudged(json.loads(text)), indent) + "\n")
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
