"""Quantities that change over a run; imports no torch."""

from __future__ import annotations

from typing import Literal

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
