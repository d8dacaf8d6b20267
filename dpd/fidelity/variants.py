"""What a sweep changes: one thing at a time, beside a student that all have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dpd.policies.metadata import PolicyMeta

AUGMENTATIONS = ("none", "noise", "mixup")
OPTIMISERS = ("adam", "sgd")
LENGTHS = (1, 4)
CAPACITIES = (0.25, 0.5, 1.0, 2.0)
START_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
FACTORS = {
    "states": "states to learn from",
    "augmentation": "augmentation of the states",
    "optimiser": "optimiser",
    "length": "gradient steps, times",
    "capacity": "width, times the teacher's",
    "weight": "start: weight on the teacher",
}
FACTOR_LABELS = {
    "states": "data {:,}",
    "augmentation": "augment {}",
    "optimiser": "optimiser {}",
    "length": "steps ×{}",
    "capacity": "width ×{:g}",
    "weight": "start {:g}",
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How one kind of student is made."""

    states: int
    augmentation: str = "none"
    optimiser: str = "adam"
    length: int = 1
    """Times the gradient steps."""
    capacity: float = 1.0
    """Times the teacher's widths."""
    weight: float = 0.0
    """Of the teacher's parameters in those it starts from; the rest is a random network's."""

    def hidden(self, teacher: Sequence[int]) -> tuple[int, ...]:
        """Return the widths of its hidden layers."""
        return tuple(max(1, round(self.capacity * width)) for width in teacher)

    @property
    def stack(self) -> tuple[str, int, bool]:
        """What students must share to be rows of one stack.

        The wider ones stand apart: padded to their width, all others would cost four times as much.
        """
        return self.optimiser, self.length, self.capacity > 1


@dataclass(frozen=True, kw_only=True)
class Factor:
    """One thing that is changed, and the students that differ in it alone."""

    name: str
    variants: list[Variant]

    def value(self, variant: Variant) -> Any:
        """Return what this factor is in a variant."""
        return getattr(variant, self.name)

    def label(self, variant: Variant) -> str:
        """Say shortly what this factor is in a variant."""
        return FACTOR_LABELS[self.name].format(self.value(variant))


def make_factors(sizes: Sequence[int], has_weights: bool) -> list[Factor]:
    """Return all factors with their variants; the base is one of each."""
    ordered = sorted(sizes)
    base = Variant(states=ordered[len(ordered) // 2])
    values: dict[str, Sequence[Any]] = {
        "states": ordered,
        "augmentation": AUGMENTATIONS,
        "optimiser": OPTIMISERS,
        "length": LENGTHS,
        "capacity": CAPACITIES,
        "weight": START_WEIGHTS if has_weights else (),
    }
    return [
        Factor(name=name, variants=[replace(base, **{name: value}) for value in some])
        for name, some in values.items()
        if some
    ]


def distinct_variants(found: Sequence[Factor]) -> list[Variant]:
    """Return every variant once."""
    return list(dict.fromkeys(v for factor in found for v in factor.variants))


def why_no_weights(teacher: PolicyMeta) -> str | None:
    """Say why a student's parameters cannot lie between a teacher's and random ones, if so."""
    if teacher.squashed or teacher.tanh_mean or teacher.state_std or teacher.memory is not None:
        return (
            f"students are Gaussian policies without a tanh, {teacher.algo}'s are not: no start "
            "between the teacher and a random network"
        )
    return None
