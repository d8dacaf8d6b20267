"""Settings of PPO; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dpd.agents.learner_config import LearnerConfig

if TYPE_CHECKING:
    from dpd.agents.ppo import PPO


@dataclass(frozen=True, kw_only=True)
class PPOConfig(LearnerConfig):
    """Proximal policy optimization (Schulman et al. 2017).

    Unless a source is named, defaults are those of the paper's MuJoCo experiments, which
    Stable-Baselines3 shares.
    """

    lr: float = 3e-4
    """Adam's learning rate."""
    lr_schedule: Literal["linear", "constant"] = "linear"
    """Linear to zero over the run, as the paper and tianshou's MuJoCo benchmark do."""
    n_envs: int = 16
    """Environments per learner."""
    n_steps: int = 128
    """Steps per environment and iteration: 16 x 128 = 2048 samples per learner, the paper's."""
    minibatch_size: int = 64
    """Samples per learner and gradient step."""
    epochs: int = 10
    """Passes over the samples of an iteration."""
    lam: float = 0.95
    """Lambda of generalised advantage estimation."""
    clip: float = 0.2
    """Bound on the probability ratio."""
    value_coef: float = 0.5
    """Weight of the squared value error (Stable-Baselines3)."""
    value_clip: float | None = None
    """Value clipping (OpenAI Baselines' ppo2: 0.2): the loss is the larger of a value's squared
    error and that of the value held within this distance of the old one, in normalised reward
    units. None: no clipping (the paper, Stable-Baselines3)."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    max_grad_norm: float = 0.5
    """Bound on each learner's gradient norm (Stable-Baselines3)."""
    adam_eps: float = 1e-5
    """Epsilon of Adam (Stable-Baselines3)."""
    target_kl: float | None = None
    """Stop a learner's iteration after the epoch in which its KL to the old policy exceeds
    1.5 times this (Stable-Baselines3, there per minibatch); None: never."""
    hidden: tuple[int, ...] = (64, 64)
    """Hidden layers of the policy and, apart, of the value function."""
    log_std_init: float = -0.5
    """Initial log standard deviation (tianshou's MuJoCo benchmark; Andrychowicz et al. 2021)."""
    norm_adv: bool = True
    """Centre and scale advantages within each minibatch (Stable-Baselines3)."""
    norm_reward: bool = True
    """Scale rewards by the running deviation of the return (VecNormalize)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("epochs", "max_grad_norm")
        if self.value_clip is not None and self.value_clip <= 0:
            raise ValueError(f"value_clip must be positive, not {self.value_clip}")
        if not 0 <= self.lam <= 1:
            raise ValueError(f"lam must lie in [0, 1], not {self.lam}")
        if self.samples % self.minibatch_size:
            raise ValueError(
                f"minibatch_size {self.minibatch_size} does not divide n_envs * n_steps = "
                f"{self.n_envs} * {self.n_steps} = {self.samples}; choose a divisor of it"
            )

    @property
    def learners(self) -> type[PPO]:
        """The stack of learners that these are the settings of."""
        from dpd.agents.ppo import PPO

        return PPO

    @property
    def plan(self) -> str:
        """What an iteration is, for the start-up table."""
        return (
            f"{self.n_envs} envs x {self.n_steps} steps = {self.samples:,} a learner, "
            f"{self.epochs} epochs of {self.minibatch_size}"
        )
