"""What cooperation asks of a world, and what may be spent in it.

Letters: k policies · n states · O observation · A action · D coordinates of a state · K episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import mujoco
import numpy as np
import torch
from torch import Tensor

from dpd.envs.base import Snapshot
from dpd.envs.native import NativeEnv
from dpd.envs.physics import positions
from dpd.envs.tasks import find_task, load_model
from dpd.run.episodes import episode_seeds, run_episodes

if TYPE_CHECKING:
    from dpd.cooperate.config import CooperateConfig
    from dpd.envs.base import Step

PURPOSES = ("probe", "competence", "counterfactual", "trial", "evaluation")

Act = Callable[[Tensor], Tensor]
"""Raw observations [B, O] -> actions [B, A] in [-1, 1]."""


class States(NamedTuple):
    """States that a world can go on from."""

    obs: Tensor  # [n, O] raw: what policies see
    coords: Tensor  # [n, D] float64: what may be moved
    inner: dict[str, np.ndarray]  # everything the future depends on, a row per state

    def __len__(self) -> int:
        return len(self.obs)

    def rows(self, which: np.ndarray) -> States:
        """Return some of the states, by index or mask."""
        pick = torch.as_tensor(which)
        return States(
            self.obs[pick], self.coords[pick], {k: v[which] for k, v in self.inner.items()}
        )


def joined(parts: Sequence[States]) -> States:
    """Put states of one world behind each other."""
    inner = {k: np.concatenate([p.inner[k] for p in parts]) for k in parts[0].inner}
    return States(torch.cat([p.obs for p in parts]), torch.cat([p.coords for p in parts]), inner)


class World(Protocol):
    """Where policies act. Every step counts in its budget; `Spent` before one that's too many."""

    def visit(self, act: Act, n: int, seed: int) -> States:
        """Return n states of a policy's own episodes."""
        ...

    def score(self, states: States, acts: Sequence[Act], purpose: str) -> np.ndarray:
        """Play every policy from every state -> the discounted sums of rewards [k, n]."""
        ...

    def moved(self, states: States, coords: Tensor) -> States:
        """Return the states at other coordinates [n, D], as possible as the world can make them."""
        ...

    def evaluate(self, acts: Sequence[Act], purpose: str = "evaluation") -> np.ndarray:
        """Play the same whole episodes with every policy -> returns [k, K]; others for a trial."""
        ...


class Spent(Exception):
    """The budget does not suffice for what comes next; the message says for what."""


class Budget:
    """Counts every simulator step by what it was for; `tell` hears of each."""

    def __init__(self, total: int, tell: Callable[[str, int], None] = lambda what, n: None) -> None:
        self.total, self.tell = total, tell
        self.reserved = 0
        """Steps that only evaluations may take."""
        self.used = dict.fromkeys(PURPOSES, 0)

    @property
    def spent(self) -> int:
        """All steps so far."""
        return sum(self.used.values())

    def require(self, purpose: str, at_most: int) -> None:
        """Raise Spent unless so many steps are left for a purpose."""
        left = self.total - self.spent - (0 if purpose == "evaluation" else self.reserved)
        if at_most > left:
            raise Spent(
                f"{purpose} needs up to {at_most:,} more steps, and {max(left, 0):,} are left"
            )

    def count(self, purpose: str, steps: int) -> None:
        """Take in steps that were made."""
        self.used[purpose] += steps
        self.tell(purpose, steps)


ROWS = 512  # environments of a batch: more are no faster, and Humanoid's take memory
FREE, BALL = int(mujoco.mjtJoint.mjJNT_FREE), int(mujoco.mjtJoint.mjJNT_BALL)
EPISODES = {"evaluation": 29, "trial": 31}  # the purposes of their seeds


