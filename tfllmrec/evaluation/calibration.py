"""Measures whether predicted probabilities and ratings are right on average."""

from __future__ import annotations

import numpy as np

BINS = 15


def calibration_error(predicted: np.ndarray, observed: np.ndarray, bins: int = BINS) -> float:
    """Computes the expected calibration error, with bins of equally many predictions.

    ``ECE = sum over bins of n_b / n |mean predicted - mean observed|`` (Naeini et al. 2015, "Obtaining well calibrated
    probabilities using Bayesian binning"). Bins of equal width would put nearly all probabilities of a list of 100
    candidates into the first one. Equal predictions share a bin.

    Args:
      predicted: Float ``[n]``, probabilities or ratings.
      observed: Float ``[n]``, 0 or 1, or ratings.
      bins: Number of bins.

    Returns:
      The error in the units of ``predicted``; NaN without predictions.
    """
    if not len(predicted):
        return float("nan")
    gap = predicted.astype(np.float64) - observed
    return float(np.abs(np.bincount(_bin_of(predicted, bins), gap)).sum() / len(gap))


def calibration_curve(
    predicted: np.ndarray, observed: np.ndarray, bins: int = BINS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the mean prediction, mean observation and number of predictions of each bin of :func:`calibration_error`.

    Returns:
      float64, float64 and int64 ``[b]``, by increasing prediction; empty bins are left out.
    """
    if not len(predicted):
        return np.empty(0), np.empty(0), np.empty(0, np.int64)
    bin_of = _bin_of(predicted, bins)
    counts = np.bincount(bin_of)
    used = counts > 0
    sums = (np.bincount(bin_of, values.astype(np.float64))[used] for values in (predicted, np.asarray(observed)))
    mean_predicted, mean_observed = (total / counts[used] for total in sums)
    return mean_predicted, mean_observed, counts[used].astype(np.int64)


def _bin_of(predicted: np.ndarray, bins: int) -> np.ndarray:
    ends = np.quantile(predicted, np.arange(1, bins) / bins)
    return np.searchsorted(ends, predicted, side="right")
