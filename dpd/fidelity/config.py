"""Settings of `dpd fidelity` and `dpd sweep`; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from dpd.config import ForeignConfig, flag
from dpd.errors import BadInput


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