class Simulator:
    """A task on the native backend, whose snapshots go from one batch of environments to another.

    A state's coordinates are qpos and qvel, less the leading positions that the observation leaves
    out: neither the physics nor a policy depends on them, and a network would learn them by heart.
    """

    def __init__(self, env_id: str, budget: Budget, config: CooperateConfig) -> None:
        self.env_id, self.budget, self.config = env_id, budget, config
        self.task = find_task(env_id)
        self._env: NativeEnv | None = None
        self.model = load_model(self.task)
        self.skip = self.task.skip_qpos

    def batch(self, m: int) -> NativeEnv:
        """Return m environments, which keep nothing from before; the last ones if so many."""
        if self._env is None or self._env.n_envs != m:
            self.close()
            self._env = NativeEnv(self.env_id, m, [0] * m, self.config.threads)
        return self._env

    def close(self) -> None:
        """Release the environments."""
        if self._env is not None:
            self._env.close()
            self._env = None

    def step(self, env: NativeEnv, act: Tensor, purpose: str) -> Step:
        """Step a batch, and count it."""
        self.budget.count(purpose, env.n_envs)
        return env.step(act)

    @torch.no_grad()
    def visit(self, act: Act, n: int, seed: int) -> States:
        """Return n states of a policy's own episodes, spread evenly over their steps."""
        e = min(self.config.probe_envs, n)
        times = moments(-(-n // e), self.config.probe_steps, seed)
        self.budget.require("probe", e * int(times[-1]))
        env = NativeEnv(self.env_id, e, episode_seeds(seed, e), self.config.threads)
        obs, parts = env.reset(), []
        for t in range(int(times[-1]) + 1):
            if t in times:
                parts.append(self.states(env.snapshot()))
            if t < times[-1]:
                obs = self.step(env, act(obs), "probe").obs
        env.close()
        return joined(parts).rows(np.random.default_rng([seed, 1]).permutation(e * len(times))[:n])

    def states(self, snapshot: Snapshot) -> States:
        """Return a snapshot's rows as states."""
        qpos, qvel = positions(self.model, snapshot["physics"])
        coords = np.concatenate([qpos[:, self.skip :], qvel], 1)
        obs = torch.from_numpy(snapshot["obs"].astype(np.float32))
        return States(obs, torch.from_numpy(coords), snapshot)

    @torch.no_grad()
    def score(self, states: States, acts: Sequence[Act], purpose: str) -> np.ndarray:
        """Play every policy from every state -> discounted sums of rewards [k, n].

        Raises Spent before the first step where the budget does not suffice for all.
        """
        n, k = len(states), len(acts)
        self.budget.require(purpose, k * n * self.config.horizon)
        width = max(1, ROWS // k)
        chunks = [np.arange(a, min(a + width, n)) for a in range(0, n, width)]
        found = [self._play(states.rows(chunk), acts, purpose) for chunk in chunks]
        return np.concatenate(found, axis=1) if found else np.zeros((k, 0))

    def _play(self, states: States, acts: Sequence[Act], purpose: str) -> np.ndarray:
        """Score one batch; a policy's environments stand beside each other."""
        k, n = len(acts), len(states)
        env, snapshot = self.batch(k * n), repeated(states.inner, k)
        snapshot["elapsed"][:] = 0  # everyone gets the whole horizon, wherever the episode stood
        obs, total = env.restore(snapshot), np.zeros(k * n)
        running = np.ones(k * n, dtype=bool)
        for t in range(self.config.horizon):
            if not running.any():
                break
            act = torch.cat([a(o) for a, o in zip(acts, obs.view(k, n, -1), strict=True)])
            step = self.step(env, act, purpose)
            happened = running & step.valid.numpy()  # not where the physics became unstable
            total += self.config.gamma**t * np.where(happened, step.reward.double().numpy(), 0.0)
            running &= ~(step.terminated | step.truncated).numpy()
            obs = step.obs
        return total.reshape(k, n)

    def moved(self, states: States, coords: Tensor) -> States:
        """Return the states at other coordinates [n, D], with the simulator's observations of them.

        Quaternions are normalised and joints stay within their limits; no step is taken.
        """
        chunks = [np.arange(a, min(a + ROWS, len(states))) for a in range(0, len(states), ROWS)]
        return joined([self._place(states.rows(c), coords[c].numpy()) for c in chunks])

    def _place(self, states: States, coords: np.ndarray) -> States:
        env = self.batch(len(states))
        env.restore(states.inner)
        before, _ = positions(self.model, states.inner["physics"])
        free = self.model.nq - self.skip
        qpos = np.concatenate([before[:, : self.skip], coords[:, :free]], 1)
        env.set_state(range(len(states)), possible(self.model, qpos, before), coords[:, free:])
        return self.states(env.snapshot())

    def evaluate(self, acts: Sequence[Act], purpose: str = "evaluation") -> np.ndarray:
        """Play the same whole episodes with every policy, without noise -> returns [k, K]."""
        k, episodes = len(acts), self.episodes(purpose)
        self.budget.require(purpose, k * episodes * self.task.max_steps)
        seeds = k * episode_seeds(self.config.seed, episodes, EPISODES[purpose])
        env = NativeEnv(self.env_id, len(seeds), seeds, self.config.threads)

        def act(obs: Tensor) -> Tensor:
            self.budget.count(purpose, env.n_envs)
            return torch.stack([a(o) for a, o in zip(acts, obs, strict=True)])

        try:
            return run_episodes(env, act, k).returns
        finally:
            env.close()

    def episodes(self, purpose: str) -> int:
        """Return how many episodes of a policy are played."""
        return self.config.trial_episodes if purpose == "trial" else self.config.episodes

    def most_steps(self, purpose: str) -> int:
        """Return the most steps that a policy's episodes take."""
        return self.episodes(purpose) * self.task.max_steps


def moments(n: int, steps: int, seed: int) -> np.ndarray:
    """Draw one of the steps from each of n equal parts of an episode [n], in order."""
    ends = np.arange(n + 1) * steps // n
    return np.random.default_rng([seed, 0]).integers(ends[:-1], ends[1:])


def repeated(snapshot: Snapshot, k: int) -> Snapshot:
    """Put k copies of a snapshot's rows behind each other."""
    return {name: np.concatenate([rows] * k) for name, rows in snapshot.items()}


def possible(model: mujoco.MjModel, qpos: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return positions [n, nq] that the joints allow: unit quaternions, and within the limits.

    The limits are soft: a joint that was beyond one may stay there, but goes no farther.
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
