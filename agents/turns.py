"""Turns in the environments of learners with a replay: its own learner acts, or a peer for a while.

Acting as the hybrid: every few steps each environment's actor is drawn anew, by the softmax of what
the critics of the group think of the peers' actions there. With probability STAY it is the
environment's own learner, so that every policy keeps seeing its own consequences (SUNRISE, Lee et
al. 2021, and RDE, Kim et al. 2023, draw members of an ensemble by their critics likewise).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dpd.agents.base import CPU, LearnerId, Metrics, Stateful
from dpd.agents.rng import RowRandom, Stream
from dpd.agents.sharing import to_group

STAY = 0.2

Explore = Callable[[Tensor, Tensor], Tensor]
"""Raw obs [N, B, O], noise [N, B, A] -> actions [N, B, A] of each learner."""
Mode = Callable[[Tensor], Tensor]
"""Raw obs [N, B, O] -> actions without noise [N, B, A]."""
Judge = Callable[[Tensor, Tensor], Tensor]
"""Raw obs [N, B, O], actions [N, B, A] -> values [N, C, B] by each learner's critics."""


class OwnTurns(Stateful):
    """Every learner acts in its own environments."""

    def act(self, obs: Tensor, noise: Tensor, explore: Explore, mode: Mode, q: Judge) -> Tensor:
        """Return the actions [N, E, A] at raw obs [N, E, O] with noise [N, E, A]."""
        return explore(obs, noise)

    def metrics(self) -> Metrics:
        """Return the metrics of the steps since the last call."""
        return {}

    def retry(self, rows: Sequence[int], attempt: int) -> None:
        """Give diverged rows new random numbers."""


class HybridTurns(OwnTurns):
    """In every environment, a peer that is drawn anew every `every` steps acts.

    All peers of a group are rows of the stack.
    """

    STATE = ("rng", "who", "age")

    def __init__(
        self, ids: Sequence[LearnerId], n_envs: int, every: int, device: torch.device = CPU
    ) -> None:
        self.every, self.peers = every, 1 + max(peer for _, peer in ids)
        self.rng = RowRandom(ids, Stream.TURNS, device)
        own = torch.tensor([peer for _, peer in ids], device=device)
        self.own = own.unsqueeze(1).expand(-1, n_envs)  # [N, E]
        self.who = self.own.clone()
        self.age = 0  # steps taken
        self.foreign = torch.zeros(len(ids), device=device)  # share of environments, summed
        self.steps = 0  # in that sum

    def act(self, obs: Tensor, noise: Tensor, explore: Explore, mode: Mode, q: Judge) -> Tensor:
        if self.age % self.every == 0:
            self._draw(self.values(obs, mode, q))
        self.age += 1
        self.steps += 1
        self.foreign += (self.who != self.own).to(self.foreign.dtype).mean(1)
        acts = self._by_student(explore(to_group(obs, self.peers), to_group(noise, self.peers)))
        who = self.who[:, None, :, None].expand(-1, 1, -1, acts.shape[-1])
        return acts.gather(1, who).squeeze(1)

    def values(self, obs: Tensor, mode: Mode, q: Judge) -> Tensor:
        """Return the value of every peer's action in every environment [N, P, E].

        It is the mean over the group of each learner's least critic, as in the ruler `action`.
        """
        n, e, size = obs.shape
        p = self.peers
        acts = self._by_student(mode(to_group(obs, p)))  # [N, P, E, A]
        at = obs.unsqueeze(1).expand(n, p, e, size)
        judged = q(*(to_group(x.flatten(1, 2), p) for x in (at, acts))).amin(1)
        return judged.view(n // p, p, p, p, e).mean(1).flatten(0, 1)  # over the judges

    def _draw(self, values: Tensor) -> None:
        """Draw who acts from values [N, P, E]."""
        spread = values.std(1, correction=0, keepdim=True).clamp(min=1e-8)
        chance = ((values - values.mean(1, keepdim=True)) / spread).softmax(1)
        stays, draw = self.rng.uniform(2, self.who.shape[1], dtype=values.dtype).unbind(1)
        who = (draw.unsqueeze(1) > chance.cumsum(1)).sum(1).clamp(max=self.peers - 1)
        self.who.copy_(torch.where(stays < STAY, self.own, who))

    def _by_student(self, x: Tensor) -> Tensor:
        """Sort actions at joint values by environment: [N, P E, A] -> [N, acting P, E, A]."""
        n, p = x.shape[0], self.peers
        split = x.view(n // p, p, p, x.shape[1] // p, *x.shape[2:])
        return split.transpose(1, 2).flatten(0, 1)

    def metrics(self) -> Metrics:
        share = self.foreign / max(1, self.steps)
        self.foreign, self.steps = torch.zeros_like(self.foreign), 0
        return {"act/foreign": share}

    def retry(self, rows: Sequence[int], attempt: int) -> None:
        self.rng.reseed(rows, attempt)
