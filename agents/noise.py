"""Noise by which deterministic policies explore."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from dpd.agents.base import State, put_back
from dpd.agents.config import TD3Config
from dpd.agents.nets import StackedNets
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

    def output(self, obs: Tensor) -> Tensor:
        """Return the acting networks' output at normalised obs [N, E, O] -> [N, E, A]."""
        ...

    def adapt(self, obs: Tensor, ended: Tensor) -> None:
        """Look at the normalised obs [N, S, O] that the last draw led to.

        `ended` [N, E]: environments in which an episode ended meanwhile.
        """
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

    def output(self, obs: Tensor) -> Tensor:
        """Return the output of the policy itself at normalised obs [N, E, O] -> [N, E, A]."""
        return self.actor.run(obs, "actor")[0][0]

    def adapt(self, obs: Tensor, ended: Tensor) -> None:
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
    """Normal noise on the policy's parameters, drawn for an episode (Plappert et al. 2018).

    Every environment has a perturbed copy of its learner's policy, which stays as it is while its
    episode runs and the policy learns on. It is drawn anew with the first iteration after the
    episode's end: an iteration's random numbers come before its steps, so that nothing waits for a
    device. The copy thus acts up to n_steps - 1 steps into the next episode; exactly one episode,
    where its length is a multiple of n_steps (1,000 of 50).

    The deviation adapts per learner, once per iteration, so that a policy perturbed now would act
    at a distance of `noise_std` (root mean square) from the policy itself; as in OpenAI baselines
    it is measured with a perturbation of its own, not with those that act. (The paper's networks
    have layer normalisation, which evens out what a perturbation does; these have not.)
    """

    def __init__(self, std: Tensor, actor: StackedNets, n_envs: int) -> None:
        self.target, self.actor, self.n_envs = std.unsqueeze(1), actor, n_envs  # [N, 1]
        self.perturbed, self.trial = actor.repeated(n_envs), actor.twin()
        self.std = self.target.clone()
        n = actor.flat.shape[0]
        self.due = torch.ones(n, n_envs, dtype=torch.bool, device=actor.flat.device)
        self.fresh = False  # whether anyone acted with the perturbed policies since the last look

    def draw(self, rng: RowRandom, *shape: int) -> Tensor:
        """Perturb the policy where a new episode runs; return noise of zero [N, T, E, A]."""
        flat = self.actor.flat.detach()
        n, size = flat.shape
        noise = rng.normal(self.n_envs + 1, size, dtype=flat.dtype) * self.std.unsqueeze(2)
        drawn = noise + flat.unsqueeze(1)
        held = self.perturbed.flat.detach().view(n, self.n_envs, size)
        held.copy_(torch.where(self.due.unsqueeze(2), drawn[:, 1:], held))
        self.trial.flat.detach().copy_(drawn[:, 0])
        self.due.fill_(False)
        self.fresh = True
        return flat.new_zeros(n, *shape)

    def output(self, obs: Tensor) -> Tensor:
        """Return the perturbed policies' output at normalised obs [N, E, O] -> [N, E, A]."""
        n, e, size = obs.shape
        (u,), _ = self.perturbed.run(obs.reshape(n * e, 1, size), "actor")
        return u.view(n, e, -1)

    def adapt(self, obs: Tensor, ended: Tensor) -> None:
        """Widen or narrow the noise by what it does at the normalised obs [N, S, O].

        `ended` [N, E]: environments in which an episode ended; their policies are due for a draw.
        """
        if not self.fresh:
            return
        self.due |= ended
        own, perturbed = (net.run(obs, "actor")[0][0].tanh() for net in (self.actor, self.trial))
        distance = (own - perturbed).square().mean((1, 2)).sqrt().unsqueeze(1)
        self.std *= torch.where(distance < self.target, ADOPTION, 1 / ADOPTION)
        self.fresh = False

    def state(self) -> State:
        """Return the deviations, the policies that act, and which of them are due for a draw."""
        n = self.actor.flat.shape[0]
        perturbed = self.perturbed.flat.detach().view(n, self.n_envs, -1)
        return {"std": self.std, "perturbed": perturbed, "due": self.due}

    def load_state(self, state: State) -> None:
        """Put a state back. Raises ValueError where it is not one of the same shape."""
        put_back(self.state(), state)


def exploration(std: Tensor, config: TD3Config, actor: StackedNets, act_dim: int) -> Exploration:
    """Return the kind of noise that the settings name, of a deviation per learner std [N]."""
    match config.exploration:
        case "ou":
            return OrnsteinUhlenbeck(std, config, actor, act_dim)
        case "param":
            return ParameterNoise(std, actor, config.n_envs)
    return GaussianNoise(std, actor)
