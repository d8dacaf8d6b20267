"""Settings of TD3, DDPG and SAC; imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from dpd.agents.config import ReplayConfig, require


@dataclass(frozen=True, kw_only=True)
class OffPolicyConfig(ReplayConfig):
    """Settings shared by TD3, DDPG and SAC.

    Unless a source is named, defaults are Stable-Baselines3's.
    """

    lr: float = 3e-4
    """Adam's learning rate of the policy, and of the critics unless `critic_lr` is set."""
    critic_lr: float | None = None
    """Adam's learning rate of the critics; None: `lr`."""
    peer_lr: tuple[float, ...] = ()
    """Learning rate of each peer of a group and of its critics; empty: `lr` for all."""
    n_envs: int = 1
    """Environments per learner."""
    n_steps: int = 50
    """Steps per environment between updates (Spinning Up: 50). Random numbers are drawn for that
    many steps at once; the acting policy is up to that many steps old."""
    capacity: int = 1_000_000
    """Transitions in a learner's replay (Lillicrap et al. 2016)."""
    minibatch_size: int = 256
    """Transitions per learner and gradient step (Haarnoja et al. 2018)."""
    learning_starts: int = 10_000
    """Initial environment steps of a learner with uniformly random actions and no updates, rounded
    up to whole iterations (Fujimoto et al. 2018 for HalfCheetah and Ant; rl-zoo3). Peers that draw
    from each other's replays count the steps of all of them together."""
    updates_per_step: float = 1.0
    """Gradient steps per environment step of a learner; with `share_experience`, gradient steps of
    every peer per environment step of any peer of its group."""
    extra_policy_updates: int = 0
    """Additional policy-only updates after each policy update, on separate minibatches: a control
    for methods that add updates (in the 2020 code, peers update their policies twice as often)."""
    share_replay: bool = False
    """Draw minibatches from the replays of all peers of a group: a control that shares data but
    not policies."""
    act: Literal["own", "hybrid"] = "own"
    """Who acts in a learner's environments after the first `learning_starts` steps. own: the
    learner; hybrid: a peer of its group, drawn by the softmax of the standardised values that all
    their critics give to the peers' actions, or with probability 0.2 the learner itself."""
    act_every: int = 10
    """Steps after which the peer that acts is drawn anew, with `act` hybrid."""
    share_experience: bool = False
    """Draw half of a minibatch from the peers' replays, and let the critics of all peers of a group
    judge as one pool: a few drawn at random in targets (REDQ, Chen et al. 2021), the mean of all in
    the policy's loss."""
    share_critics: Literal["both", "targets", "policy"] = "both"
    """Place where the peers' critics count with `share_experience`: in the targets, in the policy's
    loss, or in both. In the other place, the learner's own critics take their part."""
    critic_obs: str = "actor"
    """Observations that the critics read: those that the policy sees (`actor`), `all`, or groups
    and columns as in --actor-obs. The latter are read as they are, without noise and delay, with a
    normaliser of their own (Pinto et al. 2018): critics are needed in training only."""
    critic_warmup: int = 0
    """Iterations with updates, at the start, in which only the critics learn, because they are new
    while the policy of --init-from is not. Policy, temperature and observation normaliser stay as
    they are. The policy then also acts in the first `learning_starts` steps."""
    n_step: int = 1
    """Number of rewards in a target before it bootstraps."""
    tau: float = 0.005
    """Polyak coefficient: the step of the target networks towards the trained ones per update."""
    n_critics: int = 2
    """Critics per learner; the minimum of their values is used (Fujimoto et al. 2018)."""
    target_critics: int | None = None
    """Critics whose least value is the target, drawn at random for every update; the policy then
    ascends the mean of all critics (REDQ, Chen et al. 2021). None: the least of all own critics, or
    with `share_experience` of 2 drawn from all peers' (of 1 if each learner has one critic)."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden layers of the policy and of every critic (Haarnoja et al. 2018)."""
    activation: Literal["tanh", "relu", "elu"] = "relu"
    """Activation of the hidden layers."""
    norm_obs: bool = False
    """Normalise observations by running statistics."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "be positive", "updates_per_step", "n_step", "n_critics", "critic_lr")
        require(self, "be at least 1", "act_every")
        if self.act == "own" and self.act_every != type(self).act_every:
            raise ValueError("act_every does nothing without --act hybrid")
        require(self, "be positive", "target_critics")
        require(self, "not be negative", "learning_starts", "extra_policy_updates")
        require(self, "not be negative", "critic_warmup")
        self._refuse_idle_sharing()
        require(self, "lie in (0, 1]", "tau")
        if self.peer_lr and self.critic_lr is not None:
            raise ValueError("peer_lr sets the critics' learning rates too; leave critic_lr out")
        targets = {"n_envs * n_step": self.n_envs * self.n_step}
        self._require_capacity(learning_starts=self.learning_starts, **targets)
        if self.samples * self.updates_per_step < 1:
            raise ValueError(
                f"updates_per_step {self.updates_per_step} makes less than one update in the "
                f"n_envs * n_steps = {self.samples} steps of an iteration; raise it or n_steps"
            )

    def _refuse_idle_sharing(self) -> None:
        """Raise ValueError for settings of sharing that would do nothing."""
        if self.share_experience and self.share_replay:
            raise ValueError("share_experience includes a shared replay; leave share_replay out")
        if not self.share_experience and self.share_critics != type(self).share_critics:
            raise ValueError("share_critics does nothing without --share-experience")
        if not self.pools_targets and (self.target_critics or 0) > self.n_critics:
            raise ValueError(
                f"target_critics {self.target_critics} is more than the {self.n_critics} critics "
                "to draw from; raise n_critics"
            )

    @property
    def learners(self) -> str:
        if self.critic_obs != "actor":
            return f"dpd.agents.asymmetric:Asymmetric{'SAC' if self.squashed else 'TD3'}"
        return super().learners

    @property
    def pools_targets(self) -> bool:
        """True if the critics of all peers count in a learner's targets."""
        return self.share_experience and self.share_critics != "policy"

    @property
    def pools_policy(self) -> bool:
        """True if the critics of all peers count in a learner's policy loss."""
        return self.share_experience and self.share_critics != "targets"

    @property
    def drawn_critics(self) -> int | None:
        """Number of critics drawn for a target; None: all own critics count, none is drawn."""
        if self.target_critics is None and self.share_experience:
            return min(2, self.n_critics)
        return self.target_critics

    @property
    def plan(self) -> str:
        shares = self.share_experience
        of_all = " of all peers" if shares or self.share_replay else ""
        return (
            f"{super().plan}, {self.updates:,} updates of {self.minibatch_size}"
            f"{' for the steps of each peer' if shares else ''}; "
            f"the first {self.learning_starts:,} steps{of_all} "
            + ("without updates" if self.critic_warmup else "at random")
        )

    def idle_iterations(self, peers: int) -> int:
        together = self.share_experience or self.share_replay
        steps = self.samples * (peers if together else 1)
        return max(0, math.ceil(self.learning_starts / steps) - 1)

    @property
    def updates(self) -> int:
        """Gradient steps per iteration for the steps of one learner."""
        return round(self.samples * self.updates_per_step)


