"""Sampling of rows."""

from __future__ import annotations

import numpy as np


def evenly_spread(size: int, at_most: int) -> np.ndarray:
    """Returns up to ``at_most`` evenly spaced row indices below ``size``, int64, ascending; all if there are fewer."""
    return np.unique(np.linspace(0, max(size - 1, 0), min(size, at_most)).astype(int))
