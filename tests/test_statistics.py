import numpy as np
import pytest
import scipy.stats

from jaxddpg import statistics
from jaxddpg.statistics import confidence_interval, interquartile_mean

NAN = float("nan")


def middle_half(values):
    """Agarwal et al. 2021: the mean of what is left without the lowest and the highest quarter."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    middle = ordered[quarter : len(ordered) - quarter]
    return sum(middle) / len(middle)


@pytest.mark.parametrize("members", [1, 2, 3, 4, 5, 7, 8, 10, 33])
def test_the_interquartile_mean_is_that_of_the_middle_half(members):
    values = np.random.default_rng(members).normal(size=members) ** 3
    assert interquartile_mean(values) == pytest.approx(middle_half(values))


def test_outliers_do_not_move_it():
    assert interquartile_mean(np.array([1.0, 2.0, 3.0, 1e9])) == 2.5


def test_it_is_taken_over_the_last_axis():
    values = np.random.default_rng(0).normal(size=(3, 9))
    np.testing.assert_allclose(interquartile_mean(values), [middle_half(row) for row in values])


def test_a_diverged_member_counts_as_the_worst():
    """Left out, it would raise the mean of 1 to 7 from 4 to 4.5."""
    assert interquartile_mean(np.array([1.0, 2, 3, NAN, 4, 5, 6, 7])) == middle_half([-1e9, 1, 2, 3, 4, 5, 6, 7])


def test_diverged_members_beyond_a_quarter_leave_no_mean():
    assert interquartile_mean(np.array([NAN, NAN, 1.0, 2.0])) == -np.inf


def test_it_does_not_change_its_argument():
    values = np.array([3.0, NAN, 1.0, 2.0])
    interquartile_mean(values)
    np.testing.assert_array_equal(values, [3.0, NAN, 1.0, 2.0])


@pytest.mark.parametrize("members", [2, 5, 10, 40])
def test_the_interval_holds_the_mean(members):
    values = np.random.default_rng(members).normal(size=members)
    low, high = confidence_interval(values)
    assert low < interquartile_mean(values) < high


def test_the_interval_is_the_same_each_time():
    values = np.random.default_rng(0).normal(size=10)
    assert confidence_interval(values) == confidence_interval(values)


def test_the_interval_has_its_coverage():
    """A 95% bootstrap of ten members is known to be a few percent too narrow."""
    rng = np.random.default_rng(0)
    low, high = confidence_interval(rng.normal(size=(400, 10)), resamples=500)
    assert 0.87 < np.mean((low < 0) & (high > 0)) < 0.97


def test_the_interval_shrinks_with_the_root_of_the_members():
    rng = np.random.default_rng(1)

    def mean_width(members):
        low, high = confidence_interval(rng.normal(size=(50, members)), resamples=300)
        return np.mean(high - low)

    assert mean_width(16) / mean_width(64) == pytest.approx(2, rel=0.2)


def test_the_interval_of_one_member_is_that_member():
    assert confidence_interval(np.array([3.5])) == (3.5, 3.5)


def test_a_diverged_member_opens_the_interval_downwards():
    low, high = confidence_interval(np.array([NAN, 1.0, 2.0, 3.0]))
    assert low == -np.inf
    assert 2.0 <= high <= 3.0


def test_each_epoch_has_its_own_interval():
    values = np.random.default_rng(2).normal(size=(3, 6))
    low, high = confidence_interval(values)
    for epoch in range(3):
        assert confidence_interval(values[epoch]) == (low[epoch], high[epoch])


def test_infinity_counts_as_the_worst_too():
    assert interquartile_mean(np.array([np.inf, 1.0, 2.0, 3.0])) == 1.5


def test_a_profile_is_the_share_above_each_threshold():
    strata = [np.array([0.0, 1.0, 2.0, NAN]), np.array([3.0, 3.0])]
    found = statistics.performance_profile(strata, np.array([-1.0, 0.0, 1.5, 3.0]))
    np.testing.assert_allclose(found, [(0.75 + 1) / 2, (0.5 + 1) / 2, (0.25 + 1) / 2, 0.0])


@pytest.mark.parametrize("seed", range(3))
def test_improvement_is_that_of_mann_and_whitney(seed):
    """scipy's U over the number of pairs, ties included."""
    rng = np.random.default_rng(seed)
    one, other = rng.integers(5, size=9).astype(float), rng.integers(4, size=7).astype(float)
    expected = scipy.stats.mannwhitneyu(one, other).statistic / 63
    assert statistics.probability_of_improvement([one], [other]) == pytest.approx(expected)
    assert statistics.probability_of_improvement([other], [one]) == pytest.approx(1 - expected)


def test_improvement_is_the_mean_over_the_strata():
    better, worse = [np.ones(3), np.zeros(2)], [np.zeros(5), np.ones(4)]
    assert statistics.probability_of_improvement(better, worse) == 0.5


def test_who_diverged_is_below_who_did_not():
    assert statistics.probability_of_improvement([np.array([NAN])], [np.array([-1e9])]) == 0
    assert statistics.probability_of_improvement([np.array([NAN])], [np.array([NAN])]) == 0.5


def test_strata_are_drawn_from_each_by_itself():
    """Two constant strata: whatever is drawn, the pooled mean stays; drawn across them it would not."""
    strata = [np.zeros(4), np.full(4, 10.0)]
    assert statistics.stratified_interval(statistics.pooled_mean, strata) == (5.0, 5.0)


def test_the_stratified_interval_of_one_stratum_is_the_interval():
    values = np.random.default_rng(0).normal(size=12)
    low, high = statistics.stratified_interval(statistics.pooled_mean, [values])
    expected = confidence_interval(values)
    np.testing.assert_allclose((low, high), expected, atol=0.1)
