"""Noise by which deterministic policies explore."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from dpd.agents.base import State, put_back
from dpd.agents.nets import StackedNets
from dpd.agents.offpolicy_config import TD3Config
from dpd.agents.rng import RowRandom

ADOPTION = 1.01  # step of the adaptation (OpenAI baselines)


def uniform(noise: Tensor) -> Tensor:
    """Turn standard normals into numbers uniform in [-1, 1]."""
    return torch.erf(noise * math.sqrt(0.5))


class Exploration(Protocol):
    """Noise for an iteration of a stack of learners."""

    def draw(self, rng: RowRandom, *shape: int) -> Tensor:
        """Draw the noise to add to an iteration's actions [N, T, E, A]."""
        ...

    def nets(self) -> StackedNets:
        """Return the networks that act until the next draw."""
        ...

    def adapt(self, obs: Tensor) -> None:
        """Look at the normalised obs [N, S, O] that the last draw led to."""
        ...

    def state(self) -> State:
        """Return all that its future depends on; may be live tensors."""
        ...

    def load_state(self, state: State) -> None:
        """Put a state back. Raises ValueError where it is not one of the same shape."""
        ...


class GaussianNoise:
    """Independent normal noise on every action."""

    def __init__(self, std: Tensor, actor: StackedNets) -> None:
        self.std, self.actor = std.view(-1, 1, 1, 1), actor

    def draw(self, rng: RowRandom, *shape: int) -> Tensor:
        """Draw an iteration's noise [N, T, E, A]."""
        return rng.normal(*shape, dtype=self.actor.flat.dtype).mul_(self.std)

    def nets(self) -> StackedNets:
        """Return the policy itself."""
        return self.actor

    def adapt(self, obs: Tensor) -> None:
        """Nothing adapts."""

    def state(self) -> State:
        """Return nothing."""
        return {}

    def load_state(self, state: State) -> None:
        """Take nothing back."""


class OrnsteinUhlenbeck(GaussianNoise):
    """x <- (1 - theta) x + std * normal in every environment (Lillicrap et al. 2016).

    Its stationary deviation is std / sqrt(2 theta - theta^2). It runs on through the ends of
    episodes, since a whole iteration is drawn before it is known where they are.
    """

    def __init__(self, std: Tensor, config: TD3Config, actor: StackedNets, act_dim: int) -> None:
        super().__init__(std, actor)
        self.keep = 1 - config.ou_theta
        self.x = std.new_zeros(actor.flat.shape[0], config.n_envs, act_dim)

    def draw(self, rng: RowRandom, *shape: int) -> Tensor:
        """Go on with the process for an iteration [N, T, E, A]."""
        noise = super().draw(rng, *shape)
        for t in range(noise.shape[1]):
            noise[:, t] += self.keep * (noise[:, t - 1] if t else self.x)
        self.x.copy_(noise[:, -1])
        return noise

    def state(self) -> State:
        """Return where the process stands."""
        return {"x": self.x}

    def load_state(self, state: State) -> None:
        """Put the process back where it stood."""
        put_back(self.state(), state)


class ParameterNoise:
    """Normal noise on all parameters of each learner's policy (Plappert et al. 2018).

    Its deviation adapts per learner, so that the perturbed policy's actions differ from the
    policy's own by `noise_std` in the root mean square. (The paper's networks have layer
    normalisation, which evens out what a perturbation does; these have not.)
    """

    def __init__(self, std: Tensor, actor: StackedNets) -> None:
        self.target, self.actor = std.unsqueeze(1), actor  # [N, 1]
        self.perturbed = actor.twin()
        self.std = self.target.clone()
        self.fresh = False  # whether anyone acted with the perturbed policy

    def draw(self, rng: RowRandom, *shape: int) -> Tensor:
        """Perturb the policy; return noise of zero [N, T, E, A]."""
        flat = self.actor.flat.detach()
        noise = rng.normal(flat.shape[1], dtype=flat.dtype)
        torch.addcmul(flat, self.std, noise, out=self.perturbed.flat.detach())
        self.fresh = True
        return flat.new_zeros(flat.shape[0], *shape)

    def nets(self) -> StackedNets:
        """Return the perturbed policy."""
        return self.perturbed

    def adapt(self, obs: Tensor) -> None:
        """Widen or narrow the noise by what it did at the normalised obs [N, S, O]."""
        if not self.fresh:
            return
        own, perturbed = (
            net.run(obs, "actor")[0][0].tanh() for net in (self.actor, self.perturbed)
        )
        distance = (own - perturbed).square().mean((1, 2)).sqrt().unsqueeze(1)
        self.std *= torch.where(distance < self.target, ADOPTION, 1 / ADOPTION)
        self.fresh = False

    def state(self) -> State:
        """Return the deviations; the policy is perturbed anew before it acts."""
        return {"std": self.std}

    def load_state(self, state: State) -> None:
        """Put the deviations back."""
        put_back(self.state(), state)


def exploration(std: Tensor, config: TD3Config, actor: StackedNets, act_dim: int) -> Exploration:
    """Return the kind of noise that the settings name, of a deviation per learner std [N]."""
    match config.exploration:
        case "ou":
            return OrnsteinUhlenbeck(std, config, actor, act_dim)
        case "param":
            return ParameterNoise(std, actor)
    return GaussianNoise(std, actor)
