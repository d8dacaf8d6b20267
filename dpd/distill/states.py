"""States to distil on: those of the current iteration, of several, or of the learners' replay."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dpd.agents.base import Batch, State
from dpd.agents.learners import Learners
from dpd.agents.replay import Replay
from dpd.agents.rng import WIDE, RowRandom

PAPER_RECENT = 1000  # states off-policy learners distil on (paper, Sec. 4.1)


class Found(NamedTuple):
    """Drawn states."""

    obs: Tensor  # [N, K, O], raw
    returns: Tensor | None  # [N, K] what their learner really got from there, raw units


class Memory(Protocol):
    """States of all learners, to draw from."""

    @property
    def held(self) -> int:
        """How many of each learner's there are; 0 where any learner has none."""
        ...

    def remember(self, batch: Batch) -> None:
        """Take in an iteration."""
        ...

    def draw(self, rng: RowRandom, who: Tensor) -> Found:
        """Draw a state of learner who[n, k] at each place [N, K], with row n's random numbers."""
        ...

    def state(self) -> State:
        """Return what outlives an iteration and stands in no other part's state."""
        ...

    def load_state(self, state: State) -> None:
        """Put a state back."""
        ...


class Recent:
    """The states of the current iteration (capacity 0), or the most recent so many.

    `lasts`: whether they are drawn from in the next iteration too, before new ones come.
    """

    def __init__(self, agent: Learners, capacity: int, lasts: bool) -> None:
        self.capacity, self.lasts = capacity, lasts or capacity > 0
        self.obs = agent.nets.flat.new_empty(agent.n_learners, 0, agent.obs_dim)
        self.returns: Tensor | None = None

    @property
    def held(self) -> int:
        """How many of each learner's there are."""
        return self.obs.shape[1]

    def remember(self, batch: Batch) -> None:
        """Take in an iteration."""
        if self.capacity:
            self.obs = torch.cat([self.obs, batch.raw_obs], 1)[:, -self.capacity :]
        else:
            self.obs, self.returns = batch.raw_obs, batch.returns

    def draw(self, rng: RowRandom, who: Tensor) -> Found:
        """Draw without replacement (with, if too few are held): who [N, K]."""
        k = who.shape[1]
        position = rng.permutation(self.held)[:, :k] if k <= self.held else None
        if position is None:
            position = rng.integers(self.held, k)
        at = who * self.held + position
        returns = None if self.returns is None else self.returns.flatten()[at]
        return Found(self.obs.flatten(0, 1)[at], returns)

    def state(self) -> State:
        """Return the memory where it outlives an iteration."""
        if not self.lasts:
            return {}
        return {"memory": self.obs} | ({} if self.returns is None else {"returns": self.returns})

    def load_state(self, state: State) -> None:
        """Put a state back; it may hold fewer states than now."""
        if self.lasts:
            device = self.obs.device
            self.obs = state["memory"].to(device, copy=True)
            returns = state.get("returns")
            self.returns = None if returns is None else returns.to(device, copy=True)


class Replayed:
    """The most recent valid states of a replay, or all of it (capacity 0)."""

    def __init__(self, replay: Replay, capacity: int) -> None:
        self.replay = replay
        self.capacity = capacity or replay.length * replay.n_envs

    @property
    def held(self) -> int:
        """How many of each learner's there are, valid or not; 0 where one has no valid one."""
        if not self.replay.ready:
            return 0
        return min(self.capacity, self.replay.held * self.replay.n_envs)

    def remember(self, batch: Batch) -> None:
        """The replay has them already."""

    def draw(self, rng: RowRandom, who: Tensor) -> Found:
        """Draw uniformly with replacement: who [N, K]."""
        reach = self.replay.live.clamp(max=self.capacity)
        back = rng.integers(WIDE, who.shape[1]) % reach[who]
        return Found(self.replay.states(who, back), None)

    def state(self) -> State:
        """Return nothing: the replay is the learners'."""
        return {}

    def load_state(self, state: State) -> None:
        """Take nothing back."""


def memory_of(agent: Learners, capacity: int | None, lasts: bool = False) -> Memory:
    """Return where learners' states come from; None: as in the paper, for their family."""
    if isinstance(agent.journal, Replay):
        return Replayed(agent.journal, PAPER_RECENT if capacity is None else capacity)
    return Recent(agent, capacity or 0, lasts)
