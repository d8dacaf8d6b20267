"""Read runs back: each learner's last policy, what training said of it, and its curve."""

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

Curve = dict[int, list[float]]
"""The values of all seeds at each step."""
Who = tuple[int, int]
"""Seed and peer."""


class Member(NamedTuple):
    """A learner's last policy."""

    seed: int
    peer: int
    file: Path
    policy: Policy
    evaluation: float | None
    """Its last periodic evaluation in training, where that is known."""


class Records(NamedTuple):
    """What a metrics.csv says."""

    evaluations: dict[Who, dict[int, float]]
    """Every learner's eval/return at each step."""
    interval: int
    """Steps between two records."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One method's replicates: a run directory, or a policy file as a single one."""

    path: Path
    name: str
    members: tuple[Member, ...]
    budget: int | None
    """Environment steps of one seed that were asked for."""
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
        """Environment steps of a seed, of all its peers together; empty where unknown."""
        known = (m.policy.meta.provenance.get("steps") for m in self.members)
        return {steps for steps in known if steps is not None}

    @property
    def is_unfinished(self) -> bool:
        """Say whether a further record would have fit into the budget of steps."""
        if self.budget is None or self.records is None or not self.steps:
            return False
        return min(self.steps) + self.records.interval <= self.budget

    @cached_property
    def curve(self) -> Curve:
        """The mean of the peers' evaluations, of every seed; empty without records."""
        return {} if self.records is None else peer_means(self.records.evaluations)


def peer_means(evaluations: Mapping[Who, Mapping[int, float]]) -> Curve:
    """Average over the peers of each seed; steps at which a learner lacks are left out."""
    if not evaluations:
        return {}
    seeds = sorted({seed for seed, _ in evaluations})
    common = set.intersection(*(set(values) for values in evaluations.values()))
    curve: Curve = {}
    for step in sorted(common):
        peers = {s: [v[step] for who, v in evaluations.items() if who[0] == s] for s in seeds}
        curve[step] = [math.fsum(peers[s]) / len(peers[s]) for s in seeds]
    return curve


def read_run(path: Path, name: str) -> Run:
    """Read a run directory or a policy file. Raises BadInput or NotAPolicy where it is neither."""
    if is_zip(path):
        raise BadInput(
            f"{path} is no policy file of dpd; make one of it: dpd export {path} --format dpd"
        )
    files = [f for f in find_policies(path) if f == path or not is_best(f)]
    if not files:
        raise BadInput(f"{path} holds the best policies alone, and not the last; give one by name")
    metrics, config = path / "metrics.csv", path / "config.json"
    records = read_records(metrics) if metrics.is_file() else None
    evaluations = records.evaluations if records else {}
    members = [read_member(file, evaluations, alone=file == path) for file in files]
    if len({(m.seed, m.peer) for m in members}) < len(members):
        raise BadInput(f"{path} holds several policies of one seed and peer; give run directories")
    return Run(
        path=path,
        name=name,
        members=tuple(members),
        budget=read_config(config).get("total_steps") if config.is_file() else None,
        records=records,
    )


def read_member(file: Path, evaluations: Mapping[Who, Mapping[int, float]], alone: bool) -> Member:
    """Read a policy; alone it needs no seed and peer, and counts as seed 0 without."""
    policy = load(file)
    origin = policy.meta.provenance
    seed, peer = origin.get("seed"), origin.get("peer")
    if not alone and (seed is None or peer is None):
        raise BadInput(f"{file} does not say its seed and peer; give it as a PATH of its own")
    who = (seed or 0, peer or 0)
    values = evaluations.get(who)
    last = values[max(values)] if values else origin.get("eval_return")
    return Member(*who, file, policy, last)


def read_records(path: Path) -> Records:
    """Read evaluations from a metrics.csv, without what a run is still writing."""
    evaluations: dict[Who, dict[int, float]] = {}
    first: int | None = None
    for row in read_rows(path):
        step, value = int(row["step"]), float(row["value"])
        first = step if first is None else first
        if row["metric"] == "eval/return" and math.isfinite(value):
            evaluations.setdefault((int(row["seed"]), int(row["peer"])), {})[step] = value
    return Records(evaluations, first or 0)


def short_names(paths: Sequence[Path]) -> list[str]:
    """Name paths by as few of their last parts as tell them apart. Raises BadInput for twins."""
    whole = [path.resolve() for path in paths]
    twin = next((p for k, p in enumerate(paths) if whole[k] in whole[:k]), None)
    if twin is not None:
        raise BadInput(f"{twin} is given twice; give each PATH once")
    parts = [p.with_suffix("").parts if p.suffix == ".safetensors" else p.parts for p in whole]
    for depth in range(1, max(map(len, parts))):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in whole]
