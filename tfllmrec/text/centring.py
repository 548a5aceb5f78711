"""Centring and scaling of text vectors before models and searches use them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def text_mean(vectors: np.ndarray) -> np.ndarray:
    """Returns the mean ``[D]`` of text vectors ``[N, D]``, without rows of zeros, which are items without text."""
    total = vectors.sum(axis=0, dtype=np.float64)  # in float32, the mean of equal vectors would differ from them
    return (total / max(1, np.count_nonzero(np.any(vectors != 0, axis=1)))).astype(vectors.dtype)


def centred_unit(
    vectors: np.ndarray, catalogue: np.ndarray | None = None, widths: Sequence[int] | None = None
) -> np.ndarray:
    """Subtracts the catalogue's mean from text vectors, and scales them to length 1.

    All text vectors of one shop point in much the same direction; only their differences from the mean tell items
    apart. Concatenated vectors of several encoders are centred and scaled separately, so that each encoder has the
    same weight: their dot product is then the mean of the encoders' cosines.

    Args:
      vectors: Float ``[M, D]``; rows of zeros are items without text and stay zero.
      catalogue: Float ``[N, D]``, the vectors whose mean is subtracted; by default ``vectors``.
      widths: The widths of the encoders' vectors, which add up to D; by default there is one encoder.

    Returns:
      Float32 ``[M, D]``. A row is zero if only rounding errors are left, as in a catalogue of equal texts.
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


def search_weights(text: np.ndarray, widths: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray, float]:
    """Computes weights for the dimensions of a query's vector, so that no single encoder dominates a search.

    The score of an item is ``<q * factors, item> - <q, centre>``. With one encoder it is a cosine: the factors are 1
    and the centre is 0. The cosines of several encoders vary unequally from text to text (over 300 films by 0.09 with
    minilm, by 0.01 with e5), so their mean would rank items as minilm alone does. Therefore, the factor of an encoder
    is inversely proportional to the standard deviation of its cosines over all pairs of texts of the catalogue, and the
    centre is such that the mean text of the catalogue has the score 0.

    Args:
      text: Float ``[N, D]``; rows of zeros are items without text and do not count.
      widths: The widths of the encoders' vectors, which add up to D; by default there is one encoder.

    Returns:
      Factors and centre, float32 ``[D]`` each, and the mean of the encoders' standard deviations. A factor is this mean
      divided by the encoder's own, or 0 if its cosines do not vary, as in a catalogue of equal texts.
    """
    widths = [text.shape[1]] if widths is None else widths
    mean, known = text_mean(text), np.any(text != 0, axis=1, keepdims=True)
    spreads, start = np.zeros(len(widths)), 0
    for encoder, width in enumerate(widths):
        own, centre = text[:, start : start + width], mean[start : start + width]
        differences = np.where(known, own - centre, 0)
        covariance = differences.T @ differences / max(1, np.count_nonzero(known))
        # With t = centre + d, <t, t'> = <centre, centre> + <centre, d> + <centre, d'> + <d, d'>: uncorrelated terms.
        spread = np.sqrt(max(2 * centre @ covariance @ centre + np.sum(covariance**2), 0.0))
        spreads[encoder] = spread if spread > 1e-4 * (centre @ centre) else 0.0  # smaller values are rounding errors
        start += width
    if len(widths) == 1:
        return np.ones(text.shape[1], np.float32), np.zeros(text.shape[1], np.float32), float(spreads[0])
    factors = np.divide(spreads.mean(), spreads, out=np.zeros(len(widths)), where=spreads > 0)
    factors = np.repeat(factors, widths).astype(np.float32)
    return factors, (factors * mean).astype(np.float32), float(spreads.mean())
