"""Whether predicted probabilities and ratings are right on average."""

from __future__ import annotations

import numpy as np

BINS = 15


def calibration_error(predicted: np.ndarray, observed: np.ndarray, bins: int = BINS) -> float:
    """The expected calibration error, with bins of equally many predictions.

    ``ECE = sum over bins of n_b / n |mean predicted - mean observed|`` (Naeini et al. 2015, "Obtaining well calibrated
    probabilities using Bayesian binning"). Bins of equal width would leave nearly all probabilities of a list of 100
    candidates in the first one. Equal predictions share a bin.

    Args:
      predicted: float ``[n]``, probabilities or ratings. observed: float ``[n]``, 0 or 1, or ratings.

    Returns:
      The error in the units of ``predicted``; NaN for no predictions.
    """
    if not len(predicted):
        return float("nan")
    gap = predicted.astype(np.float64) - observed
    ends = np.quantile(predicted, np.arange(1, bins) / bins)
    bin_of = np.searchsorted(ends, predicted, side="right")
    return float(np.abs(np.bincount(bin_of, gap)).sum() / len(gap))
