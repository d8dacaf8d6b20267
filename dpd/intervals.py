"""Bootstrap intervals over seeds, of one method and of the difference between two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

CONFIDENCE = 0.95
# Differences of n seeds that are all of one sign leave 0 out of the interval; between equal methods
# that happens by chance in 2 of 2^n cases: every second time for 2 seeds, every eighth for 4.
FEW_SEEDS = 5


class Interval(NamedTuple):
    """A 95 % percentile bootstrap interval."""

    low: float
    high: float


def bootstrap_interval(
    statistic: Callable[..., Any],
    samples: Sequence[Sequence[float]],
    seed: int,
    paired: bool = False,
) -> Interval | None:
    """Resample seeds: `statistic(*samples, axis)`; none for fewer than two seeds of a sample.

    `paired`: the same draw of indices for all samples.
    """
    from scipy.stats import bootstrap

    if min(map(len, samples)) < 2:
        return None
    found = bootstrap(
        [np.asarray(s) for s in samples],
        statistic,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        paired=paired,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


def trimmed(values: np.ndarray, axis: int) -> Any:
    """Take the interquartile mean along an axis."""
    from scipy.stats import trim_mean

    return trim_mean(values, 0.25, axis=axis)


def difference_of_means(a: np.ndarray, b: np.ndarray, axis: int) -> Any:
    """Take mean(a) - mean(b) along an axis."""
    return a.mean(axis=axis) - b.mean(axis=axis)


class Difference(NamedTuple):
    """How far a run's mean score lies above the first's."""

    mean: float
    interval: Interval | None
    paired: bool
    verdict: str


def difference(first: Mapping[int, float], other: Mapping[int, float], seed: int) -> Difference:
    """Subtract scores: seed by seed where both have the same seeds, else their means."""
    a, b = list(other.values()), list(first.values())
    paired = other.keys() == first.keys()
    if paired:
        gaps = [other[s] - first[s] for s in other]
        interval = bootstrap_interval(np.mean, [gaps], seed)
    else:
        interval = bootstrap_interval(difference_of_means, [a, b], seed)
    decided = verdict(interval, min(len(a), len(b)))
    return Difference(float(np.mean(a) - np.mean(b)), interval, paired, decided)


def verdict(interval: Interval | None, n_seeds: int) -> str:
    """Say what the interval of a difference between runs of at least so many seeds decides."""
    if interval is not None and interval.low <= 0 <= interval.high:
        return "undecided"
    if interval is None or n_seeds < FEW_SEEDS:
        return "too few seeds"
    return "higher" if interval.low > 0 else "lower"
