"""Partitions item vectors into cells for an index that searches only the nearest few; k-means at export, in numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import sparse

RECALL = 0.95
"""Share of the exact top :data:`RECALL_AT` items that the probed cells must contain, on average over the queries."""

RECALL_AT = 10

ROUNDS = 10
POINTS_PER_CELL = 48  # in the sample that k-means is fitted on; more hardly move centroids (Faiss takes 39 to 256)
_SCORES_AT_ONCE = 16_000_000
SURE = 1.645  # standard errors of a one-sided 95 % bound: the queries are a sample


@dataclass(frozen=True)
class Cells:
    """A partition of the items.

    Attributes:
      centroids: Float32 ``[C, D]``.
      cell_of: Int32 ``[N]``, the cell of each item.
      probes: The number of cells to search, those with the highest ``<q, centroid>``.
      recall: The recall of the exact top 10 on the queries on which ``probes`` was chosen.
    """

    centroids: np.ndarray
    cell_of: np.ndarray
    probes: int
    recall: float


def partition(
    vectors: np.ndarray, queries: np.ndarray, seed: int, cells: int | None = None, exclude: np.ndarray | None = None
) -> Cells:
    """Clusters the items by k-means, and chooses how many cells to probe.

    The number of probes is the smallest for which the one-sided 95 % lower bound of the mean recall of the exact top 10
    on ``queries`` is at least :data:`RECALL`; all cells if there is none. A million vectors of width 64 take a few
    minutes with 2,000 queries.

    Args:
      vectors: Float32 ``[N, D]``, the vectors that are scored; their lengths may differ.
      queries: Float32 ``[Q, D]``, a sample of the queries to expect; a few thousand.
      seed: Random seed of the sample and the first centroids.
      cells: The number C of cells; by default ``2 sqrt(N)``.
      exclude: As in :func:`recall_by_probes`.
    """
    n_items = len(vectors)
    cells = min(cells or round(2 * math.sqrt(n_items)), n_items)
    rng = np.random.default_rng(seed)
    sample = vectors[np.sort(rng.permutation(n_items)[: cells * POINTS_PER_CELL])]
    centroids = sample[np.sort(rng.permutation(len(sample))[:cells])]
    for _ in range(ROUNDS):
        centroids = _means(sample, _nearest(sample, centroids), centroids, rng)
    cell_of = _nearest(vectors, centroids)
    centroids = _means(vectors, cell_of, centroids)  # probing ranks cells by the means of their items
    recalls, errors = recall_by_probes(vectors, queries, centroids, cell_of, exclude)
    enough = np.flatnonzero(recalls - SURE * errors >= RECALL)
    probes = int(enough[0]) + 1 if len(enough) else cells
    return Cells(centroids, cell_of, probes, float(recalls[probes - 1]))


def recall_by_probes(
    vectors: np.ndarray,
    queries: np.ndarray,
    centroids: np.ndarray,
    cell_of: np.ndarray,
    exclude: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean recall of the exact top 10 with 1 to C probes and its standard error, float64 ``[C]`` each.

    Args:
      vectors: As in :func:`partition`.
      queries: As in :func:`partition`.
      centroids: As in :class:`Cells`.
      cell_of: As in :class:`Cells`.
      exclude: Int32 ``[Q, E]``, items that must not be returned for a query; N counts as none. They are usually the
        items of the query's own history, which are nearest and easier to find than the best of the other items. If
        they were not excluded, the recall would be overestimated.
    """
    queries = np.asarray(queries, np.float32)
    rank_of_cell = np.argsort(np.argsort(-(queries @ centroids.T), axis=1, kind="stable"), axis=1, kind="stable")
    ranks = np.take_along_axis(rank_of_cell, cell_of[exact_best(vectors, queries, exclude)], axis=1)
    found = np.zeros((len(queries), len(centroids)))
    np.add.at(found, (np.arange(len(queries))[:, np.newaxis], ranks), 1 / ranks.shape[1])
    recalls = found.cumsum(axis=1)
    return recalls.mean(axis=0), recalls.std(axis=0) / math.sqrt(len(queries))


def exact_best(vectors: np.ndarray, queries: np.ndarray, exclude: np.ndarray | None = None) -> np.ndarray:
    """Returns the exact top 10 of each query without ``exclude``, int ``[Q, 10]``, in no particular order.

    With fewer than 10 items, it returns all items. Rows with fewer than 10 items that are not excluded are filled up
    with excluded items. The arguments are those of :func:`recall_by_probes`.
    """
    depth = min(RECALL_AT, len(vectors))
    best = np.empty((len(queries), depth), np.int64)
    step = max(_SCORES_AT_ONCE // len(vectors), 1)
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        scores = np.pad(queries[rows] @ vectors.T, ((0, 0), (0, 1)))  # column N is for padding in ``exclude``
        if exclude is not None:
            np.put_along_axis(scores, exclude[rows].astype(np.int64), -np.inf, axis=1)
        best[rows] = np.argpartition(scores[:, :-1], -depth, axis=1)[:, -depth:]
    return best


def _nearest(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Returns the nearest centroid of each vector by Euclidean distance, int32 ``[N]``."""
    half_squares = (centroids**2).sum(axis=1) / 2
    nearest = np.empty(len(vectors), np.int32)
    step = max(_SCORES_AT_ONCE // len(centroids), 1)
    for start in range(0, len(vectors), step):
        closeness = vectors[start : start + step] @ centroids.T
        closeness -= half_squares
        nearest[start : start + step] = closeness.argmax(axis=1)
    return nearest


def _means(
    vectors: np.ndarray, cell_of: np.ndarray, centroids: np.ndarray, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Returns the mean of each cell; for an empty cell, a random vector if ``rng`` is given, else its centroid."""
    counts = np.bincount(cell_of, minlength=len(centroids))
    member = sparse.csr_array(
        (np.ones(len(vectors), np.float32), (cell_of, np.arange(len(vectors)))), shape=(len(centroids), len(vectors))
    )
    means = np.where(counts[:, np.newaxis] > 0, (member @ vectors) / np.maximum(counts, 1)[:, np.newaxis], centroids)
    if rng is not None:
        empty = counts == 0
        means[empty] = vectors[rng.integers(0, len(vectors), empty.sum())]
    return means.astype(np.float32)
