"""States to distil on: those of the current iteration, of several, or of the learners' replay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dpd.agents.base import Batch, State
from dpd.agents.dist import DiagGaussian
from dpd.agents.learners import Learners
from dpd.agents.offpolicy import OffPolicy
from dpd.agents.replay import Replay
from dpd.agents.rng import WIDE, RowRandom, Stream
from dpd.distill.method import Context, Members

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
        device, students = self.agent.device, self.agent.n_learners // self.groups
        self.rng = RowRandom(context.seeds, Stream.DISTILL, device)
        own = [[seed[-1]] for seed in context.seeds]
        self.own = torch.tensor(own, device=device)  # [N, 1]
        self.group = torch.arange(len(own), device=device).unsqueeze(1) // students  # [N, 1]
        self.members = context.members
        self.memories = [
            memory_of(each.agent, memory, lasts=each.agent is not self.agent)
            for each in self.members
        ]
        order = [peer for each in self.members for peer in each.peers]
        self.order = torch.tensor(order, device=device).argsort()
        self.places = [self._places(each) for each in self.members]
        self.others = [torch.tensor(each.peers, device=device) for each in self.members[1:]]

    @property
    def ready(self) -> bool:
        """Whether all learn yet, and have states to look at."""
        return self.held > 0 and not any(each.agent.warming_up for each in self.members)

    @property
    def held(self) -> int:
        """How many states of each learner there are to draw from."""
        return min(memory.held for memory in self.memories)

    def remember(self, batch: Batch) -> None:
        """Take in the students' states of an iteration, and the latest of the other stacks."""
        for each, memory in zip(self.members, self.memories, strict=True):
            latest = batch if each.agent is self.agent else each.batch
            if latest is not None:
                memory.remember(latest)

    def state(self) -> State:
        """Return the generators and, where they outlive an iteration, the memories."""
        state = self.rng.state()
        for k, memory in enumerate(self.memories):
            state |= {f"{name}{k or ''}": x for name, x in memory.state().items()}
        return state

    def load_state(self, state: State) -> None:
        """Put a state back; the memories may hold fewer states than now."""
        self.rng.load_state({"generators": state["generators"]})
        for k, memory in enumerate(self.memories):
            names = [name for name in ("memory", "returns") if f"{name}{k or ''}" in state]
            memory.load_state({name: state[f"{name}{k or ''}"] for name in names})

    def draw_beside(self, raw_obs: Tensor) -> States:
        """Draw as many states as a minibatch raw_obs [N, B, O] of the students' replay has.

        At places that are the student's own, they are those of the minibatch itself.
        """
        if self.peer_share == 0:
            return States(raw_obs, self.own.expand(-1, raw_obs.shape[1]), None)
        states = self.draw(raw_obs.shape[1])
        is_own = (states.source == self.own).unsqueeze(-1)
        return states._replace(obs=torch.where(is_own, raw_obs, states.obs))

    def draw(self, k: int) -> States:
        """Draw k states per student, from a uniformly drawn other peer or itself."""
        source = self._sources(k)
        found = [self._draw_from(i, source) for i in range(len(self.members))]
        first = found[0]
        for peers, other in zip(self.others, found[1:], strict=True):
            theirs = torch.isin(source, peers)
            first = Found(
                torch.where(theirs.unsqueeze(-1), other.obs, first.obs),
                None
                if first.returns is None or other.returns is None
                else torch.where(theirs, other.returns, first.returns),
            )
        return States(first.obs, source, first.returns)

    def _draw_from(self, i: int, source: Tensor) -> Found:
        """Draw states of one stack's learners at every place [N, K]; of any, where it is another's.

        Where there is a single stack, that is nowhere.
        """
        row = self.group * len(self.members[i].peers) + self.places[i][source]
        return self.memories[i].draw(self.rng, row)

    def _places(self, each: Members) -> Tensor:
        """Return where a stack has each peer [P]; 0 for another's."""
        known = {peer: k for k, peer in enumerate(each.peers)}
        return torch.tensor([known.get(p, 0) for p in range(self.peers)], device=self.agent.device)

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

        Returns their policies [N, P, K, A] and values [N, P, K]: student n, answer of peer p. Where
        only some squash their actions, a policy's mean is its action without noise.
        """
        answers = [each.agent.ask(self._to(each, obs)) for each in self.members]
        dists = [answer.dist for answer in answers]
        if alike := len({dist.squashed for dist in dists}) == 1:
            means = [dist.mean for dist in dists]
        else:
            means = [dist.mode() for dist in dists]
        mean = self._by_student(means)
        spread = [d.log_std.expand_as(m) for d, m in zip(dists, means, strict=True)]
        value = self._by_student([required(answer.value) for answer in answers])
        squashed = alike and dists[0].squashed
        return DiagGaussian(mean, self._by_student(spread), squashed), value

    def _by_student(self, answers: Sequence[Tensor]) -> Tensor:
        """Sort what each stack says of all students, [members, S K, ...] -> [N, P, K, ...]."""
        g, s = self.groups, self.agent.n_learners // self.groups

        def per_student(x: Tensor) -> Tensor:  # [G, answering, student, ...] -> [N, answering, ...]
            x = x.view(g, x.shape[0] // g, s, x.shape[1] // s, *x.shape[2:])
            return x.transpose(1, 2).flatten(0, 1)

        found = [per_student(x) for x in answers]
        return found[0] if len(found) == 1 else torch.cat(found, 1)[:, self.order]

    def judge_all(self, obs: Tensor, act: Tensor) -> list[Tensor]:
        """Let all critics of a group judge every peer's action at every student's states.

        obs [N, K, O], act [N, P, K, A] of peer p -> for every stack with such critics
        [N, J, C, P, K], raw units: for student n, what critic c of its j-th peer says of peer p's
        action. Raises ValueError without such critics.
        """
        judges = [each for each in self.members if isinstance(each.agent, OffPolicy)]
        if not judges:
            raise ValueError("these learners have no critics of actions")
        parts = list(zip(obs.split(CHUNK, 1), act.split(CHUNK, 2), strict=True))
        return [torch.cat([self._judge(each, o, a) for o, a in parts], -1) for each in judges]

    def _judge(self, each: Members, obs: Tensor, act: Tensor) -> Tensor:
        assert isinstance(each.agent, OffPolicy)
        g, p, k = self.groups, self.peers, obs.shape[1]
        at_each = obs.unsqueeze(1).expand(-1, p, -1, -1).flatten(1, 2)  # [N, P K, O]
        q = each.agent.q(self._to(each, at_each), self._to(each, act.flatten(1, 2)))
        q = q.view(g, len(each.peers), q.shape[1], -1, p, k)  # [G, judging, C, student, acting, K]
        return q.permute(0, 3, 1, 2, 4, 5).flatten(0, 1)

    def _to(self, each: Members, x: Tensor) -> Tensor:
        """Show a stack what all students of its groups have: [N, K, ...] -> [members, S K, ...]."""
        return each.to_rows(x.reshape(self.groups, -1, *x.shape[2:]))


def required(value: Tensor | None) -> Tensor:
    """Return a value function's answer. Raises ValueError where there is none."""
    if value is None:
        raise ValueError("these learners have no value function to compare")
    return value


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
