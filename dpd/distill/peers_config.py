"""Settings of peer distillation; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dpd.agents.offpolicy_config import OffPolicyConfig, TD3Config
from dpd.agents.ppo_config import PPOConfig
from dpd.agents.student_config import StudentConfig
from dpd.distill.presets import DPD_PRESETS, Presets

if TYPE_CHECKING:
    from dpd.distill.base import Context, Method

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
        from dpd.distill.peers import Independent

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
