"""Exploration noise for deterministic policies."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dpd.agents.base import State, put_back
from dpd.agents.config import TD3Config
from dpd.agents.nets import StackedNets
from dpd.agents.rng import RowRandom

ADOPTION = 1.01  # adaptation factor of parameter noise (OpenAI baselines)


def uniform_from_normal(noise: Tensor) -> Tensor:
    """Map standard normals to numbers uniform in [-1, 1]."""
    return torch.erf(noise * math.sqrt(0.5))


class GaussianNoise:
    """Independent normal noise on every action; the base class of all exploration noise."""

    def __init__(self, std: Tensor, actor: StackedNets) -> None:
        self.std, self.actor = std.view(-1, 1, 1, 1), actor

    def draw(self, rng: RowRandom, *shape: int) -> Tensor:
        """Draw the noise to add to an iteration's actions [N, T, E, A]."""
        return rng.normal(*shape, dtype=self.actor.flat.dtype).mul_(self.std)

    def output(self, obs: Tensor) -> Tensor:
        """Return the acting networks' output at normalised obs [N, E, O] -> [N, E, A]."""
        return self.actor.run(obs, "actor")[0][0]

    def adapt(self, obs: Tensor, ended: Tensor) -> None:
        """Adapt to the normalised obs [N, S, O] that the last draw led to; by default do nothing.

        `ended` [N, E] marks environments in which an episode ended.
        """

    def state(self) -> State:
        """Return everything the noise's future depends on; tensors may be live."""
        return {}

    def load_state(self, state: State) -> None:
        """Restore a state. Raises ValueError if names, shapes or dtypes differ."""
        put_back(self.state(), state)


class OrnsteinUhlenbeck(GaussianNoise):
    """The process x <- (1 - theta) x + std * normal per environment (Lillicrap et al. 2016).

    Its stationary deviation is std / sqrt(2 theta - theta^2). It continues across episode ends,
    since an iteration's noise is drawn before it is known where episodes will end.
    """

    def __init__(self, std: Tensor, config: TD3Config, actor: StackedNets, act_dim: int) -> None:
        super().__init__(std, actor)
        self.keep = 1 - config.ou_theta
        self.x = std.new_zeros(actor.flat.shape[0], config.n_envs, act_dim)

    def draw(self, rng: RowRandom, *shape: int) -> Tensor:
        """Continue the process for an iteration [N, T, E, A]."""
        noise = super().draw(rng, *shape)
        for t in range(noise.shape[1]):
            noise[:, t] += self.keep * (noise[:, t - 1] if t else self.x)
        self.x.copy_(noise[:, -1])
        return noise

    def state(self) -> State:
        return {"x": self.x}


class ParameterNoise(GaussianNoise):
    """Normal noise on the policy's parameters, fixed per episode (Plappert et al. 2018).

    Every environment has a perturbed copy of its learner's policy. The copy stays fixed during an
    episode while the policy itself is updated, and is redrawn in the first iteration after the
    episode's end: random numbers are drawn before the steps, so that the host need not wait for
    the device. The copy thus acts up to n_steps - 1 steps into the next episode, or for exactly
    one episode if the episode length is a multiple of n_steps (1,000 of 50).

    The deviation adapts per learner and iteration, so that the actions of a freshly perturbed
    policy are at a distance of `noise_std` (root mean square) from the policy's own. As in OpenAI
    baselines, the distance is measured with a separate perturbation that never acts. (The paper's
    networks have layer normalisation, which evens out the effect of a perturbation; these do not.)
    """

    def __init__(self, std: Tensor, actor: StackedNets, n_envs: int) -> None:
        super().__init__(std, actor)
        self.target, self.n_envs = std.unsqueeze(1), n_envs  # [N, 1]
        self.perturbed, self.trial = actor.repeated(n_envs), actor.twin()
        self.std = self.target.clone()
        n = actor.flat.shape[0]
        self.due = torch.ones(n, n_envs, dtype=torch.bool, device=actor.flat.device)
        self.fresh = False  # whether the perturbed policies acted since the last adaptation

    def draw(self, rng: RowRandom, *shape: int) -> Tensor:
        """Redraw the copies that are due; return zero action noise [N, T, E, A]."""
        flat = self.actor.flat.detach()
        n, size = flat.shape
        noise = rng.normal(self.n_envs + 1, size, dtype=flat.dtype) * self.std.unsqueeze(2)
        drawn = noise + flat.unsqueeze(1)
        copies = self.perturbed.flat.detach().view(n, self.n_envs, size)
        copies.copy_(torch.where(self.due.unsqueeze(2), drawn[:, 1:], copies))
        self.trial.flat.detach().copy_(drawn[:, 0])
        self.due.fill_(False)
        self.fresh = True
        return flat.new_zeros(n, *shape)

    def output(self, obs: Tensor) -> Tensor:
        n, e, size = obs.shape
        (u,), _ = self.perturbed.run(obs.reshape(n * e, 1, size), "actor")
        return u.view(n, e, -1)

    def adapt(self, obs: Tensor, ended: Tensor) -> None:
        """Widen or narrow the noise by its effect at the normalised obs [N, S, O].

        `ended` [N, E] marks environments in which an episode ended; their copies become due.
        """
        if not self.fresh:
            return
        self.due |= ended
        own, perturbed = (net.run(obs, "actor")[0][0].tanh() for net in (self.actor, self.trial))
        distance = (own - perturbed).square().mean((1, 2)).sqrt().unsqueeze(1)
        self.std *= torch.where(distance < self.target, ADOPTION, 1 / ADOPTION)
        self.fresh = False

    def state(self) -> State:
        """Return the deviations, the perturbed policies, and which of them are due."""
        n = self.actor.flat.shape[0]
        perturbed = self.perturbed.flat.detach().view(n, self.n_envs, -1)
        return {"std": self.std, "perturbed": perturbed, "due": self.due}


def make_noise(std: Tensor, config: TD3Config, actor: StackedNets, act_dim: int) -> GaussianNoise:
    """Return the exploration noise that the settings name, with deviations std [N]."""
    match config.exploration:
        case "ou":
            return OrnsteinUhlenbeck(std, config, actor, act_dim)
        case "param":
            return ParameterNoise(std, actor, config.n_envs)
    return GaussianNoise(std, actor)
