"""Intervals over seeds, against resamples counted by hand."""

import numpy as np
import pytest

from dpd.intervals import (
    Interval,
    bootstrap_interval,
    difference,
    difference_of_means,
    trimmed,
)


def test_an_interval_spans_the_likely_resamples() -> None:
    # two seeds resampled: means 1, 1.5 and 2 in 1, 2 and 1 of 4 cases; 2.5 % of each side is
    # still within the outer ones
    assert bootstrap_interval(np.mean, [[1.0, 2.0]], 0) == (1.0, 2.0)


def test_the_interquartile_mean_leaves_a_quarter_out_at_each_end() -> None:
    assert trimmed(np.array([[100.0, 1.0, 2.0, -7.0]]), axis=1).tolist() == [1.5]
    # resampling one outlier among eight: it would have to be drawn three times to count
    assert bootstrap_interval(trimmed, [[1.0] * 7 + [999.0]], 0) == (1.0, pytest.approx(1, abs=250))


def test_the_same_seed_gives_the_same_interval() -> None:
    values = [[0.3, 1.8, 2.2, 9.1, 4.0, 4.4]]
    first, again, other = (bootstrap_interval(trimmed, values, seed) for seed in (0, 0, 1))
    assert first == again != other


def test_one_seed_has_no_interval() -> None:
    assert bootstrap_interval(np.mean, [[3.0]], 0) is None
    found = difference({0: 1.0}, {0: 3.0}, 0)
    assert found == (2.0, None, True, "too few seeds")


def test_runs_with_the_same_seeds_are_subtracted_seed_by_seed() -> None:
    first = {0: 0.0, 1: 100.0, 2: 200.0, 3: 300.0, 4: 400.0}
    # gaps are 1, 1, 1, 1, 1, whatever the order: every resample's mean is 1
    found = difference(first, {seed: first[seed] + 1 for seed in (4, 3, 2, 1, 0)}, 0)
    assert found == (1.0, Interval(1.0, 1.0), True, "higher")
    assert difference(first, {s: v - 1 for s, v in first.items()}, 0).verdict == "lower"


def test_runs_with_other_seeds_are_subtracted_by_their_means() -> None:
    # means of resamples: 2, 4.5 or 7, less 1, 3 or 5; the ends 2 - 5 and 7 - 1 have 1/16 each,
    # more than 2.5 %
    found = difference({0: 1.0, 1: 5.0}, {1: 2.0, 2: 7.0}, 0)
    assert found == (1.5, Interval(-3.0, 6.0), False, "undecided")


def test_an_interval_that_holds_zero_is_undecided() -> None:
    same = {seed: float(seed) for seed in range(6)}
    assert difference(same, same, 0) == (0.0, Interval(0.0, 0.0), True, "undecided")
    found = difference(dict.fromkeys(range(6), 0.0), dict(enumerate([-1.0, 3.0] * 3)), 0)
    assert found.mean == 1 and found.verdict == "undecided"


def test_four_seeds_decide_nothing() -> None:
    # four gaps of one sign come up in 2 of 2^4 comparisons of equal methods
    found = difference(dict.fromkeys(range(4), 0.0), dict.fromkeys(range(4), 1.0), 0)
    assert found == (1.0, Interval(1.0, 1.0), True, "too few seeds")


def test_paired_samples_are_drawn_together() -> None:
    a = [1.0, 5.0, 2.0, 9.0, 4.0]
    b = [x - 1 for x in a]  # always one less, whichever are drawn
    assert bootstrap_interval(difference_of_means, [a, b], 0, paired=True) == pytest.approx((1, 1))
    alone = bootstrap_interval(difference_of_means, [a, b], 0)
    assert alone is not None and alone.low < 0 < alone.high
