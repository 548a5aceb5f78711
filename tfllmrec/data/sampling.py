"""Some rows that stand for all of them."""

from __future__ import annotations

import numpy as np


def evenly_spread(size: int, at_most: int) -> np.ndarray:
    """At most ``at_most`` places below ``size``, int64, ascending and evenly spread; all of them where they are few."""
    return np.unique(np.linspace(0, max(size - 1, 0), min(size, at_most)).astype(int))
