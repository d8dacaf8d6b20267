"""Settings of a run: `RunConfig`, and `TrainConfig` with learners and method; torch-free."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

import tyro

from dpd.agents.config import (
    ALGORITHMS,
    AlgorithmSpec,
    LearnerConfig,
    OffPolicyConfig,
    ReplayConfig,
    StudentConfig,
    View,
    layers_of,
    require,
)
from dpd.distill.config import DPDConfig, MethodConfig
from dpd.distill.views import SeenConfig, ViewConfig, critic_columns
from dpd.envs.randomization import NATIVE_IDS, RANDOMIZE, BadRange, format_ranges, parse_ranges
from dpd.errors import BadInput
from dpd.log.config import WandbConfig

if TYPE_CHECKING:
    from dpd.envs.base import EnvSpec


def flag(name: str) -> str:
    """Return the command-line flag of a setting."""
    return "--" + name.replace("_", "-")


def as_name(env: str) -> str:
    """Return an environment id as a valid directory name."""
    return env.replace(":", "-").replace("/", "-")


def parse_env_kwargs(text: str) -> dict[str, Any]:
    """Parse an environment's keyword arguments. Raises BadInput unless they are a JSON object."""
    try:
        kwargs = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"--env-kwargs is not JSON ({error}): '{text}'") from error
    if not isinstance(kwargs, dict):
        raise BadInput(f"--env-kwargs must be a JSON object, not '{text}'")
    return kwargs


def with_ranges(env: str, kwargs: dict[str, Any], randomize: str | None) -> dict[str, Any]:
    """Return an environment's keyword arguments with the ranges of --randomize.

    Raises BadInput if they cannot be read, or the environment is none that can be randomised.
    """
    if randomize is None:
        return kwargs
    if env not in NATIVE_IDS and ":" not in env:  # a user's module may register a native task
        raise BadInput(f"--randomize changes the model of {', '.join(NATIVE_IDS)} only, not {env}")
    if RANDOMIZE in kwargs:
        raise BadInput(f"--env-kwargs contains {RANDOMIZE} already; leave --randomize out")
    try:
        return {**kwargs, RANDOMIZE: format_ranges(parse_ranges(randomize))}
    except BadRange as error:
        raise BadInput(f"--randomize {randomize}: {error}") from error


