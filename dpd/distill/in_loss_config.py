"""Settings of the methods with a term inside the students' own loss; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from dpd.agents.config import LearnerConfig
from dpd.agents.offpolicy_config import OffPolicyConfig
from dpd.agents.ppo_config import PPOConfig
from dpd.distill.config import Divergence
from dpd.distill.schedules import Schedule, TeacherActs, between, parse_points, points_of, scheduled
from dpd.distill.teaching_config import TeachingConfig


@dataclass(frozen=True, kw_only=True)
class KickstartConfig(TeacherActs, TeachingConfig):
    """Kickstarting: RL with a distillation term that fades (Schmitt et al. 2018)."""

    LEARNERS: ClassVar[tuple[type[LearnerConfig], ...]] = (PPOConfig, OffPolicyConfig)
    ALGO: ClassVar[str] = "ppo"

    coef: float = 1.0
    """Initial weight of the divergence in the learner's loss."""
    schedule: Schedule = "linear"
    """Schedule of that weight."""
    until: float = 0.5
    """Share of the run at which the schedule ends."""
    coef_points: str | None = None
    """Weights at shares of the run, for example 0:1,0.3:1,0.5:0, linear between them and constant
    outside, instead of `coef`, `schedule` and `until`."""
    rl_coef_points: str | None = None
    """Weights of reinforcement learning in the policy's loss at shares of the run, for example
    0:0,0.3:0,0.31:1, linear between them and constant outside; value functions and critics learn
    from rewards all the time. With n-distill and reverse-kl, weights of the task's reward instead
    of `reward_coef`. None: 1, or `reward_coef`."""

    def __post_init__(self) -> None:
        self._require("be positive", "coef")
        self._require("lie in (0, 1]", "until")
        self._check_beta()
        points = points_of(self, "coef_points", "coef", "schedule", "until")
        if points and not any(y > 0 for _, y in points):
            raise ValueError(
                f"distill.coef_points '{self.coef_points}': the teacher never has a weight; give "
                "dpd train --method none"
            )
        self._refuse_idle_rl(points)

    def _refuse_idle_rl(self, of_teacher: Sequence[tuple[float, float]]) -> None:
        """Raise ValueError if rewards never count, or for a while nothing moves the policy."""
        points = points_of(self, "rl_coef_points")
        if points and not any(y > 0 for _, y in points):
            raise ValueError(
                f"distill.rl_coef_points '{self.rl_coef_points}': rewards never have a weight; "
                "give --method on-policy, which learns from the teacher alone"
            )
        ends = {0.0, 1.0, *(x for x, _ in (*points, *of_teacher))}
        ends |= set() if of_teacher else {self.until}
        for begin, end in pairwise(sorted(ends)) if points else ():
            middle = (begin + end) / 2
            if self.coef_at(middle) == self.rl_coef_at(middle) == 0:
                raise ValueError(
                    f"from {begin:g} to {end:g} of the run neither the teacher nor rewards have a "
                    "weight; change distill.rl_coef_points or distill.coef_points"
                )

    def refuse_unfit(self, *learners: Any) -> None:
        """Raise ValueError if the method cannot teach these learners."""
        super().refuse_unfit(*learners)
        if self.most_beta == 1 and any(isinstance(each, PPOConfig) for each in learners):
            raise ValueError(
                "PPO learns from steps that the student takes: the teacher must act with a "
                "probability of less than 1 (distill.beta_start, distill.beta_points)"
            )

    def rl_coef_at(self, progress: float) -> float:
        """Return the weight of reinforcement learning."""
        if self.rl_coef_points is not None:
            return between(parse_points(self.rl_coef_points), progress)
        return 1.0

    def coef_at(self, progress: float) -> float:
        """Return the weight of the divergence."""
        if self.coef_points is not None:
            return between(parse_points(self.coef_points), progress)
        return scheduled(self.schedule, self.coef, self.until, progress)


@dataclass(frozen=True, kw_only=True)
class ProximalConfig(KickstartConfig):
    """Proximal policy distillation: PPO, and the divergence times its ratio (Spigler 2024).

    The term is E[max(ratio, 1 - clip) D(s)], with PPO's clip; through the ratio it also moves the
    policy towards actions of states where it agrees.
    """

    LEARNERS: ClassVar[tuple[type[LearnerConfig], ...]] = (PPOConfig,)
    schedule: Schedule = "constant"
    """Schedule of the weight (published code: constant)."""


@dataclass(frozen=True, kw_only=True)
class GradientConfig(KickstartConfig):
    """The gradient of E_student[sum_t ell(s_t)], ell the divergence (Czarnecki et al. 2019).

    The loss is ell(s_t) at each state of the student, and the reward is -ell(s_{t+1}): with the
    loss alone, as in on-policy distillation, learning may cycle. If rewards are normalized, both
    parts are, so that it stays a gradient; without normalization a critic would have to learn
    values of thousands, and does not within a run. A discount of 0.9 looks as far ahead as errors
    take to show; with PPO's 0.99 the signal is mostly noise (docs/results.md).
    """

    LEARNERS: ClassVar[tuple[type[LearnerConfig], ...]] = (PPOConfig,)
    SETTINGS: ClassVar[dict[str, Any]] = {"norm_adv": False, "gamma": 0.9}
    schedule: Schedule = "constant"
    """Schedule of the weight of both parts."""
    reward_coef: float = 0.0
    """Weight of the task's reward, added to the distillation reward."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("not be negative", "reward_coef")
        points_of(self, "rl_coef_points", "reward_coef")
        if self.most_beta > 0:
            raise ValueError(
                "this is a gradient at the student's own states only if the student alone acts: "
                "leave distill.beta_start and distill.beta_points out"
            )

    def rl_coef_at(self, progress: float) -> float:
        """Return the weight of the task's reward."""
        return self.reward_coef if self.rl_coef_points is None else super().rl_coef_at(progress)

    def refuse_unfit(self, *learners: Any) -> None:
        """Raise ValueError if the method cannot teach these learners."""
        super().refuse_unfit(*learners)
        if any(each.norm_adv for each in learners):
            raise ValueError(
                "this is a gradient only if both of its parts have one scale: leave --norm-adv off"
            )


@dataclass(frozen=True, kw_only=True)
class ReverseGradientConfig(GradientConfig):
    """The true gradient of KL(student || teacher): expected entropy-regularised distillation.

    With the cross-entropy H(student || teacher) instead, a Gaussian's deviation would fall to zero.
    """

    divergence: Divergence = "kl_reverse"
    """Distance to the teacher."""
