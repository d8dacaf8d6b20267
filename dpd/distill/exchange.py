"""The exchange between peers: states to distil on, and every peer's answers about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dpd.agents.base import Batch, State, Stateful, nest, part
from dpd.agents.dist import DiagGaussian, kl
from dpd.agents.learners import Learners
from dpd.agents.offpolicy import OffPolicy
from dpd.agents.replay import Replay
from dpd.agents.rng import WIDE, RowRandom, Stream
from dpd.agents.sharing import shared
from dpd.distill.method import Context, PeerStack

PAPER_RECENT = 1000  # states off-policy learners distil on (paper, Sec. 4.1)


class States(NamedTuple):
    """States of one source; [N, K, ...]."""

    obs: Tensor  # raw
    returns: Tensor | None  # [N, K] that their learner got from there, raw units
    position: Tensor | None  # [N, K] among the samples of its current iteration


class DrawnStates(NamedTuple):
    """States for every student to look at; [N, K, ...]."""

    obs: Tensor
    source: Tensor  # [N, K] number of the peer that visited the state
    returns: Tensor | None  # [N, K] the return that the source got from there, raw units
    position: Tensor | None = None  # [N, K] among the samples of the source's current iteration


class RecentStates(Stateful):
    """The states of the current iteration (capacity 0), or the most recent ones.

    `lasts`: the states are drawn from in the next iteration too, before new ones arrive.
    """

    def __init__(self, agent: Learners, capacity: int, lasts: bool) -> None:
        self.capacity, self.lasts = capacity, lasts or capacity > 0
        self.obs = agent.nets.flat.new_empty(agent.n_learners, 0, agent.obs_dim)
        self.returns: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of states per learner."""
        return self.obs.shape[1]

    def remember(self, batch: Batch) -> None:
        """Store the states of an iteration."""
        if self.capacity:
            self.obs = torch.cat([self.obs, batch.raw_obs], 1)[:, -self.capacity :]
        else:
            self.obs, self.returns = batch.raw_obs, batch.returns

    def draw(self, rng: RowRandom, learner: Tensor) -> States:
        """Draw without replacement (with replacement if there are too few): learner [N, K]."""
        k = learner.shape[1]
        if k <= self.size:
            position = rng.permutation(self.size)[:, :k]
        else:
            position = rng.integers(self.size, k)
        at = learner * self.size + position
        returns = None if self.returns is None else self.returns.flatten()[at]
        return States(self.obs.flatten(0, 1)[at], returns, None if self.capacity else position)

    def state(self) -> State:
        """Return the states, if they outlive an iteration."""
        if not self.lasts:
            return {}
        return {"memory": self.obs} | ({} if self.returns is None else {"returns": self.returns})

    def load_state(self, state: State) -> None:
        """Restore the states; there may be fewer than now."""
        if self.lasts:
            device = self.obs.device
            self.obs = state["memory"].to(device, copy=True)
            returns = state.get("returns")
            self.returns = None if returns is None else returns.to(device, copy=True)


class ReplayStates(Stateful):
    """The most recent valid states of a replay, or all of them (capacity 0)."""

    def __init__(self, replay: Replay, capacity: int) -> None:
        self.replay = replay
        self.capacity = capacity or replay.length * replay.n_envs

    @property
    def size(self) -> int:
        """Number of states per learner, valid or not; 0 if a learner has no valid one."""
        if not self.replay.ready:
            return 0
        return min(self.capacity, self.replay.held * self.replay.n_envs)

    def remember(self, batch: Batch) -> None:
        """Store nothing: the replay holds the states already."""

    def draw(self, rng: RowRandom, learner: Tensor) -> States:
        """Draw uniformly with replacement: learner [N, K]."""
        reach = self.replay.live.clamp(max=self.capacity)
        back = rng.integers(WIDE, learner.shape[1]) % reach[learner]
        return States(self.replay.states(learner, back), None, None)


StateSource = RecentStates | ReplayStates


def state_source(agent: Learners, capacity: int | None, lasts: bool = False) -> StateSource:
    """Return the source of a stack's states; capacity None: the paper's for the algorithm."""
    if isinstance(agent.replay, Replay):
        return ReplayStates(agent.replay, PAPER_RECENT if capacity is None else capacity)
    return RecentStates(agent, capacity or 0, lasts)


CHUNK = 1024  # states per learner that critics judge at once, which bounds the memory it takes


