"""Diagonal Gaussian policies, plain and squashed by tanh."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


class DiagGaussian(NamedTuple):
    """Independent Gaussians per action dimension; `squashed`: the action is tanh of the sample.

    Everything is asked in terms of the sample before the tanh, so that no inverse is taken.
    """

    mean: Tensor  # [..., A]
    log_std: Tensor  # broadcasts against mean
    squashed: bool = False

    def sample(self, noise: Tensor) -> Tensor:
        """Return mean + std * noise, before any tanh [..., A]."""
        return torch.addcmul(self.mean, self.log_std.exp(), noise)

    def action(self, sample: Tensor) -> Tensor:
        """Return the action of a sample [..., A]; an unsquashed one may leave [-1, 1]."""
        return sample.tanh() if self.squashed else sample

    def mode(self) -> Tensor:
        """Return the action without noise, in [-1, 1] [..., A]."""
        return self.mean.tanh() if self.squashed else self.mean.clamp(-1, 1)

    def logp(self, sample: Tensor) -> Tensor:
        """Return the log-probability of the action of a sample [...]."""
        z = (sample - self.mean) * torch.exp(-self.log_std)
        per_dim = z.square().sum(-1)
        logp = per_dim * -0.5 - (self.log_std.sum(-1) + 0.5 * LOG_2PI * self.mean.shape[-1])
        if self.squashed:
            # log |d tanh(u) / du| = 2 (log 2 - u - softplus(-2u)), stable for large |u|
            logp = logp - 2 * (math.log(2) - sample - F.softplus(-2 * sample)).sum(-1)
        return logp

    def entropy(self) -> Tensor:
        """Return the entropy of the Gaussian [...]; a squashed one has no closed form: raises."""
        if self.squashed:
            raise ValueError("a squashed Gaussian has no closed-form entropy; use -logp(sample)")
        return (self.log_std + 0.5 * (1 + LOG_2PI)).sum(-1)
