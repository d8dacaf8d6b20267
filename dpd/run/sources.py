"""Find and read policies: policy files, run directories and Stable-Baselines3 zips."""

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

# No policy file starts like this: as the length of a safetensors header, it would exceed 64 MiB.
ZIP = b"PK\x03\x04"


def load_any(path: Path, foreign: ForeignConfig) -> Policy:
    """Read a policy file or a Stable-Baselines3 zip, distinguished by content.

    Raises NotAPolicy if the file is neither, BadInput if settings are missing or have no effect.
    """
    if is_zip(path):
        return load_zip(path, foreign)
    policy = load(path)
    for name in ("vecnormalize", "activation"):
        if getattr(foreign, name) is not None:
            raise BadInput(
                f"{foreign.PREFIX}{name} is for Stable-Baselines3 zips; {path} is a policy file, "
                "which contains it"
            )
    return policy


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
    files = policies_in(path)
    if not files:
        raise BadInput(f"{path} is not a run directory: it contains no policies/*.safetensors")
    return files


def one_policy(path: Path) -> Path:
    """Return the policy file of a path; of a run, the one with the best evaluation in training."""
    files = find_policies(path)
    if len(files) == 1:
        return files[0]
    evaluations = {file: evaluation(file) for file in files}
    known = {file: value for file, value in evaluations.items() if value is not None}
    if not known:
        raise BadInput(f"{path} has no record of which policy is the best; give one by name")
    return max(known, key=known.__getitem__)


def evaluation(file: Path) -> float | None:
    """Return the evaluation in training of a policy file, if it is stored there."""
    value = load(file).meta.provenance.get("eval_return")
    return float(value) if isinstance(value, int | float) else None


def policies_in(path: Path) -> list[Path]:
    """Return the policy files of a run directory or of a folder of policies; none is no error."""
    return _files_in(path / "policies") or _files_in(path)


def _files_in(folder: Path) -> list[Path]:
    """Return a folder's policy files, ordered by the numbers in their names (peer2 < peer10)."""

    def order(file: Path) -> list[str | int]:
        return [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", file.stem)]

    return sorted(folder.glob("*.safetensors"), key=order)


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
