"""Implicit alternating least squares, the matrix factorization baseline, in numpy and scipy.

The library ``implicit`` has this model too. But it does not scale the regularization by frequency, which the quality of
the model depends on (Rendle et al.), and it would be a compiled dependency for a single baseline.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
from scipy import sparse

from tfllmrec.data.queries import Queries
from tfllmrec.models.fitting import TrainingData
from tfllmrec.models.item_weights import interactions, recency_matrix

_SWEEPS = 8
"""Number of sweeps over users and items; the ranking changes little after that."""

_CELLS = 8_000_000
"""Largest number of values in an array of a block of rows."""

_PRODUCTS = 2**18
"""Multiplications in one matrix product. For more, OpenBLAS starts threads, which takes longer than such a product."""


@dataclass
class Ials:
    """Matrix factorization for implicit feedback (Hu, Koren and Volinsky, ICDM 2008).

    The loss is that of Rendle et al., "Revisiting the Performance of iALS on Item Recommendation Benchmarks"
    (arXiv:2110.14037, RecSys 2022), with frequency-scaled regularization of exponent 1. For U users, N items, the set S
    of pairs of a user and an item with an event, and the unobserved weight a:

        sum over (u, i) in S of (<w_u, h_i> - 1)^2  +  a * sum over all u, i of <w_u, h_i>^2
        +  l2 * sum over u of (n_u + a N) |w_u|^2  +  l2 * sum over i of (n_i + a U) |h_i|^2

    ``n_u`` and ``n_i`` are the numbers of pairs of a user and of an item. The exact solutions for user vectors and for
    item vectors are computed in turn.

    The vector of a query is solved from its history in the same way, so users unknown in training are supported. In a
    query, an event ``s`` steps back has the weight ``decay ** s``, as in the other baselines. All scores of an empty
    history are 0.
    """

    fit_grid: ClassVar[Mapping[str, tuple[float, ...]]] = {
        "dim": (64, 128),
        "unobserved_weight": (0.005, 0.2),
        "l2": (0.003, 0.01),
    }
    score_grid: ClassVar[Mapping[str, tuple[float, ...]]] = {"decay": (1.0, 0.75, 0.5)}
    dim: int = 64
    unobserved_weight: float = 0.2
    l2: float = 0.003
    decay: float = 1.0
    items: np.ndarray = field(init=False, repr=False)

    def fit(self, data: TrainingData) -> Self:
        return self.fit_matrix(interactions(data.histories, data.n_items))

    def fit_matrix(self, by_user: sparse.csr_array) -> Self:
        """Fits the model to a user-by-item matrix, float32 ``[U, N]``, with 1 where the user has had the item."""
        by_item = by_user.T.tocsr()
        start = np.random.default_rng(0).standard_normal((by_user.shape[1], self.dim), np.float32)
        items = start * np.float32(0.1 / np.sqrt(self.dim))
        for _ in range(_SWEEPS):
            users = self._solved(by_user, items)
            items = self._solved(by_item, users)
        self.items = items
        return self

    def score(self, queries: Queries) -> np.ndarray:
        # A copy, because sum_duplicates sorts in place, and the rows are the histories of the queries, oldest first.
        history = recency_matrix(queries.choices, len(self.items), self.decay).copy()
        history.sum_duplicates()
        return self.user_vectors(history) @ self.items.T

    def user_vectors(self, weights: sparse.csr_array) -> np.ndarray:
        """Computes the vectors of users from their events, float32 ``[B, N]``: ``[B, dim]``; zeros without events."""
        return self._solved(weights, self.items)

    def _solved(self, weights: sparse.csr_array, others: np.ndarray) -> np.ndarray:
        """Computes the vectors that minimize the loss given the vectors of the other side, float32 ``[R, dim]``.

        Row r solves ``(O^T C O + a O^T O + l2 (n + a M) I) x = O^T C 1``, where O ``[M, dim]`` is the other side, C the
        diagonal matrix of the row's weights, n their sum and a the unobserved weight. In the eigenbasis of ``O^T O``
        every summand except ``O^T C O`` is diagonal. So for a row with fewer events than dimensions, the system of
        equations is only as large as the number of its events.

        Args:
          weights: Weights of the events of each row, float32 ``[R, M]``; 0 where there is no event.
          others: Vectors of the other side, float32 ``[M, dim]``.
        """
        spectrum, axes = np.linalg.eigh(others.T @ others)
        turned = others @ axes
        unobserved = np.float32(self.unobserved_weight)
        norms = np.float32(self.l2) * (weights.sum(axis=1) + unobserved * len(others))
        diagonal = unobserved * np.maximum(spectrum, 0) + norms[:, np.newaxis]  # [R, dim]
        solved = np.zeros_like(diagonal)
        for rows, columns, root in _blocks(weights, self.dim):
            events = turned[columns] * root[..., np.newaxis]  # [B, n, dim], C^1/2 O
            solved[rows] = _ridge(events, root, diagonal[rows])
        return solved @ axes.T


def _ridge(events: np.ndarray, target: np.ndarray, diagonal: np.ndarray) -> np.ndarray:
    """Computes ``(E^T E + D)^-1 E^T y`` for each row, float32 ``[B, dim]``.

    Args:
      events: The matrices E, float32 ``[B, n, dim]``.
      target: The vectors y, float32 ``[B, n]``.
      diagonal: The diagonal of D, float32 ``[B, dim]``.
    """
    _, n, dim = events.shape
    across = events.transpose(0, 2, 1)
    if n < dim:  # = D^-1 E^T (E D^-1 E^T + I)^-1 y
        scaled = across / diagonal[..., np.newaxis]
        inner = events @ scaled + np.eye(n, dtype=np.float32)
        return (scaled @ np.linalg.solve(inner, target[..., np.newaxis]))[..., 0]
    inner = diagonal[..., np.newaxis] * np.eye(dim, dtype=np.float32)
    at_once = max(1, _PRODUCTS // dim**2)
    for start in range(0, n, at_once):
        inner += across[..., start : start + at_once] @ events[:, start : start + at_once]
    return np.linalg.solve(inner, across @ target[..., np.newaxis])[..., 0]


def _blocks(weights: sparse.csr_array, dim: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields blocks of rows with similar numbers of events, padded to the longest; rows without events are left out.

    Yields:
      The rows; the columns of their events, int ``[B, n]``; and the square roots of the weights, 0 for padding.
    """
    lengths = np.diff(weights.indptr)
    order = np.argsort(lengths, kind="stable")
    start = int(np.count_nonzero(lengths == 0))
    while start < len(order):
        shortest = lengths[order[start]]
        longest = shortest + shortest // 4
        size = max(1, _CELLS // int(longest * max(longest, dim)))
        rows = order[start : min(start + size, int(np.searchsorted(lengths, longest, "right", sorter=order)))]
        step = np.arange(lengths[rows[-1]])
        there = step < lengths[rows, np.newaxis]
        at = np.where(there, weights.indptr[rows, np.newaxis] + step, 0)
        yield rows, weights.indices[at], np.where(there, np.sqrt(weights.data[at]), np.float32(0))
        start += len(rows)
