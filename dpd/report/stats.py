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
"""Number of sign flips: all 2^n for up to 13 differences, random ones for more."""
RESAMPLES = 9_999
"""Resamples of a bootstrap, as in scipy."""
BOOTSTRAP_SEEDS = 20
"""Percentile bootstrap intervals of fewer seeds cover less than 95 %: see bench/error_rates.py."""
NARROW = (
    f"bootstrap intervals of the IQM are too narrow for fewer than {BOOTSTRAP_SEEDS} seeds; for 6 "
    "they cover about 90 %"
)


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


class Difference(NamedTuple):
    """A difference between the mean scores of two methods."""

    mean: float
    interval: Interval | None
    """Unadjusted: t interval if the seeds are paired, otherwise Welch's."""
    paired: bool
    seeds: int
    """Number of seeds of the method that has fewer."""
    p: float | None
    """Two-sided: sign-flip test if the seeds are paired, otherwise Welch's; None for one seed."""
    p_adjusted: float | None
    """Adjusted by Holm's method for all differences of the family."""
    verdict: str
    """higher or lower if `p_adjusted` is at most 5 %, else undecided; or too few seeds."""


class Reach(NamedTuple):
    """The steps at which learning curves reach a level."""

    steps: float
    """Steps of the mean curve; infinite if it stays below."""
    interval: Interval | None
    """95 % percentile bootstrap interval over seeds, with infinite ends; None for one seed."""
    seeds: int
    """Number of seeds whose own curve reaches the level."""


def difference(first: Mapping[int, float], other: Mapping[int, float]) -> Difference:
    """Test whether another method's mean score differs from the first one's: other - first.

    Scores are given by seed. They are paired if both methods have the same seeds.
    """
    if first.keys() == other.keys():
        return paired_difference([[other[seed] - first[seed] for seed in first]])
    return unpaired_difference(list(other.values()), list(first.values()))


def paired_difference(strata: Sequence[Sequence[float]]) -> Difference:
    """Test differences that were taken seed by seed, in one or more strata of equal weight.

    Strata are, for example, tasks. The mean is the mean of the strata's means, the interval uses
    the variance within each stratum, and the p value flips the sign of single differences.
    """
    gaps = [np.asarray(stratum, dtype=np.float64) for stratum in strata]
    mean, seeds = float(np.mean([g.mean() for g in gaps])), min(map(len, gaps))
    # Dividing by its size gives every stratum the same weight in the sum that is permuted.
    weighted = np.concatenate([g / len(g) for g in gaps])
    p = float(sign_flip_p(weighted)) if seeds > 1 else None
    return single_difference(mean, mean_interval(*gaps), True, seeds, p)


def unpaired_difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Test mean(a) - mean(b) of independent samples by Welch's t test."""
    mean, seeds = float(np.mean(a) - np.mean(b)), min(len(a), len(b))
    if seeds < 2:
        return single_difference(mean, None, False, seeds, None)
    if np.ptp(a) == np.ptp(b) == 0:  # no variance, so t is infinite or 0 / 0
        interval = Interval(mean, mean)
        return single_difference(mean, interval, False, seeds, float(mean == 0))
    test = welch(np.asarray(a), np.asarray(b))
    low, high = map(float, test.confidence_interval(CONFIDENCE))
    return single_difference(mean, Interval(low, high), False, seeds, float(test.pvalue))


def single_difference(
    mean: float, interval: Interval | None, is_paired: bool, seeds: int, p: float | None
) -> Difference:
    """Return a difference that is the only one of its family."""
    verdict = difference_verdict(mean, p, seeds, 1)
    return Difference(mean, interval, is_paired, seeds, p, p, verdict)


def family(differences: Mapping[str, Difference]) -> dict[str, Difference]:
    """Adjust the p values of differences that are read together, and update their verdicts."""
    if not differences:
        return {}
    p_adjusted = holm([1.0 if d.p is None else d.p for d in differences.values()]).tolist()
    adjusted = {}
    for (name, d), p in zip(differences.items(), p_adjusted, strict=True):
        p = None if d.p is None else p
        verdict = difference_verdict(d.mean, p, d.seeds, len(differences))
        adjusted[name] = d._replace(p_adjusted=p, verdict=verdict)
    return adjusted


def difference_verdict(mean: float, p_adjusted: float | None, seeds: int, compared: int) -> str:
    """Return the verdict on one of `compared` differences that are read together."""
    if p_adjusted is None or seeds < least_seeds(compared):
        return "too few seeds"
    if p_adjusted > ALPHA:
        return "undecided"
    return "higher" if mean > 0 else "lower"


