"""Settings of the learners with a replay: TD3, DDPG and SAC; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from dpd.agents.learner_config import LearnerConfig

if TYPE_CHECKING:
    from dpd.agents.sac import SAC
    from dpd.agents.td3 import TD3

COLUMNS = 4
"""Numbers in a stored transition beside obs, act and next_obs: reward, ends, validity."""


def bytes_held(capacity: int, n_envs: int, obs_dim: int, act_dim: int) -> int:
    """Return the memory that a learner's full replay takes, in float32."""
    held = capacity // n_envs * n_envs
    return held * (4 * (2 * obs_dim + act_dim + COLUMNS) + 8)


@dataclass(frozen=True, kw_only=True)
class OffPolicyConfig(LearnerConfig):
    """What all learners with a replay share.

    Unless a source is named, defaults are Stable-Baselines3's.
    """

    lr: float = 3e-4
    """Adam's learning rate of the policy and, unless it has its own, of the critics."""
    critic_lr: float | None = None
    """Adam's learning rate of the critics; None: as the policy's."""
    peer_lr: tuple[float, ...] = ()
    """Learning rate of each peer of a group, and of its critics; none: `lr` for all."""
    n_envs: int = 1
    """Environments per learner."""
    n_steps: int = 50
    """Steps per environment between updates: Spinning Up's 50. Random numbers are drawn and the
    simulation is called for that many at once; the policy acts that many steps behind."""
    capacity: int = 1_000_000
    """Transitions a learner remembers (Lillicrap et al. 2016)."""
    minibatch_size: int = 256
    """Transitions per learner and gradient step (Haarnoja et al. 2018)."""
    learning_starts: int = 10_000
    """A learner's environment steps with uniformly random actions and no updates, in whole
    iterations (Fujimoto et al. 2018 for HalfCheetah and Ant; rl-zoo3)."""
    updates_per_step: float = 1.0
    """Gradient steps per environment step of a learner."""
    extra_policy_updates: int = 0
    """Further updates of the policy alone after each of its own, on minibatches of their own: a
    control for methods that add some (the 2020 code's peers move their policies twice as often)."""
    share_replay: bool = False
    """Draw minibatches from the replays of all peers of a group: a control that shares data, and
    no policies."""
    n_step: int = 1
    """Rewards summed before the value of the state that follows takes over."""
    tau: float = 0.005
    """How far the target networks move towards their originals per update."""
    n_critics: int = 2
    """Critics per learner; their least answer counts (Fujimoto et al. 2018)."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden layers of the policy and of every critic (Haarnoja et al. 2018)."""
    activation: Literal["tanh", "relu", "elu"] = "relu"
    """Activation of the hidden layers."""
    norm_obs: bool = False
    """Normalise observations by running statistics."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("capacity", "updates_per_step", "n_step", "n_critics")
        if self.critic_lr is not None and self.critic_lr <= 0:
            raise ValueError(f"critic_lr must be positive, not {self.critic_lr}")
        self._require_not_negative("learning_starts", "extra_policy_updates")
        if self.peer_lr and self.critic_lr is not None:
            raise ValueError("peer_lr is of the critics too; leave critic_lr out")
        if not 0 < self.tau <= 1:
            raise ValueError(f"tau must lie in (0, 1], not {self.tau}")
        self._check_replay()

    def _check_replay(self) -> None:
        for name, least in (
            ("minibatch_size", self.minibatch_size),
            ("n_envs * n_steps", self.samples),
            ("learning_starts", self.learning_starts),
            ("n_envs * n_step", self.n_envs * self.n_step),
        ):
            if self.capacity < least:
                raise ValueError(f"capacity {self.capacity} is less than {name} = {least}")
        if self.samples * self.updates_per_step < 1:
            raise ValueError(
                f"updates_per_step {self.updates_per_step} is no whole update in the n_envs * "
                f"n_steps = {self.samples} steps of an iteration; raise it or n_steps"
            )

    @property
    def plan(self) -> str:
        """What an iteration is, for the start-up table."""
        return (
            f"{self.n_envs} envs x {self.n_steps} steps = {self.samples:,} a learner, "
            f"{self.updates:,} updates of {self.minibatch_size}; "
            f"the first {self.learning_starts:,} steps at random"
        )

    @property
    def updates(self) -> int:
        """Gradient steps per iteration."""
        return round(self.samples * self.updates_per_step)

    def replay_bytes(self, obs_dim: int, act_dim: int, n_learners: int) -> int:
        """Return the memory that full replays of all learners take, in float32."""
        return n_learners * bytes_held(self.capacity, self.n_envs, obs_dim, act_dim)


@dataclass(frozen=True, kw_only=True)
class TD3Config(OffPolicyConfig):
    """Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018)."""

    tanh_mean: ClassVar[bool] = True
    lr: float = 1e-3
    """Adam's learning rate of the policy and, unless it has its own, of the critics (paper)."""
    policy_delay: int = 2
    """Critic updates per update of the policy and of the targets (paper)."""
    target_noise: float = 0.2
    """Deviation of the noise on the target policy's action (paper)."""
    target_noise_clip: float = 0.5
    """Bound on that noise (paper)."""
    exploration: Literal["gaussian", "ou", "param"] = "gaussian"
    """Noise that explores: independent (paper); an Ornstein-Uhlenbeck process (Lillicrap et al.
    2016), which runs on through the ends of episodes; or adaptive noise on the policy's
    parameters, drawn anew for every episode of every environment (Plappert et al. 2018)."""
    noise_std: float = 0.1
    """Deviation of the action noise (paper); of the `ou` process's increments (Lillicrap et al.
    2016: 0.2); of the actions that `param` aims at (Plappert et al. 2018: 0.2)."""
    peer_noise_std: tuple[float, ...] = ()
    """That deviation for each peer of a group; none: `noise_std` for all."""
    ou_theta: float = 0.15
    """Share by which the `ou` process returns to zero per step (Lillicrap et al. 2016)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("policy_delay", "noise_std", "ou_theta")
        self._require_not_negative("target_noise", "target_noise_clip")
        if self.peer_noise_std and min(self.peer_noise_std) <= 0:
            raise ValueError(f"peer_noise_std must be positive, not {self.peer_noise_std}")
        if self.updates < self.policy_delay:
            raise ValueError(
                f"{self.updates} updates an iteration are fewer than policy_delay "
                f"{self.policy_delay}; raise updates_per_step or n_steps"
            )
        if self.exploration != "ou" and self.ou_theta != type(self).ou_theta:
            raise ValueError(
                f"ou_theta does nothing with exploration {self.exploration}; it is for ou"
            )
        if self.target_noise == 0 and self.target_noise_clip != type(self).target_noise_clip:
            raise ValueError("target_noise_clip does nothing where target_noise is 0")

    @property
    def learners(self) -> type[TD3]:
        """The stack of learners that these are the settings of."""
        from dpd.agents.td3 import TD3

        return TD3


@dataclass(frozen=True, kw_only=True)
class DDPGConfig(TD3Config):
    """Deep deterministic policy gradient (Lillicrap et al. 2016): TD3 without its three tricks."""

    n_critics: int = 1
    """Critics per learner; their least answer counts."""
    policy_delay: int = 1
    """Critic updates per update of the policy and of the targets."""
    target_noise: float = 0.0
    """Deviation of the noise on the target policy's action."""


@dataclass(frozen=True, kw_only=True)
class SACConfig(OffPolicyConfig):
    """Soft actor-critic with a learned temperature (Haarnoja et al. 2018, arXiv 1812.05905)."""

    squashed: ClassVar[bool] = True
    state_std: ClassVar[bool] = True
    alpha: float | None = None
    """Temperature, the weight of the entropy; None: learned."""
    alpha_init: float = 1.0
    """Temperature at the start, if it is learned."""
    target_entropy: float | None = None
    """Entropy that a learned temperature aims at; None: minus the number of action dimensions
    (paper)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None and self.alpha < 0:
            raise ValueError(f"alpha must not be negative, not {self.alpha}")
        if self.alpha_init <= 0:
            raise ValueError(f"alpha_init must be positive, not {self.alpha_init}")
        if self.alpha is not None:
            for name in ("alpha_init", "target_entropy"):
                if getattr(self, name) != getattr(type(self), name):
                    raise ValueError(f"{name} is of a learned temperature; leave alpha out")

    @property
    def learners(self) -> type[SAC]:
        """The stack of learners that these are the settings of."""
        from dpd.agents.sac import SAC

        return SAC
