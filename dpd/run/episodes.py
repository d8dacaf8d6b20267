"""Play deterministic episodes and collect their returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpd.envs.base import Env, EnvKwargs
from dpd.envs.errors import UnsupportedEnv
from dpd.envs.make import make
from dpd.policies.checks import require_fit
from dpd.policies.policyfile import Policy

if TYPE_CHECKING:
    pass


EVAL_SEED = 1_000_003  # keeps evaluation's episodes apart from training's


class Outcome(NamedTuple):
    """Returns and lengths of a fixed number of episodes."""

    returns: np.ndarray  # [N, K]
    lengths: np.ndarray  # [N, K]


def episode_seeds(seed: int, episodes: int, purpose: int = 0) -> list[int]:
    """Return seeds of evaluation episodes, the same for every policy compared."""
    words = np.random.SeedSequence([seed, EVAL_SEED, purpose]).generate_state(episodes, np.uint64)
    return [int(w) for w in words]


class EvaluationStopped(Exception):
    """An evaluation ended early because a stop was requested."""


@torch.no_grad()
def run_episodes(
    env: Env,
    act: Callable[[Tensor], Tensor],
    n: int,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Play one episode in each environment: act maps raw obs [N, K, O] -> [N, K, A].

    Every environment counts once, so that short, failing episodes are not over-counted. Raises
    EvaluationStopped if a stop is requested, and UnsupportedEnv if an episode passes its time
    limit.
    """
    obs = env.reset()
    m = env.n_envs
    returns, lengths = np.zeros(m), np.zeros(m, dtype=np.int64)
    running = np.ones(m, dtype=bool)
    for _ in range(env.spec.max_steps):
        if stop_requested():
            raise EvaluationStopped
        step = env.step(act(obs.view(n, m // n, -1)).reshape(m, -1))
        happened = running & step.valid.numpy()  # not where the physics became unstable
        returns[happened] += step.reward.numpy()[happened]  # a NaN times 0 would be a NaN
        lengths += happened
        running &= ~(step.terminated | step.truncated).numpy()
        obs = step.obs
        if not running.any():
            break
    else:
        raise UnsupportedEnv(
            f"{env.spec.env_id} did not end its episode at its time limit of "
            f"{env.spec.max_steps:,} steps"
        )
    return Outcome(returns.reshape(n, -1), lengths.reshape(n, -1))


class Evaluator:
    """Evaluates a stack of learners: the same episodes for all peers of a seed, fresh each time."""

    def __init__(
        self, make_env: Callable[[list[int]], Env], seeds: Sequence[int], peers: int, episodes: int
    ) -> None:
        self.make_env, self.episodes = make_env, episodes
        self.rows = [s for s in seeds for _ in range(peers)]

    def __call__(
        self,
        mode: Callable[[Tensor], Tensor],
        purpose: int,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> Outcome:
        """Return the outcome of all learners; `purpose` chooses the episodes.

        Raises EvaluationStopped if a stop is requested.
        """
        seeds = [s for row in self.rows for s in episode_seeds(row, self.episodes, purpose)]
        env = self.make_env(seeds)
        try:
            return run_episodes(env, mode, len(self.rows), stop_requested)
        finally:
            env.close()


def evaluate_policy(
    policy: Policy, env_id: str, episodes: int, seed: int, threads: int | None = None
) -> Outcome:
    """Play episodes of a saved policy. Raises BadInput where it doesn't fit the environment."""
    return evaluate_together([policy], env_id, episodes, seed, threads)[0]


def evaluate_together(
    policies: Sequence[Policy],
    env_id: str,
    episodes: int,
    seed: int,
    threads: int | None = None,
    env_kwargs: EnvKwargs | None = None,
) -> list[Outcome]:
    """Play the same episodes of saved policies side by side, of one environment's settings.

    `env_kwargs` are the environment's; None: those that the first policy was trained with. Raises
    BadInput where a policy does not fit the environment.
    """
    n = len(policies)
    kwargs = policies[0].meta.env_kwargs if env_kwargs is None else env_kwargs
    env = make(env_id, n * episodes, n * episode_seeds(seed, episodes), "auto", kwargs, threads)

    def act(obs: Tensor) -> Tensor:
        return torch.stack([p.repeatable_mode(o) for p, o in zip(policies, obs, strict=True)])

    try:
        for policy in policies:
            require_fit(policy, env.spec)
        found = run_episodes(env, act, n)
    finally:
        env.close()
    return [Outcome(found.returns[i : i + 1], found.lengths[i : i + 1]) for i in range(n)]
