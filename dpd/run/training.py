"""The stacks of a run, put together: their metrics, evaluation and checkpoint state."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dpd.agents.base import LearnerId, Metrics, State, nest, part
from dpd.agents.config import View
from dpd.agents.kernels import Kernels
from dpd.agents.offpolicy import OffPolicy
from dpd.agents.replay import Replay
from dpd.agents.table import rl_algorithms
from dpd.agents.views import Frames
from dpd.config import StackConfig, TrainConfig
from dpd.distill.method import Context, PeerStack
from dpd.distill.views import critic_columns
from dpd.envs.base import Env, EnvSpec
from dpd.envs.make import make, refuse_unplayable
from dpd.envs.physics import n_cores
from dpd.errors import BadInput
from dpd.log.log import Metric, Partial
from dpd.policies import policyfile
from dpd.policies.memory import MemoryMeta
from dpd.policies.metadata import PolicyMeta
from dpd.policies.views import describe_view
from dpd.run.episodes import episode_seeds, run_episodes
from dpd.run.sources import Place, as_run_flags
from dpd.run.stack import LearnerStack, env_seeds
from dpd.run.teachers import read_run_teacher, refuse_unfit
from dpd.run.updates import why_not_fused


class Clock:
    """Measure the seconds spent in each phase of an iteration."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the time in the `with` block to a phase."""
        start = time.perf_counter()
        yield
        self.spent[phase] = self.spent.get(phase, 0.0) + time.perf_counter() - start

    def flush(self) -> dict[str, float]:
        """Return seconds per phase since the last flush."""
        spent, self.spent = self.spent, {}
        return {f"time/{k}": v for k, v in spent.items()}


