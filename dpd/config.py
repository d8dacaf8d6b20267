"""Settings of a run: what to train, how long, where to; imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from dpd.agents.offpolicy_config import DDPGConfig, OffPolicyConfig, SACConfig, TD3Config
from dpd.agents.ppo_config import PPOConfig
from dpd.distill import METHODS
from dpd.distill.peers_config import DPDConfig, IndependentConfig

if TYPE_CHECKING:
    from dpd.envs.base import EnvSpec

AlgoConfig = PPOConfig | TD3Config | SACConfig
ALGORITHMS: dict[str, type[AlgoConfig]] = {
    "ppo": PPOConfig,
    "td3": TD3Config,
    "ddpg": DDPGConfig,
    "sac": SACConfig,
}
DistillConfig = DPDConfig | IndependentConfig
T = TypeVar("T")


class BadInput(ValueError):
    """Something the user gave is wrong; the message says what, and what to give instead."""


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
MAY_CHANGE = {
    "total_steps",
    "evals",
    "eval_episodes",
    "final_episodes",
    "threads",
    "records",
    "checkpoint_every",
    "keep",
    "on_nan",
}
"""Settings of a run that a resumed one may change: none of them alters what was learned."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What to train, how long, where to."""

    env: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV")] = "HalfCheetah-v5"
    """Gymnasium environment id; `module:Id` imports a module that registers it."""
    env_kwargs: str = "{}"
    """Keyword arguments of the environment, as JSON."""
    backend: Literal["auto", "native", "gymnasium"] = "auto"
    """Simulation: `auto` is native where it can be."""
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
        self.parsed_env_kwargs()

    def parsed_env_kwargs(self) -> dict[str, Any]:
        """Return the environment's keyword arguments."""
        try:
            kwargs = json.loads(self.env_kwargs)
        except json.JSONDecodeError as error:
            raise BadInput(f"--env-kwargs is not JSON ({error}): '{self.env_kwargs}'") from error
        if not isinstance(kwargs, dict):
            raise BadInput(f"--env-kwargs must be a JSON object, not '{self.env_kwargs}'")
        return kwargs


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All of a run's settings, resolved."""

    run: RunConfig
    algo_name: str
    algo: AlgoConfig
    method: str
    distill: DistillConfig

    def __post_init__(self) -> None:
        run = self.run
        if isinstance(self.distill, DPDConfig):
            if run.peers < 2:
                raise BadInput(
                    "method dpd needs two peers or more, not "
                    f"{run.peers}; give --peers 2, or --method none for one learner"
                )
            self.distill.refuse_unfit(self.algo)
            students = self.distill.students or ()
            if any(not 0 <= s < run.peers for s in students):
                raise BadInput(f"--distill.students {students}: peers count 0 to {run.peers - 1}")
        if run.total_steps < self.steps_per_iteration:
            raise BadInput(
                f"--total-steps {run.total_steps:,} is less than one iteration: {run.peers} peers "
                f"x {self.algo.n_envs} envs x {self.algo.n_steps} steps = "
                f"{self.steps_per_iteration:,}"
            )

        for name in ("peer_lr", "peer_gamma", "peer_noise_std"):
            given = getattr(self.algo, name, ())
            if given and len(given) != run.peers:
                raise BadInput(f"{flag(name)} names {len(given)} values for {run.peers} peers")
        self._refuse_no_learning()

    def _refuse_no_learning(self) -> None:
        """Raise BadInput where the whole budget would go into random actions."""
        if not isinstance(self.algo, OffPolicyConfig):
            return
        each = self.run.total_steps // self.run.peers
        if self.algo.learning_starts >= each:
            raise BadInput(
                f"--learning-starts {self.algo.learning_starts:,} is no less than a learner's "
                f"share of --total-steps, {each:,}; nothing would be learned"
            )

    def replay_bytes(self, spec: EnvSpec) -> int:
        """Return the memory that the replays will take.

        Raises BadInput where the machine has not so much.
        """
        if not isinstance(self.algo, OffPolicyConfig):
            return 0
        n, each = self.run.seeds * self.run.peers, self.run.total_steps // self.run.peers
        full = self.algo.replay_bytes(spec.obs_dim, spec.act_dim, n)
        need = full * min(self.algo.capacity, each) // self.algo.capacity
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if need > 0.8 * there:
            raise BadInput(
                f"the replays of {n} learners would take {need / 1e9:,.1f} GB, and this machine "
                f"has {there / 1e9:,.1f}; lower --capacity or --seeds"
            )
        return need

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of one group in one iteration."""
        return self.run.peers * self.algo.samples

    @property
    def iterations(self) -> int:
        """Iterations that use up the budget, never more than it."""
        return self.run.total_steps // self.steps_per_iteration

    def as_json(self) -> dict[str, Any]:
        """Return the settings in the shape that `--config` reads."""
        nested = {"algo": self.algo_name, "method": self.method}
        run = asdict(self.run) | {"init_from": [str(file) for file in self.run.init_from]}
        for name in ("out", "resume"):  # so that the file, given to --config, makes a new run
            run.pop(name)
        return nested | run | asdict(self.algo) | {"distill": asdict(self.distill)}


def saved_settings(run_dir: Path) -> dict[str, Any]:
    """Read the settings of a run, to go on with it."""
    if not (run_dir / "config.json").is_file():
        raise BadInput(f"{run_dir} holds no run to resume: it has no config.json")
    return read_config(run_dir / "config.json")


def refuse_changes(saved: Mapping[str, Any], config: TrainConfig) -> None:
    """Raise BadInput where a resumed run would learn by other settings than before."""
    now = json.loads(json.dumps(config.as_json()))
    changed = [k for k in now if k not in MAY_CHANGE and now[k] != saved.get(k)]
    if changed:
        raise BadInput(
            f"--resume goes on with the run's own settings, and {flag(changed[0])} would change "
            f"from {saved.get(changed[0])} to {now[changed[0]]}; make a new run with --out, "
            "which --init-from starts from this one's policies"
        )


def flag(name: str) -> str:
    """Return the command-line flag of a setting."""
    return "--" + name.replace("_", "-")


def near(name: str, known: Mapping[str, object] | list[str]) -> str:
    """Return a hint at what an unknown name may have meant."""
    close = get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(known)}"


def choose(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Look a name up in a table, or raise BadInput with near matches."""
    if name not in table:
        raise BadInput(f"unknown {kind} '{name}'{near(name, table)}")
    return table[name]


