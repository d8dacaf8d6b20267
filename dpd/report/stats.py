"""Differences between methods over seeds: t intervals, p values, Holm's adjustment and verdicts.

Interquartile means and ratios, which have no t interval, get a bootstrap interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

CONFIDENCE = 0.95
ALPHA = 0.05
FLIPS = 2**13
"""Sign flips: all 2^n of up to 13 differences, as many random ones of more."""
BOOTSTRAP_SEEDS = 20
"""Percentile bootstrap intervals cover less than 95 % for fewer; bench/error_rates.py counts."""
NARROW = (
    f"bootstrap intervals of the IQM are too narrow for fewer than {BOOTSTRAP_SEEDS} seeds; for 6 "
    "they cover about 90 %"
)


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


class Difference(NamedTuple):
    """How far the mean of one method lies above that of another."""

    mean: float
    interval: Interval | None
    """Of this difference alone: t where the seeds are paired, otherwise Welch's."""
    paired: bool
    seeds: int
    """Of the method that has fewer."""
    p: float | None
    """Two-sided: sign flips where the seeds are paired, otherwise Welch's; None for one seed."""
    p_adjusted: float | None
    """By Holm, for all differences of the family; `p` where it is the only one."""
    verdict: str
    """higher or lower where `p_adjusted` is at most 5 %; undecided; too few seeds."""


def difference(first: Mapping[int, float], other: Mapping[int, float]) -> Difference:
    """Subtract the first method's scores by seed from the other's; as a family of one.

    Scores are subtracted seed by seed where both methods have the same seeds.
    """
    if first.keys() == other.keys():
        return paired_difference([[other[seed] - first[seed] for seed in first]])
    return unpaired_difference(list(other.values()), list(first.values()))


def paired_difference(strata: Sequence[Sequence[float]]) -> Difference:
    """Judge differences that were taken seed by seed, in one or more strata of equal weight.

    Strata are tasks, for example: the mean is the mean of their means, the interval takes the
    variance within each, and signs are flipped difference by difference.
    """
    gaps = [np.asarray(stratum, dtype=np.float64) for stratum in strata]
    mean, seeds = float(np.mean([g.mean() for g in gaps])), min(map(len, gaps))
    if seeds < 2:
        return judged(mean, None, True, seeds, None)
    p = float(sign_flip_p(np.concatenate([g / len(g) for g in gaps])))
    return judged(mean, mean_interval(*gaps), True, seeds, p)


def unpaired_difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Judge mean(a) - mean(b) of independent samples by Welch's t test."""
    mean, seeds = float(np.mean(a) - np.mean(b)), min(len(a), len(b))
    if seeds < 2:
        return judged(mean, None, False, seeds, None)
    if np.ptp(a) == np.ptp(b) == 0:  # no variance, so t is infinite or 0 / 0
        return judged(mean, Interval(mean, mean), False, seeds, float(mean == 0))
    found = welch(np.asarray(a), np.asarray(b))
    low, high = map(float, found.confidence_interval(CONFIDENCE))
    return judged(mean, Interval(low, high), False, seeds, float(found.pvalue))


def judged(
    mean: float, interval: Interval | None, is_paired: bool, seeds: int, p: float | None
) -> Difference:
    """Return a difference as a family of one."""
    return Difference(mean, interval, is_paired, seeds, p, p, verdict(mean, p, seeds, 1))


def family(found: Mapping[str, Difference]) -> dict[str, Difference]:
    """Adjust the p values of differences that are read together, and judge by those."""
    if not found:
        return {}
    p = holm([1.0 if d.p is None else d.p for d in found.values()]).tolist()
    adjusted = [
        (name, d, None if d.p is None else q) for (name, d), q in zip(found.items(), p, strict=True)
    ]
    return {
        name: d._replace(p_adjusted=q, verdict=verdict(d.mean, q, d.seeds, len(found)))
        for name, d, q in adjusted
    }


def verdict(mean: float, p_adjusted: float | None, seeds: int, compared: int) -> str:
    """Say what a difference's adjusted p decides, as one of so many that are read together."""
    if p_adjusted is None or seeds < least_seeds(compared):
        return "too few seeds"
    if p_adjusted > ALPHA:
        return "undecided"
    return "higher" if mean > 0 else "lower"


def least_seeds(compared: int) -> int:
    """Return the fewest seeds that can decide one of so many differences.

    n differences that all have one sign have p = 2 / 2^n; Holm multiplies the least p by the number
    of differences. One difference needs 6 seeds, two need 7, four 8, seven 9.
    """
    return math.ceil(1 + math.log2(compared / ALPHA))


def sign_flip_p(gaps: np.ndarray) -> Any:
    """Return the two-sided p of mean(gaps) = 0, [..., n] -> [...]: exact for up to 13 gaps.

    Between methods that do not differ, either sign of a seed's gap is equally likely, whatever the
    distribution of scores (Fisher's randomisation test).
    """
    from scipy.stats import permutation_test

    return permutation_test(
        (gaps,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=FLIPS,
        batch=max(1, FLIPS * gaps.shape[-1] // gaps.size),
        axis=-1,
        rng=np.random.default_rng(0),
    ).pvalue


def welch(a: np.ndarray, b: np.ndarray) -> Any:
    """Return scipy's result of Welch's t test of samples [..., n] and [..., m]."""
    from scipy.stats import ttest_ind

    return ttest_ind(a, b, axis=-1, equal_var=False)


def holm(p: Any) -> np.ndarray:
    """Adjust p values [..., m] of m hypotheses that are read together (Holm 1979).

    The k-th smallest, k from 0, becomes the largest of (m - i) p_i for i up to k, and at most 1.
    """
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, axis=-1)
    factors = np.arange(p.shape[-1], 0, -1)
    steps = np.maximum.accumulate(np.take_along_axis(p, order, -1) * factors, axis=-1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(steps, 1), axis=-1)
    return adjusted


def mean_interval(*strata: Sequence[float] | np.ndarray) -> Interval | None:
    """Return the t interval of a mean, or of the mean over strata of their means.

    Strata have a variance each, joined by Welch and Satterthwaite's degrees of freedom; None for
    fewer than two values in a stratum.
    """
    from scipy.stats import t

    if min(map(len, strata)) < 2:
        return None
    mean = float(np.mean([np.mean(s) for s in strata]))
    variances = np.array([np.var(s, ddof=1) / len(s) for s in strata])
    if not variances.any():
        return Interval(mean, mean)
    freedom = variances.sum() ** 2 / sum(
        v**2 / (len(s) - 1) for v, s in zip(variances, strata, strict=True)
    )
    half = float(t.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(variances.sum()) / len(strata))
    return Interval(mean - half, mean + half)


def bootstrap_interval(
    statistic: Callable[..., Any],
    samples: Sequence[Sequence[float]],
    seed: int,
    paired: bool = False,
) -> Interval | None:
    """Return the percentile bootstrap interval of `statistic(*samples, axis)`.

    None for fewer than two values of a sample. `paired`: the same draw of indices for all samples.
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