class Training:
    """The stacks of a run and its teachers, made from its settings.

    Outside the stacks, learners are indexed across the run: row n is peer n % P of seed n // P.
    """

    def __init__(self, config: TrainConfig) -> None:
        run = self.run = config.run
        self.config, self.clock = config, Clock()
        self.device = require_device(run.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            # TF32 has ten bits of mantissa and is several times faster.
            torch.set_float32_matmul_precision("high")
        self.seeds = [run.seed + g for g in range(run.seeds)]
        self.ids: list[LearnerId] = [(s, peer) for s in self.seeds for peer in range(run.peers)]
        self.stacks = self._make_stacks()
        self.places = {ids: (stack, n) for stack in self.stacks for n, ids in enumerate(stack.ids)}
        self.rows = [torch.tensor([self.ids.index(i) for i in s.ids]) for s in self.stacks]
        self.iteration = 0
        self.evaluation_due = False  # True if a stop cut this iteration's evaluation short

    def _make_stacks(self) -> list[LearnerStack]:
        configs, run = self.config.stacks, self.run
        ids = [[(seed, peer) for seed in self.seeds for peer in c.peers] for c in configs]
        envs = [self._make(env_seeds(i, c.algo.n_envs)) for c, i in zip(configs, ids, strict=True)]
        spec = envs[0].spec
        refuse_unplayable(spec, run.parsed_env_kwargs())
        self.teacher = read_run_teacher(self.config, spec)
        if self.teacher is not None:
            refuse_unfit(self.teacher, self.config, spec)
        # Check the size of the replays before the learners allocate them.
        self.replay_bytes = self.config.replay_bytes(spec, gpu_memory_bytes(self.device))
        agents = [
            c.algo.build(
                spec.obs_dim,
                spec.act_dim,
                i,
                self.device,
                self._views(c, spec),
                critic_columns(getattr(c.algo, "critic_obs", "actor"), spec),
            )
            for c, i in zip(configs, ids, strict=True)
        ]
        peers = [PeerStack(agent, c.peers) for agent, c in zip(agents, configs, strict=True)]
        teacher = None if self.teacher is None else self.teacher.on(self.device)
        stacks = []
        for c, i, env, agent in zip(configs, ids, envs, agents, strict=True):
            agent.graphs.enabled &= run.record_updates
            context = Context(agent, run.seeds, run.peers, i, teacher, peers)
            method = self.config.distill.build(context)
            stacks.append(LearnerStack(c, i, env, self._make, agent, method))
        return stacks

    def _views(self, stack: StackConfig, spec: EnvSpec) -> list[View]:
        """Return the view of every learner of a stack; empty if they see everything."""
        return self.config.views_of(stack, spec) * self.run.seeds

    def fuse_updates(self, say: Callable[[str], None]) -> None:
        """Let compiled kernels update the stacks that they support; `say` if one is compiled."""
        fused = [s for s in self.stacks if why_not_fused(self.config, s.config) is None]
        if not fused:
            return
        kernels = Kernels(self.run.threads or n_cores())
        kernels.warm_up(say, {isinstance(stack.agent, OffPolicy) for stack in fused})
        for stack in fused:
            stack.agent.kernels = kernels

    def _make(self, seeds: list[int]) -> Env:
        run, kwargs = self.run, self.run.parsed_env_kwargs()
        return make(run.env, len(seeds), seeds, run.backend, kwargs, run.threads, self.device)

    @property
    def spec(self) -> EnvSpec:
        """The specification of the environment."""
        return self.stacks[0].env.spec

    @property
    def journals(self) -> list[Replay | None]:
        """The replays of the stacks; they are stored apart from the state."""
        return [stack.agent.replay for stack in self.stacks]

    def begin(self) -> None:
        """Load the policies of --init-from into the learners. Raises BadInput if one does not fit.

        A resumed run has them in its checkpoint instead.
        """
        files = self.run.init_from
        policies = [policyfile.load(file) for file in files]
        for (_, peer), (stack, n) in self.places.items():
            if policies:
                k = peer % len(policies)
                self._refuse_unfit(files[k], policies[k].meta, stack.config, peer)
                view = stack.agent.views[n] if stack.agent.views else None
                refuse_unlike_view(files[k], policies[k].meta.view, view)
                stack.agent.start_from(n, policies[k].tensors)

    def _refuse_unfit(self, file: Path, meta: PolicyMeta, stack: StackConfig, peer: int) -> None:
        refuse_other_kind(file, meta, stack)
        names = ("activation", "norm_obs")
        required: dict[str, object] = {"obs_dim": self.spec.obs_dim, "act_dim": self.spec.act_dim}
        required |= {"memory": None, "hidden": stack.hidden_of(peer)}
        required |= {"encoder": stack.algo.encoder_layers}
        for name, value in (required | {k: getattr(stack.algo, k) for k in names}).items():
            if (other := getattr(meta, name)) != value:
                home = Place(meta.env_id, meta.env_kwargs)
                told = name == "obs_dim" and home.env_kwargs != self.run.parsed_env_kwargs()
                raise BadInput(
                    f"--init-from {file} has {name} {other}; these learners have {value}"
                    + (f"; it was trained with {as_run_flags(home)}" if told else "")
                )

    def state(self) -> State:
        """Return the checkpoint state; simulators are included if the backend can copy them."""
        stacks = {f"stack{k}": stack.state() for k, stack in enumerate(self.stacks)}
        return nest(**stacks) | {
            "iteration": torch.tensor(self.iteration),
            "evaluation_due": torch.tensor(self.evaluation_due),
        }

    def load_state(self, state: State) -> None:
        """Restore a state; if it contains no simulators, new episodes begin."""
        self.iteration = int(state["iteration"])
        self.evaluation_due = bool(state["evaluation_due"])
        for k, stack in enumerate(self.stacks):
            stack.load_state(part(state, f"stack{k}"), self.iteration)

    @property
    def steps(self) -> int:
        """Environment steps of one seed's peers so far."""
        return self.iteration * self.config.steps_per_iteration

    @property
    def progress(self) -> float:
        """The share of the run that is done, in [0, 1]."""
        return self.iteration / self.config.iterations

    def joined(self, metrics: list[Metrics]) -> dict[str, Metric]:
        """Assign the metrics of all stacks to rows of the run."""
        if len(metrics) == 1:
            return dict(metrics[0])
        joined: dict[str, Metric] = {}
        for name in dict.fromkeys(name for of_stack in metrics for name in of_stack):
            stacks = [k for k, of_stack in enumerate(metrics) if name in of_stack]
            rows = torch.cat([self.rows[k] for k in stacks]).tolist()
            joined[name] = Partial(rows, torch.cat([metrics[k][name].double() for k in stacks]))
        return joined

    def retry(self, seed: int, attempt: int) -> None:
        """Restart a seed's learners after one of them diverged, with half the learning rate."""
        for stack in self.stacks:
            rows = [row for row, (owner, _) in enumerate(stack.ids) if owner == seed]
            stack.agent.retry(rows, attempt)

    def mode(self, obs: Tensor, seen: Sequence[Frames | None] = ()) -> Tensor:
        """Return actions without noise [N, K, A] for raw obs [N, K, O]; both on the CPU.

        `seen` are the frames of every stack in these episodes; the actions are added to them.
        """
        act = torch.empty(*obs.shape[:2], self.spec.act_dim, dtype=obs.dtype)
        each = zip(self.stacks, self.rows, seen or [None] * len(self.stacks), strict=True)
        for stack, rows, frames in each:
            own = obs[rows].to(self.device)
            own = own if frames is None else frames.follow(own)
            done = stack.method.mode(own)
            if frames is not None:
                frames.act = done
            act[rows] = done.cpu()
        return act

    def warnings(self) -> list[str]:
        """Return warnings about the simulations."""
        return [line for stack in self.stacks for line in stack.env.trouble()]

    def evaluate(self, stop_requested: Callable[[], bool] = lambda: False) -> Metrics:
        """Evaluate all learners without noise, on new episodes that the peers of a seed share.

        Raises EvaluationStopped if a stop is requested; `evaluation_due` remains True until an
        evaluation of this iteration is complete.
        """
        self.evaluation_due, run = True, self.run
        n = self.config.evaluation.episodes
        seeds = [k for seed, _ in self.ids for k in episode_seeds(seed, n, self.iteration)]
        with self.clock("eval"):
            kwargs = run.parsed_env_kwargs()
            env = make(run.env, len(seeds), seeds, run.evaluation_backend, kwargs, run.threads)
            try:
                seen = [stack.evaluation_frames(n, self.iteration) for stack in self.stacks]
                act = partial(self.mode, seen=seen)
                episodes = run_episodes(env, act, len(self.ids), stop_requested)
            finally:
                env.close()
        self.evaluation_due = False
        returns = torch.tensor(episodes.returns.mean(1))
        lengths = torch.tensor(episodes.lengths.mean(1))
        metrics = {"eval/return": returns, "eval/length": lengths}
        reference = None if self.teacher is None else self.teacher.returns
        if reference is not None and (retained := reference.retained(returns)) is not None:
            metrics["eval/retained"] = retained
        return metrics

    def export(self, row: int) -> tuple[StackConfig, Mapping[str, Tensor]]:
        """Return the settings of a row's stack, and the tensors of its policy file."""
        stack, n = self.places[self.ids[row]]
        return stack.config, stack.method.export(n)

    def view(self, row: int) -> View | None:
        """Return the view of a row's policy; None if it sees everything."""
        stack, n = self.places[self.ids[row]]
        return stack.agent.views[n] if stack.agent.views else None

    def memory(self, row: int) -> MemoryMeta | None:
        """Return the metadata of a row's retrieval memory, if its policy has one."""
        stack, n = self.places[self.ids[row]]
        return stack.method.memory_meta(n)


def refuse_other_kind(file: Path, meta: PolicyMeta, stack: StackConfig) -> None:
    """Raise BadInput if a policy of --init-from makes actions in another way than learners do."""
    kind = ("squashed", "tanh_mean", "state_std")

    def is_fit(settings: object) -> bool:
        return all(getattr(settings, name) == getattr(meta, name) for name in kind)

    if is_fit(stack.algo):
        return
    fit = [name for name, row in rl_algorithms().items() if is_fit(row.settings)]
    raise BadInput(
        f"--init-from {file} is no policy as those of --algo {stack.name}, which make actions in "
        "another way" + (f"; give --algo {' or '.join(fit)}" if fit else "")
    )


def refuse_unlike_view(file: Path, given: View | None, needed: View | None) -> None:
    """Raise BadInput if a policy of --init-from has other inputs than a learner with a view."""
    inputs = [
        None if view is None else (view.columns, view.prev_action, view.history)
        for view in (given, needed)
    ]
    if inputs[0] != inputs[1]:
        theirs, own = (
            "everything" if view is None else describe_view(view) for view in (given, needed)
        )
        raise BadInput(f"--init-from {file} sees {theirs}; these learners see {own}")


def require_device(name: str) -> torch.device:
    """Return the device with this name. Raises BadInput if the machine has none."""
    device = torch.device(name)
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        raise BadInput(
            f"--device {name}: PyTorch {torch.__version__} finds no CUDA device; install the CUDA "
            "build from pytorch.org, or leave --device out. A run that began on a GPU can only be "
            "resumed on a GPU; --init-from starts a new run from its policies"
        )
    count = torch.cuda.device_count()
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= count:
        raise BadInput(f"--device {name}: there are {count} CUDA devices, counted from 0")
    return torch.device("cuda", index)


def gpu_memory_bytes(device: torch.device, n: int = 1) -> int | None:
    """Return the total memory of n such GPUs; None for the CPU."""
    if device.type != "cuda":
        return None
    return n * int(torch.cuda.get_device_properties(device).total_memory)
