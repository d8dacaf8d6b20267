"""Find and read policies: policy files, Stable-Baselines3 zips, and the directories of runs."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from dpd.agents.base import LearnerId
from dpd.envs.randomization import RANDOMIZE
from dpd.errors import BadInput
from dpd.log.csv import read_table, tables_of
from dpd.log.naming import parse_policy_name
from dpd.policies.config import NO_STATISTICS, ForeignConfig
from dpd.policies.hybrid_file import load_policy
from dpd.policies.policyfile import Policy, load
from dpd.run.settings import read_config
from dpd.sb3.zip import load_zip

# No policy file starts like this: as the length of a safetensors header, it would exceed 64 MiB.
ZIP = b"PK\x03\x04"
ReturnsByStep = dict[int, list[float]]
"""The values of all seeds at each step."""


def load_any(path: Path, foreign: ForeignConfig, with_hybrids: bool = False) -> Policy:
    """Read a policy file or a Stable-Baselines3 zip, distinguished by content.

    `with_hybrids`: read the hybrid policy of a group as well. Raises NotAPolicy if the file is none
    of these, BadInput if settings are missing or have no effect.
    """
    if is_zip(path):
        return load_zip(path, foreign)
    policy = load_policy(path) if with_hybrids else load(path)
    refuse_zip_settings(path, foreign)
    return policy


def refuse_zip_settings(path: Path, foreign: ForeignConfig) -> None:
    """Raise BadInput if settings for zips are given for a policy file or a run directory."""
    for name in ("vecnormalize", "activation"):
        if getattr(foreign, name) is not None:
            kind = "a run directory" if path.is_dir() else "a policy file"
            raise BadInput(
                f"{foreign.PREFIX}{name} is for Stable-Baselines3 zips; {path} is {kind}, "
                "which contains it"
            )


def refuse_shared_statistics(files: Sequence[Path], foreign: ForeignConfig) -> None:
    """Raise BadInput if one file of statistics would be used for several zips."""
    zips = list(filter(is_zip, files))
    if foreign.vecnormalize not in (None, NO_STATISTICS) and len(zips) > 1:
        raise BadInput(
            f"--vecnormalize {foreign.vecnormalize} belongs to one zip, but {len(zips)} are given; "
            f"convert them first: dpd export {zips[0]} --env ENV --vecnormalize FILE --format dpd"
        )


class Place(NamedTuple):
    """An environment and its keyword arguments."""

    env_id: str
    env_kwargs: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.env_id} {json.dumps(self.env_kwargs)}" if self.env_kwargs else self.env_id


def place_of(name: str | Path, policy: Policy, foreign: ForeignConfig) -> Place:
    """Return the environment for a policy: that of `foreign`, or else the one it was trained in.

    Raises BadInput if another --env would silently drop the arguments of the policy's environment.
    """
    home, given = Place(policy.meta.env_id, policy.meta.env_kwargs), foreign.parsed_env_kwargs()
    if given is not None:
        return Place(foreign.env or home.env_id, given)
    if foreign.env in (None, home.env_id):
        return home
    if home.env_kwargs:
        raise BadInput(
            f"{name} was trained in {home}; --env {foreign.env} would drop these arguments: give "
            f"{as_flag(home)} to keep them, or --env-kwargs '{{}}' for none"
        )
    return Place(str(foreign.env), {})


def load_together(
    names: Sequence[str], files: Sequence[Path], foreign: ForeignConfig
) -> tuple[list[Policy], Place]:
    """Read policies that act in one environment, and return it: see `place_of` the first one.

    A zip does not name its environment, and gets this one. Raises BadInput or NotAPolicy.
    """
    refuse_shared_statistics(files, foreign)
    for_policies = foreign.without_zip if any(map(is_zip, files)) else foreign
    policies: list[Policy] = []
    for name, file in zip(names, files, strict=True):
        policies.append(load_any(file, foreign if is_zip(file) else for_policies))
        if len(policies) == 1:
            place = place_of(name, policies[0], foreign)
            kwargs = json.dumps(place.env_kwargs)
            foreign = replace(foreign, env=place.env_id, env_kwargs=kwargs)
    return policies, place


def as_flag(place: Place) -> str:
    """Return the flag with a place's arguments, quoted for a shell."""
    return f"--env-kwargs {shlex.quote(json.dumps(place.env_kwargs))}"


def as_run_flags(place: Place) -> str:
    """Return the flags of a run in a place: its ranges as --randomize, other arguments as JSON."""
    kwargs = dict(place.env_kwargs)
    ranges = kwargs.pop(RANDOMIZE, None)
    others = [as_flag(Place(place.env_id, kwargs))] if kwargs or ranges is None else []
    return " ".join(others + ([f"--{RANDOMIZE} {ranges}"] if ranges else []))


