"""What a stack of off-policy learners or students remembers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dpd.agents.base import CPU
from dpd.agents.config import COLUMNS, OffPolicyConfig, StudentConfig
from dpd.agents.rng import WIDE, RowRandom
from dpd.agents.rollout import Rollout


class Transitions(NamedTuple):
    """A minibatch [N, B, ...]; the target of a value is reward + discount * Q(next_obs)."""

    obs_act: Tensor  # [N, B, O + A]
    next_obs: Tensor  # [N, B, O] of the last step summed
    reward: Tensor  # [N, B] discounted sum of up to n_step rewards
    discount: Tensor  # [N, B] gamma^k, 0 where the episode terminated


class Replay:
    """A ring of the last steps of N learners in E environments each; raw observations.

    A transition is one row of numbers, obs | act | next_obs | reward, terminated, done, valid: a
    minibatch is then one gather, and obs | act is the critics' input as it lies. A step's slot is
    its number modulo the ring's length; sample s of a learner is environment s % E at slot s // E.
    Memory that was never written is never resident.
    """

    def __init__(
        self,
        config: OffPolicyConfig | StudentConfig,
        n: int,
        obs_dim: int,
        act_dim: int,
        dtype: torch.dtype,
        sharers: int = 1,
        device: torch.device = CPU,
    ) -> None:
        self.length, self.n_envs = config.capacity // config.n_envs, config.n_envs
        self.obs_dim, self.act_dim, self.n_step = obs_dim, act_dim, config.n_step
        self.sharers = sharers  # successive learners that draw from each other's
        width = 2 * obs_dim + act_dim + COLUMNS
        self.device = device
        self.rows = torch.empty(n, self.length, self.n_envs, width, dtype=dtype, device=device)
        self.total = 0  # steps ever added, per environment
        self._begin = 0  # the first of them that was added here
        # A ring of the samples worth drawing, oldest first; `first` and `live` [N] bound it.
        size = self.length * self.n_envs
        self._samples = torch.empty(n, size, dtype=torch.int64, device=device)
        self._first = torch.zeros(n, dtype=torch.int64, device=device)
        self.live = torch.zeros_like(self._first)
        self._newest = torch.zeros((), dtype=torch.int64, device=device)  # slot
        self._rows = torch.arange(n, device=device).unsqueeze(1)  # [N, 1]
        self._ready = False

    @property
    def held(self) -> int:
        """Steps per environment that are held."""
        return min(self.total - self._begin, self.length)

    @property
    def ready(self) -> bool:
        """Whether every learner has a valid sample; a device is waited for only until it has."""
        self._ready = self._ready or bool((self.live > 0).all())
        return self._ready

    def push(self, rollout: Rollout) -> None:
        """Remember an iteration; what is not valid is kept out of all minibatches."""
        ends = (rollout.reward, rollout.terminated, rollout.done, rollout.valid)
        columns = [x.unsqueeze(-1).to(self.rows.dtype) for x in ends]
        self.extend(torch.cat([rollout.obs, rollout.act, rollout.next_obs, *columns], -1))

    def extend(self, rows: Tensor) -> None:
        """Add steps [N, T, E, W] as `since` returns them."""
        n, _, *rest = self.rows.shape
        if (rows.shape[0], *rows.shape[2:]) != (n, *rest) or rows.dtype != self.rows.dtype:
            raise ValueError(
                f"rows of {rows.dtype} {tuple(rows.shape)} do not fit those of a replay of "
                f"{self.rows.dtype} {tuple(self.rows.shape)}"
            )
        if rows.shape[1] > self.length:
            raise ValueError(f"{rows.shape[1]} steps for a replay of {self.length}")
        slots = self._slots(self.total, self.total + rows.shape[1])
        lost = slots[max(0, self.length - (self.total - self._begin)) :]
        dropped = self.rows[:, lost, :, -1].sum((1, 2)).to(torch.int64)
        self._first += dropped
        self.live -= dropped
        self.rows[:, slots] = rows.to(self.device)
        self.total += rows.shape[1]
        self._newest.fill_((self.total - 1) % self.length)
        self._list(slots)

    def _slots(self, begin: int, end: int) -> Tensor:
        """Return the slots of steps begin to end."""
        return torch.arange(begin, end, device=self.device) % self.length

    def _list(self, slots: Tensor) -> None:
        """Append the valid samples of slots, oldest first, to those worth drawing."""
        envs = torch.arange(self.n_envs, device=self.device)
        samples = (slots.unsqueeze(1) * self.n_envs + envs).flatten()
        valid = self.rows[:, slots, :, -1].flatten(1) > 0
        order = valid.to(torch.int8).argsort(dim=1, descending=True, stable=True)
        # The others come behind: into places that are not live, and that the next ones take.
        places = torch.arange(len(samples), device=self.device)
        places = (places + (self._first + self.live).unsqueeze(1)) % self._samples.shape[1]
        self._samples.scatter_(1, places, samples[order])
        self.live += valid.sum(1)

    def draw(self, rng: RowRandom, *shape: int) -> Tensor:
        """Draw samples uniformly with replacement, each learner with its own numbers [N, *shape].

        To be called where every learner has a valid sample. Where replays are shared, each comes
        from a uniformly drawn peer; it is counted from the learner's own first sample all the same.
        """
        n, size = self._samples.shape
        pick = rng.integers(WIDE, *shape).view(n, -1)
        own = self._rows
        who = own // self.sharers * self.sharers + pick % self.sharers
        back = pick // self.sharers % self.live[who]
        samples = self._samples[who, (back + self._first[who]) % size]
        return (samples + (who - own) * size).view(n, *shape)

    def states(self, who: Tensor, back: Tensor) -> Tensor:
        """Return raw observations [N, K, O] of learners who [N, K], counted back from their newest.

        `back` [N, K] valid samples lie between; it must be less than `live` of that learner.
        """
        size = self._samples.shape[1]
        place = (self._first + self.live)[who] - 1 - back
        samples = self._samples[who, place % size] + who * size
        return self._flat()[:, : self.obs_dim][samples]

    def take(self, samples: Tensor, gamma: Tensor) -> Transitions:
        """Return the transitions that begin at samples [N, B]; gamma [N, 1]."""
        flat, offset = self._flat(), self._offset()
        x = flat.index_select(0, (samples + offset).flatten()).view(*samples.shape, -1)
        o, a = self.obs_dim, self.act_dim
        reward, terminated, next_obs = x[..., -4], x[..., -3], x[..., o + a : 2 * o + a]
        if self.n_step == 1:
            return Transitions(x[..., : o + a], next_obs, reward, gamma * (1 - terminated))
        reward, decay, last = self._sum(samples, gamma)
        end = flat.index_select(0, (last + offset).flatten()).view_as(x)
        discount = decay * (1 - end[..., -3])
        return Transitions(x[..., : o + a], end[..., o + a : 2 * o + a], reward, discount)

    def _sum(self, samples: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sum up to n_step rewards of one environment's episode [N, B].

        Returns the sum, gamma^k for the k rewards in it, and the last sample [N, B]. The sum ends
        with the episode, and before what is not there yet or not valid.
        """
        ends, offset = self._flat()[:, -COLUMNS:], self._offset()
        size = self._samples.shape[1]
        base = samples // size * size  # of the peer whose samples they are
        total, decay = torch.zeros_like(gamma), torch.ones_like(gamma)
        at, last = samples, samples
        running = torch.ones_like(samples, dtype=torch.bool)
        for _ in range(self.n_step):
            reward, _, done, valid = ends[at + offset].unbind(-1)
            running = running & (valid > 0)
            # not a product: memory that was never written may hold NaN
            total = total + torch.where(running, decay * reward, 0)
            decay = torch.where(running, decay * gamma, decay)
            last = torch.where(running, at, last)
            running = running & (done == 0) & ((at - base) // self.n_envs != self._newest)
            at = base + (at - base + self.n_envs) % size
        return total, decay, last

    def _flat(self) -> Tensor:
        return self.rows.view(-1, self.rows.shape[-1])

    def _offset(self) -> Tensor:
        """Return where each learner's samples begin in the flat view [N, 1]."""
        return self._rows * self._samples.shape[1]

    def since(self, total: int) -> Tensor:
        """Return a copy of the steps after the first `total`, oldest first [N, T, E, W].

        What the ring has dropped by now is left out; `extend` adds them to another replay.
        """
        return self.rows[:, self._slots(max(total, self.total - self.held), self.total)]

    def restart(self, total: int) -> None:
        """Forget everything, and count on from `total` steps."""
        self.total = self._begin = total
        self._first.zero_()
        self.live.zero_()
        self._ready = False