def read_config(path: Path) -> dict[str, Any]:
    """Read a configuration file: a JSON object of settings, `distill` nested."""
    try:
        settings = json.loads(path.read_text())
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise BadInput(f"{path} is not JSON: {error}") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("distill", {}), dict):
        raise BadInput(f"{path} must hold a JSON object of settings, with `distill` an object")
    return settings


def preset_settings(name: str, method: str, algo: str) -> dict[str, Any]:
    """Return a preset of a method as settings for an algorithm."""
    presets = {k: v[algo] for k, v in METHODS[method].PRESETS.items() if algo in v}
    if not presets:
        raise BadInput(f"method {method} has no presets for {algo}; leave --preset out")
    return choose(f"preset of method {method}", name, presets)


def as_flags(settings: Mapping[str, Any]) -> list[str]:
    """Write settings as the command-line flags that set them."""
    flat = {k: v for k, v in settings.items() if k != "distill"}
    flat |= {f"distill.{k}": v for k, v in settings.get("distill", {}).items()}
    # Lists first and a plain flag behind them, or an ENV that follows would join the last list.
    lists = {k: v for k, v in flat.items() if isinstance(v, list)}
    plain = {"seed": 0} | {k: v for k, v in flat.items() if k not in lists}
    return [word for k, v in (lists | plain).items() for word in _as_flag(k, v)]


def _as_flag(name: str, value: object) -> list[str]:
    group, _, key = name.rpartition(".")
    prefix = f"{group}." if group else ""
    if isinstance(value, bool):
        return [flag(prefix + ("" if value else "no-") + key)]
    if isinstance(value, list):
        return [flag(name), *map(str, value)]
    return [flag(name), json.dumps(value) if isinstance(value, dict) else str(value)]