def require_place(name: str | Path, policy: Policy, place: Place, source: str) -> None:
    """Raise BadInput if a policy was trained with other arguments than those of `place`.

    `source` is the part of the message that names the origin of `place`. A different environment
    is no conflict if the policy's has no arguments.
    """
    home = Place(policy.meta.env_id, policy.meta.env_kwargs)
    is_same = home.env_kwargs == place.env_kwargs
    if not is_same and (home.env_kwargs or home.env_id == place.env_id):
        raise BadInput(
            f"{name} was trained in {home}, but {source} {place}; choose the arguments with "
            f"{as_flag(home)} or {as_flag(place)}"
        )


def moved(policy: Policy, place: Place) -> Policy:
    """Return the same policy with metadata of another environment."""
    meta = replace(policy.meta, env_id=place.env_id, env_kwargs=place.env_kwargs)
    return Policy(policy.tensors, meta)


def is_zip(path: Path) -> bool:
    """Return True if a file is a zip by content, or by name."""
    if path.suffix == ".zip" or not path.is_file():
        return path.suffix == ".zip"
    with path.open("rb") as file:
        return file.read(len(ZIP)) == ZIP


def find_policies(path: Path) -> list[Path]:
    """Return the path itself if it is a file, or all policy files of a run directory."""
    if not path.exists():
        raise BadInput(f"{path} does not exist; give a policy file or a run directory")
    if not path.is_dir():
        return [path]
    files = _files_in(path / "policies") or _files_in(path)
    if not files:
        raise BadInput(f"{path} is not a run directory: it contains no policies/*.safetensors")
    return files


def one_policy(path: Path) -> Path:
    """Return the policy file of a path; of a run, the one with the best evaluation in training."""
    files = find_policies(path)
    if len(files) == 1:
        return files[0]
    evaluations = {file: load(file).meta.provenance.get("eval_return") for file in files}
    known = {file: value for file, value in evaluations.items() if isinstance(value, int | float)}
    if not known:
        raise BadInput(f"{path} has no record of which policy is the best; give one by name")
    return max(known, key=known.__getitem__)


def _files_in(folder: Path) -> list[Path]:
    """Return a folder's policy files, ordered by the numbers in their names (peer2 < peer10)."""
    return sorted(
        folder.glob("*.safetensors"),
        key=lambda f: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", f.stem)],
    )


def is_best(file: Path) -> bool:
    """Return True for the policy of a learner's best evaluation, False for its last policy."""
    return parse_policy_name(file.stem).is_best


def history_of(file: Path) -> list[Path]:
    """Return the saved history of a learner's policies, oldest first. Raises BadInput if none."""
    learner = parse_policy_name(file.stem).learner
    files = (file.parent / "history").glob("*.safetensors")
    history = sorted(f for f in files if parse_policy_name(f.stem).learner == learner)
    if not history:
        raise BadInput(
            f"{file} has no checkpoints in a folder `history` next to it; train the teacher with "
            "dpd train --keep-checkpoints"
        )
    return history


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

    evaluations: dict[LearnerId, dict[int, float]]
    """The eval/return of every learner at each step."""
    interval: int
    """Environment steps between two records."""
    seconds: float | None = None
    """Seconds of training, without evaluations; None if unknown."""


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


def peer_means(evaluations: Mapping[LearnerId, Mapping[int, float]]) -> ReturnsByStep:
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
    file: Path, evaluations: Mapping[LearnerId, Mapping[int, float]], is_single: bool
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
    evaluations: dict[LearnerId, dict[int, float]] = {}
    first: int | None = None
    seconds = 0.0
    for table in tables_of(path):
        seeds, rates = set(), {}
        for row in read_table(table):
            step, value, metric = int(row["step"]), float(row["value"]), row["metric"]
            first = step if first is None else first
            seeds.add(row["seed"])
            if metric == "eval/return" and math.isfinite(value):
                evaluations.setdefault((int(row["seed"]), int(row["peer"])), {})[step] = value
            elif metric == "time/steps_per_s":
                rates[step] = value
        # workers train at once, so the slowest one takes as long as the run
        seconds = max(seconds, training_seconds(rates, len(seeds - {""})))
    return Records(evaluations, first or 0, seconds or None)


def training_seconds(rates: Mapping[int, float], n_seeds: int) -> float:
    """Return the seconds that a process trained, from its recorded steps per second by step.

    Steps that were lost when a run was stopped do not count. If only some iterations are recorded,
    each one stands for those since the record before it.
    """
    starts = [0, *rates]
    return sum(
        (step - start) * n_seeds / rate
        for start, (step, rate) in zip(starts, rates.items(), strict=False)
        if rate > 0
    )


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
