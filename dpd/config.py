"""Settings of a whole run, which combine those of its learners and its method; torch-free."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dpd.agents.config import LearnerConfig, ReplayConfig, View
from dpd.agents.offpolicy_config import OffPolicyConfig
from dpd.agents.student_config import StudentConfig
from dpd.distill.config import MethodConfig
from dpd.distill.peers_config import DPDConfig
from dpd.distill.views import SeenConfig, ViewConfig, critic_columns
from dpd.errors import BadInput, flag
from dpd.log.config import WandbConfig
from dpd.run.config import EvaluationPlan, RunConfig, TeacherConfig

if TYPE_CHECKING:
    from dpd.envs.base import EnvSpec


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
    preset: str | None = None
    """Named settings that the run began from, which flags or a file may have changed."""
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

    def members(self, n: int) -> str:
        """Count learners of a seed in words, such as 2 peers or 1 student."""
        kind = "student" if self.command == "distill" else "peer"
        return f"{n} {kind}{'s' * (n != 1)}"

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
                f"--algo {self.algo_name} names {self.members(len(self.algos))} and --peers "
                f"{run.peers}; name one algorithm for all, or one for each"
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
                f"{self.members(len(x.peers))} x {x.rounds * x.algo.samples:,} steps"
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
                    f"{flag(name)} needs learners of one algorithm; give {instead} and so on "
                    "instead"
                )
            if given and len(given) != self.run.peers:
                count = self.members(self.run.peers)
                raise BadInput(f"{flag(name)} has {len(given)} values for {count}")
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
            **({"preset": self.preset} if self.preset and self.command == "train" else {}),
            **asdict(self.run),
            **(asdict(self.teachers) if self.teachers else {}),
            **self._view_settings(),
            **(asdict(self.wandb) if self.wandb.wandb else {}),
            **({f"peer{k}": x for k, x in enumerate(learners)} if learners[1:] else learners[0]),
            "distill": asdict(self.distill),
        }
        for name in ("out", "resume"):  # so that the file, given to --config, makes a new run
            del settings[name]
        return dict(json.loads(json.dumps(settings, default=str)))

    def _view_settings(self) -> dict[str, Any]:
        """Return the settings of views, if there are any: runs without them need not know them."""
        views: Any = self.views
        if views == type(views)() and not self.histories:
            return {}
        return {"history": ",".join(map(str, self.histories)) or None, **asdict(views)}
