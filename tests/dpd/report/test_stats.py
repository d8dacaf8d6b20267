"""Differences over seeds and their verdicts, against scipy and values worked by hand."""

import numpy as np
import pytest
from scipy import stats

from dpd.report.stats import (
    Difference,
    Interval,
    bootstrap_interval,
    difference,
    family,
    first_crossing,
    holm,
    iqm,
    least_seeds,
    mean_interval,
    mean_over_steps,
    paired_difference,
    reach,
    sign_flip_p,
    unpaired_difference,
)


def seeds(*scores: float) -> dict[int, float]:
    """Return scores by seed."""
    return dict(enumerate(scores))


def test_paired_differences_have_a_t_interval_and_a_sign_flip_p() -> None:
    # gaps 1 to 6: mean 3.5, standard error sqrt(3.5 / 6) = 0.7638, t(5, 97.5 %) = 2.5706.
    # Only all plus or all minus is as far from 0: p = 2 / 2^6
    found = difference(seeds(0, 0, 0, 0, 0, 0), seeds(3, 1, 2, 6, 5, 4))
    assert found.mean == 3.5 and found.paired and found.seeds == 6
    assert found.interval == pytest.approx((1.5367, 5.4633), abs=1e-4)
    assert found.p == found.p_adjusted == 2 / 64 and found.verdict == "higher"
    # -1 in place of 1: as far from 0 are signs whose sum is 19 or more of 21: none turned, or
    # 1 turned back; both twice
    assert difference(seeds(*[0] * 6), seeds(-1, 2, 3, 4, 5, 6)).p == 4 / 64


@pytest.mark.parametrize("n", [6, 10, 13])
def test_the_interval_and_both_p_values_are_those_of_scipy(n: int) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=n) + 0.7, rng.exponential(size=n)
    found = difference(seeds(*b), seeds(*a))
    single = stats.ttest_1samp(a - b, 0)
    assert found.interval == pytest.approx(tuple(single.confidence_interval(0.95)))
    signs = np.array(np.meshgrid(*[[1, -1]] * n)).reshape(n, -1)  # all 2^n
    as_far = np.abs((a - b) @ signs) >= abs((a - b).sum()) - 1e-9
    assert found.p == pytest.approx(as_far.mean())
    apart = unpaired_difference(a.tolist(), b.tolist())
    welch = stats.ttest_ind(a, b, equal_var=False)
    assert apart.interval == pytest.approx(tuple(welch.confidence_interval(0.95)))
    assert apart.p == pytest.approx(welch.pvalue) and not apart.paired


def test_many_differences_are_flipped_at_random_and_always_alike() -> None:
    gaps = np.random.default_rng(2).normal(size=30) + 0.3
    p = sign_flip_p(gaps)
    assert p == sign_flip_p(gaps) == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue, rel=0.15)
    assert np.array_equal(sign_flip_p(np.stack([gaps, -gaps])), [p, p])


def test_runs_with_the_same_seeds_are_subtracted_seed_by_seed() -> None:
    first = seeds(0, 100, 200, 300, 400, 500)
    # gaps are all 1, whatever the order of the seeds
    found = difference(first, {seed: first[seed] + 1 for seed in (5, 4, 3, 2, 1, 0)})
    assert (found.mean, found.interval, found.verdict) == (1, (1, 1), "higher")
    assert difference(first, {s: v - 1 for s, v in first.items()}).verdict == "lower"


def test_runs_with_other_seeds_are_subtracted_by_their_means() -> None:
    # variances of the means 4 and 6.25: t = 1.5 / sqrt(10.25) = 0.4685 at 1.908 degrees of freedom
    found = difference({0: 1.0, 1: 5.0}, {1: 2.0, 2: 7.0})
    assert (found.mean, found.paired, found.verdict) == (1.5, False, "too few seeds")
    assert found.p == pytest.approx(2 * stats.t.sf(0.46852, 1.9076), abs=1e-4)
    apart = difference(seeds(*[1.0, 2.0] * 3), {9 + k: 5.0 + k for k in range(6)})
    assert apart.verdict == "higher" and apart.seeds == 6


def test_samples_without_variance_are_compared_as_they_are() -> None:
    same, more = seeds(*[2.0] * 6), {6 + k: 3.0 for k in range(6)}
    assert difference(same, more)[:2] == (1, (1, 1)) and difference(same, more).verdict == "higher"
    alike = difference(same, {6 + k: 2.0 for k in range(6)})
    assert (alike.p, alike.verdict) == (1, "undecided")
    assert difference(same, same)[:2] == (0, (0, 0)) and difference(same, same).p == 1


