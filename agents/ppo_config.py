"""Settings of PPO; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dpd.agents.config import LearnerConfig, layers_of, refuse_unlike_depths, require

Critic = Literal["own", "mean"]
"""The value function of a learner, or the mean of those of its group."""


@dataclass(frozen=True, kw_only=True)
class PPOConfig(LearnerConfig):
    """Proximal policy optimization (Schulman et al. 2017).

    Unless a source is named, defaults are those of the paper's MuJoCo experiments and of
    Stable-Baselines3.
    """

    lr: float = 3e-4
    """Adam's learning rate."""
    lr_schedule: Literal["linear", "constant"] = "linear"
    """Decay linearly to zero over the run (the paper, tianshou's MuJoCo benchmark), or not."""
    n_envs: int = 16
    """Environments per learner."""
    n_steps: int = 128
    """Steps per environment and iteration: 16 x 128 = 2048 samples per learner, as in the paper."""
    minibatch_size: int = 64
    """Samples per learner and gradient step."""
    epochs: int = 10
    """Passes over the samples of an iteration."""
    lam: float = 0.95
    """Lambda of generalised advantage estimation."""
    clip: float = 0.2
    """Clip range of the probability ratio."""
    value_coef: float = 0.5
    """Weight of the squared value error (Stable-Baselines3)."""
    value_clip: float | None = None
    """Value clipping (OpenAI Baselines' ppo2: 0.2): the loss is the larger of the value's squared
    error and that of the value clipped to this distance from the old one, in normalised reward
    units. None: no clipping (the paper, Stable-Baselines3)."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    max_grad_norm: float = 0.5
    """Upper bound on each learner's gradient norm (Stable-Baselines3)."""
    adam_eps: float = 1e-5
    """Adam's epsilon (Stable-Baselines3)."""
    target_kl: float | None = None
    """End a learner's iteration after the epoch in which its KL to the old policy exceeds 1.5
    times this value (Stable-Baselines3 checks every minibatch); None: never."""
    hidden: tuple[int, ...] = (64, 64)
    """Hidden layers of the policy and of the separate value function."""
    peer_hidden: tuple[str, ...] = ()
    """Hidden layers of each peer of a group, such as 64x64, or a single width for every layer of
    `hidden`; empty: `hidden` for all. All peers need the same depth. They then collect and learn at
    once, as --share-experience needs."""
    log_std_init: float = -0.5
    """Initial log standard deviation (tianshou's MuJoCo benchmark; Andrychowicz et al. 2021)."""
    norm_adv: bool = True
    """Centre and scale advantages within each minibatch (Stable-Baselines3)."""
    norm_reward: bool = True
    """Divide rewards by the running standard deviation of the return (VecNormalize)."""
    share_experience: bool = False
    """Learn from the samples of all peers of a group too, weighted by min(1, rho), where rho is the
    learner's probability of the peer's action over the peer's (SEAC, SAPG; values by V-trace). An
    iteration then has as many times the samples and gradient steps as there are peers."""
    share_min_ess: float = 0.2
    """Drop all samples of a peer (or of a past iteration) in iterations in which their effective
    sample size, (sum rho)^2 / sum rho^2, is less than this share of their number; further passes
    over the others take their place."""
    share_value: Critic = "own"
    """Value function of the advantages with --share-experience: the learner's own, or the mean of
    all peers', each in its own normalizer's units (peers are then an ensemble of critics)."""
    reuse_iterations: int = 1
    """Learn from the learner's own samples of so many iterations, this one included: 2 is the
    control of --share-experience for two peers, with the same weights (after GePPO's M, Queeney et
    al. 2021). An iteration then has as many times the samples and gradient steps."""
    critic_obs: str = "actor"
    """Observations that the value function reads: those that the policy sees (`actor`), `all`, or
    groups and columns as in --actor-obs. The latter are read as they are, without noise and delay,
    with a normaliser of their own (Pinto et al. 2018): the function is needed in training only."""
    critic_warmup: int = 0
    """Iterations at the start in which only the value function learns, because it is new while the
    policy of --init-from is not. They count as part of the run: the learning rate decays in them
    too. The policy and its observation normaliser stay as they are; then Adam starts anew."""
    init_std: float | None = None
    """Initial standard deviation, in place of that of the policy of --init-from; None: keep it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "be positive", "epochs", "max_grad_norm", "value_clip")
        require(self, "be positive", "init_std")
        require(self, "not be negative", "critic_warmup")
        require(self, "be at least 1", "reuse_iterations")
        require(self, "lie in [0, 1]", "lam", "share_min_ess")
        self._refuse_idle_sharing()
        refuse_unlike_depths("peer_hidden", self.peer_hidden, len(self.hidden))
        if self.samples % self.minibatch_size:
            raise ValueError(
                f"minibatch_size {self.minibatch_size} does not divide n_envs * n_steps = "
                f"{self.n_envs} * {self.n_steps} = {self.samples}; choose a divisor of it"
            )

    @property
    def learners(self) -> str:
        if self.critic_obs != "actor":
            return "dpd.agents.asymmetric:AsymmetricPPO"
        return super().learners

    def hidden_of(self, peer: int) -> tuple[int, ...]:
        words = self.peer_hidden
        return layers_of(words[peer], len(self.hidden)) if words else self.hidden

    def _refuse_idle_sharing(self) -> None:
        """Raise ValueError for settings of shared or reused samples that would do nothing."""
        reuses = self.reuse_iterations > 1
        if reuses and self.share_experience:
            raise ValueError(
                "reuse_iterations is a control in the place of share_experience: give one of them"
            )
        if self.share_value != "own" and not self.share_experience:
            raise ValueError("share_value does nothing without --share-experience")
        changed = self.share_min_ess != type(self).share_min_ess
        if changed and not (self.share_experience or reuses):
            raise ValueError(
                "share_min_ess does nothing without --share-experience or --reuse-iterations 2"
            )

    @property
    def plan(self) -> str:
        shared = " and those of its peers" if self.share_experience else ""
        if self.reuse_iterations > 1:
            shared = f" of each of {self.reuse_iterations} iterations"
        return f"{super().plan}{shared}, {self.epochs} epochs of {self.minibatch_size}"
