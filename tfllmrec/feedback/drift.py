"""Measures whether a distribution changed between two periods, by how much, and since when.

**Size.** The population stability index ``sum_b (p_b - q_b) ln(p_b / q_b)`` over bins, and the Jensen-Shannon distance
(base 2, between 0 and 1). By convention in credit scoring, an index of 0.1 is moderate and 0.25 is large. Half a count
is added to each bin, so that no bin is empty.

**Chance.** For two samples of one distribution, the index is about ``(1/n + 1/m)`` times a chi-squared variable, so it
exceeds any limit if samples are small (Yurdakul and Naranjo 2020, "Statistical properties of the population stability
index", J. Risk Model Validation 14). Therefore a limit alone is not enough. The p-value of no change is that of
Pearson's test of homogeneity, corrected for the similarity of events of one user by Rao and Scott's second-order method
(1981, "The analysis of categorical data from complex sample surveys", JASA 76), with the covariance of the bins
linearised over users. A field counts as changed if the index reaches its limit *and* the p-value, adjusted for all
comparisons of a report, is below alpha. Then small samples raise no alarm by chance, and large samples raise none for
an unimportant difference.

**Time of the change.** ADWIN (Bifet and Gavalda 2007) of `river` compares the means of the older and the newer part of
a stream at many positions, and drops the older part where they differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from scipy.spatial.distance import jensenshannon

from tfllmrec.errors import not_installed
from tfllmrec.evaluation.metrics import gini
from tfllmrec.feedback.rates import MIN_USERS

#: BINS: the number of quantile bins of a numeric field, computed on the reference. VALUES: the maximum number of values
#: of a categorical field with a bin of their own: the most frequent ones, each with at least the share LEAST_SHARE. All
#: other values fall into the bin *other*, missing and infinite values into *none*.
BINS, VALUES, LEAST_SHARE = 10, 20, 0.01
OTHER, NONE = "other", "none"
#: Number of random divisions for the expected exposure, and maximum number of shown items in each.
PERMUTATIONS, PERMUTED = 200, 200_000
#: Error rate of ADWIN. Changes less than APART looks apart count as one.
DELTA, APART = 0.002, 10


@dataclass(frozen=True)
class Shift:
    """The distributions of a field in two periods.

    Attributes:
      psi: The population stability index.
      jensen_shannon: The Jensen-Shannon distance.
      p: The p-value of no change; ``None`` with too few users.
      moved: The bin that contributes most to the index, such as ``phone: 30.0% -> 55.0%``.
      labels: The labels of the bins.
      before: The shares of the bins in the earlier period.
      after: The shares of the bins in the later period.
      counts: The number of values in each period.
    """

    psi: float
    jensen_shannon: float
    p: float | None
    moved: str
    labels: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    counts: tuple[int, int]


def shift(before: pd.Series, after: pd.Series, users_before: np.ndarray, users_after: np.ndarray) -> Shift | None:
    """Compares a field in two periods; returns ``None`` if all values are in one bin, or a period has no values.

    Args:
      before: The values of the earlier period, numbers or texts.
      after: The values of the later period.
      users_before: Int ``[N]``, the user of each value of the earlier period.
      users_after: Int ``[M]``, the user of each value of the later period.
    """
    if not len(before) or not len(after):
        return None
    labels, first, second = _binned(before, after)
    if len(labels) < 2:
        return None
    counts = [np.bincount(codes, minlength=len(labels)) for codes in (first, second)]
    p, q = (shares(each) for each in counts)
    few = min(len(np.unique(users_before)), len(np.unique(users_after))) < MIN_USERS
    by_bin = psi_by_bin(counts[0], counts[1])
    at = int(np.argmax(by_bin))
    return Shift(
        float(by_bin.sum()),
        float(jensenshannon(p, q, base=2)),
        None if few else homogeneity_p(first, second, users_before, users_after, len(labels)),
        f"{labels[at]}: {p[at]:.1%} -> {q[at]:.1%}",
        labels,
        tuple(p.tolist()),
        tuple(q.tolist()),
        (len(before), len(after)),
    )


def shares(counts: np.ndarray) -> np.ndarray:
    """Converts counts to shares, float64 ``[B]``."""
    return np.asarray(counts / counts.sum(), np.float64)


def psi_by_bin(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Returns the contribution of each bin to the population stability index of two counts ``[B]``, float64 ``[B]``.

    Half a count is added to each bin.
    """
    p, q = shares(before + 0.5), shares(after + 0.5)
    return np.asarray((q - p) * np.log(q / p), np.float64)


