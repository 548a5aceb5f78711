"""Precision and recall of click probabilities, for TensorBoard's PR Curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorboard.plugins.pr_curve import summary

from tfllmrec.board.scoreboard import writing_to

THRESHOLDS = 101


def write_pr_curves(
    folder: Path | str, probability: np.ndarray, chosen: np.ndarray, strata: Mapping[str, np.ndarray], step: int = 0
) -> None:
    """Writes a curve for all candidates, and one for the candidates of each stratum.

    Thresholds are quantiles of the probabilities, not evenly spaced: the probabilities of a hundred candidates that
    share one click are close to 0, and evenly spaced thresholds would show one point.

    Args:
      folder: The folder of the TensorBoard run.
      probability: Float ``[C]``, the click probability of the candidates of all queries.
      chosen: Bool ``[C]``, whether the candidate was the next item.
      strata: Bool ``[C]`` by name.
      step: The step of the curve.
    """
    with writing_to(folder, step):
        for name, mask in {"all": np.ones(len(chosen), bool), **strata}.items():
            if chosen[mask].any():
                curve = _curve(f"clicks/{name}", probability[mask], chosen[mask])
                tf.summary.experimental.write_raw_pb(curve, step=step)


def _curve(name: str, probability: np.ndarray, chosen: np.ndarray) -> bytes:
    thresholds = np.quantile(probability, np.linspace(0, 1, THRESHOLDS))
    order = np.argsort(probability)
    ranked, hits = probability[order], np.concatenate([[0], np.cumsum(chosen[order])])
    below = np.searchsorted(ranked, thresholds, side="left")  # number of candidates below each threshold
    missed = hits[below]
    found, wrong = hits[-1] - missed, len(ranked) - below - (hits[-1] - missed)
    precision = found / np.maximum(found + wrong, 1)
    counts = (found, wrong, below - missed, missed)
    return summary.raw_data_pb(name, *counts, precision, found / hits[-1], THRESHOLDS).SerializeToString()
