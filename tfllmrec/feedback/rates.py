"""Rates and means over events of many users, with intervals that account for the similarity of one user's events.

**Why Wilson with an effective sample size.** Ten clicks of one user are weaker evidence than one click of each of ten
users, so a binomial interval of the clicks is too narrow. The variance of a ratio of sums over users (linearised;
Cochran 1977, "Sampling Techniques", 6.3) divided by the binomial variance is the design effect (Kish 1965). The
interval is Wilson's with the sample size divided by the design effect, which Franco, Little, Louis and Slud (2019,
"Comparative study of confidence intervals for proportions in complex sample surveys", J. Survey Statistics and
Methodology 7) found reliable for rare outcomes, too. A bootstrap over users agrees if there are many events, has no
width if there are none, and takes hundreds of times as long.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

#: Periods with fewer than MIN_USERS users are not compared. A normal test needs at least FEW expected cases.
MIN_USERS, FEW = 30, 10


@dataclass(frozen=True)
class Estimate:
    """A rate or a mean.

    Attributes:
      value: The rate or mean; NaN if nothing was counted.
      low: The lower end of its 95 % interval.
      high: The upper end of its 95 % interval.
      count: The number of observations in the mean, such as shown items.
      users: The number of users of these observations.
      effective: ``count`` divided by the design effect, which is at least 1.
      variance: The variance of ``value``, linearised over users; NaN for fewer than two users.
    """

    value: float
    low: float
    high: float
    count: float
    users: int
    effective: float
    variance: float


def estimate(values: np.ndarray, weights: np.ndarray, users: np.ndarray, rate: bool = True) -> Estimate:
    """Estimates the ratio of two sums: ``values.sum() / weights.sum()``.

    Args:
      values: Float ``[N]``, such as 1 for an item that was clicked.
      weights: Float ``[N]``, such as 1 for an item that was shown.
      users: Int ``[N]``, the user of each observation.
      rate: Whether the ratio is between 0 and 1; otherwise it is a mean with a normal interval.
    """
    count = float(weights.sum())
    if count <= 0:
        return Estimate(np.nan, np.nan, np.nan, 0.0, 0, 0.0, np.nan)
    _, codes = np.unique(users, return_inverse=True)
    sums, sizes = np.bincount(codes, values), np.bincount(codes, weights)
    there = sizes > 0
    sums, sizes = sums[there], sizes[there]
    n, value = len(sizes), float(sums.sum() / count)
    variance = np.nan
    if n > 1:
        variance = float(n / (n - 1) * ((sums - value * sizes) ** 2).sum() / count**2)
    z = float(stats.norm.isf(0.025))
    if not rate:
        half = z * float(np.sqrt(variance))
        return Estimate(value, value - half, value + half, count, n, count, variance)
    binomial = value * (1 - value) / count
    effect = max(variance / binomial, 1.0) if n > 1 and binomial > 0 else 1.0
    effective = count / effect
    middle, half = (
        (value + z * z / 2 / effective),
        z * np.sqrt(value * (1 - value) / effective + (z / 2 / effective) ** 2),
    )
    shrink = 1 + z * z / effective
    low, high = max((middle - half) / shrink, 0.0), min((middle + half) / shrink, 1.0)
    return Estimate(value, float(low), float(high), count, n, effective, variance)


def p_of_difference(before: Estimate, after: Estimate, rate: bool = True) -> float | None:
    """Returns the two-sided p-value of no difference; ``None`` if a period has fewer than :data:`MIN_USERS` users.

    Rates are compared by a z-test with the variance of the common rate, or by Fisher's exact test if fewer than
    :data:`FEW` cases are expected. Both use effective sample sizes by the larger of the two design effects, because the
    design effect of a period without any case cannot be estimated. Means are compared by a z-test with their own
    variances. All tests treat the two periods as independent. Users who are in both periods make them more alike, so
    that false alarms become rarer.
    """
    if min(before.users, after.users) < MIN_USERS:
        return None
    difference = after.value - before.value
    if rate:
        effect = max(each.count / each.effective for each in (before, after))
        sizes = np.array([before.count, after.count]) / effect
        cases = sizes * [before.value, after.value]
        common = cases.sum() / sizes.sum()
        if min(common, 1 - common) * sizes.min() < FEW:
            table = np.rint([cases, sizes - cases]).astype(int)
            return float(stats.fisher_exact(table).pvalue)
        variance = common * (1 - common) * (1 / sizes).sum()
    else:
        variance = before.variance + after.variance
    if variance <= 0:
        return 1.0 if difference == 0 else 0.0
    return float(2 * stats.norm.sf(abs(difference) / np.sqrt(variance)))
