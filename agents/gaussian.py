"""What the stacks whose policies have a deviation of their own share: PPO and students."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from dpd.agents.base import CPU, State, Stateful, load_parts, per_row, put_back, state_of
from dpd.agents.buffers import Rollout
from dpd.agents.dist import DiagGaussian
from dpd.agents.nets import Shapes, StackedNets, mlp_shapes
from dpd.agents.norm import ObsNorm
from dpd.agents.optim import StackedAdam
from dpd.agents.ppo_config import PPOConfig
from dpd.agents.rng import RowRandom, Stream
from dpd.agents.student_config import StudentConfig

Config = TypeVar("Config", PPOConfig, StudentConfig)


class GaussianLearners(Generic[Config]):
    """N policies N(actor(obs), exp(log_std)) with a normaliser each, and how they act and are kept.

    A subclass makes `nets`, which hold at least `actor` and `log_std`, and the `optimizer`.
    """

    nets: StackedNets
    optimizer: StackedAdam

    def __init__(
        self,
        config: Config,
        obs_dim: int,
        act_dim: int,
        seeds: Sequence[Sequence[int]],
        dtype: torch.dtype = torch.float32,
        device: torch.device = CPU,
    ) -> None:
        n = self.n_learners = len(seeds)
        self.config: Config = config
        self.obs_dim, self.act_dim, self.dtype, self.device = obs_dim, act_dim, dtype, device
        self.explore = RowRandom(seeds, Stream.EXPLORE, device)
        gamma = per_row(config.peer_gamma, config.gamma, seeds)
        self.gamma = gamma.to(device, dtype).unsqueeze(1)
        self.lr = per_row(config.peer_lr, config.lr, seeds)
        self.obs_norm = ObsNorm(n, obs_dim, dtype, config.norm_obs, device)

    def _policy_shapes(self, hidden: Sequence[int]) -> Shapes:
        actor = mlp_shapes("actor", [self.obs_dim, *hidden, self.act_dim])
        return actor | {"log_std": (1, self.act_dim)}

    def _initialise(self, prefix: str, last_gain: float, rng: RowRandom) -> None:
        """Fill an MLP's weights as Stable-Baselines3 does, and the deviations."""
        trunk = len(self.nets.layers[prefix]) - 1
        self.nets.init_orthogonal(prefix, [math.sqrt(2)] * trunk + [last_gain], rng.generators)
        self.nets.views["log_std"].fill_(self.config.log_std_init)

    def dist(self, obs: Tensor) -> DiagGaussian:
        """Return the policy at normalised obs [N, B, O]."""
        mean, log_std = self.nets(obs, "actor", "log_std")
        return DiagGaussian(mean, log_std)

    def new_rollout(self) -> Rollout:
        """Return an empty buffer for one iteration."""
        c = self.config
        sizes = (c.n_steps, c.n_envs, self.obs_dim, self.act_dim)
        return Rollout(self.n_learners, *sizes, self.dtype, self.device)

    def noise(self) -> Tensor:
        """Draw an iteration's exploration noise [N, T, E, A] in one block."""
        c = self.config
        return self.explore.normal(c.n_steps, c.n_envs, self.act_dim, dtype=self.dtype)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Sample actions from raw obs [N, E, O] and noise [N, E, A] -> [N, E, A], unclipped."""
        return self.dist(self.obs_norm(obs)).sample(noise)

    @torch.no_grad()
    def mode(self, obs: Tensor) -> Tensor:
        """Act without noise on raw obs [N, B, O] -> [N, B, A] in [-1, 1]."""
        return self.dist(self.obs_norm(obs)).mode()

    def observe(self, rollout: Rollout) -> None:
        """Take a rollout into the normaliser, after its last use."""
        self.obs_norm.update(rollout.flat_obs(), rollout.valid.flatten(1))

    def _parts(self) -> dict[str, Stateful]:
        return {
            "nets": self.nets,
            "optimizer": self.optimizer,
            "explore": self.explore,
            "obs_norm": self.obs_norm,
        }

    def state(self) -> State:
        """Return all that the learners' future depends on, but for the journal."""
        return state_of(self._parts()) | {"lr": self.lr}

    def load_state(self, state: State) -> None:
        """Put a state back. Raises ValueError where it is of other learners."""
        load_parts(self._parts(), state)
        put_back({"lr": self.lr}, {"lr": state["lr"]})

    def retry(self, rows: Sequence[int], attempt: int) -> None:
        """Give rows new random numbers and half the learning rate, after they diverged."""
        self.explore.reseed(rows, attempt)
        self.lr[list(rows)] *= 0.5

    def _policy(self, n: int) -> dict[str, Tensor]:
        """Return views of learner n's policy; of a value function, nothing."""
        names = [k for k in self.nets.views if k.split(".")[0] in ("actor", "log_std")]
        return {k: self.nets.own(n, k) for k in names}

    def start_from(self, n: int, policy: Mapping[str, Tensor]) -> None:
        """Give learner n a policy and its normaliser, as `export` returns them.

        A value function stays as it was made. Raises ValueError for a policy of other widths.
        """
        own = self._policy(n)
        put_back(own, {k: policy[k] for k in own})
        self.obs_norm.start_from(n, policy)

    def export(self, n: int) -> dict[str, Tensor]:
        """Return learner n's policy and normaliser, as a policy file holds them."""
        return self._policy(n) | self.obs_norm.export(n)
