"""Views: the part of the observations that a learner sees, with noise, a delay and a history.

A view is a function of the last observations and actions of an episode. Learners that have one
store *wide* observations [..., W]: the raw observation, as a teacher reads it, and behind it all
that the learner sees, and last the memory [S] that a recurrent learner had of the episode before.
The noise is thus drawn once, and a stored state needs no earlier ones.

Notation: a frame is what is seen of one step · G numbers of a frame · H frames, oldest first ·
F = H G numbers in all · L frames kept. A stack has N views, each of which may have another F.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from dpd.agents.base import CPU, State, Stateful
from dpd.agents.config import View
from dpd.agents.norm import EPSILON, ObsNorm
from dpd.agents.rng import RowRandom


def see_all(obs_dim: int, act_dim: int, history: int) -> View:
    """Return a view of whole frames, observations and actions, from which any view follows."""
    columns = tuple(range(obs_dim))
    return View(
        obs_dim=obs_dim, act_dim=act_dim, columns=columns, prev_action=True, history=history
    )


def stacked_places(views: Sequence[View], frames: int, device: torch.device) -> Tensor:
    """Return the places [N, 1, F] of what N learners see, padded with -1 to the widest."""
    dim = max(view.dim for view in views)
    rows = [view.places(frames) + [-1] * (dim - view.dim) for view in views]
    return torch.tensor(rows, device=device).unsqueeze(1)


class Frames(Stateful):
    """The last frames of N learners' environments, and what their views make of them.

    Noise is drawn for all columns of an observation, so that a learner's draws do not depend on
    what it or others see.
    """

    STATE: ClassVar[tuple[str, ...]] = ("kept", "rng")

    def __init__(
        self,
        views: Sequence[View],
        n_envs: int,
        rng: RowRandom,
        dtype: torch.dtype = torch.float32,
        device: torch.device = CPU,
    ) -> None:
        n, first = len(views), views[0]
        length, width = max(view.reach for view in views), first.obs_dim + first.act_dim
        self.obs_dim, self.rng = first.obs_dim, rng
        self.kept = torch.zeros(n, n_envs, length, width, dtype=dtype, device=device)
        places = stacked_places(views, length, device)
        self.padding = places < 0
        self.places = places.clamp(min=0).expand(-1, n_envs, -1)
        self.act: Tensor | None = None  # the last action, between two calls of `follow`
        self.std: Tensor | None = None
        if any(view.has_noise for view in views):
            rows = [noise_per_column(view) for view in views]
            self.std = torch.tensor(rows, dtype=dtype, device=device).unsqueeze(1)  # [N, 1, O]

    def draw(self, steps: int) -> Sequence[Tensor | None]:
        """Draw the noise [N, E, O] of some steps; None for each if there is none."""
        if self.std is None:
            return [None] * steps
        n_envs, dtype = self.kept.shape[1], self.kept.dtype
        noise = self.rng.normal(steps, n_envs, self.obs_dim, dtype=dtype)
        return noise.mul_(self.std.unsqueeze(1)).unbind(1)

    def begin(self, obs: Tensor) -> Tensor:
        """Begin an episode everywhere at raw obs [N, E, O]; return wide ones [N, E, W]."""
        (noise,) = self.draw(1)
        self.restart(obs, noise)
        return self.widen(obs)

    def advance(
        self, next_obs: Tensor, obs: Tensor, act: Tensor, over: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Add a step with act [N, E, A]; return the wide next_obs and the wide obs to act on.

        Where `over` [N, E], obs is the first of an episode, and next_obs the last one before it.
        """
        self.push(next_obs, act.clamp(-1, 1), noise)
        after = self.widen(next_obs)
        self.restart(obs, noise, over)
        return after, self.widen(obs)

    def follow(self, obs: Tensor) -> Tensor:
        """Go to the next raw obs [N, E, O] of the same episodes; return wide ones [N, E, W].

        The caller sets `act` to what is done at each; as long as it is None, episodes begin.
        """
        if self.act is None:
            return self.begin(obs)
        (noise,) = self.draw(1)
        self.push(obs, self.act.clamp(-1, 1), noise)
        return self.widen(obs)

    def push(self, obs: Tensor, act: Tensor, noise: Tensor | None = None) -> None:
        """Add a frame: raw obs [N, E, O] and the action before it [N, E, A]."""
        frame = torch.cat([obs if noise is None else obs + noise, act], -1)
        self.kept = torch.cat([self.kept[:, :, 1:], frame.unsqueeze(2)], 2)

    def restart(
        self, obs: Tensor, noise: Tensor | None = None, where: Tensor | None = None
    ) -> None:
        """Fill the history with the first frame of an episode, everywhere or `where` [N, E]."""
        seen = obs if noise is None else obs + noise
        act = seen.new_zeros(*seen.shape[:2], self.kept.shape[-1] - self.obs_dim)
        first = torch.cat([seen, act], -1).unsqueeze(2).expand_as(self.kept)
        self.kept = (
            first.clone()
            if where is None
            else torch.where(where.view(*where.shape, 1, 1), first, self.kept)
        )

    def seen(self) -> Tensor:
        """Return what the learners see, frame by frame [N, E, F]; padding is 0."""
        return self.kept.flatten(2).gather(2, self.places).masked_fill_(self.padding, 0)

    def widen(self, obs: Tensor) -> Tensor:
        """Return raw obs [N, E, O] with what is seen at present behind them [N, E, W]."""
        return torch.cat([obs, self.seen()], -1)


