"""Checks ratings of histories for :class:`tfllmrec.client.client.Client` and ``SavedModel``."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import DataError

LARGEST_FLOAT32 = 3.4028234663852886e38


def rating_rows(histories: Sequence[Sequence[str]], ratings: Sequence[Sequence[float | None]]) -> list[list[float]]:
    """Returns a rating for each item of each history, NaN for none.

    Args:
      histories: Item ids.
      ratings: As many rows, each as long as its history; None or NaN if there is no rating.

    Raises:
      DataError: A row has more or fewer ratings than its history has items, so that it is not clear which item a rating
        belongs to; or a rating is not a number, or does not fit float32.
    """
    lengths, expected = [len(row) for row in ratings], [len(row) for row in histories]
    if lengths != expected:
        raise DataError(
            f"Expected a rating for each item of the history, None where there is none: got {_shown(lengths)} ratings "
            f"for {_shown(expected)} items."
        )
    try:
        rows = [[math.nan if mark is None else float(mark) for mark in row] for row in ratings]
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"Expected ratings as numbers: {error}.") from error
    for row in rows:
        for mark in row:
            if LARGEST_FLOAT32 < abs(mark) < math.inf:
                raise DataError(f"Expected ratings of at most {LARGEST_FLOAT32:.4g} (float32), got {mark}.")
    return rows


def _shown(lengths: list[int]) -> str:
    return f"[{', '.join(map(str, lengths[:8]))}{', ...' if len(lengths) > 8 else ''}]"
