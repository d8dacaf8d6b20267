"""Policies from any source: files of ours, run directories, Stable-Baselines3 zips."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from dpd.config import NO_STATISTICS, ForeignConfig
from dpd.errors import BadInput
from dpd.log.naming import parse_policy_name
from dpd.policies.policyfile import Policy, load
from dpd.sb3.zip import load_zip

ZIP = b"PK\x03\x04"  # as a safetensors header's length: 4 bytes more, at least 64 MiB


def load_any(path: Path, foreign: ForeignConfig) -> Policy:
    """Read a policy file or a Stable-Baselines3 zip, told apart by what is in it.

    Raises NotAPolicy where it is neither, BadInput where settings are missing or do nothing.
    """
    if is_zip(path):
        return load_zip(path, foreign)
    policy = load(path)
    for name in ("vecnormalize", "activation"):
        if getattr(foreign, name) is not None:
            raise BadInput(
                f"{foreign.PREFIX}{name} is for Stable-Baselines3 zips; {path} says it itself"
            )
    return policy


def refuse_shared_statistics(files: Sequence[Path], foreign: ForeignConfig) -> None:
    """Raise BadInput where one file of statistics would count for several zips."""
    zips = list(filter(is_zip, files))
    if foreign.vecnormalize not in (None, NO_STATISTICS) and len(zips) > 1:
        raise BadInput(
            f"--vecnormalize {foreign.vecnormalize} is of one zip, and {len(zips)} are given; make "
            f"policy files of them first: dpd export {zips[0]} --env ENV --vecnormalize FILE "
            "--format dpd"
        )


class Place(NamedTuple):
    """An environment and its keyword arguments."""

    env_id: str
    env_kwargs: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.env_id} {json.dumps(self.env_kwargs)}" if self.env_kwargs else self.env_id


def place_of(name: str | Path, policy: Policy, foreign: ForeignConfig) -> Place:
    """Return where a policy is to act: as `foreign` says, else where it was trained.

    Raises BadInput where another environment would drop the policy's own keyword arguments.
    """
    own, given = Place(policy.meta.env_id, policy.meta.env_kwargs), foreign.parsed_env_kwargs()
    if given is not None:
        return Place(foreign.env or own.env_id, given)
    if foreign.env in (None, own.env_id):
        return own
    if own.env_kwargs:
        raise BadInput(
            f"{name} was trained in {own}; --env {foreign.env} would drop these arguments: give "
            f"{as_flag(own)} to keep them, or --env-kwargs '{{}}' for none"
        )
    return Place(str(foreign.env), {})


def as_flag(place: Place) -> str:
    """Return the flag that gives a place's arguments, as a shell takes it."""
    return f"--env-kwargs {shlex.quote(json.dumps(place.env_kwargs))}"


def require_place(name: str | Path, policy: Policy, place: Place, whose: str) -> None:
    """Raise BadInput where a policy's own arguments are not those that it would be played with.

    `whose` says where the latter come from. Another environment without arguments is no conflict.
    """
    own = Place(policy.meta.env_id, policy.meta.env_kwargs)
    is_same = own.env_kwargs == place.env_kwargs
    if not is_same and (own.env_kwargs or own.env_id == place.env_id):
        raise BadInput(
            f"{name} was trained in {own}, and {whose} {place}; say which arguments count: "
            f"{as_flag(own)} or {as_flag(place)}"
        )


def moved(policy: Policy, place: Place) -> Policy:
    """Return the same policy, described as one of a place."""
    meta = replace(policy.meta, env_id=place.env_id, env_kwargs=place.env_kwargs)
    return Policy(policy.tensors, meta)


def is_zip(path: Path) -> bool:
    """Whether a file is a zip, or is at least called one."""
    if path.suffix == ".zip" or not path.is_file():
        return path.suffix == ".zip"
    with path.open("rb") as file:
        return file.read(len(ZIP)) == ZIP


def find_policies(path: Path) -> list[Path]:
    """Return the policies of a path: itself, or all policy files in a run directory."""
    if not path.exists():
        raise BadInput(f"{path} does not exist; give a policy file or a run directory")
    if not path.is_dir():
        return [path]
    found = policies_in(path)
    if not found:
        raise BadInput(f"{path} is no run: it holds no policies/*.safetensors")
    return found


def one_policy(path: Path) -> Path:
    """Return a path's policy file: of a run the best one, by its evaluations in training."""
    files = find_policies(path)
    if len(files) == 1:
        return files[0]
    evaluations = {file: evaluation(file) for file in files}
    known = {file: value for file, value in evaluations.items() if value is not None}
    if not known:
        raise BadInput(f"{path} does not say which of its policies is the best; give one by name")
    return max(known, key=known.__getitem__)


def evaluation(file: Path) -> float | None:
    """Return what training's evaluation said of a policy file, if it did."""
    value = load(file).meta.provenance.get("eval_return")
    return float(value) if isinstance(value, int | float) else None


def policies_in(path: Path) -> list[Path]:
    """Return the policy files of a run directory, or of a folder of policies, if there are any."""
    return _files_in(path / "policies") or _files_in(path)


def _files_in(folder: Path) -> list[Path]:
    """Return a folder's policy files; learners in the order of their numbers, the last first."""

    def order(file: Path) -> list[str | int]:
        return [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", file.stem)]

    return sorted(folder.glob("*.safetensors"), key=order)


def is_best(file: Path) -> bool:
    """Say whether a policy file is not a learner's last, but that of its best evaluation."""
    return parse_policy_name(file.stem).is_best


def history_of(file: Path) -> list[Path]:
    """Return the checkpoints of a run's policy, oldest first. Raises BadInput without any."""
    learner = parse_policy_name(file.stem).learner
    kept = (file.parent / "history").glob("*.safetensors")
    found = sorted(f for f in kept if parse_policy_name(f.stem).learner == learner)
    if not found:
        raise BadInput(
            f"{file} has no history beside it: checkpoints cannot be invented; train the teacher "
            "with dpd train --keep-checkpoints"
        )
    return found
