"""The states on which two policies are compared, collected by playing whole episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dpd.envs.make import check, make
from dpd.policies.checks import require_fit
from dpd.policies.policyfile import Policy
from dpd.run.episodes import episode_seeds, run_episodes
from dpd.run.sources import Place

PURPOSE = 3_000_017  # keeps the episodes apart from those of training and the other commands
TEST, HELD_OUT, DRAW, COIN, PERTURB, TRAIN = range(6)
AT_ONCE = 128  # environments side by side: more are no faster, and hold more states
NOISE = 0.1  # of a dimension's standard deviation

SETS = {
    "train": "states the student was trained on",
    "teacher": "states of the teacher's episodes",
    "heldout": "states of fresh episodes of the teacher",
    "student": "states of the student's own episodes",
    "mixed": "at each step a coin chooses which of the two acts",
    "mixup": "random points between two of the teacher's states",
    "noise": f"the teacher's states with Gaussian noise of {NOISE} of their deviation",
}

Act = Callable[[Tensor], Tensor]
"""Raw observations [B, O] -> actions [B, A] in [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where, how much and with which random numbers is measured."""

    env_id: str
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    episodes: int = 20
    n_states: int = 10_000
    seed: int = 0
    threads: int | None = None

    def seed_of(self, purpose: int) -> int:
        """Return a seed for one purpose."""
        words = np.random.SeedSequence([self.seed, PURPOSE, purpose])
        return int(words.generate_state(1, np.uint64)[0])

    def generator(self, purpose: int) -> torch.Generator:
        """Return a generator for one purpose, in the same state each time."""
        return torch.Generator().manual_seed(self.seed_of(purpose) >> 1)


class Asked(Protocol):
    """What a command is told of how to measure."""

    @property
    def episodes(self) -> int:
        """Episodes per policy."""
        ...

    @property
    def states(self) -> int:
        """States in each set."""
        ...

    @property
    def seed(self) -> int:
        """Of all random numbers."""
        ...

    @property
    def threads(self) -> int | None:
        """Of the simulation."""
        ...


def setting_of(asked: Asked, policy: Policy, place: Place) -> Setting:
    """Return the setting of a command. Raises BadInput where the policy does not fit in there."""
    require_fit(policy, check(place.env_id, env_kwargs=place.env_kwargs))
    return Setting(
        env_id=place.env_id,
        env_kwargs=place.env_kwargs,
        episodes=asked.episodes,
        n_states=asked.states,
        seed=asked.seed,
        threads=asked.threads,
    )


class Visited(NamedTuple):
    """What came of some episodes."""

    returns: np.ndarray  # [K]
    obs: Tensor  # [n, O] raw


def visit(setting: Setting, act: Act, n_states: int = 0, episodes: int = TEST) -> Visited:
    """Play whole episodes -> their returns, and n_states of the states, drawn at random.

    Where the episodes are too short for so many states, more of them follow, whose returns do not
    count. Whole episodes: cut off, they would show too many of the early states.
    """
    return visit_together(setting, [act], n_states, episodes)[0]


def visit_together(
    setting: Setting, acts: Sequence[Act], n_states: int = 0, episodes: int = TEST
) -> list[Visited]:
    """Let several policies play the same episodes, each as `visit` does, a few side by side."""
    at_once = max(1, AT_ONCE // setting.episodes)
    parts = (acts[i : i + at_once] for i in range(0, len(acts), at_once))
    return [found for part in parts for found in _visit(setting, part, n_states, episodes)]


@torch.no_grad()
def _visit(setting: Setting, acts: Sequence[Act], n_states: int, episodes: int) -> list[Visited]:
    n = len(acts)
    seeds = n * episode_seeds(setting.seed_of(episodes), setting.episodes)
    env = make(
        setting.env_id, len(seeds), seeds, "auto", setting.env_kwargs, threads=setting.threads
    )
    steps: list[Tensor] = []

    def noting(obs: Tensor) -> Tensor:  # [N, K, O]
        steps.append(obs.clone())
        return torch.stack([act(own) for act, own in zip(acts, obs, strict=True)])

    try:
        returns, lengths = run_episodes(env, noting, n)
        found = [[obs] for obs in alive(steps, lengths)]
        while min(sum(map(len, obs)) for obs in found) < n_states:
            steps.clear()
            lengths = run_episodes(env, noting, n).lengths
            for obs, more in zip(found, alive(steps, lengths), strict=True):
                obs.append(more)
    finally:
        env.close()
    generators = [setting.generator(DRAW) for _ in acts]
    states = [drawn(torch.cat(obs), n_states, g) for obs, g in zip(found, generators, strict=True)]
    return [Visited(*each) for each in zip(returns, states, strict=True)]


def alive(steps: list[Tensor], lengths: np.ndarray) -> list[Tensor]:
    """Return the states [n, O] of T steps [N, K, O] that lie within their episodes [N, K]."""
    obs = torch.stack(steps, 1)  # [N, T, K, O]
    inside = torch.arange(obs.shape[1]).unsqueeze(1) < torch.as_tensor(lengths).unsqueeze(1)
    return [own[mask] for own, mask in zip(obs, inside, strict=True)]


def drawn(obs: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Return n of the rows, or all where there are not so many, in random order."""
    return obs[torch.randperm(len(obs), generator=generator)[:n]]


def uniform(setting: Setting, act_dim: int) -> Act:
    """Return a policy that draws its actions from the whole range."""
    generator = setting.generator(COIN)
    return lambda obs: torch.rand(len(obs), act_dim, generator=generator) * 2 - 1


def either(setting: Setting, teacher: Act, student: Act) -> Act:
    """Return a policy that tosses a coin between two at every step of every episode.

    A coin per episode would give the two's own states again, and none in between.
    """
    generator = setting.generator(COIN)

    def act(obs: Tensor) -> Tensor:
        heads = torch.rand(len(obs), 1, generator=generator) < 0.5
        return torch.where(heads, teacher(obs), student(obs))

    return act


def perturbed(setting: Setting, obs: Tensor) -> dict[str, Tensor]:
    """Return states beside given ones [n, O]: mixed up in pairs (Zhang et al., 2018), and noisy."""
    generator = setting.generator(PERTURB)
    other = obs[torch.randperm(len(obs), generator=generator)]
    share = torch.rand(len(obs), 1, generator=generator)  # Beta(1, 1)
    noise = torch.randn(obs.shape, generator=generator) * obs.std(0, correction=0)
    return {"mixup": share * obs + (1 - share) * other, "noise": obs + NOISE * noise}
