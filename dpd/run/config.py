"""Settings of a run's environment, budget, evaluations and hardware; imports no torch."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from dpd.agents.config import require
from dpd.envs.randomization import NATIVE_IDS, RANDOMIZE, BadRange, format_ranges, parse_ranges
from dpd.errors import BadInput, flag


def as_name(env: str) -> str:
    """Return an environment id as a valid directory name."""
    return env.replace(":", "-").replace("/", "-")


def parse_env_kwargs(text: str) -> dict[str, Any]:
    """Parse an environment's keyword arguments. Raises BadInput unless they are a JSON object."""
    try:
        kwargs = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"--env-kwargs is not JSON ({error}): '{text}'") from error
    if not isinstance(kwargs, dict):
        raise BadInput(f"--env-kwargs must be a JSON object, not '{text}'")
    return kwargs


def with_ranges(env: str, kwargs: dict[str, Any], randomize: str | None) -> dict[str, Any]:
    """Return an environment's keyword arguments with the ranges of --randomize.

    Raises BadInput if they cannot be read, or the environment is none that can be randomised.
    """
    if randomize is None:
        return kwargs
    if env not in NATIVE_IDS and ":" not in env:  # a user's module may register a native task
        raise BadInput(f"--randomize changes the model of {', '.join(NATIVE_IDS)} only, not {env}")
    if RANDOMIZE in kwargs:
        raise BadInput(f"--env-kwargs contains {RANDOMIZE} already; leave --randomize out")
    try:
        return {**kwargs, RANDOMIZE: format_ranges(parse_ranges(randomize))}
    except BadRange as error:
        raise BadInput(f"--randomize {randomize}: {error}") from error


