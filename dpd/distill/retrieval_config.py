"""Settings of retrieval-augmented distillation; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dpd.distill.teaching_config import DAggerConfig

if TYPE_CHECKING:
    from dpd.distill.base import Context, Method


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
