"""Rates with intervals over users, beside statsmodels and simulated repeats."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from tfllmrec.feedback.rates import FEW, MIN_USERS, Estimate, estimate, p_of_difference


def test_of_independent_events_the_interval_is_wilsons():
    used = np.array([1.0] * 7 + [0.0] * 93)
    found = estimate(used, np.ones(100), np.arange(100))
    low, high = proportion_confint(7, 100, method="wilson")
    # n / (n - 1) of the variance over users makes the design effect 100 / 99
    np.testing.assert_allclose((found.low, found.high), proportion_confint(7 * 0.99, 99, method="wilson"), rtol=1e-9)
    np.testing.assert_allclose((found.low, found.high), (low, high), rtol=0.02)
    assert (found.value, found.count, found.users, found.effective) == (0.07, 100, 100, pytest.approx(99))


def test_events_of_one_user_count_less():
    used = np.repeat([1.0] * 7 + [0.0] * 93, 10)
    alone = estimate(used[::10], np.ones(100), np.arange(100))
    repeated = estimate(used, np.ones(1000), np.repeat(np.arange(100), 10))
    assert repeated.count == 1000
    np.testing.assert_allclose((repeated.low, repeated.high), (alone.low, alone.high), rtol=1e-9)


def test_the_interval_covers_what_users_of_all_kinds_do():
    rng = np.random.default_rng(0)
    hits = narrow = 0
    for _ in range(400):
        people = np.repeat(np.arange(100), rng.geometric(0.1, 100))
        taste = rng.beta(0.5, 9.5, 100)
        used = (rng.random(len(people)) < taste[people]).astype(float)
        found = estimate(used, np.ones(len(used)), people)
        hits += found.low <= 0.05 <= found.high
        low, high = proportion_confint(used.sum(), len(used), method="wilson")
        narrow += low <= 0.05 <= high
    assert 0.91 <= hits / 400 <= 0.98 and narrow / 400 < 0.8


def test_nothing_none_and_all():
    nothing = estimate(np.zeros(0), np.zeros(0), np.zeros(0, int))
    assert nothing.count == 0 and np.isnan(nothing.value)
    none = estimate(np.zeros(50), np.ones(50), np.arange(50))
    assert none.low == 0 and none.high == pytest.approx(proportion_confint(0, 50, method="wilson")[1])
    everything = estimate(np.ones(50), np.ones(50), np.arange(50))
    assert everything.high == 1 and 0.9 < everything.low < 1
    one = estimate(np.ones(5), np.ones(5), np.zeros(5, int))
    assert one.users == 1 and np.isnan(one.variance)
    left_out = estimate(np.array([1.0, 0.0]), np.array([1.0, 0.0]), np.array([1, 2]))
    assert left_out.users == 1


def test_a_mean_weights_users_by_their_events():
    values, people = np.array([1.0, 3.0, 8.0]), np.array([0, 0, 1])
    found = estimate(values, np.ones(3), people, rate=False)
    assert found.value == 4
    # residuals by user: (1 + 3) - 2 * 4 = -4 and 8 - 4 = 4; variance 2 / 1 * (16 + 16) / 9
    assert found.variance == pytest.approx(2 * 32 / 9)
    assert found.high - 4 == pytest.approx(stats.norm.isf(0.025) * np.sqrt(2 * 32 / 9))


def a_rate(cases, count, effective=None, users=100):
    return Estimate(cases / count, 0, 1, count, users, effective or count, 0)


def test_a_difference_is_tested_with_the_larger_design_effect():
    z = (0.12 - 0.10) / np.sqrt(0.11 * 0.89 * 2 / 1000)
    assert p_of_difference(a_rate(100, 1000), a_rate(120, 1000)) == pytest.approx(2 * stats.norm.sf(z))
    once = p_of_difference(a_rate(400, 4000, 1000), a_rate(480, 4000))
    assert once == pytest.approx(2 * stats.norm.sf(z)) == p_of_difference(a_rate(400, 4000), a_rate(480, 4000, 1000))
    assert p_of_difference(a_rate(0, 1000), a_rate(9, 1000)) == stats.fisher_exact([[0, 9], [1000, 991]]).pvalue
    assert FEW > 4.5
    assert p_of_difference(a_rate(0, 1000), a_rate(0, 1000)) == 1
    assert p_of_difference(a_rate(1, 10), a_rate(9, 10, users=MIN_USERS - 1)) is None
    means = Estimate(5.0, 0, 0, 10, 40, 10, 4.0), Estimate(9.0, 0, 0, 10, 40, 10, 12.0)
    assert p_of_difference(*means, rate=False) == pytest.approx(2 * stats.norm.sf(4 / 4))
    assert p_of_difference(means[0], means[0], rate=False) == 1


def test_one_user_with_a_fault_is_no_change_of_all():
    """Without any case before, nothing says that cases come in bunches."""
    people = np.repeat(np.arange(200), 10)
    before = estimate(np.zeros(2000), np.ones(2000), people)
    after = estimate((people == 3).astype(float), np.ones(2000), people)
    assert p_of_difference(before, after) > 0.3
    spread = estimate((people < 10).astype(float) * (np.arange(2000) % 10 == 0), np.ones(2000), people)
    assert spread.value == after.value and p_of_difference(before, spread) < 0.01
