"""Drift, beside scipy's Pearson test, slow versions, and river itself."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tfllmrec.errors import ConfigError
from tfllmrec.evaluation.metrics import gini
from tfllmrec.feedback.drift import NONE, OTHER, changes, exposure, homogeneity_p, psi_by_bin, shift


def test_the_index_is_the_sum_over_bins_with_half_a_count_in_each():
    before, after = np.array([10, 0, 30]), np.array([20, 5, 5])
    p, q = (before + 0.5) / 41.5, (after + 0.5) / 31.5
    found = psi_by_bin(before, after)
    assert found == pytest.approx([(b - a) * np.log(b / a) for a, b in zip(p, q, strict=True)])
    assert psi_by_bin(before, before).sum() == 0 < found.sum()


def slow_jensen_shannon(p, q):
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    half = [sum(a * np.log2(a / c) for a, c in zip(one, m, strict=True) if a) / 2 for one in (p, q)]
    return np.sqrt(sum(half))


def test_a_category_has_a_bin_for_each_frequent_value():
    before = pd.Series(["tv"] * 50 + ["phone"] * 40 + [None] * 8 + ["rare"] + ["odd"])
    after = pd.Series(["tv"] * 20 + ["phone"] * 70 + [None] * 10)
    found = shift(before, after, np.arange(100), np.arange(100))
    assert dict(zip(found.labels, found.before, strict=True)) == {"phone": 0.4, "tv": 0.5, NONE: 0.08, OTHER: 0.02}
    assert dict(zip(found.labels, found.after, strict=True)) == {"phone": 0.7, "tv": 0.2, NONE: 0.1, OTHER: 0.0}
    assert found.jensen_shannon == pytest.approx(slow_jensen_shannon(found.before, found.after))
    assert found.moved == "tv: 50.0% -> 20.0%" and found.counts == (100, 100)
    assert found.p < 0.001


def test_a_number_has_bins_of_equally_many_values_of_the_reference():
    before = pd.Series(np.arange(100.0))
    after = pd.Series([*np.arange(50.0), np.nan])
    found = shift(before, after, np.arange(100), np.arange(51))
    assert len(found.labels) == 11 and found.labels[0] == "up to 9.9" and found.labels[-1] == NONE
    np.testing.assert_allclose(found.before, [0.1] * 10 + [0])
    np.testing.assert_allclose(found.after, [10 / 51] * 5 + [0] * 5 + [1 / 51])


def test_a_frequent_number_has_a_bin_of_its_own():
    users = np.arange(100)
    found = shift(pd.Series([0] * 95 + [1, 2, 3, 4, 5]), pd.Series([0] * 50 + [9] * 50), users, users)
    assert found.labels == ("0", "above 0") and found.after == (0.5, 0.5)
    lengths = shift(pd.Series([10] * 100), pd.Series([10] * 60 + [5] * 40), users, users)
    assert lengths.labels == ("below 10", "10") and lengths.after == (0.4, 0.6) and lengths.p < 1e-6
    mixed = shift(pd.Series([*range(50), *[60] * 50]), pd.Series([*range(40), *[55] * 60]), users, users)
    assert mixed.labels[-2:] == ("54.5 to below 60", "60") and mixed.after[-2:] == (0.6, 0.0)


def test_a_constant_or_empty_field_is_not_compared():
    one = np.arange(3)
    assert shift(pd.Series(["a"] * 3), pd.Series(["a"] * 3), one, one) is None
    assert shift(pd.Series([1.0] * 3), pd.Series([1.0] * 3), one, one) is None
    assert shift(pd.Series([], dtype=float), pd.Series([1.0] * 3), one[:0], one) is None
    few = shift(pd.Series(["a", "b", "a"]), pd.Series(["a", "b", "b"]), one, one)
    assert few.p is None and few.psi > 0


def test_infinite_values_hide_no_shift():
    rng = np.random.default_rng(0)
    before, after, users = rng.random(900), rng.random(900) + 0.5, np.arange(900)
    whole = shift(pd.Series(before), pd.Series(after), users, users)
    for first, last in ((np.inf, np.inf), (-np.inf, -np.inf), (-np.inf, np.inf)):
        before[:300], before[-100:] = first, last  # a quantile between two infinite values is not a number
        found = shift(pd.Series(before), pd.Series(after), users, users)
        assert found.psi > whole.psi and found.labels[-1] == NONE and len(found.labels) == len(whole.labels) + 1


def test_of_independent_values_the_p_value_is_pearsons():
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 5, 3000), rng.choice(5, 2000, p=[0.22, 0.2, 0.2, 0.2, 0.18])
    table = [np.bincount(first, minlength=5), np.bincount(second, minlength=5)]
    found = homogeneity_p(first, second, np.arange(3000), np.arange(2000), 5)
    assert found == pytest.approx(stats.chi2_contingency(table).pvalue, rel=0.1)


def test_values_of_one_user_are_alike_and_raise_no_alarm():
    """Each user has a device; a test of single requests would find differences everywhere."""
    rng = np.random.default_rng(2)
    p, naive = [], []
    for _ in range(300):
        codes, users = [], []
        for _ in range(2):
            user = np.repeat(np.arange(150), rng.geometric(0.1, 150))
            device = rng.choice(4, 150)
            codes.append(np.where(rng.random(len(user)) < 0.9, device[user], rng.choice(4, len(user))))
            users.append(user)
        p.append(homogeneity_p(codes[0], codes[1], users[0], users[1], 4))
        naive.append(stats.chi2_contingency([np.bincount(each, minlength=4) for each in codes]).pvalue)
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.085 and np.mean(np.array(naive) < 0.05) > 0.5
    assert np.mean(np.array(p) < 0.01) <= 0.025


def lists_of(users, lists, steepness=1.0, seed=3):
    """Lists of ten different items; half of each user's come from a corner of the catalogue that is their own."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), lists(rng, users))
    weights = np.tile(1 / np.arange(1, 301.0) ** steepness, (len(user), 1))
    corner = rng.integers(0, 10, users)[user]
    weights[np.arange(300) // 30 == corner[:, None]] *= 5
    keys = np.log(weights) + rng.gumbel(size=weights.shape)
    items = np.argsort(-keys, axis=1)[:, :10]
    row = np.arange(len(user))
    return pd.DataFrame({"item": items.ravel(), "user": np.repeat(user, 10), "list": np.repeat(row, 10)})


def one(rng, users):
    return np.ones(users, int)


def test_exposure_is_compared_with_the_same_users_divided_at_random():
    few, many = lists_of(60, one), lists_of(240, one, seed=4)
    same = exposure(few, many, 300)
    assert same["coverage"].before == few["item"].nunique() / 300
    assert same["gini"].after == gini(np.bincount(many["item"], minlength=300))
    assert same["coverage"].after > same["coverage"].before + 0.2  # four times as much was shown
    assert all(each.p > 0.01 and abs(each.after - each.expected) < 0.04 for each in same.values())
    moved = exposure(few, lists_of(240, one, 1.8, seed=5), 300)
    assert all(each.p < 1e-4 for each in moved.values()) and moved["gini"].after > moved["gini"].expected + 0.05
    assert exposure(few[:100], many, 300)["gini"].p is None


@pytest.mark.parametrize("activity", ["seven days and an hour", "an hour and seven days", "half as many lists"])
def test_users_who_come_more_or_less_often_are_no_change_of_exposure(activity):
    hour, days = (lambda rng, users: rng.geometric(0.8, users)), (lambda rng, users: rng.geometric(1 / 15, users))
    day, half = (lambda rng, users: rng.geometric(1 / 6, users)), (lambda rng, users: rng.geometric(1 / 3, users))
    cases = {"seven": (300, days, 80, hour), "an": (80, hour, 300, days), "half": (200, day, 200, half)}
    before, first, after, second = cases[activity.split()[0]]
    p = []
    for seed in range(4):
        found = exposure(lists_of(before, first, seed=2 * seed), lists_of(after, second, seed=2 * seed + 1), 300)
        p += [each.p for each in found.values()]
        assert abs(found["coverage"].after / found["coverage"].expected - 1) < 0.2
        assert abs(found["gini"].after - found["gini"].expected) < 0.05
    assert min(p) > 1e-3, p
    moved = exposure(lists_of(before, first), lists_of(after, second, 1.8, seed=9), 300)
    assert moved["gini"].p < 1e-4 and moved["gini"].after > moved["gini"].expected + 0.05


def test_coverage_of_many_shown_items_is_that_of_all_of_them(monkeypatch):
    before, after = lists_of(60, one), lists_of(240, one, seed=4)
    monkeypatch.setattr("tfllmrec.feedback.drift.PERMUTED", 300)
    found = exposure(before, after, 300)
    assert found["coverage"].before == before["item"].nunique() / 300
    assert found["coverage"].after == after["item"].nunique() / 300
    assert all(each.p > 0.01 for each in found.values())


def test_a_change_of_a_stream_is_found_where_it_is():
    drift = pytest.importorskip("river.drift")
    rng = np.random.default_rng(4)
    values = [*(rng.random(3000) < 0.1).astype(float), *(rng.random(2000) < 0.04).astype(float)]
    (found,) = changes(values, np.arange(5000) * 10.0)
    assert abs(found.time_s - 30_000) < 1500
    assert found.before == pytest.approx(0.1, abs=0.015) and found.after == pytest.approx(0.04, abs=0.015)
    adwin, at = drift.ADWIN(delta=0.002), []
    for place, value in enumerate(values):
        adwin.update(value)
        if adwin.drift_detected:
            at.append(place)
    assert at and at[0] > 3000  # river itself
    assert changes(values[:3000], np.arange(3000.0)) == []
    assert changes([], []) == []


def test_without_river_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "river.drift", None)
    with pytest.raises(ConfigError, match=r"river .*tfllmrec\[monitor\]"):
        changes([0.0], [0.0])
