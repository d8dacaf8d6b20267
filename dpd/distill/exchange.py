"""Exchange between peers: whose states to look at, and what everyone says of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dpd.agents.base import State, take
from dpd.agents.dist import DiagGaussian
from dpd.agents.rng import RowRandom, Stream
from dpd.distill.base import Context


class States(NamedTuple):
    """States each student is to look at, with the peer they were drawn from; [N, K, ...]."""

    obs: Tensor
    source: Tensor  # [N, K] index of a peer within the group
    returns: Tensor | None  # [N, K] what the source really got from there, raw units


class PeerExchange:
    """Draws states for every student and asks every peer about them."""

    def __init__(self, context: Context, states: str, peer_share: float, memory: int) -> None:
        self.agent, self.groups, self.peers = context.agent, context.groups, context.peers
        self.peer_share = {"peer": 1.0, "own": 0.0, "mixed": peer_share}[states]
        self.rng = RowRandom(context.seeds, Stream.DISTILL)
        self.own = torch.arange(self.peers).repeat(self.groups).unsqueeze(1)  # [N, 1]
        self.capacity = memory
        self.memory = torch.empty(len(context.seeds), 0, self.agent.obs_dim, dtype=self.agent.dtype)

    def remember(self, obs: Tensor) -> None:
        """Keep the most recent states of obs [N, S, O]; with no memory, just these."""
        if self.capacity:
            obs = torch.cat([self.memory, obs], 1)[:, -self.capacity :]
        self.memory = obs

    def state(self) -> State:
        """Return the generators and, where it outlives an iteration, the memory."""
        return {**self.rng.state(), **({"memory": self.memory} if self.capacity else {})}

    def load_state(self, state: State) -> None:
        """Put a state back; the memory may hold fewer states than now."""
        self.rng.load_state({"generators": state["generators"]})
        if self.capacity:
            self.memory = state["memory"].clone()

    def draw(self, k: int, returns: Tensor | None = None) -> States:
        """Draw k states per student, from a uniformly drawn other peer or itself."""
        source = self._sources(k)
        held = self.memory.shape[1]
        position = self.rng.permutation(held)[:, :k]
        if held < k:
            position = self.rng.integers(held, k)
        obs = self._from_peer(self.memory, source, position)
        got = None if returns is None else self._from_peer(returns, source, position)
        return States(obs, source, got)

    def _sources(self, k: int) -> Tensor:
        """Draw whose states [N, k]: peer indices within the group."""
        if self.peers == 1:
            return self.own.expand(-1, k)
        other = (self.own + 1 + self.rng.integers(self.peers - 1, k)) % self.peers
        if self.peer_share == 1:
            return other
        peers_turn = self.rng.integers(2**24, k) < self.peer_share * 2**24
        return torch.where(peers_turn, other, self.own)

    def _from_peer(self, rows: Tensor, source: Tensor, position: Tensor) -> Tensor:
        """Gather rows [N, S, ...] of each student's sources at positions [N, K]."""
        s = rows.shape[1]
        group = rows.reshape(self.groups, self.peers * s, *rows.shape[2:])
        idx = (source * s + position).view(self.groups, -1)
        return take(group, idx).view(*position.shape, *rows.shape[2:])

    def ask_all(self, obs: Tensor) -> tuple[DiagGaussian, Tensor]:
        """Let every peer answer on every student's states obs [N, K, O].

        Returns their policies [N, P, K, A] and values [N, P, K]: student n, answer of peer p.
        """
        g, p, (k, o) = self.groups, self.peers, obs.shape[1:]
        shared = obs.view(g, 1, p * k, o).expand(g, p, p * k, o).reshape(g * p, p * k, o)
        answer = self.agent.ask(shared)
        if answer.value is None:
            raise ValueError("these learners have no value function to compare")

        def per_student(x: Tensor) -> Tensor:  # [G, answering, student, ...] -> [N, answering, ...]
            return (
                x.view(g, p, p, k, *x.shape[2:]).transpose(1, 2).reshape(g * p, p, k, *x.shape[2:])
            )

        mean = per_student(answer.dist.mean)
        log_std = per_student(answer.dist.log_std.expand_as(answer.dist.mean))
        return DiagGaussian(mean, log_std, answer.dist.squashed), per_student(answer.value)


def pick(answers: Tensor, who: Tensor) -> Tensor:
    """Select one peer's answer per state: answers [N, P, K, ...], who [N, K] -> [N, K, ...]."""
    shape = (who.shape[0], 1, who.shape[1], *answers.shape[3:])
    idx = who.view(*who.shape[:1], 1, who.shape[1], *[1] * (answers.ndim - 3)).expand(shape)
    return answers.gather(1, idx).squeeze(1)


def action_distance(answers: DiagGaussian, own: Tensor, who: Tensor) -> Tensor:
    """Return the mean Euclidean distance of two peers' mean actions [N] (paper, Sec. 4.4)."""
    mode = answers.mode()
    difference = pick(mode, own.expand_as(who)) - pick(mode, who)
    return torch.linalg.vector_norm(difference, dim=-1).mean(1)
