"""Settings of `dpd fidelity` and `dpd sweep`; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from dpd.agents.config import require
from dpd.errors import BadInput, flag
from dpd.policies.config import ForeignConfig


@dataclass(frozen=True, kw_only=True)
class FidelityConfig:
    """Measure how closely students follow their teacher, in the teacher's environment."""

    teacher: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TEACHER")]
    """A policy file, a Stable-Baselines3 zip, or a run directory for the best policy in it."""
    students: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="STUDENT ...")
    ]
    """Policies to compare with the teacher, given in the same ways."""
    floor: Path | None = None
    """A policy trained without this teacher: it shows how much agreement arises by chance."""
    train_states: Path | None = None
    """Training states of the students: an .npy of raw observations [states, dimensions]; None:
    those that the checkpoints of each student's run still hold."""
    episodes: int = 20
    """Deterministic episodes per policy, with the same seeds for all."""
    states: int = 10_000
    """States in each set, drawn from whole episodes; more episodes follow if they hold too few."""
    seed: int = 0
    """Seed of the episodes, the drawn states, the perturbations and the bootstrap."""
    threads: int | None = None
    """CPU threads of the simulation; None: all cores."""
    foreign: Annotated[ForeignConfig, tyro.conf.OmitArgPrefixes] = ForeignConfig()
    out: Path = Path("fidelity")
    """Directory for fidelity.html, fidelity.json and TensorBoard's tb/."""
    json: bool = False
    """Print JSON instead of tables."""

    def __post_init__(self) -> None:
        require(self, "be at least 1", "episodes", called=flag)
        if self.states < 2:
            raise BadInput(f"--states must be at least 2, not {self.states}")
        if not self.students:
            raise BadInput("dpd fidelity needs a TEACHER and a STUDENT: policy files or runs")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Distil a teacher offline in many ways, changing one factor at a time, and measure fidelity.

    The factors are the number of states, their augmentation, the optimiser, the gradient steps, the
    student's width and how close to the teacher it starts (Stanton et al. 2021).
    """

    teacher: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TEACHER")]
    """A policy file, a Stable-Baselines3 zip, or a run directory for the best policy in it."""
    sizes: tuple[int, ...] = (1_000, 10_000, 100_000)
    """Numbers of teacher states to learn from; the other factors are varied at the middle one."""
    steps: int = 2_000
    """Gradient steps, each on 256 states."""
    lr: float = 1e-3
    """Initial learning rate of Adam; it falls to 0 along a cosine."""
    sgd_lr: float = 0.05
    """Initial learning rate of SGD with Nesterov momentum (Stanton et al. 2021)."""
    seeds: int = 3
    """Students per variant."""
    seed: int = 0
    """Seed of the first student, and of the episodes and states."""
    episodes: int = 10
    """Deterministic episodes per student, with the same seeds for all."""
    states: int = 5_000
    """States in each set on which students are compared."""
    quick: bool = False
    """Use a tenth of the gradient steps and states, three episodes and one seed."""
    threads: int | None = None
    """CPU threads of the simulation; None: all cores."""
    foreign: Annotated[ForeignConfig, tyro.conf.OmitArgPrefixes] = ForeignConfig()
    out: Path = Path("sweep")
    """Directory for sweep.html and sweep.json."""
    json: bool = False
    """Print JSON instead of tables."""

    def __post_init__(self) -> None:
        require(self, "be at least 1", "seeds", "episodes", called=flag)
        require(self, "be positive", "lr", "sgd_lr", called=flag)
        require(self, "not be negative", "seed", called=flag)
        for name, least in (("steps", 10), ("states", 20)):
            if getattr(self, name) < least:
                raise BadInput(f"--{name} must be at least {least}, not {getattr(self, name)}")
        if not self.sizes or min(self.sizes) < 20 or len(set(self.sizes)) < len(self.sizes):
            raise BadInput("--sizes must be different numbers of states, 20 at least")

    def resolved(self) -> SweepConfig:
        """Return the settings with `quick` applied."""
        if not self.quick:
            return self
        sizes = tuple(max(20, size // 10) for size in self.sizes)
        steps, states = max(10, self.steps // 10), max(20, self.states // 10)
        few = replace(self, quick=False, steps=steps, states=states, seeds=1)
        return replace(few, sizes=tuple(dict.fromkeys(sizes)), episodes=min(3, self.episodes))
