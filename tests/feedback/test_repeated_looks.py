"""Intervals and p-values of experiments, beside statsmodels and slow versions of the formulas."""

import numpy as np
import pytest
from scipy import integrate, stats

from tfllmrec.feedback.repeated_looks import CONCENTRATION, holm, interval_of, mixture_variance, sample_ratio_p


def test_one_look_is_the_z_test_of_statsmodels():
    from statsmodels.stats.weightstats import CompareMeans

    rng = np.random.default_rng(0)
    new, control = rng.normal(1.1, 2, 500), rng.normal(1, 1, 300)
    error = float(np.sqrt(new.var(ddof=1) / 500 + control.var(ddof=1) / 300))
    found = interval_of(new.mean() - control.mean(), error, 800, "one", 0.1, 1000, 0.1)
    oracle = CompareMeans.from_data(new, control)
    assert (found.low, found.high) == pytest.approx(oracle.zconfint_diff(alpha=0.1, usevar="unequal"))
    assert found.p == pytest.approx(oracle.ztest_ind(usevar="unequal")[1])


def test_many_looks_are_the_mixture_of_likelihood_ratios():
    """E is the likelihood ratio integrated over a normal mixture; the interval has the effects with E < 1/alpha."""
    users, difference, error, alpha, planned = 400, 0.3, 0.1, 0.05, 1000
    # Per user: the deviation is error * sqrt(users), the mixture's is that times r.
    spread = error * np.sqrt(users) * np.sqrt(mixture_variance(planned, alpha))

    def ratio(true):
        def at(effect):
            z, e = (difference - true) / error, (effect - true) / error
            return np.exp(z * e - e * e / 2) * stats.norm.pdf(effect, true, spread)

        return integrate.quad(at, true - 12 * spread, true + 12 * spread, limit=500)[0]

    found = interval_of(difference, error, users, "many", alpha, planned, alpha)
    assert found.p == pytest.approx(1 / ratio(0.0))
    assert ratio(found.low) == pytest.approx(1 / alpha) and ratio(found.high) == pytest.approx(1 / alpha)


def test_the_interval_is_tightest_at_the_planned_number_of_users():
    def width(planned, users=1000):
        found = interval_of(0.0, 1.0, users, "many", 0.05, planned, 0.05)
        return found.high - found.low

    assert width(1000) < min(width(900), width(1100)) and width(1000) / (2 * 1.96) == pytest.approx(1.5, abs=0.05)
    assert width(500) / width(1000) < 1.05 and width(2000) / width(1000) < 1.05


def test_no_difference_has_a_p_of_one():
    assert interval_of(0.0, 1.0, 100, "many", 0.05, 100, 0.05).p == 1.0


def test_sample_ratio_of_one_look_is_chi_squared():
    p = sample_ratio_p([520, 480], [0.5, 0.5], "one")
    assert p == pytest.approx(stats.chi2.sf(20**2 / 500 + 20**2 / 500, 1))


def test_sample_ratio_of_many_looks_is_a_bayes_factor():
    counts, shares = [230, 320, 450], [0.2, 0.3, 0.5]
    factor = np.exp(
        stats.dirichlet_multinomial.logpmf(counts, CONCENTRATION * np.array(shares), 1000)
        - stats.multinomial.logpmf(counts, 1000, shares)
    )
    assert factor > 1 and sample_ratio_p(counts, shares, "many") == pytest.approx(1 / factor)
    assert sample_ratio_p([200, 300, 500], shares, "many") == 1.0  # never above 1


def test_holm_is_that_of_statsmodels():
    from statsmodels.stats.multitest import multipletests

    for p in ([0.01, 0.04, 0.03, 0.005], [0.9, 0.01, 0.01, 0.5, 0.02], [0.3]):
        assert holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist())
    assert holm([]) == []
