"""Measures how far the vectors of two domains are apart: proxy A-distance and maximum mean discrepancy.

Both are 0 for vectors from one distribution. They show whether a model trained on the vectors of one domain can apply
to those of the other; they do not show whether users have the same tastes in both domains.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

#: Maximum number of vectors of each domain that are compared.
MOST = 1000
#: Ridge penalty of the linear classifier, in units of the mean eigenvalue of the Gram matrix.
RIDGE = 0.01


@dataclass(frozen=True)
class Distances:
    """Distances between the vectors of two domains.

    Attributes:
      a_distance: Proxy A-distance, 0 to 2.
      mmd: Maximum mean discrepancy, 0 to 1.41.
    """

    a_distance: float
    mmd: float

    def __str__(self) -> str:
        return f"A-distance {self.a_distance:.2f} of 2, MMD {self.mmd:.3f}"

    def as_dict(self) -> dict[str, float]:
        """Returns the distances as plain JSON types."""
        return asdict(self)


def distances(a: np.ndarray, b: np.ndarray, seed: int = 42) -> Distances | None:
    """Computes the distances between two sets of vectors.

    Rows of zeros, such as items without text, are left out. Both sets are sampled to the same number of vectors, at
    most :data:`MOST`.

    Args:
      a: Float ``[A, D]``.
      b: Float ``[B, D]``.
      seed: Seed of the samples, and of the halves that the classifier is fitted and tested on.

    Returns:
      The distances; ``None`` if one of the sets has fewer than four vectors.
    """
    rng = np.random.default_rng(seed)
    a, b = (_some(np.asarray(each, np.float64), rng) for each in (a, b))
    if min(len(a), len(b)) < 4:
        return None
    size = min(len(a), len(b))  # so that neither domain is the better guess
    return Distances(proxy_a_distance(a[:size], b[:size]), mmd(a[:size], b[:size]))


def _some(vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(vectors[np.any(vectors != 0, axis=1)])[:MOST]


def proxy_a_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Computes ``2 (1 - 2 e)``, with e the error of a linear classifier that tells the domains apart, at most one half.

    (Ben-David et al., "Analysis of Representations for Domain Adaptation", NIPS 2006.) The classifier is a ridge
    regression, fitted on one half of the vectors and tested on the other, and vice versa.

    Args:
      a, b: Float ``[S, D]``, the same number of both, in random order.
    """
    errors = []
    for first in (0, 1):
        fit = np.concatenate([a[first::2], b[first::2]])
        judge = np.concatenate([a[1 - first :: 2], b[1 - first :: 2]])
        of_fit, of_judge = (
            np.concatenate([np.ones(len(a[place::2])), -np.ones(len(b[place::2]))]) for place in (first, 1 - first)
        )
        mean = fit.mean(axis=0)
        gram = (fit - mean) @ (fit - mean).T  # the dual form: there may be more numbers than vectors
        ridge = RIDGE * gram.trace() / len(gram) + 1e-12
        dual = np.linalg.solve(gram + ridge * np.eye(len(gram)), of_fit - of_fit.mean())
        found = (judge - mean) @ (fit - mean).T @ dual + of_fit.mean()
        errors.append(np.mean(np.sign(found) != of_judge))
    return float(2 * (1 - 2 * min(np.mean(errors), 0.5)))


def mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Computes the maximum mean discrepancy with a Gaussian kernel.

    (Gretton et al., "A Kernel Two-Sample Test", JMLR 2012.) The width of the kernel is the median distance between two
    vectors. The result is the root of the unbiased estimate of the square, which counts as 0 if it is negative.

    Args:
      a, b: Float ``[A, D]`` and ``[B, D]``, at least two each.
    """
    both = np.concatenate([a, b])
    squares = np.sum(both**2, axis=1)
    squared = np.maximum(squares[:, np.newaxis] + squares - 2 * both @ both.T, 0)
    width = np.median(squared[np.triu_indices(len(both), 1)])
    kernel = np.exp(-squared / max(width, 1e-12))
    n = len(a)

    def within(square: np.ndarray) -> float:
        return (square.sum() - square.trace()) / (len(square) * (len(square) - 1))

    return float(np.sqrt(max(within(kernel[:n, :n]) + within(kernel[n:, n:]) - 2 * kernel[:n, n:].mean(), 0.0)))
