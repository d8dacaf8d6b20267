"""Where a run's time goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from dpd.agents.base import CPU, Metrics, State, Stateful, load_parts, nest, part, state_of
from dpd.agents.learners import Learners
from dpd.agents.rng import Stream
from dpd.config import StackConfig
from dpd.distill.method import DeployedPolicy, Method, PeerStack
from dpd.envs.base import Env
from dpd.envs.errors import NonFiniteAction
from dpd.run.collect import EpisodeStatistics, collect
from dpd.run.nan_guard import Checks, NonFinite, Who


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


class Stack:
    """Learners of one kind, what they are in the middle of, and the method that distils them."""

    method: Method

    def __init__(
        self,
        config: StackConfig,
        who: Sequence[Who],
        env: Env,
        make_env: Callable[[list[int]], Env],
        clock: Clock,
        device: torch.device = CPU,
    ) -> None:
        self.config, self.who, self.clock = config, who, clock
        self.env, self.make_env = env, make_env
        spec = env.spec
        self.agent: Learners = config.algo.build(spec.obs_dim, spec.act_dim, self.who, device)
        self.checks = Checks(self.who, device)
        self.peer_stack = PeerStack(self.agent, config.peers)
        self.episodes = EpisodeStatistics(len(self.who), config.algo.n_envs, device)
        self.rollout = self.agent.new_rollout()
        self.obs = self._begin()
        self.has_seen = False

    @property
    def policy(self) -> DeployedPolicy | Learners:
        """What is evaluated and saved: the learners, or what the method makes of them."""
        return self.agent if self.method.policy is None else self.method.policy

    def _shaped(self, obs: Tensor) -> Tensor:
        return obs.view(len(self.who), self.config.algo.n_envs, -1)

    def _begin(self, *since: int) -> Tensor:
        """Begin new episodes in all environments -> obs [N, E, O]; `since` as in `env_seeds`."""
        obs = self._shaped(self.env.reset())
        self.episodes.restart()
        if self.config.algo.stagger:
            self.env.stagger(first_ages(self.who, self.config.algo.n_envs, *since))
            self.episodes.skip_running()
        return obs

    def iterate(self, progress: float) -> Metrics:
        """Collect, learn and distil for an iteration of the run; return metrics [N]."""
        history = [self._round(progress) for _ in range(self.config.rounds)]
        if len(history) == 1:
            return history[0]
        names = dict.fromkeys(name for metrics in history for name in metrics)
        found = {name: [m[name] for m in history if name in m] for name in names}
        return {name: torch.stack(values).mean(0) for name, values in found.items()}

    def _round(self, progress: float) -> Metrics:
        with self.clock("collect"):
            self._collect()
        with self.clock("update"):
            if not self.has_seen:  # else the first iteration, and its critic, are of no use
                self.agent.observe(self.rollout)
            batch = self.peer_stack.batch = self.agent.prepare(self.rollout)
        with self.clock("distill"):
            self.method.on_batch(batch, progress)
        with self.clock("update"):
            metrics = self.agent.update(batch, progress, self.method.loss)
            # Before anyone asks them: a peer must not learn from one that has diverged.
            self.checks.require("parameters after the update", self.agent.nets.flat)
        with self.clock("distill"):
            metrics |= self.method.step()
        with self.clock("update"):
            if self.has_seen:
                self.agent.observe(self.rollout)
            self.has_seen = True
        self.checks.require("parameters after distillation", self.agent.nets.flat)
        for name, value in metrics.items():
            if name.startswith(("loss/", "distill/loss")):
                self.checks.require(name, value)
        self.checks.settle()
        return metrics

    def _collect(self) -> None:
        try:
            self.obs = collect(self.env, self.method.actor, self.obs, self.rollout)
        except NonFiniteAction as error:
            row = error.ids[0] // self.config.algo.n_envs
            raise NonFinite("action", self.who[row]) from error
        self.checks.require("observation", self.rollout.obs)
        self.checks.require("reward", self.rollout.reward)
        self.episodes.add(self.rollout)
        self.method.on_rollout(self.rollout)

    def _parts(self) -> dict[str, Stateful]:
        return {"agent": self.agent, "method": self.method, "episodes": self.episodes}

    def state(self) -> State:
        """Return all that its future depends on; without simulators that can't be copied."""
        state = state_of(self._parts())
        if not self.env.spec.can_snapshot:
            return state
        return state | nest(env={k: torch.from_numpy(v) for k, v in self.env.snapshot().items()})

    def load_state(self, state: State, iteration: int) -> None:
        """Put a state back; new episodes begin where it holds no simulators."""
        load_parts(self._parts(), state)
        self.has_seen = iteration > 0
        if simulators := part(state, "env"):
            obs = self.env.restore({k: v.numpy() for k, v in simulators.items()})
            self.obs = self._shaped(obs)
        else:
            self.env.close()
            self.env = self.make_env(env_seeds(self.who, self.config.algo.n_envs, iteration))
            self.obs = self._begin(iteration)

    def retry(self, seed: int, attempt: int) -> None:
        """Give a seed's learners another chance, after one of them diverged."""
        rows = [row for row, who in enumerate(self.who) if who[0] == seed]
        self.agent.retry(rows, attempt)


def first_ages(rows: Sequence[Who], n_envs: int, *since: int) -> np.ndarray:
    """Draw how old each environment's first episode is, as a share of its time limit.

    Learner-major [M], in [0, 1); a learner draws the same whoever stands beside it.
    """
    drawn = [
        np.random.default_rng([seed, peer, int(Stream.STAGGER), *since]).random(n_envs)
        for seed, peer in rows
    ]
    return np.concatenate(drawn)


def env_seeds(rows: Sequence[Who], n_envs: int, *since: int) -> list[int]:
    """Return a seed per environment, learner-major, that no two learners share.

    `since`: the iteration new episodes begin in, where they do so in mid-run.
    """
    return [
        int(np.random.SeedSequence([seed, peer, e, *since]).generate_state(1, np.uint64)[0])
        for seed, peer in rows
        for e in range(n_envs)
    ]
