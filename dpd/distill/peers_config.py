"""Settings of peer distillation; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from dpd.distill.base import Context, Method

Presets = dict[str, dict[str, dict[str, Any]]]
"""Preset -> algorithm -> settings, in the shape of a configuration file."""

WHERE_IT_MATTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "steps": ("dose", ("step", "shared")),
    "batch_size": ("dose", ("step", "shared")),
    "max_grad_norm": ("dose", ("step", "shared")),
    "lr": ("dose", ("step",)),
    "alpha": ("gate", ("soft",)),
    "scale": ("gate", ("soft",)),
    "peer_share": ("states", ("mixed",)),
}
"""Setting -> the other setting, and the values of it, without which it would do nothing."""


@dataclass(frozen=True, kw_only=True)
class IndependentConfig:
    """No distillation: peers train side by side; their distance is still logged."""

    PRESETS: ClassVar[Presets] = {}

    def build(self, context: Context) -> Method:
        """Return the method for a stack of learners."""
        from dpd.distill.peers import Independent

        return Independent(context)


@dataclass(frozen=True, kw_only=True)
class DPDConfig:
    """Dual policy distillation (Lai et al. 2020), for two peers or more.

    The defaults are the preset `paper`.
    """

    ruler: Literal["value", "return"] = "value"
    """How much better the peer is at a state: the gap of value functions (the paper), or the
    return the peer really got from there minus the own value."""
    gate: Literal["soft", "hard", "uniform"] = "soft"
    """Weight of a state: softmax of the gap (the paper's exponential, mean 1), 1 where the peer is
    ahead, or 1 everywhere."""
    alpha: float = 1.0
    """Sharpness of the soft gate, per unit of `scale`. The paper tunes it in [0.1, 10]."""
    scale: Literal["rms", "reward"] = "rms"
    """Unit of the gap in the soft gate: its running root mean square, or the learner's running
    deviation of returns (what the 2020 code's value functions are scaled by)."""
    weight_clip: tuple[float, float] | None = None
    """Bounds on the soft gate's exponential before it is normalised (2020 code: 0.01 100)."""
    match_dose: bool = False
    """Give the uniform gate the mean weight that the hard gate would have."""
    control: Literal["none", "shuffled", "reversed"] = "none"
    """Control experiment: permute the weights over the states, or turn the gap's sign."""
    divergence: Literal["mse", "kl_forward", "kl_reverse", "nll"] = "mse"
    """Distance to the target: of the mean actions (the paper), KL(target || student),
    KL(student || target), or the likelihood of the target's samples."""
    target: Literal["mode", "sample"] = "mode"
    """What `mse` pulls to: the target's mean action, or a sample of it (2020 code)."""
    states: Literal["peer", "own", "mixed"] = "peer"
    """Whose states: a uniformly drawn other peer's (the paper), the learner's own, or both."""
    peer_share: float = 0.5
    """Share of the peer's states in `mixed`."""
    memory: int = 0
    """States come from each learner's most recent this many; 0: from the current iteration."""
    dose: Literal["step", "shared", "loss"] = "step"
    """Own gradient steps with an Adam of their own (the paper), the same through the learner's
    Adam (2020 code), or a term inside the learner's loss."""
    lr: float = 1e-5
    """Learning rate of the own Adam (paper, on-policy)."""
    steps: int = 40
    """Gradient steps per iteration: with 256 of 2048 states each, five passes over the peer's
    states beside PPO's ten over the own. The paper names no number."""
    batch_size: int = 256
    """States per gradient step (paper, on-policy)."""
    coef: float = 1.0
    """Weight of the term, for the doses that share the learner's Adam."""
    max_grad_norm: float = 0.5
    """Bound on the gradient norm of a distillation step (2020 code)."""
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
            if getattr(self, name) <= 0:
                raise ValueError(f"distill.{name} must be positive, not {getattr(self, name)}")
        if self.memory < 0:
            raise ValueError(f"distill.memory must not be negative, not {self.memory}")
        for name in ("warmup", "peer_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"distill.{name} must lie in [0, 1], not {getattr(self, name)}")
        self._refuse_idle_settings()

    def _refuse_idle_settings(self) -> None:
        """Raise where a setting could have no effect, rather than let it seem to."""
        wrong = {
            "coef under an Adam of its own cancels; set distill.lr, or --distill.dose loss": (
                self.dose == "step" and self.coef != 1
            ),
            "ruler return needs the peer's own states of this iteration: "
            "--distill.states peer --distill.memory 0": (
                self.ruler == "return" and (self.states != "peer" or self.memory > 0)
            ),
            "control does nothing to a uniform gate; choose soft or hard": (
                self.gate == "uniform" and self.control != "none" and not self.match_dose
            ),
            "match_dose is for the uniform gate": self.match_dose and self.gate != "uniform",
            "target sample is for divergence mse": (
                self.target == "sample" and self.divergence != "mse"
            ),
            "weight_clip is for the soft gate, lower bound first": self.weight_clip is not None
            and (self.gate != "soft" or not 0 < self.weight_clip[0] < self.weight_clip[1]),
        }
        for what, is_so in wrong.items():
            if is_so:
                raise ValueError(f"distill.{what}")
        for setting, (name, values) in WHERE_IT_MATTERS.items():
            changed = getattr(self, setting) != getattr(type(self), setting)
            if changed and getattr(self, name) not in values:
                raise ValueError(
                    f"distill.{setting} does nothing with {name} {getattr(self, name)}; it is for "
                    + " or ".join(f"--distill.{name} {value}" for value in values)
                )

    PRESETS: ClassVar[Presets] = {
        # Eq. 11 as the paper means it.
        "paper": {"ppo": {}},
        # What the 2020 code does for PPO: sign turned (D3), next to no dose (D4), its own settings.
        "released": {
            "ppo": {
                "lr": 5e-5,
                "lr_schedule": "constant",
                "minibatch_size": 32,
                "distill": {
                    "control": "reversed",
                    "alpha": 0.5,
                    "scale": "reward",
                    "weight_clip": [0.01, 100.0],
                    "target": "sample",
                    "memory": 100_000,
                    "dose": "shared",
                    "steps": 1,
                    "batch_size": 512,
                    "coef": 1 / 512,
                    "every": 5,
                },
            }
        },
        # KL inside the learner's loss, on its own and the peer's states.
        "modern": {
            "ppo": {
                "distill": {
                    "divergence": "kl_forward",
                    "states": "mixed",
                    "dose": "loss",
                    "coef": 0.1,
                }
            }
        },
    }

    def build(self, context: Context) -> Method:
        """Return the method for a stack of learners."""
        from dpd.distill.peers import DualDistillation

        return DualDistillation(self, context)
