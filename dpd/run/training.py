"""The stacks of a run, put together: one iteration, evaluation, and the checkpoint state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from dpd.agents.base import Metrics, State, nest, part
from dpd.agents.kernels import Kernels
from dpd.agents.replay import Replay
from dpd.config import StackConfig, TrainConfig
from dpd.distill.method import Context
from dpd.envs.base import Env, EnvSpec
from dpd.envs.make import make
from dpd.envs.physics import n_cores
from dpd.errors import BadInput
from dpd.log.log import Metric, Partial
from dpd.policies import policyfile
from dpd.policies.memory import MemoryMeta
from dpd.policies.metadata import PolicyMeta
from dpd.run.device import configure_device, gpu_memory_bytes, require_device, why_not_fused
from dpd.run.episodes import Evaluator
from dpd.run.nan_guard import SeedPeer
from dpd.run.stack import Clock, LearnerStack, env_seeds
from dpd.run.teachers import read_run_teacher, refuse_unfit


class Training:
    """The stacks of a run, its teachers and its evaluator, made from its settings.

    Outside the stacks, learners are indexed across the run: row n is peer n % P of seed n // P.
    """

    def __init__(self, config: TrainConfig) -> None:
        run = self.run = config.run
        self.config, self.clock = config, Clock()
        self.device = require_device(run.device)
        configure_device(self.device)
        self.seeds = [run.seed + g for g in range(run.seeds)]
        self.ids: list[SeedPeer] = [(s, peer) for s in self.seeds for peer in range(run.peers)]
        self.stacks = self._make_stacks()
        self.places = {ids: (stack, n) for stack in self.stacks for n, ids in enumerate(stack.ids)}
        self.rows = [torch.tensor([self.ids.index(i) for i in s.ids]) for s in self.stacks]
        peer_stacks = [stack.peer_stack for stack in self.stacks]
        teacher = None if self.teacher is None else self.teacher.on(self.device)
        for stack in self.stacks:
            context = Context(stack.agent, run.seeds, run.peers, stack.ids, teacher, peer_stacks)
            stack.method = config.distill.build(context)
        self.evaluator = Evaluator(self._make_on_cpu, self.seeds, run.peers, run.eval_episodes)
        self.iteration = 0
        self.evaluation_due = False  # True if a stop cut this iteration's evaluation short

    def _make_stacks(self) -> list[LearnerStack]:
        made = []
        for config in self.config.stacks:
            ids = [(seed, peer) for seed in self.seeds for peer in config.peers]
            made.append((config, ids, self._make(env_seeds(ids, config.algo.n_envs))))
        spec = made[0][2].spec
        self.teacher = read_run_teacher(self.config)
        if self.teacher is not None:
            refuse_unfit(self.teacher, self.config, spec)
        # Check the size of the replays before the learners allocate them.
        self.replay_bytes = self.config.replay_bytes(spec, gpu_memory_bytes(self.device))
        stacks = [
            LearnerStack(config, ids, env, self._make, self.clock, self.device)
            for config, ids, env in made
        ]
        if not self.run.record_updates:
            for stack in stacks:
                stack.agent.graphs.enabled = False
        return stacks

    def fuse_updates(self, say: Callable[[str], None]) -> None:
        """Let compiled kernels update the stacks that they support; `say` if one is compiled."""
        fused = [s for s in self.stacks if why_not_fused(self.config, s.config) is None]
        if not fused:
            return
        kernels = Kernels(self.run.threads or n_cores())
        kernels.warm_up(say)
        for stack in fused:
            stack.agent.kernels = kernels

    def _make(self, seeds: list[int]) -> Env:
        run, kwargs = self.run, self.run.parsed_env_kwargs()
        return make(run.env, len(seeds), seeds, run.backend, kwargs, run.threads, self.device)

    def _make_on_cpu(self, seeds: list[int]) -> Env:
        """Make environments for evaluation, which always uses MuJoCo itself, not warp."""
        run, kwargs = self.run, self.run.parsed_env_kwargs()
        backend = "auto" if run.backend == "warp" else run.backend
        return make(run.env, len(seeds), seeds, backend, kwargs, run.threads)

    @property
    def spec(self) -> EnvSpec:
        """The specification of the environment."""
        return self.stacks[0].env.spec

    @property
    def journals(self) -> list[Replay | None]:
        """The replays of the stacks; they are stored apart from the state."""
        return [stack.agent.journal for stack in self.stacks]

    def begin(self) -> None:
        """Load the policies of --init-from into the learners. Raises BadInput if one does not fit.

        A resumed run has them in its checkpoint instead.
        """
        files = self.run.init_from
        policies = [policyfile.load(file) for file in files]
        for (_, peer), (stack, n) in self.places.items():
            if policies:
                k = peer % len(policies)
                self._refuse_unfit(files[k], policies[k].meta, stack.config)
                stack.agent.start_from(n, policies[k].tensors)

    def _refuse_unfit(self, file: Path, meta: PolicyMeta, stack: StackConfig) -> None:
        algo = stack.algo
        required = {
            "obs_dim": self.spec.obs_dim,
            "act_dim": self.spec.act_dim,
            "hidden": algo.hidden,
            "activation": algo.activation,
            "norm_obs": algo.norm_obs,
            "squashed": algo.squashed,
            "tanh_mean": algo.tanh_mean,
            "state_std": algo.state_std,
            "memory": None,
        }
        for name, value in required.items():
            if (other := getattr(meta, name)) != value:
                raise BadInput(
                    f"--init-from {file} has {name} {other}; these learners have {value}"
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

    def iterate(self) -> dict[str, Metric]:
        """Collect, learn and distil once; return metrics [N], or of some rows if stacks differ."""
        progress = self.iteration / self.config.iterations
        metrics = [stack.iterate(progress) | stack.episodes.metrics() for stack in self.stacks]
        self.iteration += 1
        return self._joined(metrics)

    def _joined(self, metrics: list[Metrics]) -> dict[str, Metric]:
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
            stack.retry(seed, attempt)

    def mode(self, obs: Tensor) -> Tensor:
        """Return actions without noise [N, K, A] for raw obs [N, K, O]; both on the CPU."""
        if len(self.stacks) == 1:
            return self.stacks[0].policy.mode(obs.to(self.device)).cpu()
        act = torch.empty(*obs.shape[:2], self.spec.act_dim, dtype=obs.dtype)
        for stack, rows in zip(self.stacks, self.rows, strict=True):
            act[rows] = stack.policy.mode(obs[rows].to(self.device)).cpu()
        return act

    def trouble(self) -> list[str]:
        """Return warnings about the simulations."""
        return [line for stack in self.stacks for line in stack.env.trouble()]

    def evaluate(self, stop_requested: Callable[[], bool] = lambda: False) -> Metrics:
        """Evaluate all learners without noise.

        Raises EvaluationStopped if a stop is requested; `evaluation_due` remains True until an
        evaluation of this iteration is complete.
        """
        self.evaluation_due = True
        with self.clock("eval"):
            episodes = self.evaluator(self.mode, self.iteration, stop_requested)
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
        return stack.config, stack.policy.export(n)

    def memory(self, row: int) -> MemoryMeta | None:
        """Return the metadata of a row's retrieval memory, if its policy has one."""
        stack, n = self.places[self.ids[row]]
        deployed = stack.method.policy
        return None if deployed is None else deployed.memory_meta(n)
