"""Settings of `dpd study`, and the arms it compares; imports no torch."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dpd.config import Paths, as_name, choose, flag
from dpd.errors import BadInput

Envs = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="ENV ...")]


@dataclass(frozen=True)
class Arm:
    """One way to use the steps of a seed."""

    flags: str
    """What makes it, as flags of `dpd train`."""
    asks: str
    """What the subject's difference from it answers."""
    needs_replay: bool = False
    is_extra: bool = False
    """Whether it is left out unless it is named."""


ARMS: dict[str, Arm] = {
    "dpd": Arm("", "is the method as it is by default better?"),
    "independent": Arm("--method none", "do peers help each other?"),
    "one": Arm("--method none --peers 1", "are several peers worth one learner's steps?"),
    "uniform": Arm("--distill.gate uniform", "does it matter where they imitate?"),
    "shuffled": Arm("--distill.control shuffled", "would the same weights do in other states?"),
    "reversed": Arm("--distill.control reversed", "would imitating who is behind do?"),
    "hard": Arm("--distill.gate hard", "is it better than imitating only where behind?"),
    "one-way": Arm("--distill.students 0", "must both learn from each other?"),
    "shared-replay": Arm("--method none --share-replay", "are policies more than data?", True),
    "extra-updates": Arm(
        "--method none --extra-policy-updates 1", "is it more than more updates?", True
    ),
    "modern": Arm("--preset modern", "is it better than the preset modern?", is_extra=True),
    "released": Arm("--preset released", "is it better than the 2020 code?", is_extra=True),
}
ITS_OWN = (
    *("env", "algo", "seeds", "seed", "total-steps", "out", "resume", "config", "method"),
    *("preset", "peers"),
)
"""Flags of `dpd train` that a study gives itself, or that its arms do."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Train a method and its controls on equal steps, and say what helps.

    Flags behind a lone -- go to every run, as in: dpd study Hopper-v5 --seeds 20 -- --workers 2
    """

    envs: Envs = ("HalfCheetah-v5",)
    """Gymnasium environment ids; of several, differences are also taken over all of them."""
    algo: Literal["ppo", "td3", "ddpg", "sac"] = "ppo"
    """Algorithm of the learners."""
    arms: tuple[str, ...] = ()
    """Which of dpd, independent, one, uniform, shuffled, reversed, hard, one-way; with a replay
    shared-replay and extra-updates; and modern and released. None: all but the last two."""
    own: tuple[str, ...] = ()
    """Arms of your own, as in 'sharp=--distill.alpha 3'."""
    subject: str = "dpd"
    """The arm that all others are compared with."""
    seeds: int = 10
    """Seeds of every arm, the same ones."""
    seed: int = 0
    """The first one's. Tune on some seeds; confirm on others, once."""
    total_steps: int = 1_000_000
    """Environment steps of a seed, all of its peers together."""
    episodes: int = 20
    """Fresh deterministic episodes per last policy."""
    threads: int | None = None
    """CPU threads of these episodes; None: all cores. Those of training go behind the --."""
    flags: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """Flags of `dpd train` for every run."""
    out: Path = Path("study")
    """Directory for study.html, study.json and the runs, ENV/ARM; what is there is not trained
    again, and a run that was stopped goes on."""
    plan: float | None = None
    """Train nothing: say how many seeds would show a difference of this much return, given the
    spread of the differences in the finished study in --out, whose settings count."""
    json: bool = False
    """Print JSON instead of tables."""

    def __post_init__(self) -> None:
        for name in ("seeds", "total_steps", "episodes"):
            if getattr(self, name) < 1:
                raise BadInput(f"{flag(name)} must be at least 1, not {getattr(self, name)}")
        if self.plan is not None and not 0 < self.plan < math.inf:
            raise BadInput(f"--plan must be a difference of returns above 0, not {self.plan}")
        if self.seed < 0:
            raise BadInput(f"--seed must not be negative, not {self.seed}")
        if not self.envs or len(set(self.envs)) < len(self.envs):
            raise BadInput("dpd study needs an ENV or several, each once")
        words = [word.partition("=")[0] for word in self.flags if word.startswith("--")]
        given = [word.removeprefix("--").replace("_", "-") for word in words]  # either is read
        if taken := [name for name in given if name in ITS_OWN]:
            raise BadInput(
                f"--{taken[0]} behind -- is the study's own, or an arm's; give it before the --, "
                "or an arm to --own"
            )
        if len(self.chosen) < 2:
            raise BadInput("a study compares two arms or more; give --arms more")

    @property
    def chosen(self) -> dict[str, Arm]:
        """The arms by name, the subject first. Raises BadInput for one that there is not."""
        known = ARMS | self._own_arms()
        names = self.arms or [n for n, arm in ARMS.items() if self._is_default(arm)]
        names = list(dict.fromkeys([self.subject, *names, *self._own_arms()]))
        found = {name: choose("arm", name, known) for name in names}
        if self.algo == "ppo" and (unfit := [n for n, arm in found.items() if arm.needs_replay]):
            raise BadInput(f"arm {unfit[0]} needs a replay, which ppo has not; leave it out")
        return found

    def _is_default(self, arm: Arm) -> bool:
        return not arm.is_extra and (self.algo != "ppo" or not arm.needs_replay)

    def _own_arms(self) -> dict[str, Arm]:
        arms: dict[str, Arm] = {}
        for given in self.own:
            name, equals, flags = given.partition("=")
            if not equals or not name.replace("-", "").isalnum() or name in (*ARMS, *arms):
                raise BadInput(
                    f"--own takes NAME=FLAGS of a new name, as in 'sharp=--distill.alpha 3', not "
                    f"'{given}'"
                )
            arms[name] = Arm(flags, f"is it better than {flags}?")
        return arms

    def path(self, env: str, arm: str) -> Path:
        """Return the directory of a run."""
        return self.out / as_name(env) / arm

    def words(self, env: str, arm: str) -> list[str]:
        """Return the arguments of `dpd train` that make a run."""
        own = shlex.split(self.chosen[arm].flags)
        budget = ["--seeds", self.seeds, "--seed", self.seed, "--total-steps", self.total_steps]
        there = ["--out", self.path(env, arm)]
        return [str(w) for w in (env, "--algo", self.algo, *budget, *self.flags, *own, *there)]

    def with_flags(self, flags: Sequence[str]) -> StudyConfig:
        """Return the settings with flags of every run."""
        return replace(self, flags=tuple(flags))


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