def test_one_seed_has_neither_interval_nor_p() -> None:
    nothing = (None, "too few seeds")
    found = difference({0: 1.0}, {0: 3.0})
    assert found == Difference(2.0, None, True, 1, None, *nothing)
    assert difference({0: 1.0}, {1: 3.0}) == Difference(2.0, None, False, 1, None, *nothing)
    assert family({"a": found})["a"] == found


def test_five_seeds_decide_nothing_and_more_are_needed_for_several_differences() -> None:
    # five gaps of one sign come up in 2 of 2^5 comparisons of equal methods: 6.25 %
    assert difference(seeds(*[0] * 5), seeds(*[1] * 5)).verdict == "too few seeds"
    # Holm's first factor is the number of differences m: m * 2 / 2^n <= 0.05
    assert [least_seeds(m) for m in (1, 2, 3, 4, 6, 7, 12)] == [6, 7, 7, 8, 8, 9, 9]
    six = difference(seeds(*[0] * 6), seeds(*range(1, 7)))
    assert six.verdict == "higher"
    assert {d.verdict for d in family({"a": six, "b": six}).values()} == {"too few seeds"}


def test_holm_worked_by_hand() -> None:
    # sorted 0.005 0.01 0.03 0.04, times 4 3 2 1: 0.02 0.03 0.06 0.04, the last no less than before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]).tolist() == [1, 1] and holm([0.04]).tolist() == [0.04]
    rows = holm([[0.01, 0.04], [0.3, 0.02]])
    assert rows == pytest.approx(np.array([[0.02, 0.04], [0.3, 0.04]]))


def test_the_verdict_follows_the_adjusted_p() -> None:
    # 1 to 8 but for -2: as far from 0 are none turned back, 1 or 2, each way: p = 6 / 256
    near = difference(seeds(*[0] * 8), seeds(1, -2, 3, 4, 5, 6, 7, 8))
    far = difference(seeds(*[0] * 8), seeds(*[-1] * 8))
    assert near.p == 6 / 256 and near.verdict == "higher"
    found = family({"near": near, "far": far, "b": near, "c": near})
    # far comes first, 4 * 2 / 256, then near, 3 * 6 / 256 = 0.07
    assert found["far"].p_adjusted == 8 / 256 and found["far"].verdict == "lower"
    assert found["near"].p == 6 / 256 and found["near"].p_adjusted == 18 / 256
    assert found["near"].verdict == "undecided"


def test_an_outlier_stretches_the_interval_and_not_the_p() -> None:
    found = difference(seeds(*[0] * 6), seeds(1, 1, 1, 1, 1, 100))
    assert found.interval is not None and found.interval.low < 0
    assert found.p == 2 / 64 and found.verdict == "higher"


def test_tasks_are_strata() -> None:
    # means 2 and 12: their mean is 7; variances of the means 1/3 each, (1/3 + 1/3) / 4 of the mean
    # of both, at 4 degrees of freedom; one sample of six would have a variance of 31.6 / 6
    interval = mean_interval([1, 2, 3], [11, 12, 13])
    half = stats.t.ppf(0.975, 4) * np.sqrt(2 / 12)
    assert interval == pytest.approx((7 - half, 7 + half))
    found = paired_difference([[1, 2, 3], [11, 12, 13]])
    assert (found.mean, found.interval, found.seeds) == (7, interval, 3)
    assert found.p == 2 / 64  # signs are flipped in both
    # tasks count alike, however many seeds they have: (2 + 10) / 2
    assert paired_difference([[1, 2, 3], [9, 11]]).mean == 6


def test_unlike_strata_have_the_degrees_of_freedom_of_welch() -> None:
    a, b = [1.0, 4.0, 2.0, 8.0], [3.0, 3.5, 2.5]
    low, high = stats.ttest_ind(a, np.negative(b), equal_var=False).confidence_interval(0.95)
    assert mean_interval(a, b) == pytest.approx((low / 2, high / 2))  # sum of means, halved
    assert mean_interval([1.0], [2.0, 3.0]) is None


