"""Settings of distillation from a saved teacher; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dpd.agents.offpolicy_config import OffPolicyConfig, TD3Config
from dpd.agents.ppo_config import PPOConfig
from dpd.agents.student_config import StudentConfig
from dpd.distill.presets import Presets
from dpd.distill.schedule import Schedule, scheduled

if TYPE_CHECKING:
    from dpd.distill.base import Context, Method

Learner = PPOConfig | OffPolicyConfig | StudentConfig
NAMES: dict[type[Learner], str] = {
    PPOConfig: "ppo",
    OffPolicyConfig: "td3, ddpg, sac",
    StudentConfig: "student",
}
Divergence = Literal["kl_forward", "kl_reverse", "mse", "nll"]


@dataclass(frozen=True, kw_only=True)
class TeachingConfig:
    """What all methods with a teacher share."""

    PRESETS: ClassVar[Presets] = {}
    COMMAND: ClassVar[str] = "distill"
    LEARNERS: ClassVar[tuple[type[Learner], ...]] = (StudentConfig,)
    """Learners it can move."""
    ALGO: ClassVar[str] = "student"
    """Algorithm of the learners, unless one is named."""
    SETTINGS: ClassVar[dict[str, Any]] = {}
    """What it gives these learners where nothing else is said, in place of their own defaults."""

    divergence: Divergence = "kl_forward"
    """Distance to the teacher: KL(teacher || student), KL(student || teacher), the squared error of
    the mean actions, or the student's -log p of the teacher's samples. Between a policy that
    squashes its actions and one that does not, only the last two have a meaning."""

    def build(self, context: Context) -> Method:
        """Return the method for a stack of learners."""
        raise NotImplementedError

    def refuse_unfit(self, *learners: Any) -> None:
        """Raise ValueError where these learners are not such as this can teach."""
        for each in learners:
            if not isinstance(each, self.LEARNERS):
                kinds = ", ".join(NAMES[kind] for kind in self.LEARNERS)
                given = type(each).__name__.removesuffix("Config").lower()
                raise ValueError(f"this method teaches --algo {kinds}, not {given}")
            if isinstance(each, TD3Config) and self.divergence != "mse":
                raise ValueError(
                    f"distill.divergence {self.divergence} needs a spread, which policies of TD3 "
                    "and DDPG do not have: give --distill.divergence mse"
                )

    def refuse_unfit_teacher(self, squashed: bool, learners: Learner) -> None:
        """Raise ValueError where the divergence has no meaning between teacher and students."""
        if self.divergence in ("kl_forward", "kl_reverse") and squashed != learners.squashed:
            one, other = ("squashes", "do not") if squashed else ("does not squash", "do")
            raise ValueError(
                f"distill.divergence {self.divergence}: the teacher {one} its actions and these "
                f"students {other}; give --distill.divergence mse or nll"
            )


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(TeachingConfig):
    """What methods share that learn from the teacher's answers alone."""

    WHOLE_MEMORY: ClassVar[bool] = True
    """Whether all that is remembered is learnt from, or what was collected last."""

    steps: int = 80
    """Gradient steps per iteration; with 256 states each, 80 are ten passes over 2,048."""
    max_grad_norm: float = 10.0
    """Bound on the gradient norm of a step."""

    def __post_init__(self) -> None:
        for name in ("steps", "max_grad_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"distill.{name} must be positive, not {getattr(self, name)}")

    def beta(self, progress: float) -> float:
        """Return the probability that the teacher acts."""
        raise NotImplementedError

    @property
    def explores(self) -> bool:
        """Whether the student's actions are noisy when it acts."""
        return False

    def build(self, context: Context) -> Method:
        """Return the method for a stack of learners."""
        from dpd.distill.teaching import Supervised

        return Supervised(self, context)


@dataclass(frozen=True, kw_only=True)
class CloningConfig(SupervisedConfig):
    """Behaviour cloning: the teacher acts; the student learns from all that was seen."""

    def beta(self, progress: float) -> float:
        """Return the probability that the teacher acts: always."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class DAggerConfig(SupervisedConfig):
    """DAgger: the student acts more and more; it learns from all it saw (Ross et al. 2011)."""

    beta_start: float = 1.0
    """Probability that the teacher acts, at the beginning."""
    beta_schedule: Schedule = "first"
    """How it falls: `first` is zero after the first iteration (Ross et al. 2011), `linear` at
    `beta_until`, `exponential` a hundredth there; or it is `constant`."""
    beta_until: float = 0.5
    """Share of the run by which it has fallen."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta_start <= 1:
            raise ValueError(f"distill.beta_start must lie in [0, 1], not {self.beta_start}")
        if not 0 < self.beta_until <= 1:
            raise ValueError(f"distill.beta_until must lie in (0, 1], not {self.beta_until}")

    def beta(self, progress: float) -> float:
        """Return the probability that the teacher acts."""
        return scheduled(self.beta_schedule, self.beta_start, self.beta_until, progress)


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig(SupervisedConfig):
    """On-policy distillation: the student acts, and learns from what it just saw.

    Not the gradient of any function of its parameters (Czarnecki et al. 2019); see n-distill.
    """

    WHOLE_MEMORY: ClassVar[bool] = False

    def beta(self, progress: float) -> float:
        """Return the probability that the teacher acts: never."""
        return 0.0

    @property
    def explores(self) -> bool:
        """Whether the student's actions are noisy when it acts: it learns about its own policy."""
        return True


@dataclass(frozen=True, kw_only=True)
class ProgressiveConfig(SupervisedConfig):
    """Progressive distillation: a teacher's checkpoints in turn (Panigrahi et al. 2025).

    The teacher is a run directory with a history: `dpd train --keep-checkpoints`.
    """

    stages: int = 4
    """Checkpoints before the final teacher."""
    spacing: Literal["return", "steps", "two-shot", "random", "shuffled", "one-shot"] = "return"
    """Which: equally far apart in return, or in steps; the one of the steepest rise alone. As
    controls: drawn at random, once for a run; those of `return` in random order, likewise; none,
    the final teacher alone."""
    switch: Literal["equal", "saturate"] = "equal"
    """When to go on: after equal shares of the time before the last half, or as soon as the
    divergence from the current checkpoint falls by less than 1 % in five iterations."""
    final_share: float = 0.5
    """Share of the run, at its end, that belongs to the final teacher."""
    teacher_share: float = 0.5
    """Probability that the current checkpoint acts, so that states move with it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stages < 1:
            raise ValueError(f"distill.stages must be at least 1, not {self.stages}")
        for name in ("final_share", "teacher_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"distill.{name} must lie in [0, 1], not {getattr(self, name)}")

    def beta(self, progress: float) -> float:
        """Return the probability that the teacher acts."""
        return self.teacher_share

    def build(self, context: Context) -> Method:
        """Return the method for a stack of learners."""
        from dpd.distill.progressive import Progressive

        return Progressive(self, context)


@dataclass(frozen=True, kw_only=True)
class KickstartConfig(TeachingConfig):
    """Kickstarting: reinforcement learning while a teacher's pull fades (Schmitt et al. 2018)."""

    LEARNERS: ClassVar[tuple[type[Learner], ...]] = (PPOConfig, OffPolicyConfig)
    ALGO: ClassVar[str] = "ppo"

    coef: float = 1.0
    """Weight of the divergence in the learner's loss, at the beginning."""
    schedule: Schedule = "linear"
    """How it falls."""
    until: float = 0.5
    """Share of the run by which it has fallen."""

    def __post_init__(self) -> None:
        if self.coef <= 0:
            raise ValueError(f"distill.coef must be positive, not {self.coef}")
        if not 0 < self.until <= 1:
            raise ValueError(f"distill.until must lie in (0, 1], not {self.until}")

    def coef_at(self, progress: float) -> float:
        """Return the weight of the divergence."""
        return scheduled(self.schedule, self.coef, self.until, progress)

    def build(self, context: Context) -> Method:
        """Return the method for a stack of learners."""
        from dpd.distill.teaching import InLoss

        return InLoss(self, context)


@dataclass(frozen=True, kw_only=True)
class ProximalConfig(KickstartConfig):
    """Proximal policy distillation: PPO, and the divergence times its ratio (Spigler 2024).

    The term is E[max(ratio, 1 - clip) D(s)], with PPO's clip; through the ratio it also moves the
    policy towards actions of states where it agrees.
    """

    LEARNERS: ClassVar[tuple[type[Learner], ...]] = (PPOConfig,)
    schedule: Schedule = "constant"
    """How the weight falls (published code: constant)."""


@dataclass(frozen=True, kw_only=True)
class GradientConfig(KickstartConfig):
    """The gradient of E_student[sum_t ell(s_t)], ell the divergence (Czarnecki et al. 2019).

    ell(s_t) at each state of the student, and a reward of -ell(s_{t+1}) for coming to the next:
    with the first alone, as on-policy distillation has it, learning may go in circles. Where
    rewards are normalised both are, so that it stays a gradient: without, a critic would have to
    find values of thousands, and does not in a run's time. A discount of 0.9 looks as far ahead as
    errors take to show; with PPO's 0.99 what a student hears is mostly noise (docs/results.md).
    """

    LEARNERS: ClassVar[tuple[type[Learner], ...]] = (PPOConfig,)
    SETTINGS: ClassVar[dict[str, Any]] = {"norm_adv": False, "gamma": 0.9}
    schedule: Schedule = "constant"
    """How the weight of both falls."""
    reward_coef: float = 0.0
    """Weight of the task's own reward beside it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reward_coef < 0:
            raise ValueError(f"distill.reward_coef must not be negative, not {self.reward_coef}")

    def refuse_unfit(self, *learners: Any) -> None:
        """Raise ValueError where these learners are not such as this can teach."""
        super().refuse_unfit(*learners)
        if any(each.norm_adv for each in learners):
            raise ValueError(
                "this is a gradient only if both of its parts have one scale: leave --norm-adv off"
            )

    def build(self, context: Context) -> Method:
        """Return the method for a stack of learners."""
        from dpd.distill.teaching import TrueGradient

        return TrueGradient(self, context)


@dataclass(frozen=True, kw_only=True)
class ReverseGradientConfig(GradientConfig):
    """The same of KL(student || teacher): expected entropy-regularised distillation.

    With H(student || teacher) in its place a Gaussian's deviation would fall to zero.
    """

    divergence: Divergence = "kl_reverse"
    """Distance to the teacher."""
