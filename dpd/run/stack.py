"""One stack of learners with its environments and its method: an iteration, and all state."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from dpd.agents.base import CPU, Metrics, State, nest, part
from dpd.agents.learners import Learners
from dpd.agents.rng import Stream
from dpd.config import StackConfig
from dpd.distill.method import Method, PeerStack
from dpd.envs.base import Env, NonFiniteAction
from dpd.run.collect import EpisodeStatistics, collect
from dpd.run.nan_guard import NanGuard, NonFinite, SeedPeer


class Clock:
    """Measure the seconds spent in each phase of an iteration."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the duration of the `with` block to a phase."""
        start = time.perf_counter()
        yield
        self.spent[phase] = self.spent.get(phase, 0.0) + time.perf_counter() - start

    def flush(self) -> dict[str, float]:
        """Return seconds per phase since the last flush."""
        spent, self.spent = self.spent, {}
        return {f"time/{k}": v for k, v in spent.items()}


class LearnerStack:
    """Learners of one algorithm, their environments and rollout, and the method that distils them.

    `ids` are the seed and the peer of each learner (a row of the stack).
    """

    method: Method

    def __init__(
        self,
        config: StackConfig,
        ids: Sequence[SeedPeer],
        env: Env,
        make_env: Callable[[list[int]], Env],
        clock: Clock,
        device: torch.device = CPU,
    ) -> None:
        self.config, self.ids, self.clock = config, ids, clock
        self.env, self.make_env = env, make_env
        spec = env.spec
        self.agent: Learners = config.algo.build(spec.obs_dim, spec.act_dim, self.ids, device)
        self.guard = NanGuard(self.ids, device)
        self.peer_stack = PeerStack(self.agent, config.peers)
        self.episodes = EpisodeStatistics(len(self.ids), config.algo.n_envs, device)
        self.rollout = self.agent.new_rollout()
        self.obs = self._begin()
        self.has_observed = False  # True once a rollout has updated the normalizers

    def _shaped(self, obs: Tensor) -> Tensor:
        return obs.view(len(self.ids), self.config.algo.n_envs, -1)

    def _begin(self, *since: int) -> Tensor:
        """Reset all environments; return obs [N, E, O]. `since` is that of `env_seeds`."""
        obs = self._shaped(self.env.reset())
        self.episodes.restart()
        if self.config.algo.stagger:
            self.env.stagger(first_ages(self.ids, self.config.algo.n_envs, *since))
            self.episodes.skip_running()
        return obs

    def iterate(self, progress: float) -> Metrics:
        """Collect, learn and distil for one iteration of the run; return metrics [N].

        Metrics are means over the stack's rounds.
        """
        history = [self._round(progress) for _ in range(self.config.rounds)]
        if len(history) == 1:
            return history[0]
        names = dict.fromkeys(name for metrics in history for name in metrics)
        values = {name: [m[name] for m in history if name in m] for name in names}
        return {name: torch.stack(series).mean(0) for name, series in values.items()}

    def _round(self, progress: float) -> Metrics:
        with self.clock("collect"):
            self._collect()
        with self.clock("update"):
            # The first rollout updates the statistics before it is used: otherwise the critic
            # would start on a reward scale that it never sees again.
            if not self.has_observed:
                self.agent.observe(self.rollout)
            batch = self.peer_stack.batch = self.agent.prepare(self.rollout)
        with self.clock("distill"):
            self.method.on_batch(batch, progress)
        with self.clock("update"):
            metrics = self.agent.update(batch, progress, self.method.loss)
            # Check before distillation: a peer must not learn from a learner that has diverged.
            self.guard.require("parameters after the update", self.agent.nets.flat)
        with self.clock("distill"):
            metrics |= self.method.step()
        with self.clock("update"):
            if self.has_observed:
                self.agent.observe(self.rollout)
            self.has_observed = True
        self.guard.require("parameters after distillation", self.agent.nets.flat)
        for name, value in metrics.items():
            if name.startswith(("loss/", "distill/loss")):
                self.guard.require(name, value)
        self.guard.check_pending()
        return metrics

    def _collect(self) -> None:
        try:
            self.obs = collect(self.env, self.method.actor, self.obs, self.rollout)
        except NonFiniteAction as error:
            row = error.ids[0] // self.config.algo.n_envs
            raise NonFinite("action", self.ids[row]) from error
        self.guard.require("observation", self.rollout.obs)
        self.guard.require("reward", self.rollout.reward)
        self.episodes.add(self.rollout)
        self.method.on_rollout(self.rollout)

    def state(self) -> State:
        """Return the checkpoint state; simulators are included if the backend can copy them."""
        agent, method = self.agent.state(), self.method.state()
        state = nest(agent=agent, method=method, episodes=self.episodes.state())
        if not self.env.spec.can_snapshot:
            return state
        return state | nest(env={k: torch.from_numpy(v) for k, v in self.env.snapshot().items()})

    def load_state(self, state: State, iteration: int) -> None:
        """Restore a state; if it contains no simulators, new episodes begin."""
        self.agent.load_state(part(state, "agent"))
        self.method.load_state(part(state, "method"))
        self.episodes.load_state(part(state, "episodes"))
        self.has_observed = iteration > 0
        if simulators := part(state, "env"):
            obs = self.env.restore({k: v.numpy() for k, v in simulators.items()})
            self.obs = self._shaped(obs)
        else:
            self.env.close()
            self.env = self.make_env(env_seeds(self.ids, self.config.algo.n_envs, iteration))
            self.obs = self._begin(iteration)

    def retry(self, seed: int, attempt: int) -> None:
        """Restart a seed's learners after one of them diverged, with half the learning rate."""
        rows = [row for row, (owner, _) in enumerate(self.ids) if owner == seed]
        self.agent.retry(rows, attempt)


def first_ages(ids: Sequence[SeedPeer], n_envs: int, *since: int) -> np.ndarray:
    """Draw the age of each environment's first episode, as a fraction of its time limit.

    Learner-major [M], in [0, 1). A learner's draw does not depend on the other learners.
    """
    ages = [
        np.random.default_rng([seed, peer, int(Stream.STAGGER), *since]).random(n_envs)
        for seed, peer in ids
    ]
    return np.concatenate(ages)


def env_seeds(ids: Sequence[SeedPeer], n_envs: int, *since: int) -> list[int]:
    """Return a seed per environment, learner-major; no two learners share one.

    `since` is the iteration in which new episodes begin, if that is in mid-run.
    """
    return [
        int(np.random.SeedSequence([seed, peer, e, *since]).generate_state(1, np.uint64)[0])
        for seed, peer in ids
        for e in range(n_envs)
    ]
