"""Estimates the reward of a target policy from the exposure log of the policy that was running.

    log = ExposureLog.from_frame(exposures)
    target = policy_table(log, probabilities)  # columns item_id, probability and optionally position
    estimate(log, target).estimates["snips"]

A row of the log has the item ``a`` that was shown, its reward ``r``, and the probability ``p`` (propensity) with which
the logging policy chose it. The target policy would have chosen it with probability ``t``; the weight of the row is
``w = t / p``. The value of a policy is its mean reward per exposure. All estimates assume that a reward depends on the
item, its position and the request, but not on the other items of the list.

- **IPS** (inverse propensity score; Horvitz and Thompson 1952): ``mean(w r)``. Unbiased.
- **SNIPS** (self-normalized; Swaminathan and Joachims 2015): ``sum(w r) / sum(w)``. Slightly biased, and usually more
  accurate, because it corrects for weights that are too high or too low by chance.
- **DR** (doubly robust; Dudik, Langford and Li 2011): ``mean(sum_a t(a) q(a) + w (r - q))``, where ``q`` predicts
  rewards. Unbiased with any ``q`` that was not fitted on the same row; the better ``q``, the narrower the interval.

**Intervals.** Requests are the unit, because the rows of one answer depend on each other. Each estimate is a mean of
one value for each request (for SNIPS the ratio is linearised: ``w (r - estimate) / mean(w)``), so the standard
deviation of these values gives its standard error ``s``. Clicks are rare and weights uneven, so the estimates are
skewed, and the interval ``v ± z s`` is too low. If no reward is negative, the interval is therefore a normal one of
``log v`` (delta method): ``v exp(± z s / v)``; there is none if ``s`` is more than half of ``v``, as with three clicks.
Otherwise it is ``v ± z s``. In contrast to the bootstrap, it needs no random numbers; ``benchmarks/off_policy.py``
measures its coverage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from tfllmrec.columns import ITEM, POSITION, PROPENSITY, REQUEST_ID, REWARD
from tfllmrec.errors import ConfigError, DataError
from tfllmrec.feedback.tables import numbers, require_columns, texts

#: The column of a policy table with the probability of an item.
PROBABILITY = "probability"
ESTIMATORS = ("ips", "snips", "dr")
#: The number of folds for cross-fitting of the reward model: each fold is predicted from the others.
FOLDS = 5
#: The prior weight of a position's mean reward in the mean reward of an item at this position, in exposures.
PRIOR_EXPOSURES = 100.0
#: An estimate has no interval on the logarithmic scale if its standard error is more than this share of it.
MAX_RELATIVE_ERROR = 0.5
#: The maximum number of values in an array (200 MB); an estimate holds several arrays of this size at a time.
MAX_CELLS = 25_000_000
_LOG = "the exposure log"


@dataclass(frozen=True)
class ExposureLog:
    """Exposures with integer codes for items, positions and requests, ``[n]`` each.

    Attributes:
      items: The item ids, ``[A]``.
      positions: The positions, ``[P]``, ascending.
      item: Int64, the index of the item in ``items``.
      position: Int64, the index of the position in ``positions``.
      request: Int64, the number of the request.
      propensity: Float64, above 0 and at most 1.
      reward: Float64.
      without_request: The number of rows without a request id, each of which counts as a request of its own.
    """

    items: np.ndarray
    positions: np.ndarray
    item: np.ndarray
    position: np.ndarray
    request: np.ndarray
    propensity: np.ndarray
    reward: np.ndarray
    without_request: int = 0

    def __len__(self) -> int:
        return len(self.item)

    @classmethod
    def from_frame(cls, exposures: pd.DataFrame, items: Sequence[str] = ()) -> ExposureLog:
        """Creates an exposure log from a table, and checks it.

        Args:
          exposures: ``item_id``, ``propensity``, ``reward``, and optionally ``position`` (by default all rows have the
            same) and ``request_id`` (by default each row is a request, and so is a row without an id).
          items: Further items that a policy may choose, even if the log does not have them.

        Raises:
          DataError: A column is missing, such as that of propensities; a propensity is missing, or not above 0 and at
            most 1; or a reward is missing.
        """
        if PROPENSITY not in exposures:
            raise DataError(
                f"Expected a column {PROPENSITY!r} in {_LOG}: the probability with which each item was chosen. "
                "Without it, what another policy would have earned cannot be estimated. Log propensities from now on "
                "(tfllmrec.feedback.exploration), or run an experiment."
            )
        require_columns(exposures, [ITEM, REWARD], _LOG)
        if not len(exposures):
            raise DataError(f"Expected rows in {_LOG}, found none.")
        propensity = numbers(exposures, PROPENSITY, _LOG)
        if len(wrong := np.flatnonzero(~((propensity > 0) & (propensity <= 1)))):
            raise DataError(
                f"Expected propensities above 0 and at most 1; found {propensity[wrong[0]]:g} in row "
                f"{wrong[0] + 1:,}, and {len(wrong):,} such rows in all. An item that was shown had a probability "
                "above 0: correct how propensities are logged."
            )
        n = len(exposures)
        position = numbers(exposures, POSITION, _LOG) if POSITION in exposures else np.zeros(n)
        request, without = np.arange(n), np.zeros(n, dtype=bool)
        if REQUEST_ID in exposures:
            ids = texts(exposures, REQUEST_ID).to_numpy(dtype=object)
            without = ids == ""
            request = np.where(without, n + request, pd.factorize(ids)[0])  # factorized ids are below n
        shown = texts(exposures, ITEM).to_numpy(dtype=object)
        every = np.unique(np.concatenate([shown, np.array(list(items), dtype=object)]).astype(str))
        positions, position_of = np.unique(position, return_inverse=True)
        return cls(
            every.astype(object),
            positions,
            np.searchsorted(every, shown.astype(str)),
            position_of,
            pd.factorize(request)[0].astype(np.int64),
            propensity,
            numbers(exposures, REWARD, _LOG),
            int(without.sum()),
        )

    def take(self, rows: np.ndarray) -> ExposureLog:
        """Returns some rows of the log."""
        columns = (self.item[rows], self.position[rows], self.request[rows], self.propensity[rows], self.reward[rows])
        return ExposureLog(self.items, self.positions, *columns)


class Estimate(NamedTuple):
    """The value of a policy, and its interval; ``None`` if the log has too few rewards for an interval."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class OffPolicy:
    """The value of the target policy, by estimator.

    Attributes:
      estimates: The estimates by ``ips``, ``snips`` and, if the probabilities of all items are known, ``dr``.
      logged: The mean reward of the log, which is the value of the logging policy, with its interval.
      exposures: The number of rows of the log.
      requests: The number of requests.
      effective: The effective sample size ``sum(w)^2 / sum(w^2)``: the estimates are about as precise as with this many
        exposures of the target policy itself.
      mean_weight: The mean weight, which should be 1.
      largest_weight: The largest weight of a row.
      by_position: The same for each position, by its number in the log; empty if there is only one.
      warnings: Reasons why the estimates may be wrong, in words.
    """

    estimates: dict[str, Estimate]
    logged: Estimate
    exposures: int
    requests: int
    effective: float
    mean_weight: float
    largest_weight: float
    by_position: dict[str, OffPolicy]
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Returns the result as JSON types."""
        plain = asdict(self)
        plain["estimates"] = {name: each._asdict() for name, each in self.estimates.items()}
        plain["logged"] = self.logged._asdict()
        plain["by_position"] = {name: each.as_dict() for name, each in self.by_position.items()}
        return plain


def estimate(
    log: ExposureLog, target: np.ndarray, predictions: np.ndarray | None = None, alpha: float = 0.05
) -> OffPolicy:
    """Estimates the value of a target policy by IPS, SNIPS and DR; see the module.

    Args:
      log: The log of the logging policy.
      target: The probabilities of the target policy: float ``[n, A]`` for all items, as returned by
        :func:`policy_table`; or float ``[n]`` for the shown item alone, which is enough for IPS and SNIPS.
      predictions: Float ``[n, A]``, the predicted reward of all items in each row, for DR. By default the mean reward
        of the item at the position, shrunk towards the mean of the position and fitted on the other requests
        (:func:`fitted_rewards`). A model that was fitted on these rows would make the interval too narrow.
      alpha: The error rate of the intervals.

    Raises:
      ConfigError: ``alpha`` is out of range.
      DataError: An array has the wrong shape, a probability is not between 0 and 1, the probabilities of a row sum to
        more than 1, no shown item has a probability above 0, all propensities are 1 and the target policy chooses other
        items, or predictions are not finite numbers or are given without the probabilities of all items.
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"Expected an alpha above 0 and below 1, found {alpha}.")
    target = np.asarray(target, dtype=np.float64)
    every = target.ndim == 2
    shown = _check_target(log, target, every)
    if predictions is None:
        predictions = fitted_rewards(log) if every else None
    elif not every:
        raise DataError(
            "Expected the probabilities of all items for the doubly robust estimate, found those shown alone."
        )
    elif predictions.shape != target.shape or not np.isfinite(predictions).all():
        raise DataError(
            f"Expected a finite predicted reward for each row and item, {list(target.shape)}; found an array of "
            f"{list(predictions.shape)} with {int((~np.isfinite(predictions)).sum()):,} values that are not finite "
            "number."
        )
    found = _estimate(log, target if every else None, shown, predictions, alpha)
    if len(log.positions) > 1:
        for place, position in enumerate(log.positions):
            rows = np.flatnonzero(log.position == place)
            if shown[rows].any():
                wanted = target[rows] if every else None
                predicted = None if predictions is None else predictions[rows]
                found.by_position[f"{position:g}"] = _estimate(log.take(rows), wanted, shown[rows], predicted, alpha)
    found.warnings.extend(_warnings(log, target if every else None, found, shown))
    return found


