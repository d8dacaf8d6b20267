"""Settings of a run beside those of its learners and its method; imports no torch."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


class BadInput(ValueError):
    """Something the user gave is wrong; the message says what, and what to give instead."""


def flag(name: str) -> str:
    """Return the command-line flag of a setting."""
    return "--" + name.replace("_", "-")


def as_name(env: str) -> str:
    """Return an environment's id as a directory can be called."""
    return env.replace(":", "-").replace("/", "-")


def parse_env_kwargs(text: str) -> dict[str, Any]:
    """Read an environment's keyword arguments from JSON. Raises BadInput for anything else."""
    try:
        kwargs = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"--env-kwargs is not JSON ({error}): '{text}'") from error
    if not isinstance(kwargs, dict):
        raise BadInput(f"--env-kwargs must be a JSON object, not '{text}'")
    return kwargs


def absolute_paths(value: Any) -> Any:
    """Return JSON values with relative paths made absolute, so that they hold in any directory.

    A path is a string with a slash that names something there is. A bare name stays: Gymnasium
    looks `ant.xml` up in its own assets.
    """
    if isinstance(value, dict):
        return {name: absolute_paths(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [absolute_paths(inner) for inner in value]
    is_path = isinstance(value, str) and os.sep in value and os.path.exists(value)
    return os.path.abspath(value) if is_path else value


AT_LEAST_1 = (
    "peers",
    "seeds",
    "total_steps",
    "evals",
    "eval_episodes",
    "final_episodes",
    "workers",
    "records",
    "keep",
)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What to train, how long, where to."""

    env: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV")] = "HalfCheetah-v5"
    """Gymnasium environment id; `module:Id` imports a module that registers it."""
    env_kwargs: str = "{}"
    """Keyword arguments of the environment, as JSON. A relative path with a slash in it, as in
    "./robot.xml", is kept as an absolute one."""
    backend: Literal["auto", "native", "gymnasium", "warp"] = "auto"
    """Simulation: `auto` is native where it can be, and warp for many environments on a GPU."""
    device: str = "cpu"
    """Where learners and distillation are, and what warp simulates on: cpu, cuda, or cuda:1."""
    record_updates: bool = True
    """On a GPU, record updates as CUDA graphs; off, each operation is launched by itself, which
    is slower."""
    peers: int = 2
    """Learners of one seed, which teach each other."""
    seeds: int = 1
    """Independent groups of peers, trained side by side in one stack."""
    seed: int = 0
    """Seed of the first group; the next ones count up."""
    total_steps: int = 1_000_000
    """Environment steps of all peers of one seed together."""
    evals: int = 15
    """Deterministic evaluations during training, evenly spread; the last is at the end."""
    eval_episodes: int = 5
    """Episodes per learner and evaluation."""
    final_episodes: int = 20
    """Episodes per policy in the table at the end."""
    threads: int | None = None
    """CPU threads; None: all cores."""
    workers: int = 1
    """Processes that share the seeds, and the cores, among them."""
    records: int = 2000
    """Most records in metrics.csv and TensorBoard, evenly spread, which bounds their size."""
    checkpoint_every: float = 60.0
    """Seconds between checkpoints; there is one at every evaluation too. 0: every iteration."""
    keep: int = 3
    """Latest checkpoints to keep, beside the one with the best evaluation."""
    on_nan: Literal["stop", "rollback"] = "stop"
    """After a NaN, stop, or go back to the last checkpoint and try again: the peers of that seed
    with other random numbers and half the learning rate."""
    keep_checkpoints: bool = False
    """Keep the policies of every evaluation in policies/history, for progressive distillation."""
    init_from: tuple[Path, ...] = ()
    """Start from saved policies: one for all learners, or one for each peer."""
    out: Path | None = None
    """Directory of the run; None: a new one under runs/."""
    resume: Path | None = None
    """Go on with the run in this directory, with its own settings; --total-steps may be raised."""

    def __post_init__(self) -> None:
        for name in AT_LEAST_1:
            if getattr(self, name) < 1:
                raise BadInput(f"{flag(name)} must be at least 1, not {getattr(self, name)}")
        if self.checkpoint_every < 0:
            raise BadInput(f"--checkpoint-every must not be negative, not {self.checkpoint_every}")
        if self.workers > self.seeds:
            raise BadInput(
                f"--workers {self.workers} for {self.seeds} seeds: the peers of a seed stay in one "
                "process; give more --seeds or fewer --workers"
            )
        if self.init_from and len(self.init_from) not in (1, self.peers):
            raise BadInput(
                f"--init-from has {len(self.init_from)} policies for {self.peers} peers; "
                "give one for all, or one for each"
            )
        if self.seed < 0:
            raise BadInput(f"--seed must not be negative, not {self.seed}")
        if self.threads is not None and self.threads < 1:
            raise BadInput(f"--threads must be at least 1, not {self.threads}")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise BadInput(f"--device is cpu, cuda or as cuda:1, not '{self.device}'")
        self.parsed_env_kwargs()

    def seeds_of(self, part: int) -> range:
        """Return the seeds that one of the `workers` trains: as even as can be, in order."""
        each, more = divmod(self.seeds, self.workers)
        begin = self.seed + part * each + min(part, more)
        return range(begin, begin + each + (part < more))

    def parsed_env_kwargs(self) -> dict[str, Any]:
        """Return the environment's keyword arguments."""
        return parse_env_kwargs(self.env_kwargs)


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Whom students learn from."""

    teacher: tuple[Path, ...] = ()
    """Policy files, Stable-Baselines3 zips, or run directories for the best policy in them. Of
    several, each state gets the answer of one, uniformly drawn."""
    teacher_vecnormalize: tuple[Path, ...] = ()
    """VecNormalize statistics of the teachers that are .zip, as --vecnormalize of dpd evaluate: one
    for all, or for each."""
    teacher_activation: Literal["tanh", "relu", "elu"] | None = None
    """Activation of a .zip that does not say it readably."""

    def as_json(self) -> dict[str, Any]:
        """Return the settings in the shape that `--config` reads."""
        return {
            "teacher": [str(path) for path in self.teacher],
            "teacher_vecnormalize": [str(path) for path in self.teacher_vecnormalize],
            "teacher_activation": self.teacher_activation,
        }
