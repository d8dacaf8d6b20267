"""Simulator with restorable states, and the budget of its steps.

Letters: k policies · n states · O observation · A action · D coordinates of a state · K episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import mujoco
import numpy as np
import torch
from torch import Tensor

from dpd.envs.base import Snapshot
from dpd.envs.native import NativeEnv
from dpd.envs.physics import positions
from dpd.envs.task import Task, load_model
from dpd.run.episodes import ActFunction, episode_seeds, run_episodes, side_by_side

if TYPE_CHECKING:
    from dpd.cooperate.config import CooperateConfig

PURPOSES = ("probe", "competence", "counterfactual", "trial", "evaluation")


class SimStates(NamedTuple):
    """States from which a simulator can resume."""

    obs: Tensor  # [n, O] raw observations
    coords: Tensor  # [n, D] float64 coordinates that a search may change
    inner: dict[str, np.ndarray]  # full state of the simulator, a row per state

    def __len__(self) -> int:
        return len(self.obs)

    def rows(self, which: np.ndarray) -> SimStates:
        """Return some of the states, by index or mask."""
        inner = {k: v[which] for k, v in self.inner.items()}
        return SimStates(self.obs[which], self.coords[which], inner)

    def batches(self, size: int) -> list[SimStates]:
        """Return the states in batches of at most `size`."""
        n = len(self)
        return [self.rows(np.arange(a, min(a + size, n))) for a in range(0, n, size)]


def concatenate_states(parts: Sequence[SimStates]) -> SimStates:
    """Concatenate states of one simulator."""
    inner = {k: np.concatenate([p.inner[k] for p in parts]) for k in parts[0].inner}
    return SimStates(torch.cat([p.obs for p in parts]), torch.cat([p.coords for p in parts]), inner)


class BudgetExceeded(Exception):
    """The budget is too small for the next step of a round; the message names it."""


class Budget:
    """Counter of simulator steps by purpose; `tell` receives purpose and steps."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.tell: Callable[[str, int], None] = lambda purpose, steps: None
        self.reserved = 0
        """Steps reserved for evaluations."""
        self.used = dict.fromkeys(PURPOSES, 0)

    @property
    def spent(self) -> int:
        """Total steps so far."""
        return sum(self.used.values())

    def require(self, purpose: str, at_most: int) -> None:
        """Raise BudgetExceeded unless `at_most` steps are left for a purpose."""
        left = self.total - self.spent - (0 if purpose == "evaluation" else self.reserved)
        if at_most > left:
            raise BudgetExceeded(
                f"{purpose} needs up to {at_most:,} more steps, and {max(left, 0):,} are left"
            )

    def count(self, purpose: str, steps: int) -> None:
        """Count steps that were taken."""
        self.used[purpose] += steps
        self.tell(purpose, steps)


BATCH_ENVS = 512  # environments per batch: more are no faster, and Humanoid's need much memory
FREE, BALL = int(mujoco.mjtJoint.mjJNT_FREE), int(mujoco.mjtJoint.mjJNT_BALL)
EPISODE_SEEDS = {"evaluation": 29, "trial": 31}  # keep the seeds of the two purposes apart


