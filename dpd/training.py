"""One run's parts, put together: what an iteration does, and all that its future depends on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dpd import policyfile
from dpd.agents.base import Metrics, State, Stateful, load_parts, nest, part, state_of
from dpd.agents.learners import Learners
from dpd.collect import EpisodeStatistics, collect
from dpd.config import BadInput, TrainConfig
from dpd.distill.base import Context
from dpd.envs.base import Env, NonFiniteAction
from dpd.envs.make import make
from dpd.evaluate import Evaluator


class NonFinite(RuntimeError):
    """A number in training is NaN or infinite."""

    def __init__(self, what: str, row: int) -> None:
        super().__init__(f"{what} of learner {row} is NaN or infinite")
        self.what, self.row = what, row


class Clock:
    """Seconds spent per phase of an iteration."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the time spent inside to a phase."""
        start = time.perf_counter()
        yield
        self.spent[phase] = self.spent.get(phase, 0.0) + time.perf_counter() - start

    def flush(self) -> dict[str, float]:
        """Return seconds per phase since the last flush."""
        spent, self.spent = self.spent, {}
        return {f"time/{k}": v for k, v in spent.items()}


class Training:
    """A run's parts, put together from its settings."""

    def __init__(self, config: TrainConfig) -> None:
        run = self.run = config.run
        self.config = config
        self.seeds = [run.seed + g for g in range(run.seeds)]
        rows = [(s, p) for s in self.seeds for p in range(run.peers)]
        self.rows = rows
        self.env = self._make(env_seeds(rows, config.algo.n_envs))
        self.replay_bytes = config.replay_bytes(self.env.spec)
        self.agent: Learners = config.algo.build(self.env.spec.obs_dim, self.env.spec.act_dim, rows)
        self.method = config.distill.build(Context(self.agent, run.seeds, run.peers, rows))
        self.evaluator = Evaluator(self._make, self.seeds, run.peers, run.eval_episodes)
        self.episodes = EpisodeStatistics(len(rows), config.algo.n_envs)
        self.clock = Clock()
        self.iteration = 0
        self.rollout = self.agent.new_rollout()
        self.obs = self.env.reset().view(len(rows), config.algo.n_envs, -1)

    def _make(self, seeds: list[int]) -> Env:
        run = self.run
        return make(run.env, len(seeds), seeds, run.backend, run.parsed_env_kwargs(), run.threads)

    def begin(self) -> None:
        """Give the learners the policies they start from. Raises BadInput where one does not fit.

        For a run that goes on, they are in its checkpoint.
        """
        files = self.run.init_from
        policies = [policyfile.load(file) for file in files]
        for file, policy in zip(files, policies, strict=True):
            self._refuse_unfit(file, policy.meta)
        for n, (_, peer) in enumerate(self.rows):
            if policies:
                self.agent.start_from(n, policies[peer % len(policies)].tensors)

    def _refuse_unfit(self, file: Path, meta: policyfile.PolicyMeta) -> None:
        spec, algo = self.env.spec, self.config.algo
        must = {
            "obs_dim": spec.obs_dim,
            "act_dim": spec.act_dim,
            "hidden": algo.hidden,
            "activation": algo.activation,
            "norm_obs": algo.norm_obs,
            "squashed": algo.squashed,
            "tanh_mean": algo.tanh_mean,
            "state_std": algo.state_std,
        }
        for name, value in must.items():
            if getattr(meta, name) != value:
                raise BadInput(
                    f"--init-from {file} has {name} {getattr(meta, name)}, these learners {value}"
                )

    def _parts(self) -> dict[str, Stateful]:
        return {"agent": self.agent, "method": self.method, "episodes": self.episodes}

    def state(self) -> State:
        """Return all that the run's future depends on; without simulators that can't be copied."""
        state = state_of(self._parts()) | {"iteration": torch.tensor(self.iteration)}
        if not self.env.spec.can_snapshot:
            return state
        return state | nest(env={k: torch.from_numpy(v) for k, v in self.env.snapshot().items()})

    def load_state(self, state: State) -> None:
        """Put a state back; new episodes begin where it holds no simulators."""
        load_parts(self._parts(), state)
        self.iteration = int(state["iteration"])
        n_envs = self.config.algo.n_envs
        if simulators := part(state, "env"):
            obs = self.env.restore({k: v.numpy() for k, v in simulators.items()})
        else:
            self.env.close()
            self.env = self._make(env_seeds(self.rows, n_envs, self.iteration))
            obs = self.env.reset()
            self.episodes.restart()
        self.obs = obs.view(len(self.rows), n_envs, -1)

    def group_of(self, row: int) -> range:
        """Return the learners that exchange with one."""
        first = row - row % self.run.peers
        return range(first, first + self.run.peers)

    @property
    def steps(self) -> int:
        """Environment steps of one group so far."""
        return self.iteration * self.config.steps_per_iteration

    def iterate(self) -> dict[str, Tensor | float]:
        """Collect, learn and distil once; return metrics."""
        progress = self.iteration / self.config.iterations
        with self.clock("collect"):
            self._collect()
        with self.clock("update"):
            batch = self.agent.prepare(self.rollout)
        with self.clock("distill"):
            self.method.prepare(batch, progress)
        with self.clock("update"):
            metrics = self.agent.update(batch, progress, self.method.loss)
            # Before anyone asks them: a peer must not learn from one that has diverged.
            require_finite("parameters after the update", self.agent.nets.flat)
        with self.clock("distill"):
            metrics |= self.method.step()
        with self.clock("update"):
            self.agent.observe(self.rollout)
        self.iteration += 1
        require_finite("parameters after distillation", self.agent.nets.flat)
        for name, value in metrics.items():
            if name.startswith(("loss/", "distill/loss")):
                require_finite(name, value)
        return {**metrics, **self.episodes.metrics()}

    def _collect(self) -> None:
        try:
            self.obs = collect(self.env, self.agent, self.obs, self.rollout)
        except NonFiniteAction as error:
            raise NonFinite("action", error.ids[0] // self.config.algo.n_envs) from error
        require_finite("observation", self.rollout.obs)
        require_finite("reward", self.rollout.reward)
        self.episodes.add(self.rollout)

    def evaluate(self) -> Metrics:
        """Evaluate all learners without noise."""
        with self.clock("eval"):
            outcome = self.evaluator(self.agent.mode, self.iteration)
        return {
            "eval/return": torch.tensor(outcome.returns.mean(1)),
            "eval/length": torch.tensor(outcome.lengths.mean(1)),
        }


def env_seeds(rows: list[tuple[int, int]], n_envs: int, *since: int) -> list[int]:
    """Return a seed per environment, learner-major, that no two learners share.

    `since`: the iteration new episodes begin in, where they do so in mid-run.
    """
    return [
        int(np.random.SeedSequence([seed, peer, e, *since]).generate_state(1, np.uint64)[0])
        for seed, peer in rows
        for e in range(n_envs)
    ]


def require_finite(what: str, value: Tensor) -> None:
    """Raise NonFinite that names a quantity and the learner it went wrong in; value [N, ...]."""
    good = torch.isfinite(value).flatten(1).all(1) if value.ndim > 1 else torch.isfinite(value)
    if not bool(good.all()):
        raise NonFinite(what, int((~good).nonzero()[0]))
