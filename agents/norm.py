"""Running normalisers of observations and rewards, with separate statistics per learner."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dpd.agents.base import CPU, State, Stateful

EPSILON = 1e-8  # Stable-Baselines3's VecNormalize
CLIP = 10.0  # likewise


class RunningMoments(Stateful):
    """Running mean and variance per learner and dimension, in float64.

    They start as Stable-Baselines3's RunningMeanStd: mean 0, variance 1, weight 1e-4.
    """

    STATE = ("mean", "var", "count")

    def __init__(self, n: int, dim: int, device: torch.device = CPU) -> None:
        self.mean = torch.zeros(n, dim, dtype=torch.float64, device=device)
        self.var = torch.ones_like(self.mean)
        self.count = torch.full((n, 1), 1e-4, dtype=torch.float64, device=device)

    def update(self, x: Tensor, valid: Tensor | None = None) -> None:
        """Add a batch [N, B, dim] (Chan et al. 1979), only where valid [N, B]."""
        x = x.double()
        keep = torch.ones_like(x[..., :1]) if valid is None else valid.double().unsqueeze(-1)
        n_new = keep.sum(1)  # [N, 1]
        mean_new = (x * keep).sum(1) / n_new.clamp(min=1)
        var_new = ((x - mean_new.unsqueeze(1)).square() * keep).sum(1) / n_new.clamp(min=1)
        total = self.count + n_new
        delta = mean_new - self.mean
        squares = self.var * self.count + var_new * n_new
        self.var = (squares + delta.square() * self.count * n_new / total) / total
        self.mean = self.mean + delta * n_new / total
        self.count = total


class ObsNorm(Stateful):
    """Normalise observations by each learner's running statistics, clipped to +-10."""

    STATE = ("moments",)

    def __init__(
        self,
        n: int,
        dim: int,
        dtype: torch.dtype,
        enabled: bool = True,
        device: torch.device = CPU,
    ) -> None:
        self.moments = RunningMoments(n, dim, device)
        self.enabled = enabled
        inputs = self._inputs(self.moments.mean, 0.0).unsqueeze(1)
        self.mean = torch.empty_like(inputs, dtype=dtype)
        self.scale = torch.empty_like(self.mean)
        self._refresh()

    def load_state(self, state: State) -> None:
        super().load_state(state)
        self._refresh()

    def export(self, n: int) -> State:
        """Return learner n's normaliser in the format of a policy file."""
        count = self.moments.count[n].view(1, 1)
        return {"obs_mean": self.mean[n], "obs_scale": self.scale[n], "obs_count": count}

    def start_from(self, n: int, saved: Mapping[str, Tensor]) -> None:
        """Give learner n a normaliser as returned by `export`."""
        self.moments.mean[n] = saved["obs_mean"][0]
        self.moments.var[n] = saved["obs_scale"][0].double() ** -2 - EPSILON
        self.moments.count[n] = saved["obs_count"][0]
        self._refresh()

    def _refresh(self) -> None:
        """Round the statistics to `dtype`, in place: recorded updates read fixed addresses."""
        self.mean.copy_(self._inputs(self.moments.mean, 0.0).unsqueeze(1))
        scale = (self._variance + EPSILON).rsqrt()
        self.scale.copy_(self._inputs(scale, 1.0).unsqueeze(1))

    def _inputs(self, x: Tensor, filler: float) -> Tensor:
        """Return numbers of raw columns [N, dim] for every input of the networks.

        `filler` stands for inputs that are no column of an observation.
        """
        return x

    @property
    def _variance(self) -> Tensor:
        """The variance [N, dim] by which observations are scaled."""
        return self.moments.var

    @property
    def changes_nothing(self) -> bool:
        """True if the networks read observations as they are stored."""
        return not self.enabled

    def select(self, obs: Tensor) -> Tensor:
        """Return the part of stored observations that the networks read, not normalised."""
        return obs

    @property
    def clip(self) -> float:
        """Bound of normalised observations; infinite if they are not normalised."""
        return CLIP if self.enabled else math.inf

    def __call__(self, obs: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return normalised obs [N, B, dim]; `rows`: by the statistics of those learners [N]."""
        return self.normalised(self.select(obs), rows)

    def normalised(self, obs: Tensor, rows: Tensor | None = None) -> Tensor:
        """Normalise the part of stored observations that the networks read [N, B, dim]."""
        if not self.enabled:
            return obs
        mean, scale = self.mean, self.scale
        if rows is not None:
            mean, scale = mean.index_select(0, rows), scale.index_select(0, rows)
        return (obs - mean).mul_(scale).clamp_(-CLIP, CLIP)

    def update(self, obs: Tensor, valid: Tensor | None = None) -> None:
        """Update the statistics with the obs [N, B, dim] of a finished iteration."""
        if self.enabled:
            self.moments.update(obs, valid)
            self._refresh()


class ReturnNorm(Stateful):
    """Scale rewards by the running standard deviation of the discounted return; no centring.

    Scaled rewards are clipped to +-10, as in VecNormalize. The clip has no inverse: a value times
    `scale` is in raw reward units only if no reward was clipped (with running statistics, only
    rare outliers of the first iterations are).
    """

    STATE = ("moments", "ret")

    def __init__(self, n: int, n_envs: int, gamma: Tensor, enabled: bool = True) -> None:
        self.moments = RunningMoments(n, 1, gamma.device)
        self.gamma = gamma.double()  # [N, 1]
        self.ret = self.gamma.new_zeros(n, n_envs)  # discounted returns of running episodes
        self.enabled = enabled

    @property
    def scale(self) -> Tensor:
        """Raw reward units per unit of value [N, 1], float64."""
        if not self.enabled:
            return torch.ones_like(self.moments.var)
        return (self.moments.var + EPSILON).sqrt()

    def __call__(self, reward: Tensor) -> Tensor:
        """Return scaled rewards for reward [N, ...]."""
        if not self.enabled:
            return reward
        scale = self.scale.to(reward.dtype).view(-1, *[1] * (reward.ndim - 1))
        return (reward / scale).clamp_(-CLIP, CLIP)

    def update(self, reward: Tensor, done: Tensor, valid: Tensor) -> None:
        """Update with rewards, episode ends and validity [N, T, E] of a finished iteration."""
        if not self.enabled:
            return
        returns = torch.empty_like(reward, dtype=torch.float64)
        for t in range(reward.shape[1]):
            self.ret = self.ret * self.gamma + reward[:, t]
            returns[:, t] = self.ret
            self.ret = self.ret * ~done[:, t]
        self.moments.update(returns.flatten(1).unsqueeze(-1), valid.flatten(1))
