"""Settings of `dpd study` and `dpd compare`, and the arms of a study; imports no torch."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from dpd.agents.config import ALGORITHMS, OffPolicyConfig, require
from dpd.config import Paths, as_name, choose, flag, one_of, rl_algorithms
from dpd.errors import BadInput

Envs = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="ENV ...")]


@dataclass(frozen=True)
class Arm:
    """One way to use the steps of a seed."""

    flags: str
    """Flags of `dpd train`."""
    asks: str
    """Question that the subject's difference from this arm answers."""
    needs_replay: bool = False
    is_extra: bool = False
    """Leave the arm out unless --arms names it."""


ARMS: dict[str, Arm] = {
    "dpd": Arm("", "is the method with its defaults better?"),
    "independent": Arm("--method none", "do peers help each other?"),
    "one": Arm(
        "--method none --peers 1", "are several peers worth one learner that takes all steps?"
    ),
    "uniform": Arm("--distill.gate uniform", "does it matter where they imitate?"),
    "shuffled": Arm("--distill.control shuffled", "would the same weights work in other states?"),
    "reversed": Arm("--distill.control reversed", "does imitating the worse peer work as well?"),
    "hard": Arm("--distill.gate hard", "is it better than imitating only where the peer is ahead?"),
    "one-way": Arm("--distill.students 0", "must both peers learn from each other?"),
    "shared-replay": Arm("--method none --share-replay", "does it help beyond sharing data?", True),
    "extra-updates": Arm(
        "--method none --extra-policy-updates 1", "does it help beyond extra updates?", True
    ),
    "modern": Arm("--preset modern", "is it better than the preset modern?", is_extra=True),
    "released": Arm("--preset released", "is it better than the 2020 code?", is_extra=True),
}
FIXED_FLAGS = (
    *("env", "algo", "seeds", "seed", "total-steps", "out", "resume", "config", "method"),
    *("preset", "peers"),
)
"""Flags of `dpd train` that the study or its arms set."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Train a method and its controls on equal steps, and test which differences are significant.

    Flags after a lone -- go to every run, as in: dpd study Hopper-v5 --seeds 20 -- --workers 2
    """

    envs: Envs = ("HalfCheetah-v5",)
    """Gymnasium environment ids; for several, differences are also tested over all of them."""
    algo: Annotated[str, tyro.conf.arg(metavar=one_of(rl_algorithms()))] = "ppo"
    """Algorithm of the learners."""
    arms: tuple[str, ...] = ()
    """Arms among dpd, independent, one, uniform, shuffled, reversed, hard, one-way, modern and
    released; with a replay also shared-replay and extra-updates. Default: all but modern and
    released."""
    own: tuple[str, ...] = ()
    """Additional arms, as in 'sharp=--distill.alpha 3'."""
    subject: str = "dpd"
    """The arm that all others are compared with."""
    seeds: int = 10
    """Number of seeds; all arms use the same ones."""
    seed: int = 0
    """First seed. Tune on some seeds; confirm on others, once."""
    total_steps: int = 1_000_000
    """Environment steps per seed, summed over its peers."""
    episodes: int = 20
    """Fresh deterministic episodes for each final policy."""
    threads: int | None = None
    """CPU threads of these episodes; None: all cores. Threads of training go after the --."""
    flags: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """Flags of `dpd train` for every run."""
    out: Path = Path("study")
    """Directory of study.html, study.json and the runs, ENV/ARM. Finished runs are not trained
    again; a stopped run is resumed."""
    plan: float | None = None
    """Train nothing; print how many seeds would show a difference in return of this size, from
    the spread of the differences in the finished study in --out."""
    json: bool = False
    """Print JSON instead of tables."""

    def __post_init__(self) -> None:
        choose("algorithm", self.algo, rl_algorithms())
        require(self, "be at least 1", "seeds", "total_steps", "episodes", called=flag)
        require(self, "not be negative", "seed", called=flag)
        if self.plan is not None and not 0 < self.plan < math.inf:
            raise BadInput(f"--plan must be a difference of returns above 0, not {self.plan}")
        if not self.envs or len(set(self.envs)) < len(self.envs):
            raise BadInput("dpd study needs at least one ENV, each given once")
        words = [word.partition("=")[0] for word in self.flags if word.startswith("--")]
        # the parser accepts underscores as well
        given = [word.removeprefix("--").replace("_", "-") for word in words]
        if taken := [name for name in given if name in FIXED_FLAGS]:
            raise BadInput(
                f"--{taken[0]} after -- is set by the study or its arms; give it before the --, "
                "or as an arm to --own"
            )
        if len(self.chosen) < 2:
            raise BadInput("a study compares at least two arms; add some to --arms")

    @property
    def chosen(self) -> dict[str, Arm]:
        """Arms of the study by name, the subject first. Raises BadInput for an unknown arm."""
        known = ARMS | self._own_arms()
        names = self.arms or [n for n, arm in ARMS.items() if self._is_default(arm)]
        names = list(dict.fromkeys([self.subject, *names, *self._own_arms()]))
        arms = {name: choose("arm", name, known) for name in names}
        unfit = [name for name, arm in arms.items() if arm.needs_replay]
        if unfit and not self._has_replay:
            raise BadInput(f"arm {unfit[0]} needs a replay, which {self.algo} lacks; leave it out")
        return arms

    @property
    def _has_replay(self) -> bool:
        return issubclass(ALGORITHMS[self.algo].settings, OffPolicyConfig)

    def _is_default(self, arm: Arm) -> bool:
        return not arm.is_extra and (self._has_replay or not arm.needs_replay)

    def _own_arms(self) -> dict[str, Arm]:
        arms: dict[str, Arm] = {}
        for given in self.own:
            name, equals, flags = given.partition("=")
            if not equals or not name.replace("-", "").isalnum() or name in (*ARMS, *arms):
                raise BadInput(
                    f"--own takes NAME=FLAGS with a new name, as in 'sharp=--distill.alpha 3', not "
                    f"'{given}'"
                )
            arms[name] = Arm(flags, f"is it better than {flags}?")
        return arms

    def path(self, env: str, arm: str) -> Path:
        """Return the directory of an arm's run."""
        return self.out / as_name(env) / arm

    def words(self, env: str, arm: str) -> list[str]:
        """Return the arguments of `dpd train` for an arm's run."""
        own = shlex.split(self.chosen[arm].flags)
        budget = ["--seeds", self.seeds, "--seed", self.seed, "--total-steps", self.total_steps]
        out = ["--out", self.path(env, arm)]
        return [str(w) for w in (env, "--algo", self.algo, *budget, *self.flags, *own, *out)]

    def with_flags(self, flags: Sequence[str]) -> StudyConfig:
        """Return the settings with `dpd train` flags for every run."""
        return replace(self, flags=tuple(flags))


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compare runs or policies side by side, with intervals over seeds."""

    paths: Paths
    """Run directories or policy files; all are compared with the first."""
    episodes: int = 20
    """Fresh deterministic episodes per policy."""
    seed: int = 0
    """Seed of the episodes and of the bootstrap."""
    threads: int | None = None
    """CPU threads; None: all cores."""
    out: Path = Path("compare.png")
    """Figure of the learning curves."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        require(self, "be at least 1", "episodes", called=flag)
        if len(self.paths) < 2:
            raise BadInput("dpd compare needs at least two PATHs: run directories or policy files")
        if self.out.suffix != ".png":
            raise BadInput(f"--out writes a .png file, not '{self.out.name}'")
