"""All settings of a run, resolved, and what follows from them; imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from dpd.agents.offpolicy_config import DDPGConfig, OffPolicyConfig, SACConfig, TD3Config
from dpd.agents.ppo_config import PPOConfig
from dpd.agents.student_config import StudentConfig, layers_of
from dpd.distill.peers_config import DPDConfig, IndependentConfig
from dpd.distill.teaching_config import TeachingConfig
from dpd.run_config import BadInput, RunConfig, TeacherConfig, flag

if TYPE_CHECKING:
    from dpd.envs.base import EnvSpec

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