def least_seeds(compared: int) -> int:
    """Return the fewest seeds at which one of `compared` differences can be significant.

    If all n seeds agree in sign, p = 2 / 2^n. Holm's method multiplies the smallest p by the number
    of differences. One difference needs 6 seeds, two need 7, four need 8 and seven need 9.
    """
    return math.ceil(1 + math.log2(compared / ALPHA))


def sign_flip_p(gaps: np.ndarray) -> Any:
    """Return the two-sided p of mean(gaps) = 0, [..., n] -> [...]: exact for up to 13 gaps.

    If two methods do not differ, both signs of a seed's gap are equally likely, whatever the
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
    """Run Welch's t test on samples [..., n] and [..., m]; return scipy's result."""
    from scipy.stats import ttest_ind

    return ttest_ind(a, b, axis=-1, equal_var=False)


def holm(p: Any) -> np.ndarray:
    """Adjust p values [..., m] of m hypotheses that are read together (Holm 1979).

    With p sorted from k = 0, the k-th value becomes min(1, max over i <= k of (m - i) p_i).
    """
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, axis=-1)
    factors = np.arange(p.shape[-1], 0, -1)
    steps = np.maximum.accumulate(np.take_along_axis(p, order, -1) * factors, axis=-1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(steps, 1), axis=-1)
    return adjusted


def mean_interval(*strata: Sequence[float] | np.ndarray) -> Interval | None:
    """Return the t interval of a mean, or of the mean of several strata's means.

    Every stratum has its own variance; the degrees of freedom are Welch and Satterthwaite's. None
    if a stratum has fewer than two values.
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

    None if a sample has fewer than two values. `paired`: resample all samples by the same indices.
    """
    from scipy.stats import bootstrap

    if min(map(len, samples)) < 2:
        return None
    interval = bootstrap(
        [np.asarray(s) for s in samples],
        statistic,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        paired=paired,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(interval.low), float(interval.high))


def iqm(values: Any, axis: int = -1) -> Any:
    """Return the interquartile mean along an axis; of fewer than four values it is the mean."""
    from scipy.stats import trim_mean

    return trim_mean(values, 0.25, axis=axis)


def mean_over_steps(steps: Sequence[int], curves: Any) -> np.ndarray:
    """Return the means of curves [n, K] over the steps from 0 to the last one, [n].

    These are the areas under the curves by the trapezoidal rule, over the number of steps. Before
    its first point, a curve has the value of that point.
    """
    curves = np.asarray(curves, dtype=np.float64)
    edges, padded = np.array([0, *steps]), np.concatenate([curves[:, :1], curves], axis=1)
    areas: np.ndarray = np.trapezoid(padded, edges, axis=1) / edges[-1]
    return areas


def reach(steps: Sequence[int], curves: Any, level: float, seed: int) -> Reach:
    """Find where the mean of curves [n, K] first reaches a level; `seed` is the bootstrap's."""
    curves = np.asarray(curves, dtype=np.float64)
    at = float(first_crossing(steps, curves.mean(0), level))
    seeds = int(np.isfinite(first_crossing(steps, curves, level)).sum())
    if len(curves) < 2:
        return Reach(at, None, seeds)
    rows = np.random.default_rng(seed).integers(len(curves), size=(RESAMPLES, len(curves)))
    crossings = first_crossing(steps, curves[rows].mean(1), level)
    tails = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    # an interpolated quantile of infinite values would be NaN
    low, high = np.quantile(crossings, tails, method="inverted_cdf").tolist()
    return Reach(at, Interval(low, high), seeds)


def first_crossing(steps: Sequence[int], curves: np.ndarray, level: float) -> np.ndarray:
    """Return the steps at which curves [..., K] first reach a level, [...]; infinite if never.

    Linear between two points; the first point, if it is at the level already.
    """
    at, after = np.asarray(steps, dtype=np.float64), (curves >= level).argmax(-1)
    before = np.maximum(after - 1, 0)
    low = np.take_along_axis(curves, before[..., None], -1)[..., 0]
    high = np.take_along_axis(curves, after[..., None], -1)[..., 0]
    rise = np.where(high > low, high - low, 1)
    crossing = at[before] + (at[after] - at[before]) * (level - low) / rise
    return np.where((curves >= level).any(-1), crossing, np.inf)
