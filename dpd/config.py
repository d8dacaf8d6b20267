"""Settings of a run beside those of its learners and its method; imports no torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

import tyro

from dpd.agents.config import (
    DDPGConfig,
    OffPolicyConfig,
    PPOConfig,
    SACConfig,
    StudentConfig,
    TD3Config,
    layers_of,
)
from dpd.distill.config import DPDConfig, IndependentConfig, TeachingConfig
from dpd.errors import BadInput

if TYPE_CHECKING:
    from dpd.envs.base import EnvSpec


def flag(name: str) -> str:
    """Return the command-line flag of a setting."""
    return "--" + name.replace("_", "-")


def as_name(env: str) -> str:
    """Return an environment's id as a directory can be called."""
    return env.replace(":", "-").replace("/", "-")


def parse_env_kwargs(text: str) -> dict[str, Any]:
    """Read an environment's keyword arguments from JSON. Raises BadInput for anything else."""
    try:
        kwargs = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"--env-kwargs is not JSON ({error}): '{text}'") from error
    if not isinstance(kwargs, dict):
        raise BadInput(f"--env-kwargs must be a JSON object, not '{text}'")
    return kwargs


def absolute_paths(value: Any) -> Any:
    """Return JSON values with relative paths made absolute, so that they hold in any directory.

    A path is a string with a slash that names something there is. A bare name stays: Gymnasium
    looks `ant.xml` up in its own assets.
    """
    if isinstance(value, dict):
        return {name: absolute_paths(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [absolute_paths(inner) for inner in value]
    is_path = isinstance(value, str) and os.sep in value and os.path.exists(value)
    return os.path.abspath(value) if is_path else value


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


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What to train, how long, where to."""

    env: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV")] = "HalfCheetah-v5"
    """Gymnasium environment id; `module:Id` imports a module that registers it."""
    env_kwargs: str = "{}"
    """Keyword arguments of the environment, as JSON. A relative path with a slash in it, as in
    "./robot.xml", is kept as an absolute one."""
    backend: Literal["auto", "native", "gymnasium", "warp"] = "auto"
    """Simulation: `auto` is native where it can be, and warp for many environments on a GPU."""
    device: str = "cpu"
    """Where learners and distillation are, and what warp simulates on: cpu, cuda, or cuda:1."""
    record_updates: bool = True
    """On a GPU, record updates as CUDA graphs; off, each operation is launched by itself, which
    is slower."""
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
    keep_checkpoints: bool = False
    """Keep the policies of every evaluation in policies/history, for progressive distillation."""
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
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise BadInput(f"--device is cpu, cuda or as cuda:1, not '{self.device}'")
        self.parsed_env_kwargs()

    def seeds_of(self, part: int) -> range:
        """Return the seeds that one of the `workers` trains: as even as can be, in order."""
        each, more = divmod(self.seeds, self.workers)
        begin = self.seed + part * each + min(part, more)
        return range(begin, begin + each + (part < more))

    def parsed_env_kwargs(self) -> dict[str, Any]:
        """Return the environment's keyword arguments."""
        return parse_env_kwargs(self.env_kwargs)


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Whom students learn from."""

    teacher: tuple[Path, ...] = ()
    """Policy files, Stable-Baselines3 zips, or run directories for the best policy in them. Of
    several, each state gets the answer of one, uniformly drawn."""
    teacher_vecnormalize: tuple[Path, ...] = ()
    """VecNormalize statistics of the teachers that are .zip, as --vecnormalize of dpd evaluate: one
    for all, or for each."""
    teacher_activation: Literal["tanh", "relu", "elu"] | None = None
    """Activation of a .zip that does not say it readably."""

    def as_json(self) -> dict[str, Any]:
        """Return the settings in the shape that `--config` reads."""
        return {
            "teacher": [str(path) for path in self.teacher],
            "teacher_vecnormalize": [str(path) for path in self.teacher_vecnormalize],
            "teacher_activation": self.teacher_activation,
        }


AlgoConfig = PPOConfig | TD3Config | SACConfig | StudentConfig
ALGORITHMS: dict[str, type[AlgoConfig]] = {
    "ppo": PPOConfig,
    "td3": TD3Config,
    "ddpg": DDPGConfig,
    "sac": SACConfig,
    "student": StudentConfig,
}
DistillConfig = DPDConfig | IndependentConfig | TeachingConfig
T = TypeVar("T")


def taught_by(method: type[DistillConfig], kind: type[AlgoConfig]) -> AlgoConfig:
    """Return an algorithm's settings with those that the method gives its learners."""
    names = [f.name for f in fields(kind) if f.name in method.SETTINGS]
    return kind(**{name: method.SETTINGS[name] for name in names})


MAY_CHANGE = {
    "total_steps",
    "evals",
    "eval_episodes",
    "final_episodes",
    "threads",
    "record_updates",
    "records",
    "checkpoint_every",
    "keep",
    "on_nan",
}
"""Settings of a run that a resumed one may change: none of them alters what was learned.

One more is `device`, from one GPU to another."""


@dataclass(frozen=True)
class StackConfig:
    """The learners of one stack: all peers of one algorithm and the same settings."""

    name: str
    """Of the algorithm."""
    algo: AlgoConfig
    peers: tuple[int, ...]
    rounds: int
    """Times they collect and learn in an iteration of the run."""

    def hidden_of(self, peer: int) -> tuple[int, ...]:
        """Return the hidden layers of a peer's policy."""
        algo = self.algo
        return algo.hidden_of(peer) if isinstance(algo, StudentConfig) else algo.hidden

    @property
    def steps(self) -> int:
        """Environment steps of one learner in an iteration of the run."""
        return self.rounds * self.algo.samples


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All of a run's settings, resolved."""

    run: RunConfig
    algos: tuple[tuple[str, AlgoConfig], ...]
    """The learners' algorithm and settings: one for all peers, or one for each."""
    method: str
    distill: DistillConfig
    teachers: TeacherConfig | None = None

    @property
    def command(self) -> str:
        """What makes such a run: train or distill."""
        return self.distill.COMMAND

    @property
    def algo_name(self) -> str:
        """What `--algo` is to make such learners."""
        return ",".join(name for name, _ in self.algos)

    @cached_property
    def stacks(self) -> tuple[StackConfig, ...]:
        """The stacks that peers divide into.

        Those of fewer steps between updates take several rounds in an iteration, so that all peers
        take about as many steps as the others.
        """
        if len(self.algos) == 1:
            name, algo = self.algos[0]
            return (StackConfig(name, algo, tuple(range(self.run.peers)), 1),)
        longest = max(algo.samples for _, algo in self.algos)
        peers: dict[tuple[str, AlgoConfig], list[int]] = {}
        for peer, kind in enumerate(self.algos):
            peers.setdefault(kind, []).append(peer)
        return tuple(
            StackConfig(name, algo, tuple(who), max(1, round(longest / algo.samples)))
            for (name, algo), who in peers.items()
        )

    def __post_init__(self) -> None:
        run = self.run
        if self.teachers is not None and not self.teachers.teacher:
            raise BadInput("dpd distill needs --teacher FILE: a policy file, a zip or a run")
        if len(self.algos) not in (1, run.peers):
            raise BadInput(
                f"--algo {self.algo_name} names {len(self.algos)} peers and --peers {run.peers}; "
                "name one algorithm for all, or one for each"
            )
        if isinstance(self.distill, DPDConfig):
            if run.peers < 2:
                raise BadInput(
                    "method dpd needs two peers or more, not "
                    f"{run.peers}; give --peers 2, or --method none for one learner"
                )
            students = self.distill.students or ()
            if any(not 0 <= s < run.peers for s in students):
                raise BadInput(f"--distill.students {students}: peers count 0 to {run.peers - 1}")
        self.distill.refuse_unfit(*(stack.algo for stack in self.stacks))
        if run.total_steps < self.steps_per_iteration:
            each = " + ".join(
                f"{len(x.peers)} peers x {x.rounds * x.algo.n_envs * x.algo.n_steps:,} steps"
                for x in self.stacks
            )
            raise BadInput(
                f"--total-steps {run.total_steps:,} is less than one iteration: {each} = "
                f"{self.steps_per_iteration:,}"
            )
        for stack in self.stacks:
            self._refuse_unfit_rows(stack)
            self._refuse_no_learning(stack)

    def _refuse_unfit_rows(self, stack: StackConfig) -> None:
        """Raise BadInput where settings of single peers do not fit the group."""
        for name in ("peer_lr", "peer_gamma", "peer_noise_std", "sizes"):
            given = getattr(stack.algo, name, ())
            if given and len(self.algos) > 1:
                own = flag(f"peer0.{name.removeprefix('peer_')}")
                raise BadInput(f"{flag(name)} is for peers of one algorithm; give {own} and so on")
            if given and len(given) != self.run.peers:
                raise BadInput(f"{flag(name)} names {len(given)} values for {self.run.peers} peers")
        if getattr(stack.algo, "share_replay", False):
            if len(self.stacks) > 1:
                raise BadInput("--share-replay is for peers of one algorithm and the same settings")
            if self.run.peers == 1:
                raise BadInput("--share-replay does nothing with one peer; give --peers 2 or more")

    def _refuse_no_learning(self, stack: StackConfig) -> None:
        """Raise BadInput where a learner's whole budget would go into random actions."""
        if not isinstance(stack.algo, OffPolicyConfig):
            return
        each = self.steps_of(stack)
        if stack.algo.learning_starts >= each:
            raise BadInput(
                f"--learning-starts {stack.algo.learning_starts:,} is no less than a learner's "
                f"share of --total-steps, {each:,}: lower it, or raise --total-steps"
            )

    def steps_of(self, stack: StackConfig) -> int:
        """Return a learner's share of the budget."""
        return self.run.total_steps * stack.steps // self.steps_per_iteration

    def replay_bytes(self, spec: EnvSpec, there: int | None = None) -> int:
        """Return the memory that the replays will take; `there` is what the run's GPUs have.

        Raises BadInput where they, or the machine, have not so much. A GPU's memory is taken at
        once; the machine's, by what is written.
        """
        at_once = there is not None
        need = sum(self._replay_bytes(stack, spec, at_once) for stack in self.stacks)
        where = "this machine" if there is None else self.run.device
        there = there or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if need > 0.8 * there:
            raise BadInput(
                f"the learners' replays would take {need / 1e9:,.1f} GB, and {where} "
                f"has {there / 1e9:,.1f}; lower --capacity or --seeds"
            )
        return need

    def _replay_bytes(self, stack: StackConfig, spec: EnvSpec, at_once: bool) -> int:
        algo = stack.algo
        if not isinstance(algo, OffPolicyConfig | StudentConfig):
            return 0
        full = algo.replay_bytes(spec.obs_dim, spec.act_dim, self.run.seeds * len(stack.peers))
        held = algo.capacity if at_once else min(algo.capacity, self.steps_of(stack))
        return full * held // algo.capacity

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of one group in one iteration."""
        return sum(len(stack.peers) * stack.steps for stack in self.stacks)

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
        algos = [asdict(algo) for _, algo in self.algos]
        own = algos[0] if len(algos) == 1 else {f"peer{k}": algo for k, algo in enumerate(algos)}
        taught = {} if self.teachers is None else self.teachers.as_json()
        return nested | run | taught | own | {"distill": asdict(self.distill)}


def changed_settings(saved: Mapping[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Return what learns otherwise in a saved run, by name: the settings as they are now."""
    now = json.loads(json.dumps(config.as_json()))
    changed = {k: v for k, v in now.items() if k not in MAY_CHANGE and v != saved.get(k)}
    if kind_of(now["device"]) == kind_of(str(saved.get("device"))):
        changed.pop("device", None)
    return changed


def kind_of(device: str) -> str:
    """Return what kind of device one is: cuda for cuda:1."""
    return device.partition(":")[0]


def refuse_changes(saved: Mapping[str, Any], config: TrainConfig) -> None:
    """Raise BadInput where a resumed run would learn by other settings than before."""
    if changed := changed_settings(saved, config):
        name, value = next(iter(changed.items()))
        raise BadInput(
            f"--resume goes on with the run's own settings, and {flag(name)} would change "
            f"from {saved.get(name)} to {value}; make a new run with --out, "
            "which --init-from starts from this one's policies"
        )


def sized(name: str, config: AlgoConfig, words: Sequence[str]) -> list[tuple[str, AlgoConfig]]:
    """Return learners of these sizes, alike in all else.

    Widths of one depth share a stack, if the algorithm can.
    """
    layers = [layers_of(word, len(config.hidden)) for word in words]
    if isinstance(config, StudentConfig) and len({len(each) for each in layers}) == 1:
        return [(name, replace(config, sizes=tuple(words), hidden=layers[0]))]
    return [(name, replace(config, hidden=each)) for each in layers]


def near(name: str, known: Mapping[str, object] | list[str]) -> str:
    """Return a hint at what an unknown name may have meant."""
    close = get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(known)}"


def choose(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Look a name up in a table, or raise BadInput with near matches."""
    if name not in table:
        raise BadInput(f"unknown {kind} '{name}'{near(name, table)}")
    return table[name]


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
