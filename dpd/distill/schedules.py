"""Schedules of weights and probabilities over a run; torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any, Literal

from dpd.agents.config import require

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


def parse_points(text: str) -> list[tuple[float, float]]:
    """Parse the points of a schedule, progress:value pairs: 0:1,0.3:1,0.5:0.

    Raises ValueError unless progress rises within [0, 1] and values are finite and not negative.
    """
    try:
        points = [(float(x), float(y)) for x, y in (pair.split(":") for pair in text.split(","))]
    except ValueError:
        raise ValueError(
            f"'{text}' is no schedule; give progress:value pairs, for example 0:1,0.3:1,0.5:0"
        ) from None
    progress = [x for x, _ in points]
    if not all(0 <= x <= 1 for x in progress) or sorted(set(progress)) != progress:
        raise ValueError(f"'{text}': progress must rise from pair to pair, within [0, 1]")
    if not all(0 <= y < inf for _, y in points):
        raise ValueError(f"'{text}': values must be finite and not negative")
    return points


def between(points: Sequence[tuple[float, float]], progress: float) -> float:
    """Return the value at `progress`, linear between points and constant outside them."""
    if progress <= points[0][0]:
        return points[0][1]
    for (x, y), (next_x, next_y) in pairwise(points):
        if progress <= next_x:
            return y + (next_y - y) * (progress - x) / (next_x - x)
    return points[-1][1]


def points_of(config: Any, name: str, *replaced: str) -> list[tuple[float, float]]:
    """Return the points that a setting names, none if it is not given.

    Raises ValueError if they are no schedule, or if a setting that they replace is given too.
    """
    if (text := getattr(config, name)) is None:
        return []
    for other in replaced:
        if getattr(config, other) != getattr(type(config), other):
            raise ValueError(
                f"distill.{other} does nothing beside distill.{name}, which take its place; leave "
                "one of them out"
            )
    try:
        return parse_points(text)
    except ValueError as error:
        raise ValueError(f"distill.{name} {error}") from None


@dataclass(frozen=True, kw_only=True)
class TeacherActs:
    """Settings of the probability that the teacher acts, drawn at every step."""

    beta_start: float = 0.0
    """Initial probability that the teacher acts."""
    beta_schedule: Schedule = "linear"
    """Schedule of that probability: `linear` reaches zero at `beta_until`, `exponential` a
    hundredth; `first` is zero after the first iteration (Ross et al. 2011); or `constant`."""
    beta_until: float = 0.5
    """Share of the run at which the schedule ends."""
    beta_points: str | None = None
    """Probabilities at shares of the run, for example 0:0.9,0.3:0.5,0.5:0, linear between them and
    constant outside, instead of `beta_start`, `beta_schedule` and `beta_until`."""

    def _check_beta(self) -> None:
        """Raise ValueError for settings that are no probability, or would do nothing."""
        require(self, "lie in [0, 1]", "beta_start", called="distill.{}".format)
        require(self, "lie in (0, 1]", "beta_until", called="distill.{}".format)
        replaced = ("beta_start", "beta_schedule", "beta_until")
        if any(y > 1 for _, y in points_of(self, "beta_points", *replaced)):
            raise ValueError(
                f"distill.beta_points '{self.beta_points}': values must be probabilities, 0 to 1"
            )
        for name in ("beta_schedule", "beta_until"):
            if self.most_beta == 0 and getattr(self, name) != getattr(type(self), name):
                raise ValueError(
                    f"distill.{name} does nothing if the teacher never acts; give "
                    "--distill.beta-start"
                )

    @property
    def most_beta(self) -> float:
        """The largest probability of the run."""
        if self.beta_points is not None:
            return max(y for _, y in parse_points(self.beta_points))
        return self.beta_start

    def beta(self, progress: float) -> float:
        """Return the probability that the teacher acts."""
        if self.beta_points is not None:
            return between(parse_points(self.beta_points), progress)
        return scheduled(self.beta_schedule, self.beta_start, self.beta_until, progress)
