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
    """Return a quantity at `progress` in [0, 1] of a run, that is `start` at its beginning.

    `linear` falls to zero at `until`; `exponential` to a hundredth of it there, and on; `first` is
    zero after the first iteration (Ross et al. 2011: the version without parameters).
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
"""Setting -> the other setting, and the values of it, without which it would do nothing."""


@dataclass(frozen=True, kw_only=True)
class IndependentConfig:
    """No distillation: peers train side by side; their distance is still logged."""

    PRESETS: ClassVar[Presets] = {}
    COMMAND: ClassVar[str] = "train"
    ALGO: ClassVar[str] = "ppo"
    SETTINGS: ClassVar[dict[str, Any]] = {}

    def refuse_unfit(self, *learners: Any) -> None:
        """Raise ValueError where learners of these settings would learn nothing."""
        refuse_students(*learners)

    def build(self, context: Context) -> Method:
        """Return the method for a stack of learners."""
        from dpd.distill.independent import Independent

        return Independent(context)


@dataclass(frozen=True, kw_only=True)
class DPDConfig:
    """Dual policy distillation (Lai et al. 2020), for two peers or more.

    The defaults are the preset `paper`; where one is None, it is the paper's for the algorithm.
    """

    PRESETS: ClassVar[Presets] = DPD_PRESETS
    COMMAND: ClassVar[str] = "train"
    ALGO: ClassVar[str] = "ppo"
    SETTINGS: ClassVar[dict[str, Any]] = {}

    ruler: Literal["value", "return", "action", "lcb", "critics"] = "value"
    """How much better the peer is at a state. `value`: the gap of value functions (the paper).
    `return`, of PPO: the return the peer really got from there, minus the own value. Of learners
    with critics of actions: `action`, what the critics of all peers together say of the peer's
    action minus what they say of the own; `lcb`, the same as far as these critics agree; `critics`,
    the peer's critic minus the own one, both on the peer's action (2020 code for DDPG)."""
    lcb_k: float = 1.0
    """Deviations between critics that `lcb` subtracts from their mean."""
    gate: Literal["soft", "hard", "uniform"] = "soft"
    """Weight of a state: softmax of the gap (the paper's exponential, mean 1), 1 where the peer is
    ahead, or 1 everywhere."""
    alpha: float = 1.0
    """Sharpness of the soft gate, per unit of `scale` (the paper: in [0.1, 10], on raw gaps). A
    sharp gate imitates few states: without `max_weight`, of 2,048 about 1,250 count at 1, 50 at 3
    and 2 at 10. TensorBoard's distill/ess shows the share that counts."""
    scale: Literal["rms", "reward"] = "rms"
    """Unit of the gap in the soft gate: its running root mean square, or the learner's running
    deviation of returns (what the 2020 code's value functions are scaled by)."""
    weight_clip: tuple[float, float] | None = None
    """Bounds on the soft gate's exponential before it is normalised, in place of `max_weight`
    (2020 code: 0.01 100)."""
    max_weight: float | None = 100.0
    """Largest weight that the soft gate gives a state, where the mean is 1: at least one in so many
    states counts. What is beyond goes to the next states; None: no bound (the paper)."""
    match_dose: bool = False
    """Give the uniform gate the mean weight that the hard gate would have."""
    control: Literal["none", "shuffled", "reversed", "cancelled"] = "none"
    """Control experiment: permute the weights over the states, turn the gap's sign, or multiply
    every distance by every weight, so that the weights cancel (2020 code for DDPG)."""
    divergence: Literal["mse", "kl_forward", "kl_reverse", "nll"] = "mse"
    """Distance to the target: of the mean actions (the paper), KL(target || student),
    KL(student || target), or the likelihood of the target's samples."""
    target: Literal["mode", "sample"] = "mode"
    """What `mse` pulls to: the target's mean action, or a sample of it (2020 code)."""
    states: Literal["peer", "own", "mixed"] = "peer"
    """Whose states: a uniformly drawn other peer's (the paper), the learner's own, or both."""
    peer_share: float = 0.5
    """Share of the peer's states in `mixed`."""
    memory: int | None = None
    """States come from each learner's most recent this many; 0: from PPO's current iteration, or
    from the whole replay. None: from the current iteration, or the most recent 1,000 (paper). With
    a replay and the dose `loss`, own states are those of the learner's minibatch instead."""
    dose: Literal["step", "shared", "loss"] = "step"
    """Own gradient steps with an Adam of their own (the paper), the same through the learner's
    Adam (2020 code), or a term inside the learner's loss. With a replay, the term has new states,
    targets and weights in every update: as many states as the learner's minibatch."""
    lr: float | None = None
    """Learning rate of the own Adam. None: 1e-5 for PPO, else 1e-4 (paper)."""
    steps: int | None = None
    """Gradient steps per iteration. None: 40 for PPO, which with 256 of 2048 states each are five
    passes over the peer's states beside PPO's ten over the own (the paper names no number); else
    one for each update of the learner (paper)."""
    batch_size: int | None = None
    """States per gradient step. None: 256 for PPO, else 64 (paper)."""
    coef: float = 1.0
    """Weight of the term, for the doses that share the learner's Adam."""
    max_grad_norm: float | None = None
    """Bound on the gradient norm of a distillation step. None: 0.5 for PPO, else no bound (2020
    code)."""
    every: int = 1
    """Distil in every this many iterations."""
    warmup: float = 0.0
    """Share of the run before distillation begins."""
    schedule: Literal["constant", "linear"] = "constant"
    """Dose over the rest of the run: as it is, or falling to zero."""
    students: tuple[int, ...] | None = None
    """Peers that distil; None: all. One of two makes it one-way."""

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
        """Raise where a setting could have no effect, rather than let it seem to."""
        refuse(self._idle())
        for setting, (name, values) in WHERE_IT_MATTERS.items():
            changed = getattr(self, setting) != getattr(type(self), setting)
            if changed and getattr(self, name) not in values:
                raise ValueError(
                    f"distill.{setting} does nothing with {name} {getattr(self, name)}; it is for "
                    + " or ".join(f"--distill.{name} {value}" for value in values)
                )

    def _idle(self) -> dict[str, bool]:
        """Say of every combination that has no effect whether it is given."""
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
        """Raise ValueError where the ruler would compare values of peers of unlike discounts."""
        if self.ruler not in ("action", "lcb") and len(set(gammas)) > 1:
            raise ValueError(
                f"distill.ruler {self.ruler} compares values of peers whose gamma is unlike; give "
                "all peers the same, or learners with a replay --distill.ruler action or lcb"
            )

    def refuse_unfit(self, *learners: Any) -> None:
        """Raise ValueError where stacks of these settings lack what this asks of them."""
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
        """Raise ValueError where peers differ too much for what this compares."""
        self.refuse_unlike_discounts([each.gamma for each in learners])
        kinds = {type(each) for each in learners}
        refuse(
            {
                f"ruler {self.ruler} compares value functions of unlike algorithms, which are not "
                "of the same thing: give --distill.ruler action": (
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
    """Raise ValueError where there are learners that learn from no reward."""
    if any(isinstance(each, StudentConfig) for each in learners):
        raise ValueError("students learn from a teacher alone; see dpd distill --help")


def refuse(wrong: Mapping[str, bool]) -> None:
    """Raise ValueError that says which of these things about the settings is so."""
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
        from dpd.distill.supervised import Supervised

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
        from dpd.distill.in_loss import TrueGradient

        return TrueGradient(self, context)


@dataclass(frozen=True, kw_only=True)
class ReverseGradientConfig(GradientConfig):
    """The same of KL(student || teacher): expected entropy-regularised distillation.

    With H(student || teacher) in its place a Gaussian's deviation would fall to zero.
    """

    divergence: Divergence = "kl_reverse"
    """Distance to the teacher."""


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(DAggerConfig):
    """A student that asks its neighbours in a memory of the teacher (ReAugKD: Zhang et al. 2023).

    States are DAgger's. Keys are the teacher's last hidden layer, projected so that states of alike
    actions are near; the student learns to look them up. Weights and sizes of the paper are not
    known to us: defaults are choices of ours.
    """

    gamma: float = 0.1
    """Weight of the relational loss, the divergence between the teacher's similarities of states
    and the student's. 0 is plain distillation, whose student looks up at random."""
    eta: float = 0.0
    """Weight of the squared error of the student's action mixed with its neighbours' in equal
    parts, in training, where no state answers itself."""
    keys: Literal["teacher", "obs"] = "teacher"
    """What is looked up. As a control: the normalised observation itself, nothing learnt."""
    control: Literal["none", "shuffled"] = "none"
    """As a control: `shuffled` permutes the memory's actions over its keys."""
    dim: int = 32
    """Numbers of a key."""
    entries: int = 10_000
    """States in the memory, evenly spaced over all that a learner remembers. 50,000 make policy
    files and evaluations five times as large and long."""
    k: int = 8
    """Neighbours that answer."""
    tau: float = 0.1
    """Temperature of similarities."""
    bandwidth: float | None = None
    """Distance between alike actions, in halves of their range; None: a quarter of the median."""
    embed_steps: int = 2000
    """Gradient steps on the teacher's projection, in the first iteration."""
    embed_lr: float = 1e-3
    """Learning rate of the teacher's projection."""
    student_weight: float | None = None
    """Weight of the student's own action; None: of 0, .25, .5, .75, .9 and 1, the one of the least
    error at the latest states, before they are learnt from or remembered."""
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
        """Whether the student learns anything beside the teacher's answers."""
        return self.keys == "teacher" and (self.gamma > 0 or self.eta > 0)

    def build(self, context: Context) -> Method:
        """Return the method for a stack of learners."""
        from dpd.distill.retrieval import Retrieval

        return Retrieval(self, context)


@dataclass(frozen=True, kw_only=True)
class ScaffoldConfig(DAggerConfig):
    """A guide censors what a small student cannot learn (DiSK: Kag et al. 2023).

    States are DAgger's. The student's likelihood is lifted to (pi + g b) / (1 + g), with a broad
    density b; the guide g in (0, 1) is trained beside it and thrown away at the end.
    """

    divergence: Divergence = "nll"
    """Only nll: the mixture is of likelihoods."""
    label: Literal["mean", "sample"] = "mean"
    """What the likelihood is of: the teacher's mean action, or a sample of it."""
    std: float = 0.2
    """The student's deviation in it, in halves of the action range: one that is learnt would
    explain the hard states away. It is fitted behind the mean."""
    broad: Literal["box", "teacher"] = "box"
    """The density b: uniform on the action box, or `kappa` times as wide as `std` around the
    teacher's mean action."""
    kappa: float = 5.0
    """Width of b around the teacher."""
    aux: float = 0.1
    """Weight of the squared error at all states, censored ones too (DiSK: of cross-entropy)."""
    warm_up: float = 0.05
    """Share of the run before the guide begins: g = 0, plain likelihood. 1: never."""
    guide_steps: int = 80
    """The guide's gradient steps per iteration, after the student's."""
    guide_lr: float = 3e-4
    """The guide's learning rate."""
    guide_hidden: tuple[int, ...] = (64, 64)
    """The guide's hidden layers; it sees the state and the teacher's mean action."""
    delta_start: float = 0.5
    """The guide's budget at first: the mean, over the states where the student errs, of g times
    the share of the largest error that counts."""
    delta_end: float = 0.3
    """The budget at the end; it falls by a cosine."""
    multiplier: float = 5.0
    """Initial weight of what exceeds the budget (DiSK)."""
    multiplier_lr: float = 0.1
    """Step of its dual ascent, between 0 and 50."""
    tolerance: float = 0.2
    """A student errs where an action's dimension is off by more, in halves of its range."""
    coverage: float = 0.5
    """Least share of states that is not censored: 1 - mean g of a minibatch."""

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