class RememberingFrames(Frames):
    """The last frames, and the memories [N, E, S] that recurrent learners have of those before.

    `remember` maps what is seen [N, E, F] and a memory to the memory after it.
    """

    STATE = (*Frames.STATE, "memory")

    def __init__(
        self,
        views: Sequence[View],
        n_envs: int,
        rng: RowRandom,
        remember: Callable[[Tensor, Tensor], Tensor],
        memory_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device = CPU,
    ) -> None:
        super().__init__(views, n_envs, rng, dtype, device)
        self.remember = remember
        self.memory = self.kept.new_zeros(len(views), n_envs, memory_dim)

    def push(self, obs: Tensor, act: Tensor, noise: Tensor | None = None) -> None:
        self.memory = self.remember(self.seen(), self.memory)
        super().push(obs, act, noise)

    def restart(
        self, obs: Tensor, noise: Tensor | None = None, where: Tensor | None = None
    ) -> None:
        super().restart(obs, noise, where)
        self.memory = (
            torch.zeros_like(self.memory)
            if where is None
            else self.memory.masked_fill(where.unsqueeze(-1), 0)
        )

    def widen(self, obs: Tensor) -> Tensor:
        return torch.cat([super().widen(obs), self.memory], -1)


def noise_per_column(view: View) -> list[float]:
    """Return the standard deviation of the noise on every column of a raw observation [O]."""
    std = dict(zip(view.columns, view.noise, strict=False))
    return [std.get(c, 0.0) for c in range(view.obs_dim)]


class ViewNorm(ObsNorm):
    """Normalise what learners see of wide observations, by statistics of raw ones.

    All frames share the statistics of a single one, so that a longer history is no other
    normaliser. The variance of a noisy column includes that of its noise. Actions stay unchanged.
    """

    def __init__(
        self,
        views: Sequence[View],
        dtype: torch.dtype,
        enabled: bool = True,
        device: torch.device = CPU,
    ) -> None:
        self.views, self.obs_dim = views, views[0].obs_dim
        of_action = self.obs_dim  # a column beyond the raw ones: mean 0, scale 1
        dim = max(view.dim for view in views)
        rows = []
        for view in views:
            frame = [*view.columns, *[of_action] * (view.frame_dim - len(view.columns))]
            rows.append(frame * view.history + [of_action] * (dim - view.dim))
        self._source = torch.tensor(rows, device=device)  # [N, F]
        noise = [noise_per_column(view) for view in views]
        self._noise_var = torch.tensor(noise, dtype=torch.float64, device=device).square()
        super().__init__(len(views), self.obs_dim, dtype, enabled, device)

    @property
    def changes_nothing(self) -> bool:
        return False

    def select(self, obs: Tensor) -> Tensor:
        return obs[..., self.obs_dim : self.obs_dim + self._source.shape[1]]

    def _inputs(self, x: Tensor, filler: float) -> Tensor:
        return torch.cat([x, torch.full_like(x[:, :1], filler)], 1).gather(1, self._source)

    @property
    def _variance(self) -> Tensor:
        return self.moments.var + self._noise_var

    def update(self, obs: Tensor, valid: Tensor | None = None) -> None:
        super().update(obs[..., : self.obs_dim], valid)

    def export(self, n: int) -> State:
        """Return the normaliser of learner n's single frames in the format of a policy file."""
        frame = slice(self.views[n].frame_dim)
        return {k: x if k == "obs_count" else x[:, frame] for k, x in super().export(n).items()}

    def start_from(self, n: int, saved: Mapping[str, Tensor]) -> None:
        columns = list(self.views[n].columns)
        seen = slice(len(columns))
        self.moments.mean[n, columns] = saved["obs_mean"][0, seen].double()
        var = saved["obs_scale"][0, seen].double() ** -2 - EPSILON - self._noise_var[n, columns]
        self.moments.var[n, columns] = var.clamp(min=0)
        self.moments.count[n] = saved["obs_count"][0]
        self._refresh()


class MemoryNorm(ViewNorm):
    """Normalise what recurrent learners see; the memory behind it is theirs, and stays as it is."""

    def __call__(self, obs: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return what is seen, normalised, with the memory behind it [N, B, F + S]."""
        memory = obs[..., self.obs_dim + self._source.shape[1] :]
        return torch.cat([super().__call__(obs, rows), memory], -1)


class RawNorm(ObsNorm):
    """Normalise columns C of the raw observations at the front of wide ones [N, B, W]."""

    def __init__(
        self,
        n: int,
        columns: Sequence[int],
        dtype: torch.dtype,
        enabled: bool = True,
        device: torch.device = CPU,
    ) -> None:
        self._columns = torch.tensor(columns, device=device)
        super().__init__(n, len(columns), dtype, enabled, device)

    @property
    def changes_nothing(self) -> bool:
        return False

    def select(self, obs: Tensor) -> Tensor:
        return obs.index_select(-1, self._columns)

    def update(self, obs: Tensor, valid: Tensor | None = None) -> None:
        super().update(self.select(obs), valid)
