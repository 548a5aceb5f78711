"""Centring and scaling of text vectors, before models use them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def text_mean(vectors: np.ndarray) -> np.ndarray:
    """The mean ``[D]`` of text vectors ``[N, D]``; rows of zeros are items without text and do not count."""
    return vectors.sum(axis=0) / max(1, np.count_nonzero(np.any(vectors != 0, axis=1)))


def centred_unit(
    vectors: np.ndarray, catalogue: np.ndarray | None = None, widths: Sequence[int] | None = None
) -> np.ndarray:
    """Text vectors minus the catalogue's mean, scaled to length 1.

    All sentence vectors of one shop point in much the same direction; only the difference to their mean tells items
    apart. Concatenated vectors of several encoders are centred and scaled one by one, so that each encoder counts the
    same: their dot product is then the mean of the encoders' cosines.

    Args:
      vectors: float ``[M, D]``; rows of zeros are items without text and stay zero.
      catalogue: float ``[N, D]``, the vectors whose mean is subtracted; by default ``vectors``.
      widths: of the encoders' vectors, which add up to D; by default there is one encoder.

    Returns:
      float32 ``[M, D]``. A row is zero where nothing but rounding is left, such as in a catalogue of equal texts.
    """
    catalogue = vectors if catalogue is None else catalogue
    widths = [vectors.shape[1]] if widths is None else widths
    out, start = np.zeros(vectors.shape, np.float32), 0
    for width in widths:
        columns = slice(start, start + width)
        own, mean = vectors[:, columns], text_mean(catalogue[:, columns])
        centred = np.where(np.any(own != 0, axis=1, keepdims=True), own - mean, 0.0)
        length = np.linalg.norm(centred, axis=1, keepdims=True)
        known = length > 1e-6 * np.linalg.norm(own, axis=1, keepdims=True)
        np.divide(centred, length * len(widths) ** 0.5, out=out[:, columns], where=known, casting="same_kind")
        start += width
    return out
