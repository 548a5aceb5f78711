"""Cells of similar item vectors, for an index that looks into the nearest few: k-means at export time, in numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import sparse

RECALL = 0.95
"""Share of the exact top :data:`RECALL_AT` that the probed cells must hold, on average over sampled queries."""

RECALL_AT = 10

ROUNDS = 10
POINTS_PER_CELL = 48  # that centroids are fitted on: more hardly moves them (Faiss takes 39 to 256)
_SCORES_AT_ONCE = 16_000_000
SURE = 1.645  # one-sided 95 %: the queries are a sample


@dataclass(frozen=True)
class Cells:
    """A partition of the items.

    Attributes:
      centroids: float32 ``[C, D]``.
      cell_of: int32 ``[N]``, the cell of each item.
      probes: how many cells to look into, of the highest ``<q, centroid>``.
      recall: of the exact top 10 on the queries that ``probes`` was chosen on.
    """

    centroids: np.ndarray
    cell_of: np.ndarray
    probes: int
    recall: float


def partition(
    vectors: np.ndarray, queries: np.ndarray, seed: int, cells: int | None = None, exclude: np.ndarray | None = None
) -> Cells:
    """Clusters the items by k-means, and chooses how many cells to probe.

    The smallest number of probes is taken whose mean recall of the exact top 10 on ``queries`` is at least
    :data:`RECALL`, the upper half of the sampling error included. A million vectors of 64 take a few
    minutes with 2,000 queries.

    Args:
      vectors: float32 ``[N, D]``, as they are scored; lengths may differ.
      queries: float32 ``[Q, D]``, a sample of what will be asked; a few thousand.
      seed: of the sample and the first centroids.
      cells: C; by default ``2 sqrt(N)``.
      exclude: as in :func:`recall_by_probes`.
    """
    n_items = len(vectors)
    cells = min(cells or round(2 * math.sqrt(n_items)), n_items)
    rng = np.random.default_rng(seed)
    sample = vectors[np.sort(rng.permutation(n_items)[: cells * POINTS_PER_CELL])]
    centroids = sample[np.sort(rng.permutation(len(sample))[:cells])]
    for _ in range(ROUNDS):
        centroids = _means(sample, _nearest(sample, centroids), centroids, rng)
    cell_of = _nearest(vectors, centroids)
    centroids = _means(vectors, cell_of, centroids)  # what probing ranks should be the mean of what is inside
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
    """Mean recall of the exact top 10 with 1 to C probes, and its standard error: float64 ``[C]`` each.

    Args:
      vectors, queries, centroids, cell_of: as in :func:`partition` and :class:`Cells`.
      exclude: int32 ``[Q, E]``, items that must not come back for a query; N counts as none. The nearest items of a
        history are its own, and easier to find than the best of what is left: without them recall would be flattered.
    """
    queries = np.asarray(queries, np.float32)
    rank_of_cell = np.argsort(np.argsort(-(queries @ centroids.T), axis=1, kind="stable"), axis=1, kind="stable")
    ranks = np.take_along_axis(rank_of_cell, cell_of[exact_best(vectors, queries, exclude)], axis=1)
    found = np.zeros((len(queries), len(centroids)))
    np.add.at(found, (np.arange(len(queries))[:, np.newaxis], ranks), 1 / ranks.shape[1])
    recalls = found.cumsum(axis=1)
    return recalls.mean(axis=0), recalls.std(axis=0) / math.sqrt(len(queries))


def exact_best(vectors: np.ndarray, queries: np.ndarray, exclude: np.ndarray | None = None) -> np.ndarray:
    """The exact top 10 (all, if there are fewer) of each query without ``exclude``, int ``[Q, 10]``, in no order.

    Where fewer are left, excluded ones fill up. Arguments as in :func:`recall_by_probes`.
    """
    depth = min(RECALL_AT, len(vectors))
    best = np.empty((len(queries), depth), np.int64)
    step = max(_SCORES_AT_ONCE // len(vectors), 1)
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        scores = np.pad(queries[rows] @ vectors.T, ((0, 0), (0, 1)))  # a place for those that exclude nothing
        if exclude is not None:
            np.put_along_axis(scores, exclude[rows].astype(np.int64), -np.inf, axis=1)
        best[rows] = np.argpartition(scores[:, :-1], -depth, axis=1)[:, -depth:]
    return best


def _nearest(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The nearest centroid of each vector, int32 ``[N]``, by Euclidean distance."""
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
    """Mean vector of each cell; an empty cell moves to a random vector if ``rng`` is given, else stays."""
    counts = np.bincount(cell_of, minlength=len(centroids))
    member = sparse.csr_array(
        (np.ones(len(vectors), np.float32), (cell_of, np.arange(len(vectors)))), shape=(len(centroids), len(vectors))
    )
    means = np.where(counts[:, np.newaxis] > 0, (member @ vectors) / np.maximum(counts, 1)[:, np.newaxis], centroids)
    if rng is not None:
        empty = counts == 0
        means[empty] = vectors[rng.integers(0, len(vectors), empty.sum())]
    return means.astype(np.float32)