class Simulator:
    """Simulator of a task on the native backend, whose snapshots fit any batch of environments.

    A state's coordinates are qpos and qvel, without the leading positions that the observation
    excludes: neither the physics nor a policy depends on them, and a network would memorise them.
    """

    def __init__(self, task: Task, budget: Budget, config: CooperateConfig) -> None:
        self.task, self.budget, self.config = task, budget, config
        self._env: NativeEnv | None = None
        self.model = load_model(self.task)
        self.skip = self.task.skip_qpos

    def batch(self, m: int) -> NativeEnv:
        """Return m environments to restore states in; reuse the last batch if it has that size."""
        if self._env is None or self._env.n_envs != m:
            self.close()
            self._env = self.make([0] * m)
        return self._env

    def make(self, seeds: Sequence[int]) -> NativeEnv:
        """Make an environment per seed."""
        return NativeEnv(self.task, len(seeds), seeds, self.config.threads)

    def close(self) -> None:
        """Release the environments."""
        if self._env is not None:
            self._env.close()
            self._env = None

    @torch.no_grad()
    def visit(self, act: ActFunction, n: int, seed: int) -> SimStates:
        """Return n states of a policy's own episodes, spread evenly over their steps."""
        e = min(self.config.probe_envs, n)
        times = probe_times(-(-n // e), self.config.probe_steps, seed)
        self.budget.require("probe", e * int(times[-1]))
        with closing(self.make(episode_seeds(seed, e))) as env:
            obs, parts = env.reset(), []
            for t in range(int(times[-1]) + 1):
                if t in times:
                    parts.append(self.states(env.snapshot()))
                if t < times[-1]:
                    self.budget.count("probe", e)
                    obs = env.step(act(obs)).obs
        chosen = np.random.default_rng([seed, 1]).permutation(e * len(times))[:n]
        return concatenate_states(parts).rows(chosen)

    def states(self, snapshot: Snapshot) -> SimStates:
        """Return a snapshot's rows as states."""
        qpos, qvel = positions(self.model, snapshot["physics"])
        coords = np.concatenate([qpos[:, self.skip :], qvel], 1)
        obs = torch.from_numpy(snapshot["obs"].astype(np.float32))
        return SimStates(obs, torch.from_numpy(coords), snapshot)

    @torch.no_grad()
    def score(self, states: SimStates, acts: Sequence[ActFunction], purpose: str) -> np.ndarray:
        """Play every policy from every state -> discounted sums of rewards [k, n].

        Raises BudgetExceeded before the first step if the budget does not cover all of them.
        """
        k = len(acts)
        self.budget.require(purpose, k * len(states) * self.config.horizon)
        parts = states.batches(max(1, BATCH_ENVS // k))
        return np.hstack([np.zeros((k, 0)), *(self._play(part, acts, purpose) for part in parts)])

    def _play(self, states: SimStates, acts: Sequence[ActFunction], purpose: str) -> np.ndarray:
        """Score one batch; the environments of a policy are adjacent."""
        k, n = len(acts), len(states)
        env = self.batch(k * n)
        snapshot = {name: np.concatenate([rows] * k) for name, rows in states.inner.items()}
        snapshot["elapsed"][:] = 0  # the whole horizon, even late in an episode
        obs, total = env.restore(snapshot), np.zeros(k * n)
        running = np.ones(k * n, dtype=bool)
        for t in range(self.config.horizon):
            if not running.any():
                break
            self.budget.count(purpose, k * n)
            step = env.step(side_by_side(acts)(obs.view(k, n, -1)).flatten(0, 1))
            happened = running & step.valid.numpy()  # not if the physics became unstable
            total += self.config.gamma**t * np.where(happened, step.reward.double().numpy(), 0.0)
            running &= ~(step.terminated | step.truncated).numpy()
            obs = step.obs
        return total.reshape(k, n)

    def moved(self, states: SimStates, coords: Tensor) -> SimStates:
        """Return the states moved to coordinates [n, D], with the simulator's observations.

        Quaternions are normalised and joints stay within their limits; no step is taken.
        """
        parts = SimStates(states.obs, coords, states.inner).batches(BATCH_ENVS)
        return concatenate_states([self._place(part) for part in parts])

    def _place(self, states: SimStates) -> SimStates:
        """Move one batch from its inner state to its coordinates."""
        env, coords = self.batch(len(states)), states.coords.numpy()
        env.restore(states.inner)
        before, _ = positions(self.model, states.inner["physics"])
        free = self.model.nq - self.skip
        wanted = np.concatenate([before[:, : self.skip], coords[:, :free]], 1)
        qpos = feasible_positions(self.model, wanted, before)
        env.set_state(range(len(states)), qpos, coords[:, free:])
        return self.states(env.snapshot())

    def evaluate(self, acts: Sequence[ActFunction], purpose: str = "evaluation") -> np.ndarray:
        """Play the same whole episodes with every policy, without noise -> returns [k, K]."""
        k, episodes = len(acts), self.episodes(purpose)
        self.budget.require(purpose, k * episodes * self.task.max_steps)
        seeds = k * episode_seeds(self.config.seed, episodes, EPISODE_SEEDS[purpose])

        def act(obs: Tensor) -> Tensor:
            self.budget.count(purpose, len(seeds))
            return side_by_side(acts)(obs)

        with closing(self.make(seeds)) as env:
            return run_episodes(env, act, k).returns

    def episodes(self, purpose: str) -> int:
        """Return the number of episodes per policy."""
        return self.config.trial_episodes if purpose == "trial" else self.config.episodes

    def most_steps(self, purpose: str) -> int:
        """Return the largest number of steps of a policy's episodes."""
        return self.episodes(purpose) * self.task.max_steps


def probe_times(n: int, steps: int, seed: int) -> np.ndarray:
    """Draw one step from each of n equal parts of an episode [n], in order."""
    ends = np.arange(n + 1) * steps // n
    return np.random.default_rng([seed, 0]).integers(ends[:-1], ends[1:])


def feasible_positions(model: mujoco.MjModel, qpos: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Project positions [n, nq] to feasible ones: unit quaternions, joints within their limits.

    The limits are soft: a joint that was beyond one before may stay there, but goes no farther.
    """
    qpos = qpos.copy()
    for kind, limited, (low, high), at in zip(
        model.jnt_type, model.jnt_limited, model.jnt_range, model.jnt_qposadr, strict=True
    ):
        if kind in (FREE, BALL):
            first = at + (3 if kind == FREE else 0)
            turn = qpos[:, first : first + 4]
            turn /= np.linalg.norm(turn, axis=1, keepdims=True)
        elif limited:
            x = before[:, at]
            qpos[:, at] = qpos[:, at].clip(np.minimum(low, x), np.maximum(high, x))
    return qpos
