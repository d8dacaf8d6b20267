"""Settings of `dpd tune`; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dpd.agents.config import require
from dpd.errors import BadInput, flag
from dpd.study.arms import name_of, split_flags
from dpd.study.config import StudyConfig
from dpd.study.engine_config import EngineConfig

SET_BY_TUNE = (
    *("env", "algo", "seeds", "seed", "total-steps", "evals", "eval-episodes", "out", "resume"),
)
"""Flags of `dpd train` that the search sets itself."""


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """Search flags of `dpd train` with Optuna, which needs the extra `tune` (pip install
    'dpd[tune]'). Trials that fall behind the others are stopped at an evaluation.

    Flags after a lone -- go to every trial, as in: dpd tune Hopper-v5 --space space.toml -- --peers
    1
    """

    env: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV")] = "HalfCheetah-v5"
    """Gymnasium environment id."""
    space: Path
    """TOML file with a line for each flag: lr = { low = 1e-4, high = 1e-2, log = true } for a
    range, epochs = { low = 3, high = 20 } for whole numbers, gamma = [0.98, 0.99] for choices."""
    ranges: Annotated[str | None, tyro.conf.Suppress] = None
    """The contents of `space` as JSON, in place of the file; from `dpd.tune`."""
    algo: str | None = None
    """Algorithm of the learners, as in dpd train. None: ppo, or that of --config after the --."""
    trials: int = 30
    """Number of trials, with those of earlier calls."""
    seeds: int = 2
    """Number of seeds of each trial; all trials use the same ones."""
    seed: int = 1000
    """First seed. The default is apart from the seeds of dpd study, which begin at 0: settings must
    be reported on seeds that did not choose them."""
    study_seeds: tuple[int, int] | None = None
    """The --seed and --seeds of the study that will report; a search on one of these seeds is
    refused."""
    total_steps: int = 1_000_000
    """Environment steps of a trial per seed, summed over its peers."""
    evals: int = 9
    """Evaluations of a trial; at each it may be stopped. The last one is its score."""
    eval_episodes: int = 10
    """Deterministic episodes per learner in each evaluation."""
    pruner: Literal["asha", "hyperband", "none"] = "asha"
    """asha: at evaluations 1, 3, 9, ..., go on only with the best third of the trials that got
    there. hyperband: the same, with some trials that may begin slowly. none: finish all trials."""
    reduction: int = 3
    """Share of trials that go on, as in 1/3, and the factor between two of these evaluations."""
    search_seed: int = 0
    """Seed of the sampler (Optuna's TPE)."""
    jobs: int | None = None
    """Trials at once, each in a process with its share of the cores and its output in train.log of
    its directory. None: 1; on Ray as many as the cluster holds."""
    where: Annotated[EngineConfig, tyro.conf.OmitArgPrefixes] = EngineConfig()
    flags: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """Flags of `dpd train` for every trial."""
    out: Path = Path("tune")
    """Directory of tune.html, best.json (a file for dpd train --config), and trials/NUMBER. The
    same command resumes a search that was stopped; more --trials extend one."""
    json: bool = False
    """Print JSON instead of tables."""

    def __post_init__(self) -> None:
        at_least_1 = ("trials", "seeds", "total_steps", "evals", "eval_episodes", "jobs")
        require(self, "be at least 1", *at_least_1, called=flag)
        require(self, "not be negative", "seed", "search_seed", called=flag)
        if self.reduction < 2:
            raise BadInput(f"--reduction must be at least 2, not {self.reduction}")
        if taken := [n for n in map(name_of, split_flags(self.flags)) if n in SET_BY_TUNE]:
            raise BadInput(f"--{taken[0]} after -- is set by the search; give it before the --")
        self._refuse_seeds_of_study()

    def _refuse_seeds_of_study(self) -> None:
        if self.study_seeds is None:
            return
        first, count = self.study_seeds
        if self.seed < first + count and first < self.seed + self.seeds:
            raise BadInput(
                f"seeds {self.seed} to {self.seed + self.seeds - 1} are among those that the study "
                f"reports, {first} to {first + count - 1}; give another --seed, such as "
                f"{first + count}"
            )

    @property
    def at_once(self) -> int | None:
        """Trials that may train at once; None if only the cluster limits them."""
        return self.jobs or (None if self.where.is_ray else 1)

    @property
    def seeds_text(self) -> str:
        """The line that says which seeds are used up by the search."""
        default = StudyConfig()
        first, count = self.study_seeds or (default.seed, default.seeds)
        whose = "your study has" if self.study_seeds else "dpd study's default is"
        return (
            f"tuning on seeds {self.seed} to {self.seed + self.seeds - 1}; report the result on "
            f"others: {whose} {first} to {first + count - 1}"
        )

    def path(self, number: int) -> Path:
        """Return the directory of a trial."""
        return self.out / "trials" / str(number)

    def words(self, number: int, flags: Sequence[str]) -> list[str]:
        """Return the arguments of `dpd train` for a trial with these flags of the space."""
        algo = [] if self.algo is None else ["--algo", self.algo]
        budget = ["--seeds", self.seeds, "--seed", self.seed, "--total-steps", self.total_steps]
        evals = ["--evals", self.evals, "--eval-episodes", self.eval_episodes]
        given = map(name_of, split_flags(self.flags))
        last = [] if "final-episodes" in given else ["--final-episodes", 1]
        out = ["--out", self.path(number)]
        words = (self.env, *algo, *budget, *evals, *last, *self.flags, *flags, *out)
        return [str(word) for word in words]

    def as_saved(self) -> dict[str, Any]:
        """Return the settings that all trials of a search must share."""
        names = (
            *("env", "algo", "seeds", "seed", "total_steps", "evals", "eval_episodes"),
            *("pruner", "reduction", "search_seed"),
        )
        return {name: getattr(self, name) for name in names} | {"flags": list(self.flags)}

    def with_flags(self, flags: Sequence[str]) -> TuneConfig:
        """Return the settings with `dpd train` flags for every trial."""
        return replace(self, flags=tuple(flags))