def _estimate(
    log: ExposureLog,
    target: np.ndarray | None,
    shown: np.ndarray,
    predictions: np.ndarray | None,
    alpha: float,
) -> OffPolicy:
    n, weight = len(log), shown / log.propensity
    requests, of_request = np.unique(log.request, return_inverse=True)

    def interval(value: float, influence: np.ndarray) -> Estimate:
        """Returns the interval of an estimate whose error is about the mean of ``influence`` over the rows."""
        if len(requests) < 2:
            return Estimate(value)
        by_request = np.bincount(of_request, influence) * len(requests) / n
        error = float(by_request.std(ddof=1) / np.sqrt(len(requests)))
        width = float(stats.norm.isf(alpha / 2)) * error
        if log.reward.min() < 0:
            return Estimate(value, value - width, value + width)
        if value <= 0 or error > MAX_RELATIVE_ERROR * value:
            return Estimate(value)
        return Estimate(value, value * float(np.exp(-width / value)), value * float(np.exp(width / value)))

    ips, snips = float((weight * log.reward).mean()), float(weight @ log.reward / weight.sum())
    estimates = {
        "ips": interval(ips, weight * log.reward - ips),
        "snips": interval(snips, weight * (log.reward - snips) / weight.mean()),
    }
    if target is not None and predictions is not None:
        values = (target * predictions).sum(axis=1) + weight * (log.reward - predictions[np.arange(n), log.item])
        estimates["dr"] = interval(float(values.mean()), values - values.mean())
    logged = float(log.reward.mean())
    return OffPolicy(
        estimates,
        interval(logged, log.reward - logged),
        n,
        len(requests),
        float(weight.sum() ** 2 / (weight**2).sum()),
        float(weight.mean()),
        float(weight.max()),
        {},
        [],
    )


