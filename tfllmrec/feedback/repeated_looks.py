"""Statistics of experiments: for one look at the end, and for any number of looks.

**Differences.** An ordinary 95 % interval covers the true difference in 95 of 100 experiments if it is computed once.
If it is computed after each 100 users, and the experiment stops at the first significant difference, far more than 5 of
100 experiments without an effect end with a false positive. With ``looks="many"`` intervals are therefore *asymptotic
confidence sequences* (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2024, "Time-uniform central limit theory and
asymptotic confidence sequences", Annals of Statistics 52). For a difference ``d`` with the standard error ``s`` after
``t`` users,

    d ± s * sqrt(2 (t r^2 + 1) / (t r^2) * log(sqrt(t r^2 + 1) / alpha))

covers the true difference at all looks together with probability 1 - alpha, if there are many users at the first look.
The corresponding p-value is ``min(1, 1 / E)`` with

    E = exp(t r^2 / (1 + t r^2) * (d / s)^2 / 2) / sqrt(1 + t r^2)

``E`` is the likelihood ratio of a mixture sequential probability ratio test with a normal mixture (mSPRT; Johari,
Koomen, Pekelis and Walsh 2022, "Always valid inference"): both methods give the same interval. The setting ``r`` makes
the interval tightest at a planned number of users. There it is about 1.5 times as wide as the ordinary interval, and
little more at half or twice as many users. ``r`` must be chosen before the first look. The method needs only an
estimate and its standard error, so it works with CUPED and with ratios.

**Sample ratio.** The number of users in each arm is compared with the expected shares. For one look this is the
chi-squared test. For many looks it is the sequential test of Lindon and Malek (2022, "Anytime-valid inference for
multinomial count data"): ``p = min(1, 1 / B)``, where the Bayes factor ``B`` compares shares from a Dirichlet
distribution around the expected shares with the expected shares. The probability of a false alarm at any look is then
at most alpha; this is exact for any number of users.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import special, stats

Looks = Literal["one", "many"]
#: Concentration of the sequential test's Dirichlet distribution: shares drawn from it differ from an expected share of
#: one half by about 1.6 percentage points.
CONCENTRATION = 1000.0


class Interval(NamedTuple):
    """The low and high end of an interval, and the p-value of no difference."""

    low: float
    high: float
    p: float


def interval_of(
    difference: float, error: float, users: int, looks: Looks, alpha: float, planned_users: int, tuned_for: float
) -> Interval:
    """Returns the interval of a difference; see the module.

    Args:
      difference: The estimated difference.
      error: Its standard error, above 0.
      users: The number of users in both arms together.
      looks: ``one`` for a normal interval, ``many`` for an asymptotic confidence sequence.
      alpha: The error rate of the interval.
      planned_users: The number of users at which the interval for many looks is tightest.
      tuned_for: The error rate for which it is tightest there: that of the experiment, of which ``alpha`` is a part if
        there are several comparisons.
    """
    z = difference / error
    if looks == "one":
        width = float(stats.norm.isf(alpha / 2)) * error
        return Interval(difference - width, difference + width, float(2 * stats.norm.sf(abs(z))))
    scaled = users * mixture_variance(planned_users, tuned_for)
    width = error * float(np.sqrt(2 * (scaled + 1) / scaled * (0.5 * np.log1p(scaled) - np.log(alpha))))
    log_p = 0.5 * np.log1p(scaled) - scaled / (1 + scaled) * z * z / 2
    return Interval(difference - width, difference + width, float(np.exp(min(log_p, 0.0))))


def mixture_variance(planned_users: int, alpha: float) -> float:
    """Returns ``r^2``, which makes the confidence sequence tightest at ``planned_users`` (Waudby-Smith et al. 2024)."""
    return float(-special.lambertw(-(alpha**2) / np.e, -1).real - 1) / planned_users


def sample_ratio_p(counts: Sequence[int], shares: Sequence[float], looks: Looks) -> float:
    """Returns the p-value of the expected shares; see the module.

    Args:
      counts: The number of users in each arm.
      shares: The expected shares; they sum to 1.
      looks: ``one`` or ``many``.
    """
    found, expected = np.asarray(counts, dtype=np.float64), np.asarray(shares, dtype=np.float64)
    if looks == "one":
        return float(stats.chisquare(found, expected * found.sum()).pvalue)
    prior = CONCENTRATION * expected
    log_b = (
        special.gammaln(prior.sum())
        - special.gammaln((prior + found).sum())
        + (special.gammaln(prior + found) - special.gammaln(prior)).sum()
        - (found * np.log(expected)).sum()
    )
    return float(np.exp(min(-log_b, 0.0)))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusts p-values for the number of comparisons (Holm 1979): any false positive has a chance of at most alpha.

    Makes no assumption on the dependence between the comparisons.
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    adjusted = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    out = np.empty(len(values))
    out[order] = np.minimum(adjusted, 1.0)
    return [float(value) for value in out]