def absolute_paths(value: Any) -> Any:
    """Make relative paths in JSON values absolute, so that they work from any directory.

    A string is a path if it contains a slash and exists. A bare name is left alone: Gymnasium looks
    up `ant.xml` in its own assets.
    """
    if isinstance(value, dict):
        return {name: absolute_paths(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [absolute_paths(inner) for inner in value]
    is_path = isinstance(value, str) and os.sep in value and os.path.exists(value)
    return os.path.abspath(value) if is_path else value


class EvaluationPlan(NamedTuple):
    """Numbers of evaluations and of their episodes."""

    evals: int
    episodes: int
    """Episodes per learner in each evaluation."""
    final_episodes: int
    """Episodes per policy in the table at the end."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Environment, budget, evaluations, checkpoints and hardware of the run."""

    env: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV")] = "HalfCheetah-v5"
    """Gymnasium environment id; `module:Id` first imports the module that registers it."""
    env_kwargs: str = "{}"
    """Keyword arguments of the environment, as JSON. A relative path that contains a slash, such as
    "./robot.xml", is stored as an absolute path."""
    randomize: str | None = None
    """Factors that every episode of a native task draws uniformly, for example
    mass=0.8:1.2,friction=0.5:1.5; also gear, damping, stiffness, fluid. Observations end with them,
    as the group params. Policies keep the ranges among their environment's arguments."""
    backend: Literal["auto", "native", "gymnasium", "async", "warp"] = "auto"
    """Simulator. auto: native if it supports the environment, warp for many environments on a GPU,
    else gymnasium. async: gymnasium with a process per environment, for slow ones."""
    device: str = "cpu"
    """Device of learners, distillation and the warp simulator: cpu, cuda, or for example cuda:1."""
    record_updates: bool = True
    """On a GPU, record updates as CUDA graphs. Without, operations are launched one by one, which
    is slower."""
    kernels: Literal["auto", "torch"] = "auto"
    """Code of the updates. auto: kernels compiled by Numba, on a CPU, for learners and methods that
    have them; torch: never. Both give the same results up to rounding."""
    peers: int = 2
    """Learners per seed; they teach each other."""
    seeds: int = 1
    """Number of seeds: independent groups of peers, trained side by side."""
    seed: int = 0
    """First seed; the others count up from it."""
    total_steps: int = 1_000_000
    """Environment steps per seed, summed over its peers."""
    evals: int | None = None
    """Deterministic evaluations during training, evenly spaced; the last one is at the end. None:
    one per 64,000 steps (16,000 for learners with a replay), at least 1 and at most 15."""
    eval_episodes: int | None = None
    """Episodes per learner in each evaluation. None: one per 320,000 steps, at
    least 1 and at most 5."""
    final_episodes: int | None = None
    """Episodes per policy in the table at the end. None: one per 10,000 steps, at least 5 and at
    most 20."""
    threads: int | None = None
    """CPU threads. None: as many as pay off, at most one per core."""
    workers: int = 1
    """Processes that divide the seeds and the cores among them."""
    records: int = 2000
    """Maximum number of records in metrics.csv and TensorBoard, evenly spaced; bounds their
    size."""
    checkpoint_every: float = 60.0
    """Seconds between checkpoints; 0: every iteration. Every evaluation writes one as well."""
    keep: int = 3
    """Number of latest checkpoints to keep, in addition to the one with the best evaluation."""
    on_nan: Literal["stop", "rollback"] = "stop"
    """After a NaN: stop, or roll back to the last checkpoint and retry. A retry gives the peers of
    that seed new random numbers and half the learning rate."""
    keep_checkpoints: bool = False
    """Keep the policies of every evaluation in policies/history, for progressive distillation."""
    init_from: tuple[Path, ...] = ()
    """Policy files to start from: one for all learners, or one per peer."""
    out: Path | None = None
    """Directory of the run. None: a new directory under runs/."""
    resume: Path | None = None
    """Resume the run in this directory with its saved settings; --total-steps may be raised."""

    def __post_init__(self) -> None:
        at_least_1 = ("peers", "seeds", "total_steps", "evals", "eval_episodes", "final_episodes")
        require(self, "be at least 1", *at_least_1, called=flag)
        require(self, "be at least 1", "threads", "workers", "records", "keep", called=flag)
        require(self, "not be negative", "seed", "checkpoint_every", called=flag)
        if self.workers > self.seeds:
            raise BadInput(
                f"--workers {self.workers} for {self.seeds} seeds: peers of a seed train in one "
                "process; give more --seeds or fewer --workers"
            )
        if self.init_from and len(self.init_from) not in (1, self.peers):
            raise BadInput(
                f"--init-from has {len(self.init_from)} policies for {self.peers} peers; "
                "give one for all, or one per peer"
            )
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise BadInput(f"--device must be cpu, cuda or for example cuda:1, not '{self.device}'")
        self.parsed_env_kwargs()

    def seeds_of(self, part: int) -> range:
        """Return the consecutive seeds that worker `part` trains; shares differ by at most one."""
        share, rest = divmod(self.seeds, self.workers)
        begin = self.seed + part * share + min(part, rest)
        return range(begin, begin + share + (part < rest))

    def parsed_env_kwargs(self) -> dict[str, Any]:
        """Return the environment's keyword arguments, with the ranges of --randomize."""
        return with_ranges(self.env, parse_env_kwargs(self.env_kwargs), self.randomize)


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The policies that students learn from."""

    teacher: tuple[Path, ...] = ()
    """Policy files, Stable-Baselines3 zips, or run directories (their best policy is used). With
    several teachers, one is drawn uniformly to label each state."""
    teacher_by: str | None = None
    """Observation that picks the teacher of each state, a group or a column that `dpd groups ENV`
    prints: where it is 0, the first of --teacher answers and acts, where it is 1, the second."""
    teacher_vecnormalize: tuple[Path, ...] = ()
    """VecNormalize statistics of teachers that are .zip files, in the formats that dpd evaluate
    --vecnormalize reads: one for all, or one per zip."""
    teacher_activation: Literal["tanh", "relu", "elu"] | None = None
    """Activation of a .zip whose activation cannot be read from the file."""


T = TypeVar("T")

MAY_CHANGE = {
    "total_steps",
    "evals",
    "eval_episodes",
    "final_episodes",
    "threads",
    "record_updates",
    "kernels",
    "records",
    "checkpoint_every",
    "keep",
    "on_nan",
    *(f.name for f in fields(WandbConfig)),
}
"""Settings that a resumed run may change, because they do not affect what was learned.

`device` may change too, from one GPU to another."""


@dataclass(frozen=True)
class StackConfig:
    """The learners of one stack: all peers of one algorithm and the same settings."""

    name: str
    """Name of the algorithm."""
    algo: LearnerConfig
    peers: tuple[int, ...]
    rounds: int
    """Times that the stack collects and learns in one iteration of the run."""
    histories: tuple[int, ...] = ()
    """Frames that each peer sees; empty: learners see all that the environment shows."""

    def hidden_of(self, peer: int) -> tuple[int, ...]:
        """Return the hidden layers of a peer's policy."""
        return self.algo.hidden_of(peer)

    @property
    def steps(self) -> int:
        """Environment steps of one learner in one iteration of the run."""
        return self.rounds * self.algo.samples


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of a run, resolved."""

    run: RunConfig
    algos: tuple[tuple[str, LearnerConfig], ...]
    """Algorithm name and settings: one entry for all peers, or one per peer."""
    method: str
    distill: MethodConfig
    teachers: TeacherConfig | None = None
    views: SeenConfig = field(default_factory=ViewConfig)
    histories: tuple[int, ...] = ()
    """Frames that learners see: one number for all peers, or one per peer; empty: 1."""
    wandb: WandbConfig = field(default_factory=WandbConfig)

    @property
    def command(self) -> str:
        """The command that makes the run: train or distill."""
        return self.distill.COMMAND

    @property
    def algo_name(self) -> str:
        """The value of `--algo` that selects these learners."""
        return ",".join(name for name, _ in self.algos)

    @property
    def evaluation(self) -> EvaluationPlan:
        """Numbers of evaluations and episodes, chosen by the budget where no flag gives them.

        They are to take at most a tenth of the time, and learners with a replay take more time for
        a step than others do.
        """
        run, steps = self.run, self.run.total_steps
        with_replay = any(isinstance(algo, OffPolicyConfig) for _, algo in self.algos)
        return EvaluationPlan(
            run.evals or min(max(steps // (16_000 if with_replay else 64_000), 1), 15),
            run.eval_episodes or min(max(steps // 320_000, 1), 5),
            run.final_episodes or min(max(steps // 10_000, 5), 20),
        )

    @cached_property
    def stacks(self) -> tuple[StackConfig, ...]:
        """The stacks that hold the peers: one per algorithm and settings.

        Stacks with fewer steps between updates take several rounds per iteration, so that all peers
        take about the same number of steps.
        """
        algos = self.algos if len(self.algos) > 1 else self.algos * self.run.peers
        longest = max(algo.samples for _, algo in algos)
        peers: dict[tuple[str, LearnerConfig, int], list[int]] = {}
        for peer, (name, algo) in enumerate(algos):
            joins = isinstance(algo, StudentConfig) and self.distill.STACKS_HISTORIES
            joins = joins and getattr(algo, "encoder", "mlp") != "tcn"  # as deep as H is long
            history = 0 if joins else self.history_of(peer)
            peers.setdefault((name, algo, history), []).append(peer)
        return tuple(
            StackConfig(
                name,
                algo,
                tuple(members),
                max(1, round(longest / algo.samples)),
                tuple(map(self.history_of, members)) if self.has_views else (),
            )
            for (name, algo, _), members in peers.items()
        )

    @property
    def has_views(self) -> bool:
        """True if learners see less than the environment shows, a history, or remember it."""
        remember = any(algo.encoder_layers is not None for _, algo in self.algos)
        return not self.views.shows_all or bool(self.histories) or remember

    @property
    def teacher_obs(self) -> str | None:
        """The observations that teachers read, if their files do not say so."""
        return self.views.teacher_obs if isinstance(self.views, ViewConfig) else None

    def history_of(self, peer: int) -> int:
        """Return the number of frames that a peer sees."""
        if not self.histories:
            return 1
        return self.histories[peer if len(self.histories) > 1 else 0]

    def views_of(self, stack: StackConfig, spec: EnvSpec) -> list[View]:
        """Return the view of each peer of a stack; empty if learners see everything.

        Raises BadInput for views that would do nothing, or do not fit the environment.
        """
        self._refuse_unfit_critic(stack, spec)
        views = [self.views.resolve(spec, history) for history in stack.histories]
        sees_all = views and len(views[0].columns) == spec.obs_dim
        remembers = stack.algo.encoder_layers is not None
        if getattr(stack.algo, "encoder", "mlp") == "tcn" and min(stack.histories) < 2:
            raise BadInput(
                "--encoder tcn convolves over the frames of a history; give --history 8 or another "
                "number above 1"
            )
        if sees_all and not remembers and all(v.is_memoryless and not v.has_noise for v in views):
            given, role = self.views.obs, self.views.ROLE
            if len(self.histories) < 2:
                asked = "" if given is None else f"--{role}-obs {given} "
                asked += f"--history {self.histories[0]}" if self.histories else ""
                raise BadInput(
                    f"{asked.strip()}: that is all that {spec.env_id} shows, which "
                    f"{self.views.PLURAL} see without these flags; leave them out, or ask for "
                    "less or for a history"
                )
        return views

    def __post_init__(self) -> None:
        run = self.run
        if self.teachers is not None and not self.teachers.teacher:
            raise BadInput(
                "dpd distill needs --teacher PATH: a policy file, a zip or a run directory"
            )
        by = None if self.teachers is None else self.teachers.teacher_by
        if self.teachers is not None and by is not None and len(self.teachers.teacher) < 2:
            raise BadInput(
                "--teacher-by chooses among several teachers; give --teacher more than one, or "
                "leave it out"
            )
        if len(self.algos) not in (1, run.peers):
            raise BadInput(
                f"--algo {self.algo_name} names {len(self.algos)} peers and --peers {run.peers}; "
                "name one algorithm for all, or one per peer"
            )
        if len(self.histories) > 1 and len(self.histories) != run.peers:
            raise BadInput(
                f"--history names {len(self.histories)} students and --peers {run.peers}; leave "
                "--peers out"
            )
        if isinstance(self.distill, DPDConfig):
            if run.peers < 2:
                raise BadInput(
                    "method dpd needs at least two peers, not "
                    f"{run.peers}; give --peers 2, or --method none for one learner"
                )
            students = self.distill.students or ()
            if any(not 0 <= s < run.peers for s in students):
                raise BadInput(f"--distill.students {students}: peers are 0 to {run.peers - 1}")
        self.distill.refuse_unfit(*(stack.algo for stack in self.stacks))
        if run.total_steps < self.steps_per_iteration:
            terms = " + ".join(
                f"{len(x.peers)} peers x {x.rounds * x.algo.n_envs * x.algo.n_steps:,} steps"
                for x in self.stacks
            )
            raise BadInput(
                f"--total-steps {run.total_steps:,} is less than one iteration: {terms} = "
                f"{self.steps_per_iteration:,}"
            )
        for stack in self.stacks:
            self._refuse_unfit_rows(stack)
            self._refuse_no_learning(stack)
            self._refuse_unfit_start(stack)

    def _refuse_unfit_rows(self, stack: StackConfig) -> None:
        """Raise BadInput if settings of single peers do not fit the group."""
        for name in ("peer_lr", "peer_gamma", "peer_hidden", "peer_noise_std", "sizes"):
            given = getattr(stack.algo, name, ())
            if given and len(self.algos) > 1:
                instead = flag(f"peer0.{name.removeprefix('peer_')}")
                raise BadInput(
                    f"{flag(name)} needs peers of one algorithm; give {instead} and so on instead"
                )
            if given and len(given) != self.run.peers:
                raise BadInput(f"{flag(name)} has {len(given)} values for {self.run.peers} peers")
        if getattr(stack.algo, "share_experience", False):
            self._refuse_unfit_sharing()
            self._refuse_unfit_pool(stack.algo)
        if getattr(stack.algo, "reuse_iterations", 1) > 1 and self.command != "train":
            raise BadInput(
                "--reuse-iterations is for dpd train: a teacher labels the samples of one "
                "iteration only; leave it out"
            )
        if getattr(stack.algo, "act", "own") == "hybrid":
            self._refuse_unfit_acting()
        if getattr(stack.algo, "share_replay", False):
            if len(self.stacks) > 1:
                raise BadInput("--share-replay needs peers of one algorithm and the same settings")
            if self.run.peers == 1:
                raise BadInput("--share-replay does nothing with one peer; give --peers 2 or more")

    def _refuse_unfit_critic(self, stack: StackConfig, spec: EnvSpec) -> None:
        """Raise BadInput for a --critic-obs that the environment lacks, or that does nothing."""
        given = getattr(stack.algo, "critic_obs", "actor")
        critic_columns(given, spec)
        if given != "actor" and not self.has_views:
            idle = "does nothing" if given == "all" else "would hide something from values alone"
            raise BadInput(
                f"--critic-obs {given} {idle} if {self.views.PLURAL} see everything; give "
                f"--{self.views.ROLE}-obs what they see, or --history a number of frames"
            )

    def _refuse_unfit_start(self, stack: StackConfig) -> None:
        """Raise BadInput if settings for the start from a policy have none, or do not fit."""
        warmup, std = (getattr(stack.algo, name, None) for name in ("critic_warmup", "init_std"))
        given = "--critic-warmup" if warmup else "--init-std"
        if (warmup or std is not None) and not self.run.init_from:
            instead = "leave it out" if warmup else "give --log-std-init instead"
            raise BadInput(
                f"{given} is for runs that start from a policy; give --init-from, or {instead}"
            )
        if warmup and self.method != "none":
            raise BadInput(
                f"--critic-warmup keeps policies as they are, and --method {self.method} teaches "
                "them from the first iteration on; give --method none"
            )
        idle = stack.algo.idle_iterations(len(stack.peers))
        left = self.iterations * stack.rounds - idle
        if warmup and warmup >= left:
            raise BadInput(
                f"--critic-warmup {warmup} leaves no iteration to the policy: the run has "
                f"{left:,}{' with updates' if idle else ''}; lower it, or raise --total-steps"
            )

    def _refuse_unfit_sharing(self) -> None:
        """Raise BadInput if peers cannot learn from each other's samples."""
        if self.command != "train":
            raise BadInput(
                "--share-experience is for the peers of dpd train: a teacher labels a student's "
                "own samples only; leave it out"
            )
        if len({isinstance(stack.algo, OffPolicyConfig) for stack in self.stacks}) > 1:
            raise BadInput(
                "--share-experience has no weights between PPO and learners with a replay: PPO "
                "weights a peer's sample by the probability with which it was taken, which a "
                "replay does not keep; give one --algo for all"
            )
        if len(self.stacks) > 1:
            raise BadInput(
                "--share-experience needs peers that collect at once, which those of unlike "
                "algorithms or settings do not; give one --algo for all (--peer-lr, --peer-gamma "
                "and, instead of --peer0.hidden, --peer-hidden may differ)"
            )
        if self.run.peers == 1:
            raise BadInput("--share-experience does nothing with one peer; give --peers 2 or more")

    def _refuse_unfit_acting(self) -> None:
        """Raise BadInput if no peers can act in each other's environments."""
        if self.command != "train":
            raise BadInput("--act hybrid is for the peers of dpd train; leave it out")
        if len(self.stacks) > 1:
            raise BadInput("--act hybrid needs peers of one algorithm and the same settings")
        if self.run.peers == 1:
            raise BadInput("--act hybrid does nothing with one peer; give --peers 2 or more")

    def _refuse_unfit_pool(self, algo: LearnerConfig) -> None:
        """Raise BadInput if the critics of these peers cannot judge as one pool."""
        if not isinstance(algo, OffPolicyConfig):
            return
        if len(set(algo.peer_gamma)) > 1:
            raise BadInput(
                "--share-experience lets peers use each other's critics, whose values mean "
                "different things under unlike --peer-gamma; give one --gamma"
            )
        pooled = self.run.peers * algo.n_critics
        if algo.pools_targets and (algo.drawn_critics or 0) > pooled:
            raise BadInput(
                f"--target-critics {algo.target_critics} is more than the {pooled} critics of "
                f"{self.run.peers} peers; lower it or raise --n-critics"
            )

    def _refuse_no_learning(self, stack: StackConfig) -> None:
        """Raise BadInput if random actions would use up a learner's whole budget."""
        algo = stack.algo
        if not isinstance(algo, OffPolicyConfig):
            return
        together = algo.share_replay or algo.share_experience
        whose = "all peers'" if together else "a learner's"
        budget = self.steps_of(stack) * (len(stack.peers) if together else 1)
        if algo.learning_starts >= budget:
            raise BadInput(
                f"--learning-starts {algo.learning_starts:,} must be less than {whose} "
                f"share of --total-steps, {budget:,}: lower it, or raise --total-steps"
            )

    def steps_of(self, stack: StackConfig) -> int:
        """Return the environment steps of one learner of a stack over the whole run."""
        return self.run.total_steps * stack.steps // self.steps_per_iteration

    def replay_bytes(self, spec: EnvSpec, gpu_bytes: int | None = None) -> int:
        """Return the memory in bytes that the replay buffers will take.

        `gpu_bytes` is the total memory of the run's GPUs; None: the replays are in main memory.
        Raises BadInput if they do not fit. A GPU buffer is allocated at once; in main memory, pages
        that are never written take no space.
        """
        at_once = gpu_bytes is not None
        need = sum(self._replay_bytes(stack, spec, at_once) for stack in self.stacks)
        where = self.run.device if at_once else "this machine"
        total = gpu_bytes or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if need > 0.8 * total:
            raise BadInput(
                f"the replay buffers would take {need / 1e9:,.1f} GB, and {where} "
                f"has {total / 1e9:,.1f}; lower --capacity or --seeds"
                + (", or --history" if self.has_views else "")
            )
        return need

    def _replay_bytes(self, stack: StackConfig, spec: EnvSpec, at_once: bool) -> int:
        algo = stack.algo
        if not isinstance(algo, ReplayConfig):
            return 0
        views = self.views_of(stack, spec)
        wide = spec.obs_dim + max((view.dim for view in views), default=0) + algo.memory_dim
        full = algo.replay_bytes(wide, spec.act_dim, self.run.seeds * len(stack.peers))
        used = algo.capacity if at_once else min(algo.capacity, self.steps_of(stack))
        return full * used // algo.capacity

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of one seed's peers in one iteration."""
        return sum(len(stack.peers) * stack.steps for stack in self.stacks)

    @property
    def iterations(self) -> int:
        """Number of iterations that fit in the budget."""
        return self.run.total_steps // self.steps_per_iteration

    def as_json(self) -> dict[str, Any]:
        """Return the settings in the shape that `--config` reads."""
        learners = [asdict(algo) for _, algo in self.algos]
        settings: dict[str, Any] = {
            "algo": self.algo_name,
            "method": self.method,
            **asdict(self.run),
            **(asdict(self.teachers) if self.teachers else {}),
            **self._view_settings(),
            **(asdict(self.wandb) if self.wandb.wandb else {}),
            **({f"peer{k}": x for k, x in enumerate(learners)} if learners[1:] else learners[0]),
            "distill": asdict(self.distill),
        }
        for name in ("out", "resume"):  # so that the file, given to --config, makes a new run
            del settings[name]
        as_read: dict[str, Any] = json.loads(json.dumps(settings, default=str))
        return as_read

    def _view_settings(self) -> dict[str, Any]:
        """Return the settings of views, if there are any: runs without them need not know them."""
        views: Any = self.views
        if views == type(views)() and not self.histories:
            return {}
        return {"history": ",".join(map(str, self.histories)) or None, **asdict(views)}


def changed_settings(saved: Mapping[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Return the current values of settings that affect learning and differ from a saved run's."""
    now, device = config.as_json(), str(saved.get("device"))
    changed = {k: v for k, v in now.items() if k not in MAY_CHANGE and v != saved.get(k)}
    if config.run.device.partition(":")[0] == device.partition(":")[0]:  # cuda:1 for cuda:0
        changed.pop("device", None)
    return changed


def refuse_changes(saved: Mapping[str, Any], config: TrainConfig) -> None:
    """Raise BadInput if settings that affect learning differ from those of the saved run."""
    if changed := changed_settings(saved, config):
        name, value = next(iter(changed.items()))
        raise BadInput(
            f"--resume uses the run's saved settings, but {flag(name)} would change from "
            f"{saved.get(name)} to {value}; start a new run with --out, and give --init-from to "
            "begin with this run's policies"
        )


def rl_algorithms() -> dict[str, AlgorithmSpec]:
    """Return the algorithms that learn from rewards."""
    rows = ALGORITHMS.items()
    return {name: row for name, row in rows if not issubclass(row.settings, StudentConfig)}


def one_of(names: Iterable[str]) -> str:
    """Return the choices of a flag as help texts show them: {a,b,c}."""
    return f"{{{','.join(names)}}}"


def with_sizes(
    name: str, config: LearnerConfig, sizes: Sequence[str]
) -> list[tuple[str, LearnerConfig]]:
    """Return the settings of learners that differ in size only.

    Sizes of equal depth share one stack if the algorithm supports it.
    """
    layers = [layers_of(size, len(config.hidden)) for size in sizes]
    if isinstance(config, StudentConfig) and len({len(hidden) for hidden in layers}) == 1:
        return [(name, replace(config, sizes=tuple(sizes), hidden=layers[0]))]
    return [(name, replace(config, hidden=hidden)) for hidden in layers]


def near(name: str, known: Mapping[str, object] | list[str]) -> str:
    """Return a hint for an unknown name: similar known names, or else all of them."""
    close = get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(known)}"


def choose(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Look a name up in a table. Raises BadInput with similar names if it is missing."""
    if name not in table:
        raise BadInput(f"unknown {kind} '{name}'{near(name, table)}")
    return table[name]


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
