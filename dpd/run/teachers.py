"""Teachers of a run: read, check and measure them, and copy them to the run's directory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dpd.agents.config import View
from dpd.config import TrainConfig
from dpd.distill.teacher import Returns, Route, Teacher, number_of
from dpd.distill.teaching_config import ProgressiveConfig
from dpd.distill.views import chosen_columns
from dpd.envs.base import EnvSpec
from dpd.envs.make import make
from dpd.envs.randomization import RANDOMIZE
from dpd.errors import BadInput
from dpd.files import replacing
from dpd.policies import policyfile
from dpd.policies.config import ForeignConfig, ForeignTeacher
from dpd.policies.policyfile import Policy, require_bounds, require_fit
from dpd.policies.views import describe_sight, describe_view
from dpd.run.config import RunConfig, TeacherConfig
from dpd.run.episodes import episode_seeds, run_episodes, side_by_side, uniform_policy
from dpd.run.sources import Place, as_run_flags, history_of, is_zip, load_any, one_policy

FOLDER, RETURNS = "teachers", "returns.json"
# Added to a run's seed for the final table: no evaluation in training plays these episodes.
LAST_EPISODES = 1_000_000


def read_run_teacher(config: TrainConfig, spec: EnvSpec) -> Teacher | None:
    """Read a run's teachers; those of a resumed run come from its directory.

    Returns None if the method has no teacher. Raises BadInput or NotAPolicy.
    """
    if config.teachers is None:
        return None
    if config.run.resume is not None:
        return kept_teacher(config.run.resume, config.teachers.teacher_by, spec)
    files = [one_policy(path) for path in config.teachers.teacher]
    foreign = foreign_settings(files, config.teachers, config.run)
    policies = [load_any(file, each) for file, each in zip(files, foreign, strict=True)]
    reads = partial(with_view, text=config.teacher_obs, spec=spec)
    policies = [reads(policy) for policy in policies]
    if not isinstance(config.distill, ProgressiveConfig):
        return Teacher(policies, route=route_of(config.teachers.teacher_by, spec))
    if len(files) > 1:
        raise BadInput(
            "method progressive follows the checkpoints of one teacher; give one --teacher"
        )
    history = [reads(policyfile.load(file)) for file in history_of(files[0])]
    return Teacher(policies, _up_to(policies[0], history))


def route_of(text: str | None, spec: EnvSpec) -> Route | None:
    """Return the column that --teacher-by names. Raises BadInput unless it is one."""
    if text is None:
        return None
    columns = chosen_columns("--teacher-by", text, spec)
    if len(columns) > 1:
        raise BadInput(
            f"--teacher-by {text} has {len(columns)} columns of {spec.env_id}; name the one that "
            "holds the teacher's number, for example 3"
        )
    return Route(columns[0], text, spec.first_values.get(columns[0], 0))


def with_view(policy: Policy, text: str | None, spec: EnvSpec) -> Policy:
    """Return a teacher that reads only the observations that --teacher-obs names.

    Raises BadInput if these are not as many as it reads, or if its file names others.
    """
    if text is None:
        return policy
    columns, meta = chosen_columns("--teacher-obs", text, spec), policy.meta
    if meta.view is not None:
        raise BadInput(
            f"--teacher-obs {text}: the teacher's file says what it sees, "
            f"{describe_view(meta.view)}; leave --teacher-obs out"
        )
    if meta.obs_dim != len(columns):
        raise BadInput(
            f"--teacher-obs {text} has {len(columns)} columns of {spec.env_id}, but the teacher "
            f"reads {meta.obs_dim}; name those that it was trained on"
        )
    words = tuple(word.strip() for word in text.split(","))
    view = View(obs_dim=spec.obs_dim, act_dim=meta.act_dim, columns=tuple(columns), groups=words)
    shapes: dict[str, Any] = {"obs_dim": spec.obs_dim, "obs_shape": spec.obs_shape}
    return Policy(policy.tensors, replace(meta, view=view, **shapes))


def foreign_settings(
    files: Sequence[Path], given: TeacherConfig, run: RunConfig
) -> Sequence[ForeignConfig]:
    """Return the settings for each teacher's file; if there are zips, only zips get zip settings.

    Without zips, all files get them, so that `load_any` reports that they have no effect.
    """
    stats = given.teacher_vecnormalize
    n_zips = sum(map(is_zip, files))
    if len(stats) not in (0, 1, n_zips):
        raise BadInput(
            f"--teacher-vecnormalize has {len(stats)} files for {n_zips} zips; give one for all, "
            "or one per zip, in the order of --teacher"
        )
    next_stats = iter(stats * (n_zips if len(stats) == 1 and n_zips else 1))
    kwargs = json.dumps(run.parsed_env_kwargs()) if run.parsed_env_kwargs() else None
    settings = []
    for file in files:
        applies = is_zip(file) or n_zips == 0
        settings.append(
            ForeignTeacher(
                env=run.env,
                env_kwargs=kwargs,
                vecnormalize=next(next_stats, None) if applies else None,
                activation=given.teacher_activation if applies else None,
            )
        )
    return settings


def _up_to(teacher: Policy, history: Iterable[Policy]) -> list[Policy]:
    """Drop checkpoints later than the teacher, which may be an early policy if it is the best."""
    end = number_of(teacher, "steps") or float("inf")
    return [policy for policy in history if (number_of(policy, "steps") or 0) <= end]


def kept_teacher(run_dir: Path, by: str | None, spec: EnvSpec) -> Teacher:
    """Read the teachers stored in a run's directory; `by` is the run's --teacher-by.

    Raises BadInput if there are none.
    """
    folder = run_dir / FOLDER
    policies = [policyfile.load(file) for file in sorted(folder.glob("teacher*.safetensors"))]
    history = [policyfile.load(file) for file in sorted(folder.glob("history*.safetensors"))]
    if not policies:
        raise BadInput(f"{folder} contains no teacher; it was written when the run began")
    teacher = Teacher(policies, history, route_of(by, spec))
    if (file := folder / RETURNS).is_file():
        teacher.returns = Returns(**json.loads(file.read_text()))
    return teacher


def keep_teacher(run_dir: Path, teacher: Teacher) -> None:
    """Copy the teachers to the run's directory, so that it can be resumed without their files."""
    for name, policies in (("teacher", teacher.policies), ("history", teacher.history)):
        for k, policy in enumerate(policies):
            file = run_dir / FOLDER / f"{name}{k:05d}.safetensors"
            policyfile.save(file, policy.tensors, policy.meta)


