"""The replay of off-policy learners and students."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dpd.agents.base import CPU, Rollout
from dpd.agents.config import EXTRA_COLUMNS
from dpd.agents.offpolicy_config import OffPolicyConfig
from dpd.agents.rng import WIDE, RowRandom
from dpd.agents.student_config import StudentConfig


class Transitions(NamedTuple):
    """A minibatch [N, B, ...]; the target value is reward + discount * Q(next_obs)."""

    obs_act: Tensor  # [N, B, O + A]
    next_obs: Tensor  # [N, B, O] after the last step in `reward`
    reward: Tensor  # [N, B] discounted sum of up to n_step rewards
    discount: Tensor  # [N, B] gamma^k, 0 where the episode terminated


class Replay:
    """A ring buffer of the last steps of N learners in E environments each; raw observations.

    A transition is one row of numbers: obs | act | next_obs | reward, terminated, done, valid. A
    minibatch is thus one gather, and obs | act is the critics' input without a copy. A step's slot
    is its number modulo the ring's length; sample s of a learner is environment s % E at slot
    s // E. Pages that were never written use no memory.

    Without `has_next`, next_obs is left out, and the replay holds states but no transitions.
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
        half_own: bool = False,
        has_next: bool = True,
    ) -> None:
        self.length, self.n_envs = config.capacity // config.n_envs, config.n_envs
        self.obs_dim, self.act_dim, self.n_step = obs_dim, act_dim, config.n_step
        self.sharers = sharers  # number of successive learners that draw from each other's replays
        self.half_own = half_own and sharers > 1
        self.next_dim = obs_dim if has_next else 0
        width = obs_dim + act_dim + self.next_dim + EXTRA_COLUMNS
        self.device = device
        self.rows = torch.empty(n, self.length, self.n_envs, width, dtype=dtype, device=device)
        self.total = 0  # steps ever added per environment
        self._begin = 0  # number of the first step since the last restart
        # A second ring lists the valid samples, oldest first; `_first` and `live` [N] bound it.
        size = self.length * self.n_envs
        self._samples = torch.empty(n, size, dtype=torch.int64, device=device)
        self._first = torch.zeros(n, dtype=torch.int64, device=device)
        self.live = torch.zeros_like(self._first)
        self._newest = torch.zeros((), dtype=torch.int64, device=device)  # slot
        self._rows = torch.arange(n, device=device).unsqueeze(1)  # [N, 1]
        self._ready = False

    @property
    def held(self) -> int:
        """Number of stored steps per environment."""
        return min(self.total - self._begin, self.length)

    @property
    def ready(self) -> bool:
        """True once every learner has a valid sample; until then, a call waits for the device."""
        self._ready = self._ready or bool((self.live > 0).all())
        return self._ready

    def push(self, rollout: Rollout) -> None:
        """Store an iteration; invalid steps are never drawn."""
        ends = (rollout.reward, rollout.terminated, rollout.done, rollout.valid)
        columns = [x.unsqueeze(-1).to(self.rows.dtype) for x in ends]
        next_obs = rollout.next_obs[..., : self.next_dim]
        self.extend(torch.cat([rollout.obs, rollout.act, next_obs, *columns], -1))

    def extend(self, rows: Tensor) -> None:
        """Add steps [N, T, E, W] as returned by `since`. Raises ValueError if they do not fit."""
        n, _, *rest = self.rows.shape
        if (rows.shape[0], *rows.shape[2:]) != (n, *rest) or rows.dtype != self.rows.dtype:
            raise ValueError(
                f"rows of {rows.dtype} {tuple(rows.shape)} do not fit a replay of "
                f"{self.rows.dtype} {tuple(self.rows.shape)}"
            )
        if rows.shape[1] > self.length:
            raise ValueError(f"{rows.shape[1]} steps for a replay of {self.length}")
        slots = self._slots(self.total, self.total + rows.shape[1])
        overwritten = slots[max(0, self.length - (self.total - self._begin)) :]
        dropped = self.rows[:, overwritten, :, -1].sum((1, 2)).to(torch.int64)
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
        """Append the valid samples of slots, oldest first, to the list of valid samples."""
        envs = torch.arange(self.n_envs, device=self.device)
        samples = (slots.unsqueeze(1) * self.n_envs + envs).flatten()
        valid = self.rows[:, slots, :, -1].flatten(1) > 0
        order = valid.to(torch.int8).argsort(dim=1, descending=True, stable=True)
        # Invalid samples are written behind them, to places that the next append overwrites.
        places = torch.arange(len(samples), device=self.device)
        places = (places + (self._first + self.live).unsqueeze(1)) % self._samples.shape[1]
        self._samples.scatter_(1, places, samples[order])
        self.live += valid.sum(1)

    def draw(self, rng: RowRandom, *shape: int) -> Tensor:
        """Draw samples uniformly with replacement, with each learner's own generator [N, *shape].

        Call it only once the replay is `ready`. If replays are shared, each sample comes from a
        uniformly drawn peer or, if `half_own`, from the learner itself with probability 1/2; its
        index is still relative to the learner's own first sample.
        """
        n, size = self._samples.shape
        pick = rng.integers(WIDE, *shape).view(n, -1)
        learner = self._rows
        peer, pick = self._source(pick)
        k = pick % self.live[peer]
        samples = self._samples[peer, (k + self._first[peer]) % size]
        return (samples + (peer - learner) * size).view(n, *shape)

    def _source(self, pick: Tensor) -> tuple[Tensor, Tensor]:
        """Split random integers [N, K] into the learner whose replay to draw from, and the rest."""
        first = self._rows // self.sharers * self.sharers
        if not self.half_own:
            return first + pick % self.sharers, pick // self.sharers
        others = self.sharers - 1
        away = (pick % (2 * others) - (others - 1)).clamp(min=0)  # 0 in half of the cases
        return first + (self._rows - first + away) % self.sharers, pick // (2 * others)

    def states(self, learner: Tensor, age: Tensor) -> Tensor:
        """Return raw observations [N, K, O] of learners [N, K] by their age [N, K].

        Age 0 is a learner's newest valid sample; ages must be less than the learner's `live`.
        """
        size = self._samples.shape[1]
        place = (self._first + self.live)[learner] - 1 - age
        samples = self._samples[learner, place % size] + learner * size
        return self._flat()[:, : self.obs_dim][samples]

    def draw_sequences(
        self, rng: RowRandom, count: int, length: int, recent: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw `count` sequences of successive raw observations of one environment each.

        Returns those [N, count * length, O], sequence after sequence, and which are valid. They
        begin uniformly at any step, with replacement, and may run across the ends of episodes.
        `recent`: within so many newest steps. Raises ValueError if fewer than `length` are stored.
        """
        held = self.held if recent is None else min(self.held, recent)
        if held < length:
            raise ValueError(f"sequences of {length} steps from the {held} that are stored")
        pick = rng.integers((held - length + 1) * self.n_envs, count)
        steps = torch.arange(length, device=self.device)
        step = self.total - held + (pick // self.n_envs).unsqueeze(-1) + steps  # [N, count, L]
        samples = step % self.length * self.n_envs + (pick % self.n_envs).unsqueeze(-1)
        places = samples.flatten(1) + self._offset()
        rows = self._flat().index_select(0, places.flatten()).view(*places.shape, -1)
        return rows[..., : self.obs_dim], rows[..., -1] > 0

    def take(self, samples: Tensor, gamma: Tensor) -> Transitions:
        """Return the transitions that start at samples [N, B]; gamma [N, 1]."""
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
        """Sum up to n_step discounted rewards from samples [N, B] on.

        Returns the sum, gamma^k for its k rewards, and the last sample in it, all [N, B]. The sum
        ends with the episode, at the newest step, and before an invalid step.
        """
        ends, offset = self._flat()[:, -EXTRA_COLUMNS:], self._offset()
        size = self._samples.shape[1]
        base = samples // size * size  # offset of the peer that a shared sample belongs to
        total, decay = torch.zeros_like(gamma), torch.ones_like(gamma)
        at, last = samples, samples
        running = torch.ones_like(samples, dtype=torch.bool)
        for _ in range(self.n_step):
            reward, _, done, valid = ends[at + offset].unbind(-1)
            running = running & (valid > 0)
            # `where`, not a product: unwritten memory may hold NaN
            total = total + torch.where(running, decay * reward, 0)
            decay = torch.where(running, decay * gamma, decay)
            last = torch.where(running, at, last)
            running = running & (done == 0) & ((at - base) // self.n_envs != self._newest)
            at = base + (at - base + self.n_envs) % size
        return total, decay, last

    def _flat(self) -> Tensor:
        return self.rows.view(-1, self.rows.shape[-1])

    def _offset(self) -> Tensor:
        """Return the index of each learner's first sample in the flat view [N, 1]."""
        return self._rows * self._samples.shape[1]

    def since(self, total: int) -> Tensor:
        """Return a copy of the steps after the first `total`, oldest first [N, T, E, W].

        Steps that were overwritten since are left out; `extend` adds the rest to another replay.
        """
        return self.rows[:, self._slots(max(total, self.total - self.held), self.total)]

    def restart(self, total: int) -> None:
        """Empty the replay; the next step gets the number `total`."""
        self.total = self._begin = total
        self._first.zero_()
        self.live.zero_()
        self._ready = False