def fitted_rewards(log: ExposureLog) -> np.ndarray:
    """Predicts the rewards of all items in each row, float64 ``[n, A]``, each row from the requests of other folds.

    The prediction is the mean reward of the item at the position, shrunk towards the mean of the position as if the
    item had :data:`PRIOR_EXPOSURES` more exposures with that mean. This is ridge regression on indicators of item and
    position.

    Raises:
      DataError: The matrix would be too large.
    """
    _check_size(log, FOLDS)
    fold = log.request % FOLDS
    shape = (FOLDS, len(log.positions), len(log.items))
    cell = np.ravel_multi_index((fold, log.position, log.item), shape)
    sums = np.bincount(cell, log.reward, np.prod(shape)).reshape(shape)
    counts = np.bincount(cell, minlength=np.prod(shape)).reshape(shape).astype(np.float64)
    sums, counts = sums.sum(axis=0) - sums, counts.sum(axis=0) - counts
    of_position = sums.sum(axis=2, keepdims=True) / np.maximum(counts.sum(axis=2, keepdims=True), 1)
    means = (sums + PRIOR_EXPOSURES * of_position) / (counts + PRIOR_EXPOSURES)
    return means[fold, log.position]


def policy_table(log: ExposureLog, probabilities: pd.DataFrame) -> np.ndarray:
    """Returns the probabilities of a policy that depend only on the position: float64 ``[n, A]``.

    Args:
      log: Created with ``items=probabilities["item_id"]``, so that it has the items that it never showed.
      probabilities: ``item_id``, ``probability`` and, if the probability depends on it, ``position``. Missing items
        have the probability 0.

    Raises:
      DataError: A column is missing, a row occurs twice, an item or position is not in the log, a position of the log
        has no rows, or the probabilities of a position do not sum to 1.
    """
    what = "the target policy"
    require_columns(probabilities, [ITEM, PROBABILITY], what)
    _check_size(log)
    number_of: Mapping[str, int] = {item: place for place, item in enumerate(log.items)}
    item = texts(probabilities, ITEM).map(number_of)
    if item.isna().any():
        raise DataError(
            f"{what.capitalize()} has items that the log was not told of, such as "
            f"{texts(probabilities, ITEM)[item.isna()].iloc[0]!r}."
        )
    value = numbers(probabilities, PROBABILITY, what)
    table = np.zeros((len(log.positions), len(log.items)))
    given = np.zeros(table.shape, dtype=np.int64)
    if POSITION in probabilities:
        position = numbers(probabilities, POSITION, what)
        if (unknown := ~np.isin(position, log.positions)).any():
            there = ", ".join(f"{each:g}" for each in log.positions[:10])
            raise DataError(
                f"{what.capitalize()} has {int(unknown.sum()):,} rows at positions that the log does not have, such as "
                f"{position[unknown][0]:g}; the log has {there}. Leave out these rows."
            )
        places = (np.searchsorted(log.positions, position), item.to_numpy(dtype=np.int64))
        np.add.at(table, places, value)
        np.add.at(given, places, 1)
    else:
        np.add.at(table.T, item.to_numpy(dtype=np.int64), value[:, np.newaxis])
        np.add.at(given.T, item.to_numpy(dtype=np.int64), 1)
    if given.max() > 1:
        twice = log.items[np.argwhere(given > 1)[0][1]]
        raise DataError(f"Expected one row for each item and position in {what}; found item {twice!r} twice.")
    for position, total in zip(log.positions, table.sum(axis=1), strict=True):
        if not np.isclose(total, 1, atol=1e-3):
            raise DataError(
                f"Expected probabilities that add up to 1 at each position of the log; those of {what} add up to "
                f"{total:.4g} at position {position:g}."
            )
    return table[log.position]


