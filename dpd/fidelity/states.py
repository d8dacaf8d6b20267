"""Sets of states on which policies are compared, collected from whole episodes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpd.agents.rng import RowRandom, Stream
from dpd.agents.views import Frames, see_all
from dpd.envs.base import EnvSpec
from dpd.envs.make import check, make
from dpd.policies.playing import EpisodeActor, Watch
from dpd.policies.policyfile import Policy, require_fit
from dpd.run.episodes import (
    ActFunction,
    EvalResult,
    episode_seeds,
    run_episodes,
    side_by_side,
    uniform_policy,
)
from dpd.run.sources import Place

if TYPE_CHECKING:
    from dpd.fidelity.config import FidelityConfig, SweepConfig

SEED_SALT = 3_000_017  # separates these episodes from those of training and of other commands
TEST, HELD_OUT, DRAW, COIN, PERTURB, TRAIN = range(6)  # purposes of `AuditSettings.seed_of`
MAX_ENVS = 128  # environments in a batch: more are no faster, and hold more states in memory
NOISE_SCALE = 0.1  # of a dimension's standard deviation

SETS = {
    "train": "states the student was trained on",
    "teacher": "states of the teacher's episodes",
    "heldout": "states of fresh episodes of the teacher",
    "student": "states of the student's own episodes",
    "mixed": "states of episodes in which a coin flip per step chooses the acting policy",
    "mixup": "random points between pairs of the teacher's states",
    "noise": f"the teacher's states with Gaussian noise of {NOISE_SCALE} standard deviations",
}


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """Environment, number of episodes and states, and seed of an audit."""

    env_id: str
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    episodes: int = 20
    n_states: int = 10_000
    seed: int = 0
    threads: int | None = None
    frames: int = 0
    """Frames of its episode, observations and actions, behind each state: as many as any policy
    with a view needs."""
    recurrent: tuple[Policy, ...] = ()
    """Policies whose memories of the episode before each state come between it and its frames."""

    def seed_of(self, purpose: int) -> int:
        """Return the seed for one purpose."""
        words = np.random.SeedSequence([self.seed, SEED_SALT, purpose])
        return int(words.generate_state(1, np.uint64)[0])

    def generator(self, purpose: int) -> torch.Generator:
        """Return a new generator for one purpose, always in the same state."""
        return torch.Generator().manual_seed(self.seed_of(purpose) >> 1)


def audit_settings(
    config: FidelityConfig | SweepConfig,
    policy: Policy,
    place: Place,
    others: Sequence[Policy] = (),
) -> AuditSettings:
    """Return a command's settings. Raises BadInput if the policy does not fit the environment."""
    require_fit(policy, check(place.env_id, env_kwargs=place.env_kwargs))
    return AuditSettings(
        env_id=place.env_id,
        env_kwargs=place.env_kwargs,
        episodes=config.episodes,
        n_states=config.states,
        seed=config.seed,
        threads=config.threads,
        frames=frames_needed([policy, *others]),
        recurrent=recurrent_ones([policy, *others]),
    )


def frames_needed(policies: Sequence[Policy]) -> int:
    """Return how many frames of an episode these policies see at most; 0 if none has a view."""
    views = [policy.meta.view for policy in policies]
    return max((view.reach for view in views if view is not None), default=0)


def recurrent_ones(policies: Sequence[Policy]) -> tuple[Policy, ...]:
    """Return the policies that remember their episode."""
    return tuple(policy for policy in policies if policy.meta.memory_dim)


class PlayedEpisodes(NamedTuple):
    """Returns of some episodes, and states drawn from them."""

    returns: np.ndarray  # [K]
    obs: Tensor  # [n, O] raw, with memories and frames behind them if the settings ask for any
    episodes: Tensor  # [n], the number of each state's episode


def visit(
    settings: AuditSettings, act: ActFunction, n_states: int = 0, episodes: int = TEST
) -> PlayedEpisodes:
    """Play whole episodes -> their returns, and n_states states drawn from them at random.

    If the episodes hold too few states, more are played, whose returns do not count. Episodes are
    never cut short, which would over-represent early states.
    """
    return visit_together(settings, [act], n_states, episodes)[0]