class PeerExchange(Stateful):
    """Draws states for every student, and asks every peer about them."""

    def __init__(
        self, context: Context, states: str, peer_share: float, memory: int | None
    ) -> None:
        self.agent, self.groups, self.peers = context.agent, context.groups, context.peers
        self.peer_share = {"peer": 1.0, "mixed": peer_share}.get(states, 0.0)
        device, students = self.agent.device, self.agent.n_learners // self.groups
        self.rng = RowRandom(context.ids, Stream.DISTILL, device)
        numbers = context.peer_numbers
        self.student = torch.tensor(numbers, device=device).unsqueeze(1)  # [N, 1] peer number
        self.group = torch.arange(len(numbers), device=device).unsqueeze(1) // students  # [N, 1]
        self.peer_stacks = context.peer_stacks
        self.sources = [
            state_source(stack.agent, memory, lasts=stack.agent is not self.agent)
            for stack in self.peer_stacks
        ]
        order = [peer for stack in self.peer_stacks for peer in stack.peers]
        self.order = torch.tensor(order, device=device).argsort()
        self.index_in = [self._index_in(stack) for stack in self.peer_stacks]
        self.others = [torch.tensor(stack.peers, device=device) for stack in self.peer_stacks[1:]]

    @property
    def ready(self) -> bool:
        """True once all peers learn and there are states to draw."""
        return self.size > 0 and not any(stack.agent.warming_up for stack in self.peer_stacks)

    @property
    def size(self) -> int:
        """Number of states per learner to draw from."""
        return min(source.size for source in self.sources)

    def remember(self, agent: Learners, batch: Batch) -> None:
        """Store the states of an iteration of a stack's learners."""
        k = [stack.agent for stack in self.peer_stacks].index(agent)
        self.sources[k].remember(batch)

    def state(self) -> State:
        sources = {f"source{k}": source.state() for k, source in enumerate(self.sources)}
        return nest(rng=self.rng.state(), **sources)

    def load_state(self, state: State) -> None:
        self.rng.load_state(part(state, "rng"))
        for k, source in enumerate(self.sources):
            source.load_state(part(state, f"source{k}"))

    def draw_beside(self, raw_obs: Tensor) -> DrawnStates:
        """Draw as many states as a minibatch raw_obs [N, B, O] of the students' replay has.

        Where a state of the student itself is due, it is the one in the minibatch.
        """
        if self.peer_share == 0:
            return DrawnStates(raw_obs, self.student.expand(-1, raw_obs.shape[1]), None)
        states = self.draw(raw_obs.shape[1])
        is_own = (states.source == self.student).unsqueeze(-1)
        return states._replace(obs=torch.where(is_own, raw_obs, states.obs))

    def at_samples(self, raw_obs: Tensor, steps: int, is_shared: bool) -> DrawnStates:
        """Return the states of all samples that the loss reads, in its order; draw nothing.

        raw_obs [N, S, O] are the learners' own samples of `steps` steps; if they are shared, those
        of the peers of a group join them.
        """
        obs = raw_obs.unflatten(1, (steps, -1))
        source = self.student.unsqueeze(-1).expand(obs.shape[:3])
        if is_shared:
            obs, source = shared(obs, self.peers), shared(source, self.peers)
        return DrawnStates(obs.flatten(1, 2), source.flatten(1), None)

    def draw(self, k: int) -> DrawnStates:
        """Draw k states per student, each of a uniformly drawn other peer or of itself."""
        source = self._draw_sources(k)
        first, *others = [self._draw_from(i, source) for i in range(len(self.sources))]
        obs, returns, position = first
        for peers, their in zip(self.others, others, strict=True):
            theirs, position = torch.isin(source, peers), None
            obs = torch.where(theirs.unsqueeze(-1), their.obs, obs)
            if returns is not None and their.returns is not None:
                returns = torch.where(theirs, their.returns, returns)
            else:
                returns = None
        return DrawnStates(obs, source, returns, position)

    def _draw_from(self, i: int, source: Tensor) -> States:
        """Draw states of stack i at every place [N, K], also where the source is in another stack.

        `draw` drops the latter: a fixed number of random numbers keeps rows independent.
        """
        row = self.group * len(self.peer_stacks[i].peers) + self.index_in[i][source]
        return self.sources[i].draw(self.rng, row)

    def _index_in(self, stack: PeerStack) -> Tensor:
        """Return the position of every peer [P] within a stack; 0 for peers of other stacks."""
        known = {peer: k for k, peer in enumerate(stack.peers)}
        return torch.tensor([known.get(p, 0) for p in range(self.peers)], device=self.agent.device)

    def _draw_sources(self, k: int) -> Tensor:
        """Draw the peers whose states to use [N, k]."""
        if self.peers == 1:
            return self.student.expand(-1, k)
        other = (self.student + 1 + self.rng.integers(self.peers - 1, k)) % self.peers
        if self.peer_share == 1:
            return other
        peers_turn = self.rng.integers(2**24, k) < self.peer_share * 2**24
        return torch.where(peers_turn, other, self.student)

    def ask(self, obs: Tensor) -> tuple[DiagGaussian, Tensor]:
        """Ask every peer about every student's states obs [N, K, O].

        Returns policies [N, P, K, A] and values [N, P, K] of peer p for student n. If only some
        peers squash their actions, a policy's mean is its action without noise.
        """
        answers = [stack.agent.ask(self._to(stack, obs)) for stack in self.peer_stacks]
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
        """Sort the answers of each stack by student: [its rows, S K, ...] -> [N, P, K, ...]."""
        g, s = self.groups, self.agent.n_learners // self.groups

        def per_student(x: Tensor) -> Tensor:  # [G, answering, student, ...] -> [N, answering, ...]
            x = x.view(g, x.shape[0] // g, s, x.shape[1] // s, *x.shape[2:])
            return x.transpose(1, 2).flatten(0, 1)

        sorted_ = [per_student(x) for x in answers]
        return sorted_[0] if len(sorted_) == 1 else torch.cat(sorted_, 1)[:, self.order]

    def judge(self, obs: Tensor, act: Tensor) -> list[Tensor]:
        """Let all critics of a group judge every peer's action at every student's states.

        obs [N, K, O], act [N, P, K, A] of peer p -> for every stack with such critics
        [N, J, C, P, K], raw units: for student n, the value that critic c of the stack's j-th peer
        gives to peer p's action. Raises ValueError without such critics.
        """
        judges = [stack for stack in self.peer_stacks if isinstance(stack.agent, OffPolicy)]
        if not judges:
            raise ValueError("these learners have no critics of actions")
        parts = list(zip(obs.split(CHUNK, 1), act.split(CHUNK, 2), strict=True))
        return [torch.cat([self._judge(stack, o, a) for o, a in parts], -1) for stack in judges]

    def _judge(self, stack: PeerStack, obs: Tensor, act: Tensor) -> Tensor:
        assert isinstance(stack.agent, OffPolicy)
        g, p, k = self.groups, self.peers, obs.shape[1]
        at_each = obs.unsqueeze(1).expand(-1, p, -1, -1).flatten(1, 2)  # [N, P K, O]
        q = stack.agent.q(self._to(stack, at_each), self._to(stack, act.flatten(1, 2)))
        q = q.view(g, len(stack.peers), q.shape[1], -1, p, k)  # [G, judging, C, student, acting, K]
        return q.permute(0, 3, 1, 2, 4, 5).flatten(0, 1)

    def _to(self, stack: PeerStack, x: Tensor) -> Tensor:
        """Give every row of a stack its group's values: [N, K, ...] -> [its rows, S K, ...]."""
        return stack.to_rows(x.reshape(self.groups, -1, *x.shape[2:]))


def required(value: Tensor | None) -> Tensor:
    """Return values. Raises ValueError for learners without a value function."""
    if value is None:
        raise ValueError("these learners have no value function to compare")
    return value


def pick(answers: Tensor, peer: Tensor) -> Tensor:
    """Select one peer's answer per state: answers [N, P, K, ...], peer [N, K] -> [N, K, ...]."""
    n, k = peer.shape
    shape = (n, 1, k, *answers.shape[3:])
    idx = peer.view(n, 1, k, *[1] * (answers.ndim - 3)).expand(shape)
    return answers.gather(1, idx).squeeze(1)


def action_distance(policies: DiagGaussian, student: Tensor, peer: Tensor) -> Tensor:
    """Return the mean Euclidean distance of two peers' mean actions [N] (paper, Sec. 4.4)."""
    mode = policies.mode()
    difference = pick(mode, student.expand_as(peer)) - pick(mode, peer)
    return torch.linalg.vector_norm(difference, dim=-1).mean(1)


def kl_to(policies: DiagGaussian, student: Tensor, peer: Tensor) -> Tensor:
    """Return the mean KL(pi_i || pi_j) of students from their peers [N], as they sample."""
    own, other = (
        DiagGaussian(pick(policies.mean, x), pick(policies.log_std, x), policies.squashed)
        for x in (student.expand_as(peer), peer)
    )
    return kl(own, other).mean(1)
