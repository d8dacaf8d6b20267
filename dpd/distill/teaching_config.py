"""Settings of the methods of dpd distill; imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from dpd.agents.config import LearnerConfig
from dpd.agents.offpolicy_config import TD3Config
from dpd.agents.student_config import StudentConfig
from dpd.agents.table import ALGORITHMS
from dpd.distill.config import OF_MEANS, Divergence, MethodConfig
from dpd.distill.schedules import Schedule, TeacherActs


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
