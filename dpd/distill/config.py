"""Settings of the distillation methods, and the table of all methods; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dpd.agents.config import (
    ALGORITHMS,
    LearnerConfig,
    OffPolicyConfig,
    PPOConfig,
    StudentConfig,
    TD3Config,
    require,
)
from dpd.distill.presets import DPD_DEFAULT_PRESETS, DPD_PRESETS, ON_POLICY_PRESETS, MethodPresets
from dpd.distill.schedules import Schedule, TeacherActs, between, parse_points, points_of, scheduled

if TYPE_CHECKING:
    from dpd.distill.method import Context, Method

WHERE_IT_MATTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "steps": ("dose", ("step", "shared")),
    "batch_size": ("dose", ("step", "shared")),
    "max_grad_norm": ("dose", ("step", "shared")),
    "lr": ("dose", ("step",)),
    "lcb_k": ("ruler", ("lcb",)),
    "alpha": ("gate", ("soft",)),
    "scale": ("gate", ("soft",)),
    "max_weight": ("gate", ("soft",)),
    "weight_clip": ("gate", ("soft",)),
    "match_dose": ("gate", ("uniform",)),
    "target_kl": ("dose", ("loss",)),
    "coef_unit": ("dose", ("loss",)),
    "target": ("divergence", ("mse", "huber")),
    "peer_share": ("states", ("mixed",)),
}
"""Setting -> the setting that must have one of these values, or the first has no effect."""


Divergence = Literal["kl_forward", "kl_reverse", "mse", "huber", "nll"]
OF_MEANS = ("mse", "huber")
"""Divergences of mean actions alone, which policies without a spread have as well."""

OF_WHAT_WAS_PLAYED = ("return", "advantage", "common")
"""Rulers that read the peer's rollout of the iteration, not only answers about its states."""


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Settings of every method."""

    COMMAND: ClassVar[str] = "train"
    """Command that runs the method: train or distill."""
    ALGO: ClassVar[str] = "ppo"
    """Default algorithm of the learners."""
    SETTINGS: ClassVar[dict[str, Any]] = {}
    """Defaults of the learners under this method, instead of their own."""
    STACKS_HISTORIES: ClassVar[bool] = False
    """True if students that see histories of several lengths can be rows of one stack."""

    def _require(self, bound: str, *names: str) -> None:
        require(self, bound, *names, called="distill.{}".format)

    def refuse_unfit(self, *learners: Any) -> None:
        """Raise ValueError if the method cannot work with learners of these settings."""
        if any(isinstance(each, StudentConfig) for each in learners):
            raise ValueError("students learn from a teacher alone; see dpd distill --help")

    def build(self, context: Context) -> Method:
        """Return the method for a stack of learners."""
        row = next(row for row in METHODS.values() if row.settings is type(self))
        make: Callable[[MethodConfig, Context], Method] = resolve_name(row.method)
        return make(self, context)


@dataclass(frozen=True, kw_only=True)
class IndependentConfig(MethodConfig):
    """No distillation: peers train side by side, and their distance is logged."""


@dataclass(frozen=True, kw_only=True)
class DPDConfig(MethodConfig):
    """Dual policy distillation (Lai et al. 2020), for two peers or more.

    The defaults are the preset `paper`; None stands for the paper's value for the algorithm.
    """

    ruler: Literal[
        "value", "centred", "return", "advantage", "common", "action", "lcb", "critics"
    ] = "value"
    """Measure of the peer's advantage at a state. `value`: difference of the two value functions
    (the paper); `centred`: the same less its mean over the states, since most of it may be an
    offset between two critics. `return`, for PPO: the return that the peer got from the state,
    minus the learner's value; `advantage`: that of what the peer played, by the learner's own value
    function alone; `common`: the same by the mean of all peers' value functions. For learners with
    action critics: `action`, the mean critic's value of the peer's action minus that of the
    learner's; `lcb`, the same minus the critics' disagreement; `critics`, the peer's critic minus
    the learner's, both at the peer's action (2020 code for DDPG)."""
    lcb_k: float = 1.0
    """Standard deviations over critics that `lcb` subtracts from their mean."""
    gate: Literal["soft", "hard", "uniform"] = "soft"
    """Weight of a state: softmax of the advantage (the paper's exponential, mean 1), 1 where the
    peer is ahead, or 1 everywhere."""
    alpha: float = 1.0
    """Sharpness of the soft gate, per unit of `scale` (the paper: 0.1 to 10, on raw advantages). A
    sharp gate imitates few states: without `max_weight`, the effective sample size of 2,048 states
    is about 1,250 at 1, 50 at 3 and 2 at 10. TensorBoard shows it as a share, distill/ess."""
    scale: Literal["rms", "reward"] = "rms"
    """Unit of the advantage in the soft gate: its running root mean square, or the learner's
    running standard deviation of returns (which scales the 2020 code's value functions)."""
    weight_clip: tuple[float, float] | None = None
    """Bounds on the soft gate's exponential before normalization, instead of `max_weight` (2020
    code: 0.01 100)."""
    max_weight: float | None = 100.0
    """Largest weight of a state in the soft gate, whose mean weight is 1; the excess goes to the
    states with the next largest weights. 100 keeps the effective sample size above 1 % of the
    states. None: no bound (the paper)."""
    match_dose: bool = False
    """Give the uniform gate the mean weight that the hard gate would have."""
    control: Literal["none", "shuffled", "reversed", "cancelled"] = "none"
    """Control experiment: permute the weights over the states, flip the sign of the advantage, or
    multiply every distance by every weight, so that the weights cancel (2020 code for DDPG)."""
    divergence: Divergence = "mse"
    """Distance to the target: squared error of the mean actions (the paper), their Huber loss (half
    the squared error up to 1, linear from there), KL(target || student), KL(student || target), or
    -log likelihood of the target's samples."""
    target: Literal["mode", "sample"] = "mode"
    """Action that `mse` and `huber` compare with: the target's mean action, or a sample of it (2020
    code)."""
    states: Literal["peer", "own", "mixed"] = "peer"
    """Source of the states: a random other peer (the paper), the learner itself, or both."""
    peer_share: float = 0.5
    """Share of the peer's states in `mixed`."""
    memory: int | None = None
    """Number of most recent states per learner to draw from. 0: PPO's current iteration, or the
    whole replay. None: PPO's current iteration, or the most recent 1,000 states (the paper). With a
    replay and the dose `loss`, the learner's own states are those of its minibatch instead."""
    dose: Literal["step", "shared", "loss"] = "step"
    """Separate gradient steps with their own Adam (the paper), separate steps through the learner's
    Adam (2020 code), or a term in the learner's loss. With a replay, the term has new states,
    targets and weights in every update, as many states as the learner's minibatch."""
    lr: float | None = None
    """Learning rate of the dose `step`. None: 1e-5 for PPO, else 1e-4 (the paper)."""
    steps: int | None = None
    """Gradient steps per iteration. None: 40 for PPO, which with 256 of 2,048 states each are five
    passes over the peer's states next to PPO's ten over its own (the paper gives no number); else
    one for each update of the learner (the paper)."""
    batch_size: int | None = None
    """States per gradient step. None: 256 for PPO, else 64 (the paper)."""
    coef: float = 1.0
    """Weight of the distillation loss, for the doses that use the learner's Adam."""
    coef_unit: Literal["one", "value"] = "one"
    """Unit of `coef` in the dose `loss`, with a replay: 1, or the mean size of the values that the
    learner's policy ascends in the minibatch, so that both parts of its loss stay on one scale
    (after the normaliser of TD3+BC, Fujimoto and Gu 2021)."""
    target_kl: float | None = None
    """KL(learner || peer) in nats at which a leash holds PPO's learners, by changing each one's
    `coef` in every iteration that begins too far from it: times KL / target_kl, at least 2/3 and at
    most 3, within 0.1 to 100 times `coef` (after Schulman et al. 2017, Sec. 4). At 0.35, about half
    of a peer's samples count with --share-experience. None: `coef` is constant."""
    max_grad_norm: float | None = None
    """Bound on the gradient norm of a distillation step. None: 0.5 for PPO, else no bound (2020
    code)."""
    every: int = 1
    """Distil in every n-th iteration."""
    warmup: float = 0.0
    """Share of the run before distillation begins."""
    schedule: Literal["constant", "linear"] = "constant"
    """Dose over the rest of the run: constant, or falling linearly to zero."""
    students: tuple[int, ...] | None = None
    """Numbers of the peers that imitate; None: all. One of two peers makes it one-way."""
    leader: Literal["none", "return"] = "none"
    """Peers to imitate at all. `none`: all, as ruler and gate say. `return`: only those that are
    ahead of the learner in return, so that the better half leads. A peer begins to lead when the
    mean of its latest training episodes (train/return) is ahead by a standard error, and stops when
    it is behind; distill/student is 1 in iterations in which a learner imitates."""

    def __post_init__(self) -> None:
        self._require("be positive", "lr", "steps", "batch_size", "max_grad_norm", "every")
        self._require("be positive", "alpha", "coef", "target_kl")
        self._require("not be negative", "memory", "lcb_k")
        self._require("lie in [0, 1]", "warmup", "peer_share")
        self._refuse_idle_settings()
        for setting, (name, values) in WHERE_IT_MATTERS.items():
            changed = getattr(self, setting) != getattr(type(self), setting)
            if changed and getattr(self, name) not in values:
                raise ValueError(
                    f"distill.{setting} does nothing with {name} {getattr(self, name)}; it is for "
                    + " or ".join(f"--distill.{name} {value}" for value in values)
                )

    def _refuse_idle_settings(self) -> None:
        """Raise ValueError for a combination in which a setting would have no effect."""
        clip, bound = self.weight_clip, self.max_weight
        if self.dose == "step" and self.coef != 1:
            raise ValueError(
                "distill.coef under an Adam of its own cancels; set distill.lr, or "
                "--distill.dose loss"
            )
        if self.target_kl is not None and not self.divergence.startswith("kl"):
            raise ValueError(
                f"distill.target_kl holds a KL, not {self.divergence}; give --distill.divergence "
                "kl_forward or kl_reverse"
            )
        if self.ruler in OF_WHAT_WAS_PLAYED and (self.states != "peer" or self.memory):
            raise ValueError(
                f"distill.ruler {self.ruler} needs the peer's own states of this iteration: "
                "--distill.states peer --distill.memory 0"
            )
        reverses_dose = self.match_dose and self.control == "reversed"
        if self.gate == "uniform" and self.control != "none" and not reverses_dose:
            raise ValueError("distill.control does nothing to a uniform gate; choose soft or hard")
        if clip is not None and not 0 < clip[0] < clip[1]:
            raise ValueError("distill.weight_clip needs two positive numbers, the lower one first")
        if bound is not None and bound <= 1:
            raise ValueError("distill.max_weight must be more than 1, the mean of all weights")
        if clip is not None and bound not in (None, type(self).max_weight):
            raise ValueError(
                "distill.max_weight does nothing beside weight_clip, which takes its place"
            )

    def refuse_unlike_discounts(self, gammas: Sequence[float]) -> None:
        """Raise ValueError if the ruler would compare values of peers with different discounts."""
        if self.ruler not in ("action", "lcb", "advantage") and len(set(gammas)) > 1:
            raise ValueError(
                f"distill.ruler {self.ruler} compares values of peers whose gamma is unlike; give "
                "all peers the same, PPO --distill.ruler advantage, or learners with a replay "
                "--distill.ruler action or lcb"
            )

    def refuse_unfit(self, *learners: Any) -> None:
        """Raise ValueError if learners of these settings lack what the method needs."""
        super().refuse_unfit(*learners)
        for each in learners:
            self.refuse_unlike_discounts(each.peer_gamma)
        replays = [each for each in learners if isinstance(each, OffPolicyConfig)]
        no_spread = "needs a spread, which policies of TD3 and DDPG do not have: give --distill."
        if not replays and self.ruler in ("action", "lcb", "critics"):
            raise ValueError(
                f"distill.ruler {self.ruler} needs critics of actions, which PPO does not have: "
                "give --distill.ruler value, centred, return, advantage or common"
            )
        if replays and self.ruler in OF_WHAT_WAS_PLAYED:
            raise ValueError(
                f"distill.ruler {self.ruler} needs the returns of PPO; give --distill.ruler value, "
                "centred, action, lcb or critics"
            )
        if replays and self.target_kl is not None:
            raise ValueError(
                "distill.target_kl is for PPO, whose KL is measured once per iteration; give "
                "--distill.coef"
            )
        if self.coef_unit == "value" and len(replays) < len(learners):
            raise ValueError(
                "distill.coef_unit value is for learners with a replay, whose policies ascend "
                "values; leave it out"
            )
        if any(isinstance(each, TD3Config) for each in learners):
            if self.divergence not in OF_MEANS:
                raise ValueError(
                    f"distill.divergence {self.divergence} {no_spread}divergence mse or huber"
                )
            if self.target == "sample":
                raise ValueError(f"distill.target sample {no_spread}target mode")
        if (self.memory or 0) > min((each.capacity for each in replays), default=inf):
            raise ValueError("distill.memory is more than the replay's --capacity; 0 is all of it")
        own_in_loss = (self.states, self.dose) == ("own", "loss")
        if own_in_loss and self.memory is not None and len(replays) == len(learners):
            raise ValueError(
                "distill.memory does nothing here: with a replay, own states in the loss are those "
                "of the learner's minibatch; leave it out, or give --distill.states mixed"
            )
        if len(learners) > 1:
            self._refuse_unlike(learners)

    def _refuse_unlike(self, learners: Sequence[LearnerConfig]) -> None:
        """Raise ValueError if peers differ too much for the ruler or the divergence."""
        self.refuse_unlike_discounts([each.gamma for each in learners])
        several_algorithms = len({type(each) for each in learners}) > 1
        if self.ruler in ("value", "centred") and several_algorithms:
            raise ValueError(
                f"distill.ruler {self.ruler} compares value functions of unlike algorithms, which "
                "estimate different quantities: give --distill.ruler action"
            )
        if self.ruler in ("advantage", "common"):
            raise ValueError(
                f"distill.ruler {self.ruler} judges rollouts of peers that collect at once, which "
                "unlike peers do not: give --distill.ruler return, value or centred"
            )
        if self.ruler == "critics":
            raise ValueError(
                "distill.ruler critics compares critics of unlike peers: give --distill.ruler "
                "action or lcb"
            )
        if len({each.squashed for each in learners}) > 1 and self.divergence not in OF_MEANS:
            raise ValueError(
                f"distill.divergence {self.divergence} has no meaning between policies that squash "
                "their actions and that do not: give --distill.divergence mse or huber"
            )
        if self.target == "sample" and several_algorithms:
            raise ValueError(
                "distill.target sample is for peers of one algorithm; give --distill.target mode"
            )


@dataclass(frozen=True, kw_only=True)
class TeachingConfig(MethodConfig):
    """Settings shared by all methods with a teacher."""

    COMMAND: ClassVar[str] = "distill"
    LEARNERS: ClassVar[tuple[type[LearnerConfig], ...]] = (StudentConfig,)
    """Kinds of learners that the method can teach."""
    ALGO: ClassVar[str] = "student"
    TEACHES_ENCODERS: ClassVar[bool] = False
    """True if the method can teach students with --encoder, recurrent ones on sequences."""

    divergence: Divergence = "kl_forward"
    """Distance to the teacher: KL(teacher || student), KL(student || teacher), the squared error of
    the mean actions, their Huber loss (half the squared error up to 1, linear from there), or the
    student's -log p of the teacher's samples. Only the last three are defined between a policy that
    squashes its actions and one that does not."""

    def refuse_unfit(self, *learners: Any) -> None:
        """Raise ValueError if the method cannot teach these learners."""
        for each in learners:
            if not isinstance(each, self.LEARNERS):
                rows = ALGORITHMS.items()
                fit = ", ".join(n for n, row in rows if issubclass(row.settings, self.LEARNERS))
                given = next(n for n, row in rows if row.settings is type(each))
                raise ValueError(f"this method teaches --algo {fit}, not {given}")
            if each.encoder_layers is not None and not self.TEACHES_ENCODERS:
                raise ValueError(
                    "this method learns from single states, by hidden layers alone: give --method "
                    "dagger, bc, on-policy or progressive, or leave --encoder out"
                )
            if isinstance(each, TD3Config) and self.divergence not in OF_MEANS:
                raise ValueError(
                    f"distill.divergence {self.divergence} needs a spread, which policies of TD3 "
                    "and DDPG do not have: give --distill.divergence mse or huber"
                )

    def refuse_unfit_teacher(self, squashed: bool, learners: LearnerConfig) -> None:
        """Raise ValueError if the divergence is undefined between teacher and students."""
        if self.divergence in ("kl_forward", "kl_reverse") and squashed != learners.squashed:
            one, other = ("squashes", "do not") if squashed else ("does not squash", "do")
            raise ValueError(
                f"distill.divergence {self.divergence}: the teacher {one} its actions and these "
                f"students {other}; give --distill.divergence mse, huber or nll"
            )


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(TeachingConfig):
    """Settings shared by the methods that learn from the teacher's answers alone."""

    STACKS_HISTORIES: ClassVar[bool] = True
    TEACHES_ENCODERS: ClassVar[bool] = True
    WHOLE_MEMORY: ClassVar[bool] = True
    """True: learn from all stored states. False: from the latest iteration."""

    steps: int = 80
    """Gradient steps per iteration; with 256 states each, 80 are ten passes over 2,048."""
    max_grad_norm: float = 10.0
    """Bound on the gradient norm of a step."""

    def __post_init__(self) -> None:
        self._require("be positive", "steps", "max_grad_norm")

    def beta(self, progress: float) -> float:
        """Return the probability that the teacher acts."""
        raise NotImplementedError

    @property
    def explores(self) -> bool:
        """True if the student acts with exploration noise."""
        return False


@dataclass(frozen=True, kw_only=True)
class CloningConfig(SupervisedConfig):
    """Behaviour cloning: the teacher acts; the student learns on all states seen so far."""

    def beta(self, progress: float) -> float:
        """Return the probability that the teacher acts: always."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class DAggerConfig(TeacherActs, SupervisedConfig):
    """DAgger: the student acts more and more, and learns on all states (Ross et al. 2011)."""

    beta_start: float = 1.0
    """Initial probability that the teacher acts."""
    beta_schedule: Schedule = "first"
    """Schedule of that probability: `first` is zero after the first iteration (Ross et al. 2011),
    `linear` reaches zero at `beta_until`, `exponential` a hundredth; or `constant`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_beta()


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig(SupervisedConfig):
    """On-policy distillation: the student acts, and learns on the latest states.

    Not the gradient of any function of its parameters (Czarnecki et al. 2019); see n-distill.
    """

    WHOLE_MEMORY: ClassVar[bool] = False

    def beta(self, progress: float) -> float:
        """Return the probability that the teacher acts: never."""
        return 0.0

    @property
    def explores(self) -> bool:
        """True: the student learns on the states of its stochastic policy."""
        return True


@dataclass(frozen=True, kw_only=True)
class ProgressiveConfig(SupervisedConfig):
    """Progressive distillation: a teacher's checkpoints in turn (Panigrahi et al. 2025).

    The teacher is a run directory with a history: `dpd train --keep-checkpoints`.
    """

    stages: int = 4
    """Checkpoints before the final teacher."""
    spacing: Literal["return", "steps", "two-shot", "random", "shuffled", "one-shot"] = "return"
    """Choice of checkpoints: equally spaced in return or in steps; `two-shot`, only the one at the
    steepest rise. Controls: `random` checkpoints; those of `return` in random order (`shuffled`);
    no checkpoint, only the final teacher (`one-shot`)."""
    switch: Literal["equal", "saturate"] = "equal"
    """Time of a switch: after equal shares of the run before `final_share`, or as soon as the
    divergence from the current checkpoint falls by less than 1 % in five iterations."""
    final_share: float = 0.5
    """Share of the run, at its end, with the final teacher."""
    teacher_share: float = 0.5
    """Probability that the current checkpoint acts, so that states move with it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("be at least 1", "stages")
        self._require("lie in [0, 1]", "final_share", "teacher_share")

    def beta(self, progress: float) -> float:
        """Return the probability that the teacher acts."""
        return self.teacher_share


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


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(DAggerConfig):
    """A student that looks up the teacher's actions at similar states (ReAugKD: Zhang et al. 2023).

    States are DAgger's. Keys are the teacher's last hidden layer, projected so that states with
    similar actions are close; the student learns to look them up. The paper does not give weights
    and sizes: the defaults are ours.
    """

    STACKS_HISTORIES: ClassVar[bool] = False  # the scale of keys depends on the number of inputs
    TEACHES_ENCODERS: ClassVar[bool] = False
    gamma: float = 0.1
    """Weight of the relational loss, the divergence between the teacher's similarities of states
    and the student's. 0 is plain distillation, where the lookup is not trained."""
    eta: float = 0.0
    """Weight, in training, of the squared error of the equal mixture of the student's action and
    its neighbours'; no state is its own neighbour."""
    keys: Literal["teacher", "obs"] = "teacher"
    """Lookup keys. `obs` is a control: the normalized observation itself, nothing is learned."""
    control: Literal["none", "shuffled"] = "none"
    """Control experiment: `shuffled` permutes the memory's actions over its keys."""
    dim: int = 32
    """Dimensions of a key."""
    entries: int = 10_000
    """States in the memory, evenly spaced over all stored states. 50,000 make policy files five
    times as large and evaluations five times as long."""
    k: int = 8
    """Neighbours per lookup."""
    tau: float = 0.1
    """Temperature of similarities."""
    bandwidth: float | None = None
    """Distance of similar actions, in half ranges; None: a quarter of the median."""
    embed_steps: int = 2000
    """Gradient steps on the teacher's projection, in the first iteration."""
    embed_lr: float = 1e-3
    """Learning rate of the teacher's projection."""
    student_weight: float | None = None
    """Weight of the student's own action. None: of 0, .25, .5, .75, .9 and 1, the one with the
    least error on the latest states, before they are learned from or stored."""
    check_every: int = 5
    """Iterations between such choices."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("not be negative", "gamma", "eta")
        self._require("be positive", "dim", "entries", "k", "embed_steps", "embed_lr")
        self._require("be positive", "check_every", "bandwidth")
        self._require("lie in [0, 1]", "student_weight")
        if not 1e-6 <= self.tau <= 1e6:
            raise ValueError(f"distill.tau must lie in [1e-6, 1e6], not {self.tau}")
        if self.k > self.entries:
            raise ValueError(f"distill.k {self.k} is more than distill.entries {self.entries}")

    @property
    def relates(self) -> bool:
        """True if the student learns more than the teacher's answers."""
        return self.keys == "teacher" and (self.gamma > 0 or self.eta > 0)


@dataclass(frozen=True, kw_only=True)
class ScaffoldConfig(DAggerConfig):
    """A guide down-weights states that a small student cannot fit (DiSK: Kag et al. 2023).

    States are DAgger's. The student's likelihood becomes (pi + g b) / (1 + g), with a broad density
    b; the guide g in (0, 1) is trained together with it and discarded at the end.
    """

    STACKS_HISTORIES: ClassVar[bool] = False  # the guide reads the student's inputs
    TEACHES_ENCODERS: ClassVar[bool] = False
    divergence: Divergence = "nll"
    """Must be nll, because the mixture is one of likelihoods."""
    label: Literal["mean", "sample"] = "mean"
    """Action of the likelihood: the teacher's mean action, or a sample of it."""
    std: float = 0.2
    """The student's standard deviation in the likelihood, in half action ranges; a learned one
    would absorb the error on hard states. The policy's own deviation is fitted separately."""
    broad: Literal["box", "teacher"] = "box"
    """The density b: uniform on the action box, or `kappa` times as wide as `std` around the
    teacher's mean action."""
    kappa: float = 5.0
    """Width of b around the teacher."""
    aux: float = 0.1
    """Weight of the squared error on all states, also censored ones (DiSK: cross-entropy)."""
    warm_up: float = 0.05
    """Share of the run before the guide starts; until then g = 0. 1: never."""
    guide_steps: int = 80
    """The guide's gradient steps per iteration, after the student's."""
    guide_lr: float = 3e-4
    """The guide's learning rate."""
    guide_hidden: tuple[int, ...] = (64, 64)
    """The guide's hidden layers; it sees the state and the teacher's mean action."""
    delta_start: float = 0.5
    """Initial budget of the guide: the mean, over the states where the student errs, of g times the
    error as a share of the largest one."""
    delta_end: float = 0.3
    """Final budget; the decay is a cosine."""
    multiplier: float = 5.0
    """Initial weight of the excess over the budget (DiSK)."""
    multiplier_lr: float = 0.1
    """Step size of the dual ascent on that weight, which stays between 0 and 50."""
    tolerance: float = 0.2
    """A student errs where a dimension of its action is off by more, in half action ranges."""
    coverage: float = 0.5
    """Minimum share of uncensored states: 1 - mean g of a minibatch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.divergence != "nll":
            raise ValueError(f"distill.divergence must be nll here, not {self.divergence}")
        self._require("be positive", "std", "kappa", "guide_steps", "guide_lr", "tolerance")
        self._require("not be negative", "aux", "delta_start", "delta_end")
        self._require("not be negative", "multiplier", "multiplier_lr")
        self._require("lie in [0, 1]", "warm_up")
        if not 0 <= self.coverage < 1:
            raise ValueError(f"distill.coverage must lie in [0, 1), not {self.coverage}")
        if not self.guide_hidden or min(self.guide_hidden) <= 0:
            raise ValueError(f"distill.guide_hidden must name sizes, not {self.guide_hidden}")

    def delta(self, progress: float) -> float:
        """Return the guide's budget."""
        fallen = 0.5 * (1 - math.cos(math.pi * min(progress, 1.0)))
        return self.delta_start + fallen * (self.delta_end - self.delta_start)


@dataclass(frozen=True)
class MethodSpec:
    """A distillation method: a row of METHODS."""

    settings: type[MethodConfig]
    method: str
    """Import path of the method, `module:class`; the module may import torch."""
    presets: MethodPresets = field(default_factory=dict)
    """Settings of the method under named presets, which no other method has."""
    default_presets: Mapping[type[LearnerConfig], str] = field(default_factory=dict)
    """The preset that applies without --preset, by the learners that it is for."""


SUPERVISED = "dpd.distill.teaching:Supervised"
METHODS: dict[str, MethodSpec] = {
    "dpd": MethodSpec(
        DPDConfig, "dpd.distill.peers:DualDistillation", DPD_PRESETS, DPD_DEFAULT_PRESETS
    ),
    "none": MethodSpec(IndependentConfig, "dpd.distill.independent:Independent"),
    "bc": MethodSpec(CloningConfig, SUPERVISED),
    "dagger": MethodSpec(DAggerConfig, SUPERVISED),
    "on-policy": MethodSpec(OnPolicyConfig, SUPERVISED, ON_POLICY_PRESETS),
    "progressive": MethodSpec(ProgressiveConfig, "dpd.distill.progressive:Progressive"),
    "scaffold": MethodSpec(ScaffoldConfig, "dpd.distill.scaffold:Scaffold"),
    "retrieval": MethodSpec(RetrievalConfig, "dpd.distill.retrieval:Retrieval"),
    "kickstart": MethodSpec(KickstartConfig, "dpd.distill.in_loss:InLoss"),
    "ppd": MethodSpec(ProximalConfig, "dpd.distill.in_loss:InLoss"),
    "n-distill": MethodSpec(GradientConfig, "dpd.distill.in_loss:TrueGradient"),
    "reverse-kl": MethodSpec(ReverseGradientConfig, "dpd.distill.in_loss:TrueGradient"),
}
"""All methods, by the name that `--method` takes."""