@torch.no_grad()
def visit_together(
    settings: AuditSettings, acts: Sequence[ActFunction], n_states: int = 0, episodes: int = TEST
) -> list[PlayedEpisodes]:
    """Play the same episodes with several policies, a few at a time; see `visit`."""
    n, at_once = len(acts), max(1, MAX_ENVS // settings.episodes)
    if n > at_once:
        parts = acts[:at_once], acts[at_once:]
        return [v for part in parts for v in visit_together(settings, part, n_states, episodes)]
    seeds = n * episode_seeds(settings.seed_of(episodes), settings.episodes)
    env = make(settings.env_id, len(seeds), seeds, "auto", settings.env_kwargs, settings.threads)
    played: list[EvalResult] = []
    seen: list[list[Tensor]] = [[] for _ in acts]
    numbers: list[list[Tensor]] = [[] for _ in acts]
    with closing(env):
        while not played or min(sum(map(len, obs)) for obs in seen) < n_states:
            recorder = Recorder(acts, settings, env.spec)
            played.append(run_episodes(env, recorder, n))
            inside = states_within_episodes(recorder.steps, played[-1].lengths)
            for obs, more in zip(seen, inside, strict=True):
                obs.append(more)
            first = (len(played) - 1) * settings.episodes
            for own, lengths in zip(numbers, played[-1].lengths, strict=True):
                own.append(first + episodes_of_states(lengths))
    # a new generator each time, so that states and episodes are drawn alike
    drawn, origins = (
        [draw_rows(torch.cat(parts), n_states, settings.generator(DRAW)) for parts in rows]
        for rows in (seen, numbers)
    )
    return [PlayedEpisodes(*x) for x in zip(played[0].returns, drawn, origins, strict=True)]


class Recorder:
    """Lets N policies act in episodes that begin, and keeps all states [N, K, O]."""

    def __init__(self, acts: Sequence[ActFunction], settings: AuditSettings, spec: EnvSpec) -> None:
        for act in acts:
            if isinstance(act, EpisodeActor):
                act.begin()
        self.act, self.steps = side_by_side(acts), list[Tensor]()
        self.frames: Frames | None = None
        if settings.frames:
            views = [see_all(spec.obs_dim, spec.act_dim, settings.frames)] * len(acts)
            no_noise = RowRandom([(0, 0)] * len(acts), Stream.SENSOR)
            self.frames = Frames(views, settings.episodes, no_noise)
        batch = len(acts) * settings.episodes
        self.watches = [Watch(policy, batch) for policy in settings.recurrent]

    def __call__(self, obs: Tensor) -> Tensor:
        act = self.act(obs)
        wide = obs.clone() if self.frames is None else self.frames.follow(obs)
        if self.frames is not None:
            self.frames.act = act
        memories = [self._memory(watch, obs, act) for watch in self.watches]
        self.steps.append(torch.cat([obs, *memories, wide[..., obs.shape[-1] :]], -1))
        return act

    def _memory(self, watch: Watch, obs: Tensor, act: Tensor) -> Tensor:
        """Return the memory [N, K, S] that a recurrent policy has before obs, in all episodes."""
        watch.see(obs.flatten(0, 1))
        watch.took(act.flatten(0, 1))
        return watch.memory.unflatten(0, obs.shape[:2])


def states_within_episodes(steps: list[Tensor], lengths: np.ndarray) -> list[Tensor]:
    """Return the states [n, O] of T steps [N, K, O] that precede the end of an episode [N, K]."""
    obs = torch.stack(steps, 1)  # [N, T, K, O]
    inside = torch.arange(obs.shape[1]).unsqueeze(1) < torch.as_tensor(lengths).unsqueeze(1)
    return [own[mask] for own, mask in zip(obs, inside, strict=True)]


def episodes_of_states(lengths: np.ndarray) -> Tensor:
    """Return the episodes [n] of the states of `states_within_episodes`, from lengths [K]."""
    running = torch.arange(int(lengths.max())).unsqueeze(1) < torch.as_tensor(lengths)  # [T, K]
    return running.nonzero()[:, 1]


def draw_rows(obs: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw n different rows, or all if there are fewer, in random order."""
    return obs[torch.randperm(len(obs), generator=generator)[:n]]


def random_returns(settings: AuditSettings, act_dim: int, episodes: int = TEST) -> np.ndarray:
    """Return the returns [K] of uniform actions."""
    return visit(settings, uniform_policy(act_dim, settings.generator(COIN)), 0, episodes).returns


class CoinFlip(EpisodeActor):
    """Flips a coin between two policies at every step of every episode.

    A coin per episode would only reproduce the states of either policy, and none in between.
    """

    def __init__(self, settings: AuditSettings, teacher: ActFunction, student: ActFunction) -> None:
        self.teacher, self.student = teacher, student
        self.generator = settings.generator(COIN)

    @property
    def _actors(self) -> list[EpisodeActor]:
        return [x for x in (self.teacher, self.student) if isinstance(x, EpisodeActor)]

    def begin(self) -> None:
        for actor in self._actors:
            actor.begin()

    def __call__(self, obs: Tensor) -> Tensor:
        heads = torch.rand(len(obs), 1, generator=self.generator) < 0.5
        act = torch.where(heads, self.teacher(obs), self.student(obs))
        for actor in self._actors:
            actor.took(act)
        return act


def perturbed_states(settings: AuditSettings, obs: Tensor) -> dict[str, Tensor]:
    """Perturb states [n, O]: mix them in pairs (mixup, Zhang et al., 2018), and add noise."""
    generator = settings.generator(PERTURB)
    other = obs[torch.randperm(len(obs), generator=generator)]
    share = torch.rand(len(obs), 1, generator=generator)  # Beta(1, 1)
    noise = torch.randn(obs.shape, generator=generator) * obs.std(0, correction=0)
    return {"mixup": share * obs + (1 - share) * other, "noise": obs + NOISE_SCALE * noise}
