"""Read finished runs: last policies, their evaluations, and learning curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from dpd.errors import BadInput
from dpd.log.csv import read_rows
from dpd.policies.policyfile import Policy, load
from dpd.run.settings import read_config
from dpd.run.sources import find_policies, is_best, is_zip
from dpd.run.stack import SeedPeer

ReturnsByStep = dict[int, list[float]]
"""The values of all seeds at each step."""


class SavedLearner(NamedTuple):
    """A learner's last policy."""

    seed: int
    peer: int
    file: Path
    policy: Policy
    evaluation: float | None
    """Return of its last evaluation in training, if known."""


class Records(NamedTuple):
    """Contents of a metrics.csv."""

    evaluations: dict[SeedPeer, dict[int, float]]
    """The eval/return of every learner at each step."""
    interval: int
    """Environment steps between two records."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The learners of a run directory, or of a single policy file."""

    path: Path
    name: str
    members: tuple[SavedLearner, ...]
    budget: int | None
    """The setting --total-steps: environment steps per seed."""
    records: Records | None

    @property
    def env(self) -> tuple[str, dict[str, Any]]:
        """The environment's id and keyword arguments."""
        meta = self.members[0].policy.meta
        return meta.env_id, meta.env_kwargs

    @property
    def seeds(self) -> list[int]:
        """The seeds, in order."""
        return sorted({m.seed for m in self.members})

    @property
    def steps(self) -> set[int]:
        """Environment steps per seed, summed over its peers; empty if unknown."""
        known = (m.policy.meta.provenance.get("steps") for m in self.members)
        return {steps for steps in known if steps is not None}

    @property
    def is_unfinished(self) -> bool:
        """True if another record would have fit in the budget."""
        if self.budget is None or self.records is None or not self.steps:
            return False
        return min(self.steps) + self.records.interval <= self.budget

    @cached_property
    def curve(self) -> ReturnsByStep:
        """Evaluations averaged over the peers of every seed; empty without records."""
        return {} if self.records is None else peer_means(self.records.evaluations)


def peer_means(evaluations: Mapping[SeedPeer, Mapping[int, float]]) -> ReturnsByStep:
    """Average over the peers of each seed, at the steps at which all learners were evaluated."""
    if not evaluations:
        return {}
    seeds = sorted({seed for seed, _ in evaluations})
    common = set.intersection(*(set(values) for values in evaluations.values()))
    curve: ReturnsByStep = {}
    for step in sorted(common):
        peers = {s: [v[step] for (own, _), v in evaluations.items() if own == s] for s in seeds}
        curve[step] = [math.fsum(peers[s]) / len(peers[s]) for s in seeds]
    return curve


def read_run(path: Path, name: str) -> Run:
    """Read a run directory or a policy file. Raises BadInput or NotAPolicy if it is neither."""
    if is_zip(path):
        raise BadInput(
            f"{path} is not a policy file of dpd; convert it: dpd export {path} --format dpd"
        )
    files = [f for f in find_policies(path) if f == path or not is_best(f)]
    if not files:
        raise BadInput(f"{path} contains only best policies, no last ones; give a file by name")
    metrics, config = path / "metrics.csv", path / "config.json"
    records = read_records(metrics) if metrics.is_file() else None
    evaluations = records.evaluations if records else {}
    members = [read_learner(file, evaluations, is_single=file == path) for file in files]
    if len({(m.seed, m.peer) for m in members}) < len(members):
        raise BadInput(
            f"{path} contains several policies of one seed and peer; give run directories"
        )
    return Run(
        path=path,
        name=name,
        members=tuple(members),
        budget=read_config(config).get("total_steps") if config.is_file() else None,
        records=records,
    )


def read_learner(
    file: Path, evaluations: Mapping[SeedPeer, Mapping[int, float]], is_single: bool
) -> SavedLearner:
    """Read a policy and its last evaluation. A single file may lack a seed; it counts as seed 0."""
    policy = load(file)
    origin = policy.meta.provenance
    seed, peer = origin.get("seed"), origin.get("peer")
    if not is_single and (seed is None or peer is None):
        raise BadInput(f"{file} does not contain its seed and peer; give it as a separate PATH")
    learner = (seed or 0, peer or 0)
    values = evaluations.get(learner)
    last = values[max(values)] if values else origin.get("eval_return")
    return SavedLearner(*learner, file, policy, last)


def read_records(path: Path) -> Records:
    """Read the evaluations in a metrics.csv, ignoring a line that a run is still writing."""
    evaluations: dict[SeedPeer, dict[int, float]] = {}
    first: int | None = None
    for row in read_rows(path):
        step, value = int(row["step"]), float(row["value"])
        first = step if first is None else first
        if row["metric"] == "eval/return" and math.isfinite(value):
            evaluations.setdefault((int(row["seed"]), int(row["peer"])), {})[step] = value
    return Records(evaluations, first or 0)


def short_names(paths: Sequence[Path]) -> list[str]:
    """Name paths by as few of their last parts as distinguish them.

    Raises BadInput if a path is given twice.
    """
    resolved = [path.resolve() for path in paths]
    duplicate = next((p for k, p in enumerate(paths) if resolved[k] in resolved[:k]), None)
    if duplicate is not None:
        raise BadInput(f"{duplicate} is given twice; give each PATH once")
    parts = [p.with_suffix("").parts if p.suffix == ".safetensors" else p.parts for p in resolved]
    for depth in range(1, max(map(len, parts))):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in resolved]