def _check_size(log: ExposureLog, folds: int = 1) -> None:
    """Rejects too large arrays of rows by items, or of folds by positions by items."""
    rows, positions, items = len(log), len(log.positions), len(log.items)
    if (needed := max(rows, folds * positions) * items) > MAX_CELLS:
        raise DataError(
            f"Expected arrays of at most {MAX_CELLS:,} numbers; {rows:,} rows, {positions:,} positions and {items:,} "
            f"items need {needed:,}. Give fewer rows, or the probability of the shown item alone, which is enough for "
            "IPS and SNIPS."
        )


def _check_target(log: ExposureLog, target: np.ndarray, every: bool) -> np.ndarray:
    """Checks the probabilities of the target policy, and returns those of the shown items, float ``[n]``."""
    shape = (len(log), len(log.items)) if every else (len(log),)
    if target.shape != shape:
        raise DataError(
            f"Expected the target policy's probabilities as {[len(log)]}, of the shown items, or as "
            f"{[len(log), len(log.items)]}, of all items; found an array of {list(target.shape)}."
        )
    if not (np.isfinite(target).all() and target.min() >= 0 and target.max() <= 1 + 1e-9):
        raise DataError("Expected probabilities of the target policy between 0 and 1, found others.")
    if every and (most := target.sum(axis=1).max()) > 1 + 1e-3:
        raise DataError(
            f"Expected probabilities of the target policy that add up to at most 1 in a row, found {most:.4g}."
        )
    shown = target[np.arange(len(log)), log.item] if every else target
    if not shown.any():
        raise DataError(
            "The target policy would have chosen none of the items that were shown: nothing can be estimated from this "
            "log. Expected a log with exploration."
        )
    if len(_fixed_positions(log, shown)) == len(log.positions):
        raise DataError(
            "All propensities are 1: no item was chosen at random, so nothing can be estimated about a target policy "
            "that chooses other items. Expected a log with exploration (tfllmrec serve --explore). Without one, run an "
            "experiment."
        )
    return shown


