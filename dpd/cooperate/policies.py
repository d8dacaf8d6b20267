"""Read the policies that cooperate, and check that they fit each other and a restorable task."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpd.envs.base import EnvSpec, UnsupportedEnv
from dpd.envs.make import check, choose_backend
from dpd.errors import BadInput
from dpd.policies.checks import require_bounds, require_fit
from dpd.policies.policyfile import Policy
from dpd.run.runs import short_names
from dpd.run.sources import Place, is_zip, load_any, moved, one_policy, refuse_shared_statistics

if TYPE_CHECKING:
    from dpd.cooperate.config import CooperateConfig


@dataclass(frozen=True, kw_only=True)
class CooperatingPolicy:
    """A policy that cooperates, and its origin."""

    name: str
    file: Path
    origin: dict[str, Any]
    """Name, digest, algorithm and steps, stored in the improved policies."""
    policy: Policy


def read_policies(config: CooperateConfig) -> tuple[list[CooperatingPolicy], str]:
    """Return all policies and their task's id.

    Raises BadInput or NotAPolicy if a policy can't be read, or if they do not fit each other and a
    task whose states can be restored.
    """
    files = [one_policy(path) for path in config.paths]
    names = short_names(config.paths)
    if len({file.resolve() for file in files}) < len(files):
        raise BadInput("a policy is given twice; give each once")
    refuse_shared_statistics(files, config.foreign)
    subjects: list[CooperatingPolicy] = []
    foreign, zips = config.foreign, any(map(is_zip, files))
    for name, file in zip(names, files, strict=True):
        own = foreign if is_zip(file) or not zips else foreign.without_zip
        policy = load_any(file, own)
        if (kwargs := foreign.parsed_env_kwargs()) is not None:
            policy = moved(policy, Place(policy.meta.env_id, kwargs))
        # a zip does not name its environment; use that of the others
        foreign = replace(foreign, env=foreign.env or policy.meta.env_id)
        described = policy_origin(name, file, policy)
        subjects.append(CooperatingPolicy(name=name, file=file, origin=described, policy=policy))
    env_id = str(foreign.env)
    require_fit_task(env_id, subjects, config.foreign.env is not None)
    return subjects, env_id


def policy_origin(name: str, file: Path, policy: Policy) -> dict[str, Any]:
    """Describe a policy's file and training."""
    digest, meta = hashlib.sha256(file.read_bytes()).hexdigest(), policy.meta
    steps = meta.provenance.get("steps")
    return {"name": name, "sha256": digest, "algo": meta.algo, "steps": steps}


def require_fit_task(env_id: str, subjects: list[CooperatingPolicy], is_given: bool = True) -> None:
    """Raise BadInput unless all policies fit a task whose states can be restored."""
    try:
        for subject in subjects:  # check their env_kwargs too, or they would be dropped silently
            choose_backend(env_id, "native", subject.policy.meta.env_kwargs)
        spec = check(env_id, "native")
    except UnsupportedEnv as error:
        raise BadInput(f"cooperation needs restorable states of the task: {error}") from error
    for subject in subjects:
        require_acts_in(subject, subjects[0], spec, is_given)


def require_acts_in(
    subject: CooperatingPolicy, first: CooperatingPolicy, spec: EnvSpec, is_given: bool
) -> None:
    """Raise BadInput unless a policy fits the task and was trained where the first one was."""
    meta = subject.policy.meta
    require_fit(subject.policy, spec, subject.name)
    if meta.env_id != first.policy.meta.env_id and not is_given:
        raise BadInput(
            f"{subject.name} was trained in {meta.env_id}, {first.name} in "
            f"{first.policy.meta.env_id}; choose one with --env"
        )
    require_bounds(subject.policy, spec, subject.name)
