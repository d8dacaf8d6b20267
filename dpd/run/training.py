"""One run's parts, put together: what an iteration does, and all that its future depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from dpd.agents.base import Metrics, State, nest, part
from dpd.agents.replay import Replay
from dpd.config import StackConfig, TrainConfig
from dpd.distill.method import Context
from dpd.envs.base import Env, EnvSpec
from dpd.envs.make import make
from dpd.errors import BadInput
from dpd.log.log import Metric, Partial
from dpd.policies import policyfile
from dpd.policies.memory import MemoryMeta
from dpd.policies.metadata import PolicyMeta
from dpd.run.device import find_device, memory_of, prepare
from dpd.run.episodes import Evaluator
from dpd.run.nan_guard import Who
from dpd.run.stack import Clock, Stack, env_seeds
from dpd.run.teachers import read_teacher, refuse_unfit


class Training:
    """A run's parts, put together from its settings.

    Outside of the stacks, learners are rows again: row n is peer n % P of seed n // P.
    """

    def __init__(self, config: TrainConfig) -> None:
        run = self.run = config.run
        self.config, self.clock = config, Clock()
        self.device = find_device(run.device)
        prepare(self.device)
        self.seeds = [run.seed + g for g in range(run.seeds)]
        self.who: list[Who] = [(seed, peer) for seed in self.seeds for peer in range(run.peers)]
        self.stacks = self._make_stacks()
        self.places = {who: (stack, n) for stack in self.stacks for n, who in enumerate(stack.who)}
        self.rows = [torch.tensor([self.who.index(w) for w in s.who]) for s in self.stacks]
        peer_stacks = [stack.peer_stack for stack in self.stacks]
        teacher = None if self.teacher is None else self.teacher.on(self.device)
        for stack in self.stacks:
            context = Context(stack.agent, run.seeds, run.peers, stack.who, teacher, peer_stacks)
            stack.method = config.distill.build(context)
        self.evaluator = Evaluator(self._make_on_cpu, self.seeds, run.peers, run.eval_episodes)
        self.iteration = 0
        self.evaluation_due = False  # a stop cut this iteration's evaluation short

    def _make_stacks(self) -> list[Stack]:
        made = []
        for each in self.config.stacks:
            who = [(seed, peer) for seed in self.seeds for peer in each.peers]
            made.append((each, who, self._make(env_seeds(who, each.algo.n_envs))))
        spec = made[0][2].spec
        self.teacher = read_teacher(self.config)
        if self.teacher is not None:
            refuse_unfit(self.teacher, self.config, spec)
        # Before the learners take the memory.
        self.replay_bytes = self.config.replay_bytes(spec, memory_of(self.device))
        stacks = [
            Stack(each, who, env, self._make, self.clock, self.device) for each, who, env in made
        ]
        if not self.run.record_updates:
            for stack in stacks:
                stack.agent.graphs.enabled = False
        return stacks

    def _make(self, seeds: list[int]) -> Env:
        run, kwargs = self.run, self.run.parsed_env_kwargs()
        return make(run.env, len(seeds), seeds, run.backend, kwargs, run.threads, self.device)

    def _make_on_cpu(self, seeds: list[int]) -> Env:
        """Make environments to evaluate in: MuJoCo's own physics is the judge."""
        run, kwargs = self.run, self.run.parsed_env_kwargs()
        backend = "auto" if run.backend == "warp" else run.backend
        return make(run.env, len(seeds), seeds, backend, kwargs, run.threads)

    @property
    def spec(self) -> EnvSpec:
        """What there is to know of the environment."""
        return self.stacks[0].env.spec

    @property
    def journals(self) -> list[Replay | None]:
        """The stacks' replays, which are no part of the state."""
        return [stack.agent.journal for stack in self.stacks]

    def begin(self) -> None:
        """Give the learners the policies they start from. Raises BadInput where one does not fit.

        For a run that goes on, they are in its checkpoint.
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
        must = {
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
        for name, value in must.items():
            if getattr(meta, name) != value:
                raise BadInput(
                    f"--init-from {file} has {name} {getattr(meta, name)}, these learners {value}"
                )

    def state(self) -> State:
        """Return all that the run's future depends on; without simulators that can't be copied."""
        stacks = {f"stack{k}": stack.state() for k, stack in enumerate(self.stacks)}
        return nest(**stacks) | {
            "iteration": torch.tensor(self.iteration),
            "evaluation_due": torch.tensor(self.evaluation_due),
        }

    def load_state(self, state: State) -> None:
        """Put a state back; new episodes begin where it holds no simulators."""
        self.iteration = int(state["iteration"])
        self.evaluation_due = bool(state["evaluation_due"])
        for k, stack in enumerate(self.stacks):
            stack.load_state(part(state, f"stack{k}"), self.iteration)

    @property
    def steps(self) -> int:
        """Environment steps of one group so far."""
        return self.iteration * self.config.steps_per_iteration

    def iterate(self) -> dict[str, Metric]:
        """Collect, learn and distil once; return metrics, [N] or of a stack's learners."""
        progress = self.iteration / self.config.iterations
        found = [stack.iterate(progress) | stack.episodes.metrics() for stack in self.stacks]
        self.iteration += 1
        return self._joined(found)

    def _joined(self, found: list[Metrics]) -> dict[str, Metric]:
        """Put the metrics of all stacks into rows of the run."""
        if len(found) == 1:
            return dict(found[0])
        joined: dict[str, Metric] = {}
        for name in dict.fromkeys(name for metrics in found for name in metrics):
            having = [k for k, metrics in enumerate(found) if name in metrics]
            rows = torch.cat([self.rows[k] for k in having]).tolist()
            joined[name] = Partial(rows, torch.cat([found[k][name].double() for k in having]))
        return joined

    def retry(self, seed: int, attempt: int) -> None:
        """Give a seed's learners another chance, after one of them diverged."""
        for stack in self.stacks:
            stack.retry(seed, attempt)

    def mode(self, obs: Tensor) -> Tensor:
        """Act without noise on raw obs [N, K, O] -> [N, K, A]; both are on the CPU."""
        if len(self.stacks) == 1:
            return self.stacks[0].policy.mode(obs.to(self.device)).cpu()
        act = torch.empty(*obs.shape[:2], self.spec.act_dim, dtype=obs.dtype)
        for stack, rows in zip(self.stacks, self.rows, strict=True):
            act[rows] = stack.policy.mode(obs[rows].to(self.device)).cpu()
        return act

    def trouble(self) -> list[str]:
        """Say what has gone wrong in the simulations."""
        return [line for stack in self.stacks for line in stack.env.trouble()]

    def evaluate(self, stop_requested: Callable[[], bool] = lambda: False) -> Metrics:
        """Evaluate all learners without noise.

        Raises EvaluationStopped if a stop is requested; `evaluation_due` stays true until an
        evaluation of this iteration is complete.
        """
        self.evaluation_due = True
        with self.clock("eval"):
            outcome = self.evaluator(self.mode, self.iteration, stop_requested)
        self.evaluation_due = False
        found = torch.tensor(outcome.returns.mean(1))
        length = torch.tensor(outcome.lengths.mean(1))
        metrics = {"eval/return": found, "eval/length": length}
        known = None if self.teacher is None else self.teacher.returns
        if known is not None and (retained := known.retained(found)) is not None:
            metrics["eval/retained"] = retained
        return metrics

    def export(self, row: int) -> tuple[StackConfig, Mapping[str, Tensor]]:
        """Return what kind of learner a row is, and its policy as a policy file holds it."""
        stack, n = self.places[self.who[row]]
        return stack.config, stack.policy.export(n)

    def memory(self, row: int) -> MemoryMeta | None:
        """Describe the memory beside a row's policy, if it has one."""
        stack, n = self.places[self.who[row]]
        deployed = stack.method.policy
        return None if deployed is None else deployed.memory_meta(n)