@dataclass(frozen=True, kw_only=True)
class TD3Config(OffPolicyConfig):
    """Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018)."""

    tanh_mean: ClassVar[bool] = True
    lr: float = 1e-3
    """Adam's learning rate of the policy, and of the critics unless `critic_lr` is set (paper)."""
    policy_delay: int = 2
    """Critic updates per update of the policy and the target networks (paper)."""
    target_noise: float = 0.2
    """Standard deviation of the noise on the target policy's action (paper)."""
    target_noise_clip: float = 0.5
    """Clip range of that noise (paper)."""
    exploration: Literal["gaussian", "ou", "param"] = "gaussian"
    """Exploration noise: independent per step (paper); an Ornstein-Uhlenbeck process (Lillicrap
    et al. 2016), which continues across episodes; or adaptive noise on the policy's parameters,
    redrawn for every episode of every environment (Plappert et al. 2018)."""
    noise_std: float = 0.1
    """Standard deviation of the action noise (paper). With `ou`, that of the process's increments
    (Lillicrap et al. 2016: 0.2); with `param`, the target distance between the actions of the
    perturbed and the unperturbed policy (Plappert et al. 2018: 0.2)."""
    peer_noise_std: tuple[float, ...] = ()
    """`noise_std` of each peer of a group; empty: `noise_std` for all."""
    ou_theta: float = 0.15
    """Mean reversion of the `ou` process per step (Lillicrap et al. 2016)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "be positive", "policy_delay", "noise_std", "peer_noise_std", "ou_theta")
        require(self, "not be negative", "target_noise", "target_noise_clip")
        if self.updates < self.policy_delay:
            raise ValueError(
                f"{self.updates} updates an iteration are fewer than policy_delay "
                f"{self.policy_delay}; raise updates_per_step or n_steps"
            )
        if self.exploration == "param" and self.act == "hybrid":
            raise ValueError(
                "act hybrid needs noise on actions: with exploration param, each perturbed policy "
                "belongs to one environment; choose gaussian or ou"
            )
        if self.exploration != "ou" and self.ou_theta != type(self).ou_theta:
            raise ValueError(
                f"ou_theta does nothing with exploration {self.exploration}; it is for ou"
            )
        if self.target_noise == 0 and self.target_noise_clip != type(self).target_noise_clip:
            raise ValueError("target_noise_clip does nothing if target_noise is 0")


@dataclass(frozen=True, kw_only=True)
class DDPGConfig(TD3Config):
    """Deep deterministic policy gradient (Lillicrap et al. 2016): TD3 without its three tricks."""

    n_critics: int = 1
    """Critics per learner."""
    policy_delay: int = 1
    """Critic updates per update of the policy and the target networks."""
    target_noise: float = 0.0
    """Standard deviation of the noise on the target policy's action."""


@dataclass(frozen=True, kw_only=True)
class SACConfig(OffPolicyConfig):
    """Soft actor-critic with a learned temperature (Haarnoja et al. 2018, arXiv 1812.05905)."""

    squashed: ClassVar[bool] = True
    state_std: ClassVar[bool] = True
    alpha: float | None = None
    """Temperature, the weight of the entropy; None: learned."""
    alpha_init: float = 1.0
    """Initial value of a learned temperature."""
    target_entropy: float | None = None
    """Target entropy of a learned temperature; None: minus the number of action dimensions
    (paper)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "not be negative", "alpha")
        require(self, "be positive", "alpha_init")
        if self.alpha is not None:
            for name in ("alpha_init", "target_entropy"):
                if getattr(self, name) != getattr(type(self), name):
                    raise ValueError(
                        f"{name} applies to a learned temperature only; leave alpha out"
                    )
