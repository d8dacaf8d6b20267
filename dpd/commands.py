"""Settings of the commands beside `dpd train`; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from dpd.config import BadInput
from dpd.run_config import absolute_paths, flag, parse_env_kwargs

Paths = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH ...")]


NO_STATISTICS = Path("none")
"""What --vecnormalize is given for a zip whose observations are not normalised."""


@dataclass(frozen=True, kw_only=True)
class ForeignConfig:
    """What a Stable-Baselines3 zip does not say of itself."""

    PREFIX: ClassVar[str] = "--"
    """What the flags that describe a zip begin with."""
    FOR_NONE: ClassVar[str] = ", or '{}' for none"
    """How to say that its environment takes no arguments."""

    env: str | None = None
    """Environment; None: the one the policy was trained in. A .zip needs it."""
    env_kwargs: str | None = None
    """Keyword arguments of the environment, as JSON; None: those the policy was trained with, which
    a .zip does not say."""
    vecnormalize: Path | None = None
    """VecNormalize statistics of a .zip: the .pkl that Stable-Baselines3 saves, which is read
    without being run, or an .npz of mean, var and count; none: its observations are not
    normalised."""
    activation: Literal["tanh", "relu", "elu"] | None = None
    """Activation of a .zip that does not say it readably."""

    def __post_init__(self) -> None:
        self.parsed_env_kwargs()

    def parsed_env_kwargs(self) -> dict[str, Any] | None:
        """Return the environment's keyword arguments; None where they are not given."""
        if self.env_kwargs is None:
            return None
        found: dict[str, Any] = absolute_paths(parse_env_kwargs(self.env_kwargs))
        return found

    @property
    def without_zip(self) -> ForeignConfig:
        """What is left of it for a policy that says the rest itself."""
        return ForeignConfig(env=self.env, env_kwargs=self.env_kwargs)


class ForeignTeacher(ForeignConfig):
    """The same of a teacher, in `dpd distill`."""

    PREFIX: ClassVar[str] = "--teacher-"
    FOR_NONE: ClassVar[str] = ""


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


@dataclass(frozen=True, kw_only=True)
class FidelityConfig:
    """Measure how closely students follow their teacher; the environment is the teacher's."""

    teacher: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TEACHER")]
    """A policy file, a Stable-Baselines3 zip, or a run directory for the best policy in it."""
    students: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="STUDENT ...")
    ]
    """Likewise."""
    floor: Path | None = None
    """An independently trained policy: so much agreement comes without any teacher."""
    train_states: Path | None = None
    """What the students were trained on: an .npy of raw observations [states, dimensions]; None:
    what each remembers, as far as its run's checkpoints tell."""
    episodes: int = 20
    """Deterministic episodes per policy, the same for all."""
    states: int = 10_000
    """States in each set, drawn from whole episodes; more are played where those do not suffice."""
    seed: int = 0
    """Seed of episodes, drawn states, perturbations and the bootstrap."""
    threads: int | None = None
    """CPU threads of the simulation; None: all cores."""
    foreign: Annotated[ForeignConfig, tyro.conf.OmitArgPrefixes] = ForeignConfig()
    out: Path = Path("fidelity")
    """Directory for fidelity.html, fidelity.json and TensorBoard's tb/."""
    json: bool = False
    """Print JSON instead of tables."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise BadInput(f"--episodes must be at least 1, not {self.episodes}")
        if self.states < 2:
            raise BadInput(f"--states must be at least 2, not {self.states}")
        if not self.students:
            raise BadInput("dpd fidelity needs a TEACHER and a STUDENT: policy files or runs")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Distil a teacher offline in many ways, one thing changed at a time; does fidelity follow?

    Changed are the number of states, their augmentation, the optimiser, the gradient steps, the
    student's width and how near to the teacher it starts (Stanton et al. 2021).
    """

    teacher: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TEACHER")]
    """A policy file, a Stable-Baselines3 zip, or a run directory for the best policy in it."""
    sizes: tuple[int, ...] = (1_000, 10_000, 100_000)
    """Numbers of the teacher's states to learn from; all else is changed at the middle one."""
    steps: int = 2_000
    """Gradient steps, of 256 states each."""
    lr: float = 1e-3
    """Adam's learning rate at the beginning; it falls to 0 as a cosine."""
    sgd_lr: float = 0.05
    """That of SGD with Nesterov's momentum (Stanton et al. 2021)."""
    seeds: int = 3
    """Students of each kind."""
    seed: int = 0
    """Seed of the first student; also of episodes and states."""
    episodes: int = 10
    """Deterministic episodes per student, the same for all."""
    states: int = 5_000
    """States in each set that students are compared on."""
    quick: bool = False
    """A tenth of the steps and of all states, three episodes, one seed."""
    threads: int | None = None
    """CPU threads of the simulation; None: all cores."""
    foreign: Annotated[ForeignConfig, tyro.conf.OmitArgPrefixes] = ForeignConfig()
    out: Path = Path("sweep")
    """Directory for sweep.html and sweep.json."""
    json: bool = False
    """Print JSON instead of tables."""

    def __post_init__(self) -> None:
        for name, least in (("steps", 10), ("seeds", 1), ("episodes", 1), ("states", 20)):
            if getattr(self, name) < least:
                raise BadInput(f"--{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("lr", "sgd_lr"):
            if getattr(self, name) <= 0:
                raise BadInput(f"{flag(name)} must be positive, not {getattr(self, name)}")
        if not self.sizes or min(self.sizes) < 20 or len(set(self.sizes)) < len(self.sizes):
            raise BadInput("--sizes must be different numbers of states, 20 at least")
        if self.seed < 0:
            raise BadInput(f"--seed must not be negative, not {self.seed}")

    def resolved(self) -> SweepConfig:
        """Return the settings with what `quick` means put in."""
        if not self.quick:
            return self
        sizes = tuple(max(20, size // 10) for size in self.sizes)
        steps, states = max(10, self.steps // 10), max(20, self.states // 10)
        few = replace(self, quick=False, steps=steps, states=states, seeds=1)
        return replace(few, sizes=tuple(dict.fromkeys(sizes)), episodes=min(3, self.episodes))
