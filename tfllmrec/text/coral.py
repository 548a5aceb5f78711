"""CORAL: moves text vectors of one domain to the mean and covariance of another domain."""

from __future__ import annotations

import numpy as np

#: Added to the eigenvalues of both covariances, in units of their mean, because few items span few dimensions.
SHRINKAGE = 0.1


def coral(vectors: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """Returns ``(v - mean) C^-1/2 C_onto^1/2 + mean_onto`` (Sun et al., "Return of Frustratingly Easy Domain
    Adaptation", AAAI 2016).

    Args:
      vectors: Float ``[N, D]``; rows of zeros are items without text and stay zero.
      onto: Float ``[M, D]``, vectors of the domain that a model was trained on.

    Returns:
      Float32 ``[N, D]``.
    """
    known, trained = np.any(vectors != 0, axis=1), onto[np.any(onto != 0, axis=1)].astype(np.float64)
    out = np.zeros(vectors.shape, np.float32)
    if known.any() and len(trained):
        own = vectors[known].astype(np.float64)
        moved = (own - own.mean(axis=0)) @ _power(own, -0.5) @ _power(trained, 0.5)
        out[known] = moved + trained.mean(axis=0)
    return out


def _power(vectors: np.ndarray, power: float) -> np.ndarray:
    """Returns the covariance of ``vectors`` to a power, ``[D, D]``."""
    values, axes = np.linalg.eigh(np.cov(vectors, rowvar=False, bias=True))
    values = np.maximum(values, 0) + SHRINKAGE * max(values.mean(), 1e-12)
    return (axes * values**power) @ axes.T