def homogeneity_p(
    first: np.ndarray, second: np.ndarray, users_first: np.ndarray, users_second: np.ndarray, bins: int
) -> float:
    """Returns the p-value of equal shares of the bins in two samples, by Rao and Scott's second-order correction.

    Args:
      first: Int ``[N]``, the bin of each value of the first sample.
      second: Int ``[M]``, the bin of each value of the second sample.
      users_first: Int ``[N]``, the user of each value of the first sample.
      users_second: Int ``[M]``, the user of each value of the second sample.
      bins: The number of bins.
    """
    p, v_first, n = _linearised(first, users_first, bins)
    q, v_second, m = _linearised(second, users_second, bins)
    pooled = (p * n + q * m) / (n + m)
    used = pooled > 0
    scale = pooled[used] * (1 / n + 1 / m)
    statistic = float(((q - p)[used] ** 2 / scale).sum())
    effects = (v_first + v_second)[np.ix_(used, used)] / scale[:, None]
    degrees = int(used.sum()) - 1
    mean, squares = float(np.trace(effects)) / degrees, float(np.trace(effects @ effects)) / degrees
    if mean <= 0:
        return 1.0 if statistic == 0 else 0.0
    spread = squares / mean**2  # 1 + the squared coefficient of variation of the design effects
    return float(stats.chi2.sf(statistic / (mean * spread), degrees / spread))