def refuse_unfit(teacher: Teacher, config: TrainConfig, spec: EnvSpec) -> None:
    """Raise BadInput if a teacher's environment, dimensions or action bounds do not fit the run."""
    for policy in (*teacher.policies, *teacher.history):
        meta = policy.meta
        if meta.env_id != config.run.env:
            raise BadInput(
                f"the teacher was trained in {meta.env_id}, but this run uses {config.run.env}; "
                f"give dpd distill {meta.env_id}, or another --teacher"
            )
        if config.run.resume is None and not config.run.parsed_env_kwargs() and meta.env_kwargs:
            home = Place(meta.env_id, meta.env_kwargs)
            raise BadInput(
                f"the teacher was trained in {home}, but this run has no arguments: give "
                f"{as_run_flags(home)}, or other arguments"
            )
        if meta.needs_episode:
            raise BadInput(
                f"the teacher {describe_sight(policy)}: it must answer about single observations; "
                "give a teacher without history, delay, prev_action and memory"
            )
        if meta.obs_dim < spec.obs_dim and meta.act_dim == spec.act_dim:
            raise BadInput(
                f"the teacher reads {meta.obs_dim} observations, and {spec.env_id} has "
                f"{spec.obs_dim}; if it knows a part of them, give --teacher-obs with their names"
            )
        ranges = meta.env_kwargs.get(RANDOMIZE)
        if meta.obs_dim != spec.obs_dim and ranges != config.run.parsed_env_kwargs().get(RANDOMIZE):
            home = Place(meta.env_id, meta.env_kwargs)
            raise BadInput(
                f"the teacher was trained in {home}, whose observations end with other params; "
                f"give {as_run_flags(home)}"
            )
        require_fit(policy, spec, "the teacher")
        require_bounds(policy, spec, "the teacher")
    if len({policy.meta.squashed for policy in teacher.policies}) > 1:
        raise BadInput(
            "some teachers squash their actions and some do not; give teachers of one kind"
        )


def keep_returns(run_dir: Path, returns: Returns) -> None:
    """Store the returns of a run's teachers next to them.

    A resumed run must use the same reference, even if its settings have changed.
    """
    with replacing(run_dir / FOLDER / RETURNS) as draft:
        draft.write_text(json.dumps(returns._asdict(), indent=2) + "\n")


def measure(teacher: Teacher, config: TrainConfig) -> Returns:
    """Play the episodes of the run's final table with the teachers and with uniform actions.

    Teachers with a route play them together, as one: the list of each is the same. Raises BadInput
    if the route leads to no teacher.
    """
    run, policies = config.run, teacher.policies
    uniform = uniform_policy(policies[0].meta.act_dim, torch.Generator().manual_seed(run.seed))
    routed = teacher.route is not None
    alone = [teacher.routed_mode] if routed else [p.repeatable_mode for p in policies]
    acts = [*alone, uniform]
    seeds = len(acts) * episode_seeds(run.seed + LAST_EPISODES, config.evaluation.final_episodes)
    env = make(run.env, len(seeds), seeds, run.backend, run.parsed_env_kwargs(), run.threads)
    with closing(env):
        *teachers, random = run_episodes(env, side_by_side(acts), len(acts)).returns.tolist()
    return Returns(teachers * len(policies) if routed else teachers, random)