def _fixed_positions(log: ExposureLog, shown: np.ndarray) -> np.ndarray:
    """Returns the positions whose items were never chosen at random, although the target policy chooses other ones.

    Args:
      log: The log.
      shown: Float ``[n]``, the probability of the shown item in the target policy.
    """
    random, other = (np.bincount(log.position, rows) > 0 for rows in (log.propensity < 1, shown < 1 - 1e-3))
    return log.positions[other & ~random]


def _warnings(log: ExposureLog, target: np.ndarray | None, found: OffPolicy, shown: np.ndarray) -> list[str]:
    warnings, weight = [], shown / log.propensity
    if log.without_request:
        warnings.append(
            f"{log.without_request:,} exposures have no request_id and count as requests of their own: if they belong "
            "to lists, the intervals are too narrow."
        )
    if len(fixed := _fixed_positions(log, shown)):
        warnings.append(
            f"No item was chosen at random at {len(fixed):,} of {len(log.positions):,} positions ({fixed[0]:g} to "
            f"{fixed[-1]:g}), where the target policy chooses other items: the estimates of these positions, and of "
            "all together, are wrong. Leave out the rows of these positions."
        )
    if target is not None:
        there = np.zeros((len(log.positions), len(log.items)), dtype=bool)
        there[log.position, log.item] = True
        row, item = np.nonzero((target > 0) & ~there[log.position])
        if len(row):
            pairs = np.unique(item + len(log.items) * log.position[row]).size
            mass = float(target[row, item].sum() / len(log))
            warnings.append(
                f"{pairs:,} pairs of item and position that the target policy chooses, with {mass:.2%} of its "
                "probability, are not in the log. IPS and SNIPS do not count what they earn; DR counts its prediction."
            )
    error = float(weight.std(ddof=1) / np.sqrt(len(weight))) if len(weight) > 1 else 0.0
    if abs(found.mean_weight - 1) > 4 * max(error, 1e-9):
        warnings.append(
            f"The mean weight is {found.mean_weight:.3f}, expected 1 ± {2 * error:.3f}: the propensities do not fit "
            "the log, or the target policy chooses items that the log never shows."
        )
    if found.effective < 100:
        warnings.append(
            f"The effective sample size is {found.effective:,.0f} of {found.exposures:,} exposures: the target policy "
            "is too far from the logging policy for this log."
        )
    return warnings
