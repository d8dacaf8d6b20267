"""The policies that cooperate: read from files, checked against each other and their task."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpd.envs.base import EnvSpec
from dpd.envs.errors import UnsupportedEnv
from dpd.envs.make import check, choose
from dpd.errors import BadInput
from dpd.policies.checks import require_bounds, require_fit
from dpd.policies.policyfile import Policy
from dpd.run.runs import short_names
from dpd.run.sources import Place, is_zip, load_any, moved, one_policy, refuse_shared_statistics

if TYPE_CHECKING:
    from dpd.config import ForeignConfig
    from dpd.cooperate.config import CooperateConfig


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A policy as it came, and where from."""

    name: str
    file: Path
    origin: dict[str, Any]
    """What an improved policy says of it."""
    policy: Policy


def read_subjects(config: CooperateConfig) -> tuple[list[Subject], str]:
    """Read all policies and name their task.

    Raises BadInput or NotAPolicy where one can't be read, or they don't fit each other and a task
    whose states can be restored.
    """
    files = [one_policy(path) for path in config.paths]
    names = short_names(config.paths)
    if len({file.resolve() for file in files}) < len(files):
        raise BadInput("a policy is given twice; give each once")
    refuse_shared_statistics(files, config.foreign)
    subjects: list[Subject] = []
    foreign, zips = config.foreign, any(map(is_zip, files))
    for name, file in zip(names, files, strict=True):
        own = foreign if is_zip(file) or not zips else only_env(foreign)
        policy = load_any(file, own)
        if (kwargs := foreign.parsed_env_kwargs()) is not None:
            policy = moved(policy, Place(policy.meta.env_id, kwargs))
        # a zip does not say its environment; it is the others'
        foreign = replace(foreign, env=foreign.env or policy.meta.env_id)
        said = origin(name, file, policy)
        subjects.append(Subject(name=name, file=file, origin=said, policy=policy))
    env_id = str(foreign.env)
    require_fit_task(env_id, subjects, config.foreign.env is not None)
    return subjects, env_id


def origin(name: str, file: Path, policy: Policy) -> dict[str, Any]:
    """Say where a policy comes from."""
    digest, meta = hashlib.sha256(file.read_bytes()).hexdigest(), policy.meta
    steps = meta.provenance.get("steps")
    return {"name": name, "sha256": digest, "algo": meta.algo, "steps": steps}


def require_fit_task(env_id: str, subjects: list[Subject], is_given: bool = True) -> None:
    """Raise BadInput unless policies act alike in a task whose states can be restored."""
    spec = restorable(env_id, subjects)
    for subject in subjects:
        require_alike(subject, subjects[0], spec, is_given)


def only_env(foreign: ForeignConfig) -> ForeignConfig:
    """Leave out the settings of a zip, for a policy that needs none."""
    return replace(foreign, vecnormalize=None, activation=None)


def restorable(env_id: str, subjects: list[Subject]) -> EnvSpec:
    """Return a task's description. Raises BadInput where its states can't be restored."""
    try:
        for subject in subjects:  # whose own arguments count in any task, or they would be dropped
            choose(env_id, "native", subject.policy.meta.env_kwargs)
        return check(env_id, "native")
    except UnsupportedEnv as error:
        raise BadInput(f"policies are judged from restored states of the task: {error}") from error


def require_alike(subject: Subject, first: Subject, spec: EnvSpec, is_given: bool) -> None:
    """Raise BadInput unless a policy acts in the task as the first one does."""
    meta = subject.policy.meta
    require_fit(subject.policy, spec, subject.name)
    if meta.env_id != first.policy.meta.env_id and not is_given:
        raise BadInput(
            f"{subject.name} was trained in {meta.env_id}, {first.name} in "
            f"{first.policy.meta.env_id}; name one with --env"
        )
    require_bounds(subject.policy, spec, subject.name)
