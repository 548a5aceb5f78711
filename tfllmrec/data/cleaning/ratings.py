"""Recognises ratings that stand for "not rated"."""

from __future__ import annotations

import numpy as np

_TOPS = (5, 6, 7, 10)  # highest ratings of scales that start at 1 or 0.5
_CODES = (-1, 0, 99, 999, 9999, -99, -999, -9999)


def unrated_values(rating: np.ndarray) -> list[float]:
    """Returns the ratings that lie outside the scale of all others, and so mean "not rated".

    0 is such a value if the others are whole or half steps from 1 up to 5, 6, 7 or 10 (Book-Crossing). -1 is one on
    the same scales, which may also start at 0 or 0.5 (MyAnimeList). 99, -99 and longer runs of nines are such values if
    their magnitude is more than five times the largest magnitude of the others, which lies in 5 to 10 (Jester). All
    other ratings stay: 0 on a scale of 0.5 to 5, 0 to 4, -1/0/1, 0/1, and counts.

    Args:
      rating: Float ``[R]``, NaN: missing.
    """
    values = np.unique(rating[~np.isnan(rating)])
    scale = values[~np.isin(values, _CODES)]
    if len(scale) < 2:
        return []
    low, top = scale.min(), np.abs(scale).max()
    on_scale = top in _TOPS and low > 0 and not (scale % 0.5).any()
    starts_at_1 = low == 1 or (low > 1 and not (scale % 1).any())
    outside = {-1: on_scale, 0: on_scale and starts_at_1}
    return [float(v) for v in values if outside.get(v, v in _CODES and 5 <= top <= 10 and abs(v) > 5 * top)]
