"""The base class of every algorithm: a stack of N learners that acts and updates as one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from dpd.agents.base import (
    CPU,
    Answer,
    Batch,
    ExtraLoss,
    LearnerId,
    Metrics,
    Rollout,
    State,
    Stateful,
    per_row,
    put_back,
)
from dpd.agents.dist import DiagGaussian
from dpd.agents.graphs import Graphs
from dpd.agents.nets import Shapes, StackedNets, mlp_shapes
from dpd.agents.norm import ObsNorm
from dpd.agents.optim import StackedAdam
from dpd.agents.ppo_config import PPOConfig
from dpd.agents.replay import Replay
from dpd.agents.rng import RowRandom, Stream
from dpd.agents.student_config import StudentConfig
from dpd.agents.views import Frames, MemoryNorm, View, ViewNorm

if TYPE_CHECKING:
    from dpd.agents.kernels import Kernels

FusedImitation = Callable[[Sequence[Tensor], Tensor, float, float], Tensor]
"""Gradient steps by a kernel: targets, active [steps, N], bound of the gradient's norm, coefficient
-> mean loss [N]; see `Kernels.imitate`."""


class Learners(Stateful, ABC):
    """N learners, each with its own discount, learning rate, normaliser and random numbers.

    With `views`, one per learner, observations are wide everywhere (`views.py`).
    """

    STATE: ClassVar[tuple[str, ...]] = ("nets", "optimizer", "explore", "obs_norm", "lr")

    config: Any
    """The algorithm's settings; subclasses narrow the type."""
    nets: StackedNets
    """The policies' networks; a distillation loss moves `nets.flat`."""
    optimizer: StackedAdam
    """The optimizer of `nets`."""
    replay: Replay | None = None
    """Not part of the state: a checkpoint appends its new steps to files."""
    kernels: Kernels | None = None
    """Compiled updates; None: torch's operations."""
    rl_coef = 1.0
    """Weight of reinforcement learning in the loss of the policies; value functions and critics
    learn with any weight. A method that changes it sets it in every iteration."""

    def __init__(
        self,
        config: Any,
        obs_dim: int,
        act_dim: int,
        ids: Sequence[LearnerId],
        dtype: torch.dtype = torch.float32,
        device: torch.device = CPU,
        views: Sequence[View] = (),
        critic_columns: Sequence[int] = (),
    ) -> None:
        n = self.n_learners = len(ids)
        self.config, self.views, self.critic_columns = config, views, critic_columns
        self.in_dims = [view.dim for view in views] or [obs_dim] * n
        """Inputs of each learner's networks."""
        self.in_dim = max(self.in_dims)
        self.obs_dim = obs_dim + self.in_dim + config.memory_dim if views else obs_dim
        """Numbers of a stored observation, which is wide if there are views."""
        self.act_dim, self.dtype, self.device = act_dim, dtype, device
        self.graphs = Graphs(device)
        self.explore = RowRandom(ids, Stream.EXPLORE, device)
        gamma = per_row(config.peer_gamma, config.gamma, ids)
        self.gamma = gamma.to(device, dtype).unsqueeze(1)  # [N, 1]
        self.lr = per_row(config.peer_lr, config.lr, ids)
        of_views = MemoryNorm if config.memory_dim else ViewNorm
        self.obs_norm = (
            of_views(views, dtype, config.norm_obs, device)
            if views
            else ObsNorm(n, obs_dim, dtype, config.norm_obs, device)
        )
        self._make(ids)

    @abstractmethod
    def _make(self, ids: Sequence[LearnerId]) -> None:
        """Create `nets`, the `optimizer` and everything else that the algorithm needs."""

    @property
    def warming_up(self) -> bool:
        """True while the learners only collect data, without updates."""
        return False

    @property
    def reward_scale(self) -> Tensor:
        """Raw reward units per unit of the reward that the learners train on [N, 1]."""
        return torch.ones_like(self.gamma)

    def new_rollout(self) -> Rollout:
        """Return an empty buffer for one iteration."""
        c = self.config
        sizes = (c.n_steps, c.n_envs, self.obs_dim, self.act_dim)
        return Rollout(self.n_learners, *sizes, self.dtype, self.device)

    def new_frames(self, n_envs: int, sensors: RowRandom) -> Frames | None:
        """Return what the learners will see in so many environments each; None without views.

        `sensors` draw the noise.
        """
        if not self.views:
            return None
        return Frames(self.views, n_envs, sensors, self.dtype, self.device)

    def noise(self) -> Tensor:
        """Draw an iteration's exploration noise [N, T, E, A] in one block."""
        c = self.config
        return self.explore.normal(c.n_steps, c.n_envs, self.act_dim, dtype=self.dtype)

    @abstractmethod
    def act(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Explore on raw obs [N, E, O] with noise [N, E, A] -> [N, E, A]."""

    @torch.no_grad()
    def mode(self, obs: Tensor) -> Tensor:
        """Act without noise on raw obs [N, B, O] -> [N, B, A] in [-1, 1]."""
        return self.dist(self.obs_norm(obs)).mode()

    @abstractmethod
    def dist(self, obs: Tensor) -> DiagGaussian:
        """Return the policy at normalised obs [N, B, O], differentiably."""

    @abstractmethod
    def ask(self, obs: Tensor) -> Answer:
        """Return the policy and the values at raw obs [N, B, O]; values in raw reward units."""

    @torch.no_grad()
    def prepare(self, rollout: Rollout) -> Batch:
        """Store a rollout in the replay; return its states, or all that `update` learns from."""
        assert self.replay is not None
        self.replay.push(rollout)
        return Batch(None, rollout.flat_obs(), None, rollout.valid.flatten(1))

    @abstractmethod
    def update(self, batch: Batch, progress: float, extra: ExtraLoss | None = None) -> Metrics:
        """Learn from an iteration; return metrics [N].

        `progress` in [0, 1] is the share of training that is done. `extra` adds a loss to every
        update of the policy, on the same minibatch.
        """

    def fused_imitation(self, kind: str, optimizer: StackedAdam) -> FusedImitation | None:
        """Return the kernel that takes gradient steps on a divergence of the policies; or None."""
        if self.kernels is None:
            return None
        return partial(self.kernels.imitate, self.nets, optimizer, kind)

    def observe(self, rollout: Rollout) -> None:
        """Update the normalisers with a rollout, after its last use."""
        self.obs_norm.update(rollout.flat_obs(), rollout.valid.flatten(1))

    def load_state(self, state: State) -> None:
        super().load_state(state)
        self.graphs.forget()  # a recording keeps the numbers it was made with

    def retry(self, rows: Sequence[int], attempt: int) -> None:
        """Give diverged rows new random numbers and half the learning rate."""
        self.explore.reseed(rows, attempt)
        self.lr[list(rows)] *= 0.5
        self.graphs.forget()  # rows of equal learning rate are recorded as one call

    @abstractmethod
    def start_from(self, n: int, policy: Mapping[str, Tensor]) -> None:
        """Give learner n a policy and its normaliser, as returned by `export`.

        Critics and value functions keep their initial parameters. Raises ValueError or
        RuntimeError for a policy of other widths.
        """

    @abstractmethod
    def export(self, n: int) -> dict[str, Tensor]:
        """Return learner n's policy and normaliser in the format of a policy file."""


class GaussianLearners(Learners):
    """N policies N(actor(obs), exp(log_std)).

    The `nets` of a subclass hold at least `actor` and `log_std`.
    """

    config: PPOConfig | StudentConfig

    def _policy_shapes(self, hidden: Sequence[int], in_dim: int) -> Shapes:
        actor = mlp_shapes("actor", [in_dim, *hidden, self.act_dim])
        return actor | {"log_std": (1, self.act_dim)}

    def _initialise(self, prefix: str, last_gain: float, rng: RowRandom) -> None:
        """Initialise an MLP as Stable-Baselines3 does, and the deviations."""
        trunk = len(self.nets.layers[prefix]) - 1
        self.nets.init_orthogonal(prefix, [math.sqrt(2)] * trunk + [last_gain], rng.generators)
        self.nets.views["log_std"].fill_(self.config.log_std_init)

    def dist(self, obs: Tensor) -> DiagGaussian:
        mean, log_std = self.nets(obs, "actor", "log_std")
        return DiagGaussian(mean, log_std)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Sample actions from raw obs [N, E, O] and noise [N, E, A] -> [N, E, A], unclipped."""
        if self.kernels is not None:
            return self.kernels.act(self.nets, self.obs_norm, self.obs_norm.select(obs), noise)
        return self.dist(self.obs_norm(obs)).sample(noise)

    def mode(self, obs: Tensor) -> Tensor:
        if self.kernels is not None:
            return self.kernels.act(self.nets, self.obs_norm, self.obs_norm.select(obs))
        return super().mode(obs)

    def _policy(self, n: int) -> dict[str, Tensor]:
        """Return views of learner n's policy parameters, without those of a value function."""
        parts = ("encoder", "actor", "log_std")
        names = [k for k in self.nets.views if k.split(".")[0] in parts]
        return {k: self.nets.own(n, k) for k in names}

    def start_from(self, n: int, policy: Mapping[str, Tensor]) -> None:
        own = self._policy(n)
        put_back(own, {k: policy[k] for k in own})
        self.obs_norm.start_from(n, policy)

    def export(self, n: int) -> dict[str, Tensor]:
        return self._policy(n) | self.obs_norm.export(n)
