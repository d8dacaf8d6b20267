"""One stack of learners with its environments, its method and the checks of its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from dpd.agents.base import LearnerId, Metrics, State, nest, part
from dpd.agents.learners import Learners
from dpd.agents.rng import RowRandom, Stream
from dpd.agents.views import Frames
from dpd.config import StackConfig
from dpd.distill.method import Method
from dpd.envs.base import Env, NonFiniteAction
from dpd.run.collect import EpisodeStatistics, collect


class NonFinite(RuntimeError):
    """A quantity of a learner became NaN or infinite in training."""

    def __init__(self, quantity: str, learner: LearnerId) -> None:
        seed, peer = learner
        super().__init__(f"{quantity} of seed {seed}'s peer {peer} is NaN or infinite")
        self.quantity, self.learner = quantity, learner


class NanGuard:
    """Check the quantities of an iteration; on the CPU, immediately.

    On a GPU, checks are deferred to `check_pending` at the end of the iteration, to avoid a
    synchronization for each; an iteration that hits a NaN is then discarded.
    """

    def __init__(self, learners: Sequence[LearnerId], device: torch.device) -> None:
        self.learners, self.at_once = learners, device.type == "cpu"
        self.pending: list[tuple[str, Tensor]] = []

    def require(self, quantity: str, value: Tensor) -> None:
        """Raise NonFinite, now or in `check_pending`, if a value [N, ...] is not finite."""
        self.pending.append((quantity, torch.isfinite(value).reshape(len(value), -1).all(1)))
        if self.at_once:
            self.check_pending()

    def check_pending(self) -> None:
        """Raise NonFinite for the first quantity that is not finite, if any."""
        pending, self.pending = self.pending, []
        if not pending:
            return
        results = torch.stack([good for _, good in pending]).tolist()  # one synchronization
        for (quantity, _), good in zip(pending, results, strict=True):
            if not all(good):
                raise NonFinite(quantity, self.learners[good.index(False)])


class LearnerStack:
    """Learners of one algorithm, their environments and rollout, and the method that distils them.

    `ids` are the seed and the peer of each learner (a row of the stack).
    """

    def __init__(
        self,
        config: StackConfig,
        ids: Sequence[LearnerId],
        env: Env,
        make_env: Callable[[list[int]], Env],
        agent: Learners,
        method: Method,
    ) -> None:
        self.config, self.ids, self.agent, self.method = config, ids, agent, method
        self.env, self.make_env = env, make_env
        self.guard = NanGuard(ids, agent.device)
        self.episodes = EpisodeStatistics(len(ids), config.algo.n_envs, agent.device)
        self.rollout = agent.new_rollout()
        sensors = RowRandom(ids, Stream.SENSOR, agent.device)
        self.frames: Frames | None = agent.new_frames(config.algo.n_envs, sensors)
        self.obs = self._begin()

    def _shaped(self, obs: Tensor) -> Tensor:
        return obs.view(len(self.ids), self.config.algo.n_envs, -1)

    def _begin(self, *since: int) -> Tensor:
        """Reset all environments; return obs [N, E, O]. `since` is that of `env_seeds`."""
        obs = self._shaped(self.env.reset())
        self.episodes.restart()
        if self.config.algo.stagger:
            self.env.stagger(first_ages(self.ids, self.config.algo.n_envs, *since))
            self.episodes.skip_running()
        return obs if self.frames is None else self.frames.begin(obs)

    def collect(self) -> None:
        """Fill the rollout, and let the method read it. Raises NonFinite."""
        try:
            self.obs = collect(self.env, self.method.actor, self.obs, self.rollout, self.frames)
        except NonFiniteAction as error:
            row = error.ids[0] // self.config.algo.n_envs
            raise NonFinite("action", self.ids[row]) from error
        self.guard.require("observation", self.rollout.obs)
        self.guard.require("reward", self.rollout.reward)
        self.episodes.add(self.rollout)
        self.method.on_rollout(self.rollout)

    def evaluation_frames(self, episodes: int, iteration: int) -> Frames | None:
        """Return new frames for an evaluation, if the learners have views.

        Its noise depends on the iteration alone: an evaluation more leaves training as it is.
        """
        sensors = RowRandom(self.ids, Stream.SENSOR, self.agent.device)
        sensors.reseed(range(len(self.ids)), iteration)
        return self.agent.new_frames(episodes, sensors)

    def check(self, metrics: Metrics) -> None:
        """Raise NonFinite if a learner has diverged in this iteration."""
        self.guard.require("parameters after distillation", self.agent.nets.flat)
        for name, value in metrics.items():
            if name.startswith(("loss/", "distill/loss")):
                self.guard.require(name, value)
        self.guard.check_pending()

    def state(self) -> State:
        """Return the checkpoint state; simulators are included if the backend can copy them."""
        agent, method = self.agent.state(), self.method.state()
        state = nest(agent=agent, method=method, episodes=self.episodes.state())
        if self.frames is not None:
            state |= nest(frames=self.frames.state())
        if not self.env.spec.can_snapshot:
            return state
        return state | nest(env={k: torch.from_numpy(v) for k, v in self.env.snapshot().items()})

    def load_state(self, state: State, iteration: int) -> None:
        """Restore a state; if it contains no simulators, new episodes begin."""
        self.agent.load_state(part(state, "agent"))
        self.method.load_state(part(state, "method"))
        self.episodes.load_state(part(state, "episodes"))
        if self.frames is not None:
            self.frames.load_state(part(state, "frames"))
        if simulators := part(state, "env"):
            obs = self.env.restore({k: v.numpy() for k, v in simulators.items()})
            obs = self._shaped(obs)
            self.obs = obs if self.frames is None else self.frames.widen(obs)
        else:
            self.env.close()
            self.env = self.make_env(env_seeds(self.ids, self.config.algo.n_envs, iteration))
            self.obs = self._begin(iteration)


def first_ages(ids: Sequence[LearnerId], n_envs: int, *since: int) -> np.ndarray:
    """Draw the age of each environment's first episode, as a fraction of its time limit.

    Learner-major [M], in [0, 1). A learner's draw does not depend on the other learners.
    """
    ages = [
        np.random.default_rng([seed, peer, int(Stream.STAGGER), *since]).random(n_envs)
        for seed, peer in ids
    ]
    return np.concatenate(ages)


def env_seeds(ids: Sequence[LearnerId], n_envs: int, *since: int) -> list[int]:
    """Return a seed per environment, learner-major; no two learners share one.

    `since` is the iteration in which new episodes begin, if that is in mid-run.
    """
    return [
        int(np.random.SeedSequence([seed, peer, e, *since]).generate_state(1, np.uint64)[0])
        for seed, peer in ids
        for e in range(n_envs)
    ]
