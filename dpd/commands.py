"""Settings of the commands beside `dpd train`; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dpd.config import BadInput

Paths = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH ...")]


@dataclass(frozen=True, kw_only=True)
class ForeignConfig:
    """What a Stable-Baselines3 zip does not say of itself."""

    env: str | None = None
    """Environment; None: the one the policy was trained in. A .zip needs it."""
    vecnormalize: Path | None = None
    """VecNormalize statistics of a .zip, as .npz (a .pkl is refused, with how to convert it)."""
    activation: Literal["tanh", "relu", "elu"] | None = None
    """Activation of a .zip that does not say it readably."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluate saved policies without exploration noise."""

    paths: Paths
    """Policy files, Stable-Baselines3 zips, or run directories for all policies in them."""
    episodes: int = 20
    """Episodes per policy."""
    seed: int = 0
    """Seed of the episodes."""
    foreign: Annotated[ForeignConfig, tyro.conf.OmitArgPrefixes] = ForeignConfig()
    json: bool = False
    """Print JSON instead of a table."""
    video: Path | None = None
    """Also record one episode of the first policy to this .mp4 (needs a renderer)."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise BadInput(f"--episodes must be at least 1, not {self.episodes}")
        if not self.paths:
            raise BadInput("dpd evaluate needs a PATH: a policy file or a run directory")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a policy in another format, checked against the source before it is kept."""

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """A policy file or a Stable-Baselines3 zip."""
    format: Literal["onnx", "torchscript", "sb3", "dpd"]
    """onnx, torchscript: one file from raw observations to the environment's own actions; sb3: a
    folder as rl-baselines3-zoo lays it out; dpd: a policy file of ours."""
    out: Path | None = None
    """What to write; None: beside the policy, under its name."""
    foreign: Annotated[ForeignConfig, tyro.conf.OmitArgPrefixes] = ForeignConfig()


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compare runs or policies side by side, with intervals over seeds."""

    paths: Paths
    """Run directories or policy files, the one to compare with first."""
    episodes: int = 20
    """Fresh deterministic episodes per policy."""
    seed: int = 0
    """Seed of the episodes, and of the bootstrap."""
    threads: int | None = None
    """CPU threads; None: all cores."""
    out: Path = Path("compare.png")
    """Picture of the learning curves."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise BadInput(f"--episodes must be at least 1, not {self.episodes}")
        if len(self.paths) < 2:
            raise BadInput("dpd compare needs two PATHs or more: run directories or policy files")
        if self.out.suffix != ".png":
            raise BadInput(f"--out writes a .png file, not '{self.out.name}'")
