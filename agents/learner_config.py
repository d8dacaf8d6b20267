"""Settings that all learners have; imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    import torch

    from dpd.agents.learners import Learners


@dataclass(frozen=True, kw_only=True)
class LearnerConfig(ABC):
    """What a stack of any algorithm is told; each has defaults of its own, and says whose."""

    squashed: ClassVar[bool] = False
    """Whether actions are the tanh of a Gaussian's sample."""
    tanh_mean: ClassVar[bool] = False
    """Whether the Gaussian's mean is the tanh of the actor's output, with noise added behind it."""
    state_std: ClassVar[bool] = False
    """Whether the actor also gives the standard deviation."""
    lr: float = 3e-4
    """Adam's learning rate."""
    peer_lr: tuple[float, ...] = ()
    """Learning rate of each peer of a group; none: `lr` for all."""
    n_envs: int
    """Environments per learner."""
    n_steps: int
    """Steps per environment and iteration."""
    stagger: bool = False
    """Begin each environment's first episode at a random age, so that it is cut early: else all of
    a learner's environments go through their episodes in step, where only a time limit ends them
    (rsl_rl's init_at_random_ep_len). First episodes are then left out of train/return."""
    minibatch_size: int
    """Samples per learner and gradient step."""
    gamma: float = 0.99
    """Discount."""
    peer_gamma: tuple[float, ...] = ()
    """Discount of each peer of a group; none: `gamma` for all."""
    hidden: tuple[int, ...]
    """Hidden layers."""
    activation: Literal["tanh", "relu", "elu"] = "tanh"
    """Activation of the hidden layers."""
    norm_obs: bool = True
    """Normalise observations by running statistics (VecNormalize)."""

    def __post_init__(self) -> None:
        self._require_positive("lr", "n_envs", "n_steps", "minibatch_size")
        if self.peer_lr and min(self.peer_lr) <= 0:
            raise ValueError(f"peer_lr must be positive, not {self.peer_lr}")
        if not all(0 <= gamma <= 1 for gamma in (self.gamma, *self.peer_gamma)):
            raise ValueError(f"gamma must lie in [0, 1], not {self.gamma} or {self.peer_gamma}")
        if not self.hidden or min(self.hidden) <= 0:
            raise ValueError(f"hidden must name positive layer sizes, not {self.hidden}")

    def _require_positive(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")

    def _require_not_negative(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")

    @property
    @abstractmethod
    def learners(self) -> Callable[..., Learners]:
        """The stack of learners that these are the settings of."""

    def build(
        self,
        obs_dim: int,
        act_dim: int,
        seeds: Sequence[Sequence[int]],
        device: torch.device | None = None,
    ) -> Learners:
        """Return a stack of learners, one for each of `seeds`; no device is the CPU."""
        from dpd.agents.base import CPU

        return self.learners(self, obs_dim, act_dim, seeds, device=device or CPU)

    @property
    def samples(self) -> int:
        """Samples per learner and iteration."""
        return self.n_envs * self.n_steps