def absolute_paths(value: Any) -> Any:
    """Make relative paths in JSON values absolute, so that they work from any directory.

    A string is a path if it contains a slash and exists. A bare name is left alone: Gymnasium looks
    up `ant.xml` in its own assets.
    """
    if isinstance(value, dict):
        return {name: absolute_paths(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [absolute_paths(inner) for inner in value]
    is_path = isinstance(value, str) and os.sep in value and os.path.exists(value)
    return os.path.abspath(value) if is_path else value


class EvaluationPlan(NamedTuple):
    """Numbers of evaluations and of their episodes."""

    evals: int
    episodes: int
    """Episodes per learner in each evaluation."""
    final_episodes: int
    """Episodes per policy in the table at the end."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Environment, budget, evaluations, checkpoints and hardware of the run."""

    env: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV")] = "HalfCheetah-v5"
    """Gymnasium environment id; `module:Id` first imports the module that registers it."""
    env_kwargs: str = "{}"
    """Keyword arguments of the environment, as JSON. A relative path that contains a slash, such as
    "./robot.xml", is stored as an absolute path."""
    randomize: str | None = None
    """Factors that every episode of a native task draws uniformly, for example
    mass=0.8:1.2,friction=0.5:1.5; also gear, damping, stiffness, fluid. Observations end with them,
    as the group params. Policies keep the ranges among their environment's arguments."""
    backend: Literal["auto", "native", "gymnasium", "async", "envpool", "warp"] = "auto"
    """Simulator. auto: native if it supports the environment, warp for many environments on a GPU,
    envpool for ids that only EnvPool knows, else gymnasium. async: gymnasium with a process per
    environment, for slow ones. envpool: C++ environments with threads."""
    device: str = "cpu"
    """Device of learners, distillation and the warp simulator: cpu, cuda, or for example cuda:1."""
    record_updates: bool = True
    """On a GPU, record updates as CUDA graphs. Without, operations are launched one by one, which
    is slower."""
    kernels: Literal["auto", "torch"] = "auto"
    """Code of the updates. auto: kernels compiled by Numba, on a CPU, for learners and methods that
    have them; torch: never. Both give the same results up to rounding."""
    peers: int = 2
    """Learners per seed; they teach each other."""
    seeds: int = 1
    """Number of seeds: independent groups of peers, trained side by side."""
    seed: int = 0
    """First seed; the others count up from it."""
    total_steps: int = 1_000_000
    """Environment steps per seed, summed over its peers."""
    evals: int | None = None
    """Deterministic evaluations during training, evenly spaced; the last one is at the end. None:
    one per 64,000 steps (16,000 for learners with a replay), at least 1 and at most 15."""
    eval_episodes: int | None = None
    """Episodes per learner in each evaluation. None: one per 320,000 steps, at
    least 1 and at most 5."""
    final_episodes: int | None = None
    """Episodes per policy in the table at the end. None: one per 10,000 steps, at least 5 and at
    most 20."""
    threads: int | None = None
    """CPU threads. None: as many as pay off, at most one per core."""
    workers: int = 1
    """Processes that divide the seeds and the cores among them."""
    records: int = 2000
    """Maximum number of records in metrics.csv and TensorBoard, evenly spaced; bounds their
    size."""
    checkpoint_every: float = 60.0
    """Seconds between checkpoints; 0: every iteration. Every evaluation writes one as well."""
    keep: int = 3
    """Number of latest checkpoints to keep, in addition to the one with the best evaluation."""
    on_nan: Literal["stop", "rollback"] = "stop"
    """After a NaN: stop, or roll back to the last checkpoint and retry. A retry gives the peers of
    that seed new random numbers and half the learning rate."""
    keep_checkpoints: bool = False
    """Keep the policies of every evaluation in policies/history, for progressive distillation."""
    init_from: tuple[Path, ...] = ()
    """Policy files to start from: one for all learners, or one per peer."""
    out: Path | None = None
    """Directory of the run. None: a new directory under runs/."""
    resume: Path | None = None
    """Resume the run in this directory with its saved settings; --total-steps may be raised."""

    def __post_init__(self) -> None:
        at_least_1 = ("peers", "seeds", "total_steps", "evals", "eval_episodes", "final_episodes")
        require(self, "be at least 1", *at_least_1, called=flag)
        require(self, "be at least 1", "threads", "workers", "records", "keep", called=flag)
        require(self, "not be negative", "seed", "checkpoint_every", called=flag)
        if self.workers > self.seeds:
            raise BadInput(
                f"--workers {self.workers} for {self.seeds} seeds: learners of a seed train in one "
                "process; give more --seeds or fewer --workers"
            )
        if self.init_from and len(self.init_from) not in (1, self.peers):
            raise BadInput(
                f"--init-from has {len(self.init_from)} policies for {self.peers} learners of a "
                "seed; give one for all, or one for each"
            )
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise BadInput(f"--device must be cpu, cuda or for example cuda:1, not '{self.device}'")
        self.parsed_env_kwargs()

    def seeds_of(self, part: int) -> range:
        """Return the consecutive seeds that worker `part` trains; shares differ by at most one."""
        share, rest = divmod(self.seeds, self.workers)
        begin = self.seed + part * share + min(part, rest)
        return range(begin, begin + share + (part < rest))

    @property
    def evaluation_backend(self) -> str:
        """The simulation of evaluations: MuJoCo itself where training uses Warp's copy of it."""
        return "auto" if self.backend == "warp" else self.backend

    def parsed_env_kwargs(self) -> dict[str, Any]:
        """Return the environment's keyword arguments, with the ranges of --randomize."""
        return with_ranges(self.env, parse_env_kwargs(self.env_kwargs), self.randomize)


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The policies that students learn from."""

    teacher: tuple[Path, ...] = ()
    """Policy files, Stable-Baselines3 zips, or run directories (their best policy is used). With
    several teachers, one is drawn uniformly to label each state."""
    teacher_by: str | None = None
    """Observation that picks the teacher of each state, a group or a column that `dpd groups ENV`
    prints: where it is 0, the first of --teacher answers and acts, where it is 1, the second."""
    teacher_vecnormalize: tuple[Path, ...] = ()
    """VecNormalize statistics of teachers that are .zip files, in the formats that dpd evaluate
    --vecnormalize reads: one for all, or one per zip."""
    teacher_activation: Literal["tanh", "relu", "elu"] | None = None
    """Activation of a .zip whose activation cannot be read from the file."""
