"""Exchange between peers: whose states to look at, and what everyone says of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dpd.agents.base import Batch, State
from dpd.agents.dist import DiagGaussian
from dpd.agents.offpolicy import OffPolicy
from dpd.agents.rng import RowRandom, Stream
from dpd.distill.base import Context
from dpd.distill.states import memory_of

CHUNK = 1024  # states per learner that critics judge at once, which bounds the memory it takes


class States(NamedTuple):
    """States each student is to look at, with the peer they were drawn from; [N, K, ...]."""

    obs: Tensor
    source: Tensor  # [N, K] index of a peer within the group
    returns: Tensor | None  # [N, K] what the source really got from there, raw units


class PeerExchange:
    """Draws states for every student and asks every peer about them."""

    def __init__(
        self, context: Context, states: str, peer_share: float, memory: int | None
    ) -> None:
        self.agent, self.groups, self.peers = context.agent, context.groups, context.peers
        self.peer_share = {"peer": 1.0, "own": 0.0, "mixed": peer_share}[states]
        self.rng = RowRandom(context.seeds, Stream.DISTILL)
        row = torch.arange(self.agent.n_learners).unsqueeze(1)
        self.own = row % self.peers  # [N, 1]
        self.first = row - self.own  # [N, 1] the row of the group's first peer
        self.memory = memory_of(self.agent, memory)

    @property
    def ready(self) -> bool:
        """Whether learners learn yet, and have states to look at."""
        return not self.agent.warming_up and self.memory.held > 0

    def remember(self, batch: Batch) -> None:
        """Take in an iteration's states."""
        self.memory.remember(batch)

    def state(self) -> State:
        """Return the generators and, where it outlives an iteration, the memory."""
        return self.rng.state() | self.memory.state()

    def load_state(self, state: State) -> None:
        """Put a state back; the memory may hold fewer states than now."""
        self.rng.load_state({"generators": state["generators"]})
        self.memory.load_state(state)

    def draw(self, k: int) -> States:
        """Draw k states per student, from a uniformly drawn other peer or itself."""
        source = self._sources(k)
        found = self.memory.draw(self.rng, self.first + source)
        return States(found.obs, source, found.returns)

    def _sources(self, k: int) -> Tensor:
        """Draw whose states [N, k]: peer indices within the group."""
        if self.peers == 1:
            return self.own.expand(-1, k)
        other = (self.own + 1 + self.rng.integers(self.peers - 1, k)) % self.peers
        if self.peer_share == 1:
            return other
        peers_turn = self.rng.integers(2**24, k) < self.peer_share * 2**24
        return torch.where(peers_turn, other, self.own)

    def ask_all(self, obs: Tensor) -> tuple[DiagGaussian, Tensor]:
        """Let every peer answer on every student's states obs [N, K, O].

        Returns their policies [N, P, K, A] and values [N, P, K]: student n, answer of peer p.
        """
        g, p, k = self.groups, self.peers, obs.shape[1]
        answer = self.agent.ask(self._to_all(obs))
        if answer.value is None:
            raise ValueError("these learners have no value function to compare")

        def per_student(x: Tensor) -> Tensor:  # [G, answering, student, ...] -> [N, answering, ...]
            return (
                x.view(g, p, p, k, *x.shape[2:]).transpose(1, 2).reshape(g * p, p, k, *x.shape[2:])
            )

        mean = per_student(answer.dist.mean)
        log_std = per_student(answer.dist.log_std.expand_as(answer.dist.mean))
        return DiagGaussian(mean, log_std, answer.dist.squashed), per_student(answer.value)

    def judge_all(self, obs: Tensor, act: Tensor) -> Tensor:
        """Let all critics of a group judge every peer's action at every student's states.

        obs [N, K, O], act [N, P, K, A] of peer p -> [N, P, C, P, K], raw units: for student n,
        what peer i's critic c says of peer p's action. Raises ValueError without such critics.
        """
        parts = zip(obs.split(CHUNK, 1), act.split(CHUNK, 2), strict=True)
        return torch.cat([self._judge(o, a) for o, a in parts], -1)

    def _judge(self, obs: Tensor, act: Tensor) -> Tensor:
        if not isinstance(self.agent, OffPolicy):
            raise ValueError("these learners have no critics of actions")
        g, p, k = self.groups, self.peers, obs.shape[1]
        at_each = obs.unsqueeze(1).expand(-1, p, -1, -1).flatten(1, 2)  # [N, P K, O]
        q = self.agent.q(self._to_all(at_each), self._to_all(act.flatten(1, 2)))
        q = q.view(g, p, -1, p, p, k)  # [G, judging, C, student, acting, K]
        return q.permute(0, 3, 1, 2, 4, 5).flatten(0, 1)

    def _to_all(self, x: Tensor) -> Tensor:
        """Show every peer what all students of its group have: [N, K, ...] -> [N, P K, ...]."""
        g, p = self.groups, self.peers
        group = x.reshape(g, 1, p * x.shape[1], *x.shape[2:])
        return group.expand(-1, p, *group.shape[2:]).flatten(0, 1)


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
