"""Ratings that stand for "not rated"."""

from __future__ import annotations

import numpy as np

_TOPS = (5, 6, 7, 10)  # of the scales that start at 1 or 0.5
_CODES = (-1, 0, 99, 999, 9999, -99, -999, -9999)


def unrated_values(rating: np.ndarray) -> list[float]:
    """The values in a column of ratings that lie outside the scale of all others, and so mean "not rated".

    Where the others are whole or half steps from 1 up to 5, 6, 7 or 10, 0 is such a value (Book-Crossing), and so is
    -1 (MyAnimeList), for which the scale may also start at 0 or 0.5. 99, -99 and longer rows of nines are where they
    exceed a scale of at most 10 more than five times (Jester). 0.5 to 5 with 0, 0 to 4, -1/0/1, 0/1 and counts
    stay as they are.

    Args:
      rating: float ``[R]``, NaN where there is none.
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
