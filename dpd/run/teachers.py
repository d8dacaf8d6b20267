"""Teachers of a run: read from their files, checked, and kept in the run's directory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dpd.config import ForeignConfig, ForeignTeacher, RunConfig, TeacherConfig, TrainConfig
from dpd.distill.config import ProgressiveConfig
from dpd.distill.teacher import Returns, Teacher, number_of
from dpd.envs.base import EnvSpec
from dpd.envs.make import make
from dpd.errors import BadInput
from dpd.files import replacing
from dpd.policies import policyfile
from dpd.policies.checks import require_bounds, require_fit
from dpd.policies.policyfile import Policy
from dpd.run.episodes import episode_seeds, run_episodes
from dpd.run.sources import Place, as_flag, history_of, is_zip, load_any, one_policy

FOLDER, RETURNS = "teachers", "returns.json"
LAST_EPISODES = 1_000_000  # above a run's seed: of the episodes that no evaluation in training uses


def read_teacher(config: TrainConfig) -> Teacher | None:
    """Read a run's teachers: of one that goes on, those it keeps. Raises BadInput, NotAPolicy."""
    if config.teachers is None:
        return None
    if config.run.resume is not None:
        return kept_teacher(config.run.resume)
    files = [one_policy(path) for path in config.teachers.teacher]
    said = foreign_of(files, config.teachers, config.run)
    policies = [load_any(file, foreign) for file, foreign in zip(files, said, strict=True)]
    if not isinstance(config.distill, ProgressiveConfig):
        return Teacher(policies)
    if len(files) > 1:
        raise BadInput("method progressive follows one teacher's checkpoints; give one")
    return Teacher(policies, _up_to(policies[0], map(policyfile.load, history_of(files[0]))))


def foreign_of(
    files: Sequence[Path], given: TeacherConfig, run: RunConfig
) -> Sequence[ForeignConfig]:
    """Return what is said of each file: settings of zips go to zips alone, where there are any."""
    stats = given.teacher_vecnormalize
    n_zips = sum(map(is_zip, files))
    if len(stats) not in (0, 1, n_zips):
        raise BadInput(
            f"--teacher-vecnormalize names {len(stats)} files for {n_zips} zips; give one for all, "
            "or one for each, in the order of --teacher"
        )
    each = iter(stats * (n_zips if len(stats) == 1 and n_zips else 1))
    kwargs = run.env_kwargs if run.parsed_env_kwargs() else None
    said = []
    for file in files:
        own = is_zip(file) or n_zips == 0
        found = next(each, None) if own else None
        activation = given.teacher_activation if own else None
        said.append(
            ForeignTeacher(
                env=run.env, env_kwargs=kwargs, vecnormalize=found, activation=activation
            )
        )
    return said


def _up_to(teacher: Policy, history: Iterable[Policy]) -> list[Policy]:
    """Leave out checkpoints that are later than the teacher: the best one may be an early one."""
    end = number_of(teacher, "steps") or float("inf")
    return [policy for policy in history if (number_of(policy, "steps") or 0) <= end]


def kept_teacher(run_dir: Path) -> Teacher:
    """Read the teachers that a run keeps. Raises BadInput without any."""
    folder = run_dir / FOLDER
    policies = [policyfile.load(file) for file in sorted(folder.glob("teacher*.safetensors"))]
    history = [policyfile.load(file) for file in sorted(folder.glob("history*.safetensors"))]
    if not policies:
        raise BadInput(f"{folder} holds no teacher; it was written when the run began")
    teacher = Teacher(policies, history)
    if (file := folder / RETURNS).is_file():
        teacher.returns = Returns(**json.loads(file.read_text()))
    return teacher


def keep_teacher(run_dir: Path, teacher: Teacher) -> None:
    """Write a run's teachers into its directory, so that it can go on without their files."""
    for name, policies in (("teacher", teacher.policies), ("history", teacher.history)):
        for k, policy in enumerate(policies):
            file = run_dir / FOLDER / f"{name}{k:05d}.safetensors"
            policyfile.save(file, policy.tensors, policy.meta)


def refuse_unfit(teacher: Teacher, config: TrainConfig, spec: EnvSpec) -> None:
    """Raise BadInput unless teachers see and do what the environment shows and allows."""
    for policy in (*teacher.policies, *teacher.history):
        meta = policy.meta
        if meta.env_id != config.run.env:
            raise BadInput(
                f"the teacher was trained in {meta.env_id}, and this run is in {config.run.env}; "
                f"give dpd distill {meta.env_id}, or another --teacher"
            )
        if config.run.resume is None and not config.run.parsed_env_kwargs() and meta.env_kwargs:
            own = Place(meta.env_id, meta.env_kwargs)
            raise BadInput(
                f"the teacher was trained in {own}, and this run gives no arguments: give "
                f"{as_flag(own)}, or all arguments that it is to have instead"
            )
        require_fit(policy, spec, "the teacher")
        require_bounds(policy, spec, "the teacher")
    if len({policy.meta.squashed for policy in teacher.policies}) > 1:
        raise BadInput("some of the teachers squash their actions and some do not; give alike ones")


def keep_returns(run_dir: Path, teacher: Teacher, config: TrainConfig) -> None:
    """Measure what a run's teachers get, unless the run knows it, and write it beside them.

    Kept, because a run that goes on must count by the same numbers, whatever its settings now.
    """
    if teacher.returns is None:
        teacher.returns = measure(teacher, config)
        with replacing(run_dir / FOLDER / RETURNS) as draft:
            draft.write_text(json.dumps(teacher.returns._asdict(), indent=2) + "\n")


def measure(teacher: Teacher, config: TrainConfig) -> Returns:
    """Play the episodes of the run's final table: teachers without noise, and uniform actions."""
    run, policies = config.run, teacher.policies
    n, act_dim = len(policies) + 1, policies[0].meta.act_dim
    seeds = n * episode_seeds(run.seed + LAST_EPISODES, run.final_episodes)
    env = make(run.env, len(seeds), seeds, run.backend, run.parsed_env_kwargs(), run.threads)
    generator = torch.Generator().manual_seed(run.seed)

    def act(obs: Tensor) -> Tensor:  # [K + 1, E, O]
        uniform = torch.rand(obs.shape[1], act_dim, generator=generator) * 2 - 1
        said = [p.repeatable_mode(own) for p, own in zip(policies, obs[:-1], strict=True)]
        return torch.stack([*said, uniform])

    try:
        *teachers, random = run_episodes(env, act, n).returns.tolist()
    finally:
        env.close()
    return Returns(teachers, random)
