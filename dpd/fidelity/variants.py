"""Variants of a sweep: each differs from the common variant in one factor."""

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
    "length": "multiple of the gradient steps",
    "capacity": "multiple of the teacher's width",
    "weight": "weight on the teacher at the start",
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
    """Settings of one kind of student."""

    states: int
    augmentation: str = "none"
    optimiser: str = "adam"
    length: int = 1
    """Multiple of the gradient steps."""
    capacity: float = 1.0
    """Multiple of the teacher's widths."""
    weight: float = 0.0
    """Weight of the teacher's parameters at the start; the rest is a random network's."""

    def hidden(self, teacher: Sequence[int]) -> tuple[int, ...]:
        """Return the widths of the student's hidden layers, given the teacher's."""
        return tuple(max(1, round(self.capacity * width)) for width in teacher)

    @property
    def stack(self) -> tuple[str, int, bool]:
        """Return a key that students must share to be rows of one stack.

        Wider students have their own stacks: padded to their width, all others would cost four
        times as much.
        """
        return self.optimiser, self.length, self.capacity > 1


@dataclass(frozen=True, kw_only=True)
class Factor:
    """A factor, and the variants that differ in it alone."""

    name: str
    variants: list[Variant]

    def value(self, variant: Variant) -> Any:
        """Return the value of this factor in a variant."""
        return getattr(variant, self.name)

    def label(self, variant: Variant) -> str:
        """Return a short label of this factor's value in a variant."""
        return FACTOR_LABELS[self.name].format(self.value(variant))


def make_factors(sizes: Sequence[int], has_weights: bool) -> list[Factor]:
    """Return all factors with their variants; each contains the common variant."""
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


def distinct_variants(factors: Sequence[Factor]) -> list[Variant]:
    """Return every variant once."""
    return list(dict.fromkeys(v for factor in factors for v in factor.variants))


def why_no_weights(teacher: PolicyMeta) -> str | None:
    """Return why no student can start between the teacher and a random network, or None."""
    if teacher.squashed or teacher.tanh_mean or teacher.state_std or teacher.memory is not None:
        return (
            f"students are Gaussian policies without a tanh, {teacher.algo}'s are not: no student "
            "starts between the teacher and a random network"
        )
    return None