def _linearised(codes: np.ndarray, users: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns the shares of the bins ``[B]``, their covariance over users ``[B, B]``, and the number of values."""
    _, user = np.unique(users, return_inverse=True)
    counts = np.zeros((int(user.max()) + 1, bins))
    np.add.at(counts, (user, codes), 1.0)
    n, people = len(codes), len(counts)
    p = counts.sum(axis=0) / n
    residual = counts - counts.sum(axis=1, keepdims=True) * p
    return p, people / (people - 1) * residual.T @ residual / n**2, n


def _binned(before: pd.Series, after: pd.Series) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Returns the labels of the bins that occur, and the bin of each value of both periods."""
    both = pd.concat([before, after], ignore_index=True)
    if pd.api.types.is_numeric_dtype(both) and not pd.api.types.is_bool_dtype(both):
        values = both.to_numpy(np.float64, na_value=np.nan)
        known = np.isfinite(values)
        edges, labels = _bins_of(values[: len(before)][known[: len(before)]])
        codes = np.where(known, np.searchsorted(edges, values, side="left"), len(labels))
        labels.append(NONE)
    else:
        texts = both.astype("object").where(both.notna(), NONE).astype(str)
        frequent = texts.value_counts(normalize=True).head(VALUES)
        kept = frequent.index[frequent >= LEAST_SHARE].tolist()
        labels = [*kept, OTHER]
        codes = pd.Categorical(texts, kept).codes.astype(np.int64)
        codes = np.where(codes < 0, len(kept), codes)
    present, codes = np.unique(codes, return_inverse=True)
    return tuple(labels[at] for at in present), codes[: len(before)], codes[len(before) :]


def _bins_of(known: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Returns the upper ends of quantile bins, each included in its bin, and the labels of the bins.

    A value that spans several quantiles, such as the one length that nearly all lists have, gets a bin of its own.
    """
    quantiles, times = np.unique(
        np.quantile(known, np.arange(1, BINS) / BINS) if len(known) else [], return_counts=True
    )
    edges, labels, low = [], [], ""
    for end, repeated in zip(quantiles.tolist(), times > 1, strict=True):
        name = f"{end:.4g}"
        if repeated:
            edges.append(np.nextafter(end, -np.inf))
            labels.append(f"{low} to below {name}" if low else f"below {name}")
        edges.append(end)
        labels.append(name if repeated else f"{low} to {name}" if low else f"up to {name}")
        low = name
    return np.array(edges), [*labels, f"above {low}" if low else "any"]


@dataclass(frozen=True)
class Spread:
    """A measure of how evenly items are shown, in two periods.

    Attributes:
      before: The value in the earlier period.
      after: The value in the later period.
      expected: The value expected in the later period if only the amount of shown items changed.
      p: The p-value of no change; ``None`` with too few users.
    """

    before: float
    after: float
    expected: float
    p: float | None


def exposure(before: pd.DataFrame, after: pd.DataFrame, catalogue: int) -> dict[str, Spread]:
    """Compares two measures of exposure in two periods: coverage and Gini's index.

    ``coverage`` is the share of the catalogue that was shown, ``gini`` Gini's index of how often each item was shown.
    Both depend on the number of shown items and of users. Therefore both periods are thinned until their users had
    equally many shown items, and the difference is compared with that of :data:`PERMUTATIONS` random divisions of these
    users into two periods of the same numbers of users; the p-value assumes a normal distribution. If there are more
    shown items than :data:`PERMUTED`, an evenly spread part of them is divided. The expected value for all shown items
    deviates from the observed one as it does in the thinned periods: by the same ratio for coverage, and by the same
    difference for Gini's index.

    Args:
      before: One row for each shown item of the earlier period: ``item``, an int below ``catalogue``, and the ints
        ``user`` and ``list``.
      after: The same for the later period.
      catalogue: The number of items in the catalogue.
    """
    rng = np.random.default_rng(0)
    whole = [_evenness(np.bincount(each["item"], minlength=catalogue)) for each in (before, after)]
    thinned = _equally_active(before, after, rng)
    items = np.concatenate([each["item"] for each in thinned])
    first, second = (np.unique(each["user"], return_inverse=True)[1] for each in thinned)
    n = int(first.max()) + 1
    units = np.concatenate([first, second + n])
    total = int(units.max()) + 1
    step = -(-len(items) // PERMUTED)
    items, units = items[::step], units[::step]
    everything = np.bincount(items, minlength=catalogue)

    def figures(early: np.ndarray) -> np.ndarray:
        counts = np.bincount(items[early[units]], minlength=catalogue)
        return np.stack([_evenness(counts), _evenness(everything - counts)])

    found = figures(np.arange(total) < n)
    drawn = np.stack([figures(rng.permutation(total) < n) for _ in range(PERMUTATIONS)])
    few = min(n, total - n) < MIN_USERS
    told = {}
    for at, name in enumerate(("coverage", "gini")):
        differences = drawn[:, 1, at] - drawn[:, 0, at]
        mean, deviation = float(differences.mean()), float(differences.std())
        now, usual = float(found[1, at]), float(found[0, at]) + mean
        p = None if few or deviation == 0 else float(2 * stats.norm.sf(abs(now - usual) / deviation))
        all_now = float(whole[1][at])
        expected = all_now * usual / now if name == "coverage" and now else all_now + usual - now
        told[name] = Spread(float(whole[0][at]), float(whole[1][at]), float(np.clip(expected, 0, 1)), p)
    return told


def _evenness(counts: np.ndarray) -> np.ndarray:
    """Returns coverage and Gini's index of how often each item was shown, float64 ``[2]``."""
    return np.array([(counts > 0).mean(), gini(counts)])


def _equally_active(before: pd.DataFrame, after: pd.DataFrame, rng: np.random.Generator) -> list[pd.DataFrame]:
    """Thins both periods so that equal shares of their users had equally many shown items.

    A user keeps the smaller of the numbers of shown items that the users at the same quantile of the two periods had;
    lists are kept in random order, one after the other.
    """
    activity = [np.sort(np.unique(each["user"], return_counts=True)[1]) for each in (before, after)]
    parts = []
    for each in (before, after):
        users, of_user, counts = np.unique(each["user"], return_inverse=True, return_counts=True)
        rank = np.empty(len(users), np.int64)
        rank[np.argsort(counts, kind="stable")] = np.arange(len(users))
        least = np.min([known[(2 * rank + 1) * len(known) // (2 * len(users))] for known in activity], axis=0)
        _, of_list = np.unique(each["list"], return_inverse=True)
        order = np.lexsort((rng.random(len(each)), rng.permutation(int(of_list.max()) + 1)[of_list], of_user))
        place = np.arange(len(each)) - np.repeat(np.cumsum(counts) - counts, counts)
        parts.append(each.iloc[np.sort(order[place < np.repeat(least, counts)])])
    return parts


@dataclass(frozen=True)
class Change:
    """A change of the mean of a stream: its approximate time, and the means before and after."""

    time_s: float
    before: float
    after: float


def changes(values: Sequence[float], times_s: Sequence[float], clock: int = 32) -> list[Change]:
    """Returns the changes of the mean of a stream, by ADWIN.

    Args:
      values: The stream in the order of time, between 0 and 1.
      times_s: The time of each value, in seconds.
      clock: ADWIN looks for a change after each ``clock`` values.

    Raises:
      ConfigError: river is not installed.
    """
    try:
        from river.drift import ADWIN
    except ImportError as error:
        raise not_installed("changes in streams need river", error, "monitor") from error
    adwin, found = ADWIN(delta=DELTA, clock=clock), []
    starts = [0]
    for at, value in enumerate(values):
        adwin.update(value)
        if adwin.drift_detected:
            start = at + 1 - int(adwin.width)
            if len(starts) > 1 and start - starts[-1] < APART * clock:
                starts[-1] = start  # ADWIN drops the older part of a change step by step
            elif start > starts[-1]:
                starts.append(start)
    known = np.asarray(values, np.float64)
    for before, near, end in zip(starts, starts[1:], [*starts[2:], len(known)], strict=False):
        # ADWIN stores older values in large buckets. The change is where the cumulative sum is farthest from a line.
        part = known[before:end]
        sums = np.cumsum(part - part.mean())[:-1]
        start = before + 1 + int(np.argmax(np.abs(sums))) if len(sums) else near
        found.append(Change(float(times_s[start]), float(known[before:start].mean()), float(known[start:end].mean())))
    return found
