"""Settings of `dpd study` and `dpd compare`; imports no torch."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from dpd.agents.config import require
from dpd.agents.table import rl_algorithms
from dpd.errors import BadInput, choose, flag, one_of
from dpd.policies.config import Paths
from dpd.run.config import as_name
from dpd.study.arms import ARMS, Arm, arm_flags, name_of, own_arms, split_flags
from dpd.study.engine_config import EngineConfig

Envs = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="ENV ...")]


FIXED_FLAGS = (
    *("env", "algo", "seeds", "seed", "total-steps", "out", "resume", "config", "method"),
    *("preset", "peers"),
)
"""Flags of `dpd train` that the study or its arms set."""
FIXED_IN_OWN = ("env", "seeds", "seed", "total-steps", "out", "resume")
"""Flags of `dpd train` that an arm of --own may not set, because all arms share them."""


class SeedShare(NamedTuple):
    """Consecutive seeds of an arm that train as one run."""

    env: str
    arm: str
    seeds: range
    path: Path


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Train a method and its controls on equal steps, and test which differences are significant.

    Flags after a lone -- go to every run that they apply to, as in: dpd study Hopper-v5 --jobs 2 --
    --epochs 20
    """

    envs: Envs = ("HalfCheetah-v5",)
    """Gymnasium environment ids; for several, differences are also tested over all of them."""
    algo: Annotated[str, tyro.conf.arg(metavar=one_of(rl_algorithms()))] = "ppo"
    """Algorithm of the learners."""
    arms: tuple[str, ...] = ()
    """Arms among dpd, independent, one, uniform, shuffled, reversed, hard and one-way, with a
    replay also shared-replay and extra-updates. Default: all of these. Only if named: shared,
    unshared, one-epochs, one-batch and one-reuse for PPO, one-updates and one-critics with a
    replay, paper, modern and released."""
    own: tuple[str, ...] = ()
    """Additional arms, as in 'sharp=--distill.alpha 3', or other flags for an arm above."""
    subject: str = "dpd"
    """The arm that all others are compared with. If it is one of --own, the controls have its
    flags too, except for those that they are without: independent and one neither distil nor
    share."""
    seeds: int = 10
    """Number of seeds; all arms use the same ones."""
    seed: int = 0
    """First seed. Tune on some seeds; confirm on others, once."""
    total_steps: int = 1_000_000
    """Environment steps per seed, summed over its peers."""
    episodes: int = 20
    """Fresh deterministic episodes for each final policy."""
    shares: int = 1
    """Runs that divide the seeds of an arm, so that more machines or processes can train at once.
    The report joins them."""
    jobs: int | None = None
    """Runs that train at once, each in a process with its share of the cores and its output in
    train.log of its directory. None: 1; on Ray as many as the cluster holds."""
    where: Annotated[EngineConfig, tyro.conf.OmitArgPrefixes] = EngineConfig()
    threads: int | None = None
    """CPU threads of the fresh episodes; None: all cores. Threads of training go after the --."""
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
        require(self, "be at least 1", "jobs", "shares", called=flag)
        require(self, "not be negative", "seed", called=flag)
        if self.shares > self.seeds:
            raise BadInput(
                f"--shares {self.shares} for {self.seeds} seeds: a share needs one; give more "
                "--seeds or fewer --shares"
            )
        if self.plan is not None and not 0 < self.plan < math.inf:
            raise BadInput(f"--plan must be a difference of returns above 0, not {self.plan}")
        if not self.envs or len(set(self.envs)) < len(self.envs):
            raise BadInput("dpd study needs at least one ENV, each given once")
        if taken := [n for n in map(name_of, split_flags(self.flags)) if n in FIXED_FLAGS]:
            raise BadInput(
                f"--{taken[0]} after -- is set by the study or its arms; give it before the --, "
                "or as an arm to --own"
            )
        if len(self.chosen) < 2:
            raise BadInput("a study compares at least two arms; add some to --arms")

    @cached_property
    def chosen(self) -> dict[str, Arm]:
        """Arms of the study by name, the subject first. Raises BadInput for an unfit arm."""
        own = own_arms(self.own)
        known = ARMS | own
        defaults = [n for n, arm in ARMS.items() if not arm.is_extra and not arm.lacks(self.algo)]
        names = list(dict.fromkeys([self.subject, *(self.arms or defaults), *own]))
        arms = {name: choose("arm", name, known) for name in names}
        for name, arm in arms.items():
            if (missing := arm.lacks(self.algo)) is not None:
                raise BadInput(
                    f"arm {name} needs {flag(missing)}, which {self.algo} lacks; leave it out"
                )
        for name in own:
            self._refuse_fixed(name, own[name])
        return arms

    def _refuse_fixed(self, name: str, arm: Arm) -> None:
        """Raise BadInput if an arm of --own sets what all arms share."""
        given = set(map(name_of, split_flags(shlex.split(arm.flags))))
        if fixed := [f for f in FIXED_IN_OWN if f in given]:
            raise BadInput(f"--own {name} sets --{fixed[0]}, which all arms share; leave it out")
        # The controls are made from the subject's flags, which must therefore name its settings.
        if name == self.subject and (unfit := sorted(given & {"algo", "config"})):
            raise BadInput(
                f"the subject {name} cannot take --{unfit[0]} in --own; give --algo to dpd study, "
                "and settings as flags"
            )

    def path(self, env: str, arm: str) -> Path:
        """Return the directory of an arm's run."""
        return self.out / as_name(env) / arm

    @property
    def at_once(self) -> int | None:
        """Runs that may train at once; None if only the cluster limits them."""
        return self.jobs or (None if self.where.is_ray else 1)

    def shares_of(self, env: str, arm: str) -> list[SeedShare]:
        """Return the runs of an arm: one for all seeds, or a directory below for each share."""
        path, whole = self.path(env, arm), range(self.seed, self.seed + self.seeds)
        if self.shares == 1:
            return [SeedShare(env, arm, whole, path)]
        size, rest = divmod(self.seeds, self.shares)
        ends = [self.seed + (k + 1) * size + min(k + 1, rest) for k in range(self.shares)]
        parts = [range(a, b) for a, b in zip([self.seed, *ends], ends, strict=False)]
        return [SeedShare(env, arm, p, path / f"seeds{p[0]}-{p[-1]}") for p in parts]

    def words(self, env: str, arm: str, share: SeedShare | None = None) -> list[str]:
        """Return the arguments of `dpd train` for an arm's run, or for one of its shares."""
        chosen = self.chosen
        flags = arm_flags(chosen[arm], self.flags, chosen[self.subject], self.algo)
        seeds = range(self.seed, self.seed + self.seeds) if share is None else share.seeds
        budget = ["--seeds", len(seeds), "--seed", seeds[0], "--total-steps", self.total_steps]
        out = ["--out", self.path(env, arm) if share is None else share.path]
        return [str(w) for w in (env, "--algo", self.algo, *budget, *flags, *out)]

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
