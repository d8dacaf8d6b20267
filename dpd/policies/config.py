"""Settings of the commands that read saved policies; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from dpd.agents.config import require
from dpd.errors import BadInput, flag
from dpd.run.config import absolute_paths, parse_env_kwargs, with_ranges

Paths = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH ...")]


NO_STATISTICS = Path("none")
"""Value of --vecnormalize for a zip whose observations are not normalised."""


@dataclass(frozen=True, kw_only=True)
class ForeignConfig:
    """Facts that a Stable-Baselines3 zip does not contain."""

    PREFIX: ClassVar[str] = "--"
    """Prefix of the flags that describe a zip."""
    FOR_NONE: ClassVar[str] = ", or '{}' for none"
    """Hint, in messages, for an environment without arguments."""

    env: str | None = None
    """Environment; required for a .zip. None: the one the policy was trained in."""
    env_kwargs: str | None = None
    """Keyword arguments of the environment, as JSON. None: those that a policy file was trained
    with; a .zip does not contain them."""
    vecnormalize: Path | None = None
    """VecNormalize statistics of a .zip: the .pkl that Stable-Baselines3 saves (read without
    executing it), or an .npz of mean, var and count. none: the observations are not normalised."""
    activation: Literal["tanh", "relu", "elu"] | None = None
    """Activation of a .zip whose activation cannot be read from the file."""

    def __post_init__(self) -> None:
        self.parsed_env_kwargs()

    def parsed_env_kwargs(self) -> dict[str, Any] | None:
        """Return the environment's keyword arguments; None if they are not given."""
        if self.env_kwargs is None:
            return None
        kwargs: dict[str, Any] = absolute_paths(parse_env_kwargs(self.env_kwargs))
        return kwargs

    @property
    def without_zip(self) -> ForeignConfig:
        """The settings that also apply to a policy file, which contains the others."""
        return ForeignConfig(env=self.env, env_kwargs=self.env_kwargs)


class ForeignTeacher(ForeignConfig):
    """Facts that the zip of a teacher does not contain, for `dpd distill`."""

    PREFIX: ClassVar[str] = "--teacher-"
    FOR_NONE: ClassVar[str] = ""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluate saved policies without exploration noise."""

    paths: Paths
    """Policy files, Stable-Baselines3 zips, or run directories (all policies in them)."""
    episodes: int = 20
    """Episodes per policy."""
    seed: int = 0
    """Random seed of the episodes."""
    foreign: Annotated[ForeignConfig, tyro.conf.OmitArgPrefixes] = ForeignConfig()
    json: bool = False
    """Print JSON instead of a table."""
    video: Path | None = None
    """Also record one episode of the first policy to this .mp4 file (needs a renderer)."""
    hybrid: bool = False
    """Play the hybrid policy of every seed's peers: in every state, the peer whose action all their
    critics prefer acts. Plays its peers on the same episodes, and a choice at random as a control.
    For run directories with peers of td3, ddpg or sac, and for files of dpd export --hybrid."""

    def __post_init__(self) -> None:
        require(self, "be at least 1", "episodes", called=flag)
        if not self.paths:
            raise BadInput("dpd evaluate needs a PATH: a policy file or a run directory")


@dataclass(frozen=True, kw_only=True)
class GroupsConfig:
    """Print the groups of an environment's observation: the names by which views choose columns."""

    env: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV")]
    """Gymnasium environment id; `module:Id` first imports the module that registers it."""
    env_kwargs: str = "{}"
    """Keyword arguments of the environment, as JSON."""
    randomize: str | None = None
    """Ranges of factors, as those of dpd train: they add the group params."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        self.parsed_env_kwargs()

    def parsed_env_kwargs(self) -> dict[str, Any]:
        """Return the environment's keyword arguments, with the ranges of --randomize."""
        kwargs: dict[str, Any] = absolute_paths(parse_env_kwargs(self.env_kwargs))
        return with_ranges(self.env, kwargs, self.randomize)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Export a policy to another format; the result is reloaded and checked against the source."""

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """A policy file or a Stable-Baselines3 zip; with --hybrid, a run directory."""
    format: Literal["onnx", "torchscript", "c", "c-int8", "sb3", "dpd"]
    """onnx, torchscript: one file that maps raw observations to environment actions; c, c-int8: the
    same as one C99 file without libraries, with weights of 32 or 8 bits; sb3: a folder in the
    layout of rl-baselines3-zoo; dpd: a policy file of dpd."""
    out: Path | None = None
    """Output path. None: next to the policy, with its name."""
    hybrid: bool = False
    """Export the hybrid policy of the peers of a run: their policies, and the critics that choose
    one of them in every state. For onnx, torchscript and dpd."""
    hybrid_seed: int | None = None
    """Seed of the peers, for a run with several seeds. None: its only one."""
    foreign: Annotated[ForeignConfig, tyro.conf.OmitArgPrefixes] = ForeignConfig()

    def __post_init__(self) -> None:
        if self.hybrid_seed is not None and not self.hybrid:
            raise BadInput("--hybrid-seed does nothing without --hybrid")