def test_a_bootstrap_interval_spans_the_likely_resamples() -> None:
    # two seeds resampled: means 1, 1.5 and 2 in 1, 2 and 1 of 4 cases; 2.5 % of each side is
    # still within the outer ones
    assert bootstrap_interval(np.mean, [[1.0, 2.0]], 0) == (1.0, 2.0)
    assert bootstrap_interval(np.mean, [[3.0]], 0) is None


def test_the_interquartile_mean_leaves_a_quarter_out_at_each_end() -> None:
    assert iqm(np.array([[100.0, 1.0, 2.0, -7.0]]), axis=1).tolist() == [1.5]
    # resampling one outlier among eight: it would have to be drawn three times to count
    assert bootstrap_interval(iqm, [[1.0] * 7 + [999.0]], 0) == (1.0, pytest.approx(1, abs=250))


def test_the_same_seed_gives_the_same_bootstrap_interval() -> None:
    values = [[0.3, 1.8, 2.2, 9.1, 4.0, 4.4]]
    first, again, other = (bootstrap_interval(iqm, values, seed) for seed in (0, 0, 1))
    assert first == again != other


def test_paired_samples_are_resampled_together() -> None:
    a = [1.0, 5.0, 2.0, 9.0, 4.0]
    b = [x - 1 for x in a]  # always one less, whichever are drawn

    def apart(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return a.mean(axis=axis) - b.mean(axis=axis)

    assert bootstrap_interval(apart, [a, b], 0, paired=True) == pytest.approx((1, 1))
    alone = bootstrap_interval(apart, [a, b], 0)
    assert isinstance(alone, Interval) and alone.low < 0 < alone.high


def test_the_interquartile_mean_drops_a_quarter_at_each_end() -> None:
    assert iqm([-100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 900.0]) == 3.5  # (2 + 3 + 4 + 5) / 4
    assert iqm([1.0, 2.0, 9.0]) == 4.0  # too few to drop any: the mean


def test_the_mean_over_steps_is_the_area_under_the_curve() -> None:
    # 0 to 100: 100 * 10; 100 to 300: 200 * (10 + 30) / 2; in all 5,000 over 300 steps
    assert mean_over_steps([100, 300], [[10.0, 30.0], [6.0, 6.0]]) == pytest.approx([5000 / 300, 6])
    # one evaluation is all that is known
    assert mean_over_steps([500], [[7.0]]).tolist() == [7.0]


def test_a_curve_reaches_a_level_between_two_evaluations() -> None:
    curves = np.array([[0.0, 10, 5, 20], [9, 9, 9, 9], [1, 2, 3, 4]])
    # 0 to 10 passes 8 at 80 % of the way from 100 to 200; the second begins above 8
    assert first_crossing([100, 200, 300, 400], curves, 8).tolist() == [180, 100, np.inf]
    # exactly at the level, and not before
    assert first_crossing([1, 2], np.array([1.0, 2.0]), 2) == 2


def test_steps_to_a_level_are_those_of_the_mean_curve() -> None:
    curves = [[0.0, 10.0, 20.0], [0.0, 0.0, 40.0]]
    # the mean 0 5 30 passes 9 at (9 - 5) / 25 of the way from 200 to 300. Of the resamples, a
    # quarter each is the first seed twice (0 10 20: 190) and the second twice (0 0 40: 222.5)
    found = reach([100, 200, 300], curves, 9, 0)
    assert (found.steps, found.interval, found.seeds) == (216, (190, 222.5), 2)
    never = reach([100, 200], [[0.0, 1.0], [0.0, 3.0]], 2.5, 0)  # the mean ends at 2
    assert never.steps == np.inf and never.seeds == 1
    # the second seed alone passes at (2.5 - 0) / 3 of the way
    assert never.interval is not None
    assert never.interval.low == pytest.approx(100 + 100 * 2.5 / 3)
    assert never.interval.high == np.inf
    assert reach([100], [[1.0]], 1, 0).interval is None


def test_the_interval_of_steps_covers_the_truth_about_as_often_as_it_says() -> None:
    # the mean curve is a straight line to 20 at step 2,000, so 10 is reached at 1,000
    rng, steps, hits = np.random.default_rng(0), list(range(0, 2001, 100)), 0
    for _ in range(200):
        slopes = rng.normal(0.01, 0.002, (30, 1))
        interval = reach(steps, slopes * np.array(steps), 10, 0).interval
        assert interval is not None
        hits += interval.low <= 1000 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99  # a percentile bootstrap of 30 seeds
