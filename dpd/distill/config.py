"""Settings of the distillation methods; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dpd.agents.config import OffPolicyConfig, PPOConfig, StudentConfig, TD3Config
from dpd.distill.presets import DPD_PRESETS, Presets

if TYPE_CHECKING:
    from dpd.distill.method import Context, Method

Schedule = Literal["constant", "linear", "exponential", "first"]


def scheduled(kind: Schedule, start: float, until: float, progress: float) -> float:
    """Return the value of a schedule at `progress` in [0, 1] of a run; it begins at `start`.

    `linear` falls to zero at `until`; `exponential` falls to a hundredth at `until` and continues;
    `first` is zero after the first iteration (Ross et al. 2011: the parameter-free version).
    """
    match kind:
        case "constant":
            return start
        case "linear":
            return start * max(0.0, 1 - progress / until)
        case "exponential":
            return float(start * 0.01 ** (progress / until))
        case "first":
            return start if progress == 0 else 0.0


WHERE_IT_MATTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "steps": ("dose", ("step", "shared")),
    "batch_size": ("dose", ("step", "shared")),
    "max_grad_norm": ("dose", ("step", "shared")),
    "lr": ("dose", ("step",)),
    "lcb_k": ("ruler", ("lcb",)),
    "alpha": ("gate", ("soft",)),
    "scale": ("gate", ("soft",)),
    "max_weight": ("gate", ("soft",)),
    "peer_share": ("states", ("mixed",)),
}
"""Setting -> the setting that must have one of these values, or the first has no effect."""


@dataclass(frozen=True, kw_only=True)
class IndependentConfig:
    """No distillation: peers train side by side, and their distance is logged."""

    PRESETS: ClassVar[Presets] = {}
    COMMAND: ClassVar[str] = "train"
    ALGO: ClassVar[str] = "ppo"
    SETTINGS: ClassVar[dict[str, Any]] = {}

    def refuse_unfit(self, *learners: Any) -> None:
        """Raise ValueError if learners of these settings would learn nothing."""
        refuse_students(*learners)

    def build(self, context: Context) -> Method:
        """Return the method for a stack of learners."""
        from dpd.distill.independent import Independent

        return Independent(context)


@dataclass(frozen=True, kw_only=True)
class DPDConfig:
    """Dual policy distillation (Lai et al. 2020), for two peers or more.

    The defaults are the preset `paper`; None stands for the paper's value for the algorithm.
    """

    PRESETS: ClassVar[Presets] = DPD_PRESETS
    COMMAND: ClassVar[str] = "train"
    ALGO: ClassVar[str] = "ppo"
    SETTINGS: ClassVar[dict[str, Any]] = {}

    ruler: Literal["value", "return", "action", "lcb", "critics"] = "value"
    """Measure of the peer's advantage at a state. `value`: difference of the two value functions
    (the paper). `return`, for PPO: the return that the peer got from the state, minus the learner's
    value. For learners with action critics: `action`, the mean critic's value of the peer's action
    minus that of the learner's; `lcb`, the same minus the critics' disagreement; `critics`, the
    peer's critic minus the learner's, both at the peer's action (2020 code for DDPG)."""
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
    divergence: Literal["mse", "kl_forward", "kl_reverse", "nll"] = "mse"
    """Distance to the target: squared error of the mean actions (the paper), KL(target || student),
    KL(student || target), or -log likelihood of the target's samples."""
    target: Literal["mode", "sample"] = "mode"
    """Action that `mse` compares with: the target's mean action, or a sample of it (2020 code)."""
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

    def __post_init__(self) -> None:
        for name in ("lr", "steps", "batch_size", "max_grad_norm", "every", "alpha", "coef"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"distill.{name} must be positive, not {value}")
        for name in ("memory", "lcb_k"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"distill.{name} must not be negative, not {getattr(self, name)}")
        for name in ("warmup", "peer_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"distill.{name} must lie in [0, 1], not {getattr(self, name)}")
        self._refuse_idle_settings()

    def _refuse_idle_settings(self) -> None:
        """Raise ValueError for a setting that would have no effect."""
        refuse(self._idle())
        for setting, (name, values) in WHERE_IT_MATTERS.items():
            changed = getattr(self, setting) != getattr(type(self), setting)
            if changed and getattr(self, name) not in values:
                raise ValueError(
                    f"distill.{setting} does nothing with {name} {getattr(self, name)}; it is for "
                    + " or ".join(f"--distill.{name} {value}" for value in values)
                )

    def _idle(self) -> dict[str, bool]:
        """Map every combination of settings without effect to whether it is given."""
        return {
            "coef under an Adam of its own cancels; set distill.lr, or --distill.dose loss": (
                self.dose == "step" and self.coef != 1
            ),
            "ruler return needs the peer's own states of this iteration: "
            "--distill.states peer --distill.memory 0": (
                self.ruler == "return" and (self.states != "peer" or bool(self.memory))
            ),
            "control does nothing to a uniform gate; choose soft or hard": (
                self.gate == "uniform"
                and self.control != "none"
                and not (self.match_dose and self.control == "reversed")
            ),
            "match_dose is for the uniform gate": self.match_dose and self.gate != "uniform",
            "target sample is for divergence mse": (
                self.target == "sample" and self.divergence != "mse"
            ),
            "weight_clip is for the soft gate, lower bound first": self.weight_clip is not None
            and (self.gate != "soft" or not 0 < self.weight_clip[0] < self.weight_clip[1]),
            "max_weight must be more than 1, the mean of all weights": (
                self.max_weight is not None and self.max_weight <= 1
            ),
            "max_weight does nothing beside weight_clip, which takes its place": (
                self.weight_clip is not None
                and self.max_weight not in (None, type(self).max_weight)
            ),
        }

    def refuse_unlike_discounts(self, gammas: Sequence[float]) -> None:
        """Raise ValueError if the ruler would compare values of peers with different discounts."""
        if self.ruler not in ("action", "lcb") and len(set(gammas)) > 1:
            raise ValueError(
                f"distill.ruler {self.ruler} compares values of peers whose gamma is unlike; give "
                "all peers the same, or learners with a replay --distill.ruler action or lcb"
            )

    def refuse_unfit(self, *learners: Any) -> None:
        """Raise ValueError if learners of these settings lack what the method needs."""
        refuse_students(*learners)
        for each in learners:
            self.refuse_unlike_discounts(each.peer_gamma)
        replayed = [isinstance(each, OffPolicyConfig) for each in learners]
        spreadless = any(isinstance(each, TD3Config) for each in learners)
        no_spread = "which policies of TD3 and DDPG do not have: give --distill."
        capacities = [x.capacity for x in learners if isinstance(x, OffPolicyConfig)]
        refuse(
            {
                f"ruler {self.ruler} needs critics of actions, which PPO does not have: give "
                "--distill.ruler value or return": (
                    not any(replayed) and self.ruler in ("action", "lcb", "critics")
                ),
                "ruler return needs the returns of PPO; give --distill.ruler value, action, lcb or "
                "critics": any(replayed) and self.ruler == "return",
                f"divergence {self.divergence} needs a spread, {no_spread}divergence mse": (
                    spreadless and self.divergence != "mse"
                ),
                f"target sample needs a spread, {no_spread}target mode": (
                    spreadless and self.target == "sample"
                ),
                "memory is more than the replay's --capacity; 0 is all of it": (
                    (self.memory or 0) > min(capacities, default=inf)
                ),
                "memory does nothing here: with a replay, own states in the loss are those of the "
                "learner's minibatch; leave it out, or give --distill.states mixed": (
                    all(replayed)
                    and self.memory is not None
                    and (self.states, self.dose) == ("own", "loss")
                ),
            }
        )
        if len(learners) > 1:
            self._refuse_unlike(learners)

    def _refuse_unlike(self, learners: Sequence[PPOConfig | OffPolicyConfig]) -> None:
        """Raise ValueError if peers differ too much for the ruler or the divergence."""
        self.refuse_unlike_discounts([each.gamma for each in learners])
        kinds = {type(each) for each in learners}
        refuse(
            {
                f"ruler {self.ruler} compares value functions of unlike algorithms, which "
                "estimate different quantities: give --distill.ruler action": (
                    self.ruler == "value" and len(kinds) > 1
                ),
                "ruler critics compares critics of unlike peers: give --distill.ruler action or "
                "lcb": self.ruler == "critics",
                f"divergence {self.divergence} has no meaning between policies that squash their "
                "actions and that do not: give --distill.divergence mse": (
                    len({each.squashed for each in learners}) > 1 and self.divergence != "mse"
                ),
                "target sample is for peers of one algorithm; give --distill.target mode": (
                    len(kinds) > 1 and self.target == "sample"
                ),
            }
        )

    def build(self, context: Context) -> Method:
        """Return the method for a stack of learners."""
        from dpd.distill.peers import DualDistillation

        return DualDistillation(self, context)


def refuse_students(*learners: Any) -> None:
    """Raise ValueError if a learner does not learn from rewards."""
    if any(isinstance(each, StudentConfig) for each in learners):
        raise ValueError("students learn from a teacher alone; see dpd distill --help")


def refuse(wrong: Mapping[str, bool]) -> None:
    """Raise ValueError with the first message whose condition holds."""
    for what, is_so in wrong.items():
        if is_so:
            raise ValueError(f"distill.{what}")


Learner = PPOConfig | OffPolicyConfig | StudentConfig
NAMES: dict[type[Learner], str] = {
    PPOConfig: "ppo",
    OffPolicyConfig: "td3, ddpg, sac",
    StudentConfig: "student",
}
Divergence = Literal["kl_forward", "kl_reverse", "mse", "nll"]


@dataclass(frozen=True, kw_only=True)
class TeachingConfig:
    """Settings shared by all methods with a teacher."""

    PRESETS: ClassVar[Presets] = {}
    COMMAND: ClassVar[str] = "distill"
    LEARNERS: ClassVar[tuple[type[Learner], ...]] = (StudentConfig,)
    """Kinds of learners that the method can teach."""
    ALGO: ClassVar[str] = "student"
    """Default algorithm of the learners."""
    SETTINGS: ClassVar[dict[str, Any]] = {}
    """Defaults of the learners under this method, instead of their own."""

    divergence: Divergence = "kl_forward"
    """Distance to the teacher: KL(teacher || student), KL(student || teacher), the squared error of
    the mean actions, or the student's -log p of the teacher's samples. Only the last two are
    defined between a policy that squashes its actions and one that does not."""

    def build(self, context: Context) -> Method:
        """Return the method for a stack of learners."""
        raise NotImplementedError

    def refuse_unfit(self, *learners: Any) -> None:
        """Raise ValueError if the method cannot teach these learners."""
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
        """Raise ValueError if the divergence is undefined between teacher and students."""
        if self.divergence in ("kl_forward", "kl_reverse") and squashed != learners.squashed:
            one, other = ("squashes", "do not") if squashed else ("does not squash", "do")
            raise ValueError(
                f"distill.divergence {self.divergence}: the teacher {one} its actions and these "
                f"students {other}; give --distill.divergence mse or nll"
            )


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(TeachingConfig):
    """Settings shared by the methods that learn from the teacher's answers alone."""

    WHOLE_MEMORY: ClassVar[bool] = True
    """True: learn from all stored states. False: from the latest iteration."""

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
        """True if the student acts with exploration noise."""
        return False

    def build(self, context: Context) -> Method:
        """Return the method for a stack of learners."""
        from dpd.distill.teaching import Supervised

        return Supervised(self, context)


@dataclass(frozen=True, kw_only=True)
class CloningConfig(SupervisedConfig):
    """Behaviour cloning: the teacher acts; the student learns on all states seen so far."""

    def beta(self, progress: float) -> float:
        """Return the probability that the teacher acts: always."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class DAggerConfig(SupervisedConfig):
    """DAgger: the student acts more and more, and learns on all states (Ross et al. 2011)."""

    beta_start: float = 1.0
    """Initial probability that the teacher acts."""
    beta_schedule: Schedule = "first"
    """Schedule of that probability: `first` is zero after the first iteration (Ross et al. 2011),
    `linear` reaches zero at `beta_until`, `exponential` a hundredth; or `constant`."""
    beta_until: float = 0.5
    """Share of the run at which the schedule ends."""

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
    """Kickstarting: RL with a distillation term that fades (Schmitt et al. 2018)."""

    LEARNERS: ClassVar[tuple[type[Learner], ...]] = (PPOConfig, OffPolicyConfig)
    ALGO: ClassVar[str] = "ppo"

    coef: float = 1.0
    """Initial weight of the divergence in the learner's loss."""
    schedule: Schedule = "linear"
    """Schedule of that weight."""
    until: float = 0.5
    """Share of the run at which the schedule ends."""

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
        from dpd.distill.in_loss import InLoss

        return InLoss(self, context)


@dataclass(frozen=True, kw_only=True)
class ProximalConfig(KickstartConfig):
    """Proximal policy distillation: PPO, and the divergence times its ratio (Spigler 2024).

    The term is E[max(ratio, 1 - clip) D(s)], with PPO's clip; through the ratio it also moves the
    policy towards actions of states where it agrees.
    """

    LEARNERS: ClassVar[tuple[type[Learner], ...]] = (PPOConfig,)
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

    LEARNERS: ClassVar[tuple[type[Learner], ...]] = (PPOConfig,)
    SETTINGS: ClassVar[dict[str, Any]] = {"norm_adv": False, "gamma": 0.9}
    schedule: Schedule = "constant"
    """Schedule of the weight of both parts."""
    reward_coef: float = 0.0
    """Weight of the task's reward, added to the distillation reward."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reward_coef < 0:
            raise ValueError(f"distill.reward_coef must not be negative, not {self.reward_coef}")

    def refuse_unfit(self, *learners: Any) -> None:
        """Raise ValueError if the method cannot teach these learners."""
        super().refuse_unfit(*learners)
        if any(each.norm_adv for each in learners):
            raise ValueError(
                "this is a gradient only if both of its parts have one scale: leave --norm-adv off"
            )

    def build(self, context: Context) -> Method:
        """Return the method for a stack of learners."""
        from dpd.distill.in_loss import TrueGradient

        return TrueGradient(self, context)


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
        for name in ("gamma", "eta"):
            if getattr(self, name) < 0:
                raise ValueError(f"distill.{name} must not be negative, not {getattr(self, name)}")
        for name in ("dim", "entries", "k", "embed_steps", "embed_lr", "check_every"):
            if getattr(self, name) <= 0:
                raise ValueError(f"distill.{name} must be positive, not {getattr(self, name)}")
        if not 1e-6 <= self.tau <= 1e6:
            raise ValueError(f"distill.tau must lie in [1e-6, 1e6], not {self.tau}")
        if self.bandwidth is not None and self.bandwidth <= 0:
            raise ValueError(f"distill.bandwidth must be positive, not {self.bandwidth}")
        if self.student_weight is not None and not 0 <= self.student_weight <= 1:
            raise ValueError(
                f"distill.student_weight must lie in [0, 1], not {self.student_weight}"
            )
        if self.k > self.entries:
            raise ValueError(f"distill.k {self.k} is more than distill.entries {self.entries}")

    @property
    def relates(self) -> bool:
        """True if the student learns more than the teacher's answers."""
        return self.keys == "teacher" and (self.gamma > 0 or self.eta > 0)

    def build(self, context: Context) -> Method:
        """Return the method for a stack of learners."""
        from dpd.distill.retrieval import Retrieval

        return Retrieval(self, context)


@dataclass(frozen=True, kw_only=True)
class ScaffoldConfig(DAggerConfig):
    """A guide down-weights states that a small student cannot fit (DiSK: Kag et al. 2023).

    States are DAgger's. The student's likelihood becomes (pi + g b) / (1 + g), with a broad density
    b; the guide g in (0, 1) is trained together with it and discarded at the end.
    """

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
        for name in ("std", "kappa", "guide_steps", "guide_lr", "tolerance"):
            if getattr(self, name) <= 0:
                raise ValueError(f"distill.{name} must be positive, not {getattr(self, name)}")
        for name in ("aux", "delta_start", "delta_end", "multiplier", "multiplier_lr"):
            if getattr(self, name) < 0:
                raise ValueError(f"distill.{name} must not be negative, not {getattr(self, name)}")
        if not 0 <= self.warm_up <= 1:
            raise ValueError(f"distill.warm_up must lie in [0, 1], not {self.warm_up}")
        if not 0 <= self.coverage < 1:
            raise ValueError(f"distill.coverage must lie in [0, 1), not {self.coverage}")
        if not self.guide_hidden or min(self.guide_hidden) <= 0:
            raise ValueError(f"distill.guide_hidden must name sizes, not {self.guide_hidden}")

    def delta(self, progress: float) -> float:
        """Return the guide's budget."""
        fallen = 0.5 * (1 - math.cos(math.pi * min(progress, 1.0)))
        return self.delta_start + fallen * (self.delta_end - self.delta_start)

    def build(self, context: Context) -> Method:
        """Return the method for a stack of learners."""
        from dpd.distill.scaffold import Scaffold

        return Scaffold(self, context)
