"""Evaluation: deterministic episodes and their returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpd.envs.base import Env, EnvKwargs, UnsupportedEnv
from dpd.envs.make import make
from dpd.policies.playing import Playing
from dpd.policies.policyfile import Policy, require_fit

EVAL_SEED = 1_000_003  # separates the seeds of evaluation episodes from those of training

ActFunction = Callable[[Tensor], Tensor]
"""Raw observations [B, O] -> actions [B, A] in [-1, 1]."""


class EvalResult(NamedTuple):
    """Returns and lengths of K episodes for each of N policies."""

    returns: np.ndarray  # [N, K]
    lengths: np.ndarray  # [N, K]


def episode_seeds(seed: int, episodes: int, purpose: int = 0) -> list[int]:
    """Return the seeds of evaluation episodes; policies that are compared play the same ones."""
    words = np.random.SeedSequence([seed, EVAL_SEED, purpose]).generate_state(episodes, np.uint64)
    return [int(w) for w in words]


def side_by_side(acts: Sequence[ActFunction]) -> ActFunction:
    """Return a function that lets N policies act on their own obs [N, K, O] -> [N, K, A]."""
    return lambda obs: torch.stack([act(own) for act, own in zip(acts, obs, strict=True)])


def uniform_policy(act_dim: int, generator: torch.Generator) -> ActFunction:
    """Return a policy whose actions are uniform over [-1, 1]."""
    return lambda obs: torch.rand(len(obs), act_dim, generator=generator) * 2 - 1


class EvaluationStopped(Exception):
    """An evaluation was cut short because a stop was requested."""


@torch.no_grad()
def run_episodes(
    env: Env,
    act: Callable[[Tensor], Tensor],
    n: int,
    stop_requested: Callable[[], bool] = lambda: False,
) -> EvalResult:
    """Play one episode in each environment; `act` maps raw obs [N, K, O] to actions [N, K, A].

    One episode per environment, because a fixed number of steps would over-count short, failing
    episodes. Raises EvaluationStopped if a stop is requested, and UnsupportedEnv if an episode
    exceeds its time limit.
    """
    obs = env.reset()
    m = env.n_envs
    returns, lengths = np.zeros(m), np.zeros(m, dtype=np.int64)
    running = np.ones(m, dtype=bool)
    for _ in range(env.spec.max_steps):
        if stop_requested():
            raise EvaluationStopped
        step = env.step(act(obs.view(n, m // n, -1)).reshape(m, -1))
        counted = running & step.valid.numpy()  # a step is invalid if the physics became unstable
        returns[counted] += step.reward.numpy()[counted]  # a mask times NaN would still be NaN
        lengths += counted
        running &= ~(step.terminated | step.truncated).numpy()
        obs = step.obs
        if not running.any():
            break
    else:
        raise UnsupportedEnv(
            f"{env.spec.env_id} did not end its episode at its time limit of "
            f"{env.spec.max_steps:,} steps"
        )
    return EvalResult(returns.reshape(n, -1), lengths.reshape(n, -1))


def evaluate_policy(
    policy: Policy, env_id: str, episodes: int, seed: int, threads: int | None = None
) -> EvalResult:
    """Play episodes of a saved policy. Raises BadInput if it does not fit the environment."""
    return evaluate_together([policy], env_id, episodes, seed, threads)[0]


def evaluate_together(
    policies: Sequence[Policy],
    env_id: str,
    episodes: int,
    seed: int,
    threads: int | None = None,
    env_kwargs: EnvKwargs | None = None,
) -> list[EvalResult]:
    """Play the same episodes with several saved policies, all in one vector of environments.

    A policy that is equal to an earlier one, as the best of a run often is to its last, shares its
    result.
    `env_kwargs` are the environment's arguments; None: those that the first policy was trained
    with. Raises BadInput if a policy does not fit the environment.
    """
    first = [next(k for k, p in enumerate(policies) if p.acts_as(policy)) for policy in policies]
    distinct = {k: policies[k] for k in first}
    n = len(distinct)
    kwargs = policies[0].meta.env_kwargs if env_kwargs is None else env_kwargs
    env = make(env_id, n * episodes, n * episode_seeds(seed, episodes), "auto", kwargs, threads)
    with closing(env):
        for policy in policies:
            require_fit(policy, env.spec)
        acts = [Playing(policy, seed) for policy in distinct.values()]
        result = run_episodes(env, side_by_side(acts), n)
    rows = [list(distinct).index(k) for k in first]
    return [EvalResult(result.returns[i : i + 1], result.lengths[i : i + 1]) for i in rows]
