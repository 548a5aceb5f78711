"""Computes metrics over the whole catalogue from scores; every tie counts with its expected value.

A recommender may give many items the same score (popularity counts, text similarities of duplicates, a collapsed
tower). Ranking such a group by item order rewards or punishes by accident, and counting every tie as a hit lets a
constant score look perfect. Here, ties are broken at random: with ``g`` items strictly better than a target and ``t``
items in its tie group (itself included), its rank is uniform on ``g + 1 .. g + t``, and each metric is the expectation
over this rank.

Rules of all ranking metrics:

- Excluded items, and items that are not candidates, are masked to minus infinity before ranking. A target that is
  itself masked is a miss at every k. It still counts as a target; :attr:`TargetRanks.excluded` is the number of such
  targets.
- Queries without targets have no value (NaN per query) and are left out of means.
- An item index outside the catalogue is an error, never a miss, because the queries and scores do not match.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.errors import ModelError

UNREACHABLE = 2**62
"""The value of ``better`` for an excluded target: beyond every k."""


@dataclass(frozen=True)
class TargetRanks:
    """The ranks of T targets among the unmasked items, with ties not yet resolved.

    Attributes:
      row: Int64 ``[T]``, the row of the query.
      item: Int64 ``[T]``, the item index of the target.
      better: Int64 ``[T]``, how many items score strictly higher; ``UNREACHABLE`` for an excluded target.
      ties: Int64 ``[T]``, how many items score the same, itself included (other targets too); at least 1.
      unmasked: Int64 ``[T]``, how many items of the query are not excluded.
    """

    row: np.ndarray
    item: np.ndarray
    better: np.ndarray
    ties: np.ndarray
    unmasked: np.ndarray

    @classmethod
    def concatenate(cls, parts: Sequence[TargetRanks], first_rows: Sequence[int]) -> TargetRanks:
        """Joins batches; ``first_rows[i]`` is the query number at which batch ``i`` starts."""
        if not parts:
            return cls(*(np.empty(0, np.int64) for _ in range(5)))
        return cls(
            np.concatenate([part.row + first for part, first in zip(parts, first_rows, strict=True)]),
            np.concatenate([part.item for part in parts]),
            np.concatenate([part.better for part in parts]),
            np.concatenate([part.ties for part in parts]),
            np.concatenate([part.unmasked for part in parts]),
        )

    def within(self, stratum: np.ndarray) -> TargetRanks:
        """Returns only the targets in ``stratum`` (bool ``[N]``), with their ranks among the whole catalogue."""
        kept = stratum[self.item]
        return TargetRanks(self.row[kept], self.item[kept], self.better[kept], self.ties[kept], self.unmasked[kept])

    @property
    def excluded(self) -> int:
        """The number of targets that cannot be recommended, because they are excluded themselves."""
        return int(np.count_nonzero(self.better == UNREACHABLE))

    def __len__(self) -> int:
        return len(self.row)


def masked(scores: np.ndarray, queries: Queries) -> np.ndarray:
    """Returns a float32 copy of ``scores`` ``[B, N]`` with -infinity for items that may not be recommended.

    These are the items of ``queries.exclude``, and all items but ``queries.candidates``.

    Raises:
      ModelError: A score is NaN or infinite, the shape does not fit, or an excluded item is not in the catalogue.
    """
    exclude, candidates = queries.exclude, queries.candidates
    if scores.ndim != 2 or len(scores) != len(exclude):
        raise ModelError(f"Expected scores of shape [{len(exclude)}, N], got {list(scores.shape)}.")
    out = np.array(scores, dtype=np.float32)
    if not np.isfinite(out).all():
        row, item = np.argwhere(~np.isfinite(out))[0]
        raise ModelError(
            f"Expected finite scores, got {out[row, item]} for query {row} of the batch, item_index {item}. "
            "If it is a trained model, it diverged: lower training.learning_rate or use float32."
        )
    exclude.check_items(out.shape[1], "excluded")
    out[exclude.row_of_value, exclude.values] = -np.inf
    if candidates is not None:
        out[:, ~candidates] = -np.inf
    return out


def recommendable(queries: Queries, n_items: int) -> np.ndarray:
    """Returns bool ``[N]``: ``queries.candidates``, or all items if there are none."""
    return np.ones(n_items, bool) if queries.candidates is None else queries.candidates


def rank_targets(masked_scores: np.ndarray, targets: Ragged) -> TargetRanks:
    """Ranks each target among the scores of its query.

    Args:
      masked_scores: Float32 ``[B, N]`` from :func:`masked`.
      targets: B rows of item indices. An item that occurs twice in a row counts once.

    Raises:
      ModelError: A target is not in the catalogue, or there are not B rows.
    """
    n_queries, n_items = masked_scores.shape
    if len(targets) != n_queries:
        raise ModelError(f"Expected targets for {n_queries} queries, got {len(targets)}.")
    targets.check_items(n_items, "target")
    row, item = np.divmod(np.unique(targets.row_of_value * n_items + targets.values), n_items)
    better = np.full(len(row), UNREACHABLE, dtype=np.int64)
    ties = np.ones(len(row), dtype=np.int64)
    # One row at a time stays in the processor's cache, which is several times faster than one [T, N] comparison.
    for i, (query, own) in enumerate(zip(row, masked_scores[row, item], strict=True)):
        if own > -np.inf:
            better[i] = np.count_nonzero(masked_scores[query] > own)
            ties[i] = np.count_nonzero(masked_scores[query] == own)
    return TargetRanks(row, item, better, ties, np.isfinite(masked_scores).sum(axis=1)[row])


def recall(ranks: TargetRanks, n_queries: int, k: int) -> np.ndarray:
    """Computes the share of a query's targets that are among its first k items, in expectation over ties.

    ``recall@k = sum over targets of clip((k - g) / t, 0, 1) / |targets|``. By linearity, this is also exact for several
    targets in one tie group. With one target it is the hit rate.

    Returns:
      float64 ``[n_queries]``; NaN for a query without targets, and 0 if all its targets are excluded.
    """
    return _share(_found(ranks, n_queries, k), _n_targets(ranks, n_queries))


def precision(ranks: TargetRanks, n_queries: int, k: int) -> np.ndarray:
    """Computes the share of targets among the first k places, in expectation over ties; empty places count, too.

    Returns:
      float64 ``[n_queries]``; NaN for a query without targets.
    """
    return np.where(_n_targets(ranks, n_queries) > 0, _found(ranks, n_queries, k) / k, np.nan)


def f1(ranks: TargetRanks, n_queries: int, k: int) -> np.ndarray:
    """Computes the harmonic mean of :func:`precision` and :func:`recall`, in expectation over ties.

    ``f1@k = 2 found / (k + |targets|)``, exact with ties.

    Returns:
      float64 ``[n_queries]``; NaN for a query without targets.
    """
    n_targets = _n_targets(ranks, n_queries)
    return np.where(n_targets > 0, 2 * _found(ranks, n_queries, k) / (k + n_targets), np.nan)


def average_precision(ranks: TargetRanks, n_queries: int, k: int) -> np.ndarray:
    """Computes the average precision at k, whose mean over queries is MAP@k.

    It is the sum of the precision at the rank of each target, 0 beyond k, divided by ``min(k, |targets|)``. In a tie
    group with m targets among its t items, behind h other targets, a target at the j-th place of the group has on
    average ``h + 1 + (j - 1) (m - 1) / (t - 1)`` targets up to and including itself. With one target it is :func:`mrr`.

    Returns:
      float64 ``[n_queries]``; NaN for a query without targets.
    """
    in_front, together = _other_targets(ranks)
    total = np.zeros(len(ranks))
    for r in range(1, k + 1):
        j = r - ranks.better
        targets = in_front + 1 + (j - 1) * (together - 1) / np.maximum(ranks.ties - 1, 1)
        total += np.where((j >= 1) & (j <= ranks.ties), targets / r, 0.0) / ranks.ties
    return _share(_sums(ranks, total, n_queries), np.minimum(_n_targets(ranks, n_queries), k))


def accuracy(ranks: TargetRanks, n_queries: int) -> np.ndarray:
    """Computes whether the first item is a target, in expectation over ties: :func:`precision` at 1.

    Returns:
      float64 ``[n_queries]``; NaN for a query without targets.
    """
    return precision(ranks, n_queries, 1)


def auc(ranks: TargetRanks, n_queries: int) -> np.ndarray:
    """Computes the area under the ROC curve of each query (Hanley and McNeil 1982).

    It is the share of the unmasked items other than targets that are ranked behind a target, where a tie counts half,
    averaged over targets. An excluded target counts as 0. In a stratum, targets outside it count as other items.

    Returns:
      float64 ``[n_queries]``; NaN for a query without targets, or without other items.
    """
    reachable = ranks.better < UNREACHABLE
    in_front, together = _other_targets(ranks)
    others = ranks.unmasked - np.bincount(ranks.row[reachable], minlength=n_queries)[ranks.row]
    behind = others - (ranks.better - in_front) - (ranks.ties - together) / 2
    share = np.where(reachable, behind, 0.0) / np.where(others > 0, others, np.nan)
    return _share(_sums(ranks, share, n_queries), _n_targets(ranks, n_queries))


def ndcg(ranks: TargetRanks, n_queries: int, k: int) -> np.ndarray:
    """Computes the discounted gain of the targets among the first k, divided by the best possible one.

    (Järvelin, Kekäläinen 2002.) ``DCG@k = sum over targets of E[1 / log2(rank + 1) where rank <= k]``, with the mean
    over the t possible ranks in a tie group. It is divided by the DCG of ``min(k, |targets|)`` targets in the first
    places. Excluded targets count in ``|targets|``.

    Returns:
      float64 ``[n_queries]``; NaN for a query without targets.
    """
    dcg_of_first = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))])  # [k + 1]
    last, before = np.minimum(ranks.better + ranks.ties, k), np.minimum(ranks.better, k)
    gain = (dcg_of_first[last] - dcg_of_first[before]) / ranks.ties
    ideal = dcg_of_first[np.minimum(_n_targets(ranks, n_queries), k)]
    return _share(_sums(ranks, gain, n_queries), ideal)


def mrr(ranks: TargetRanks, n_queries: int, k: int) -> np.ndarray:
    """Computes the expected reciprocal rank of the first target, 0 beyond k.

    The first target is always in the best tie group that contains a target. With m targets among its t items, the
    first of them is at the r-th place of the group with probability ``C(t - r, m - 1) / C(t, m)``; with m = 1 that is
    ``1 / t``.

    Returns:
      float64 ``[n_queries]``; NaN for a query without targets.
    """
    first = np.full(n_queries, UNREACHABLE, dtype=np.int64)
    np.minimum.at(first, ranks.row, ranks.better)
    in_front = ranks.better == first[ranks.row]
    m = np.bincount(ranks.row[in_front], minlength=n_queries)
    t = np.ones(n_queries, dtype=np.int64)
    t[ranks.row[in_front]] = ranks.ties[in_front]
    out = np.zeros(n_queries)
    chance = m / t
    for r in range(1, k + 1):
        out += np.where(first + r <= k, chance / (first + r), 0.0)
        chance = chance * np.maximum(t - r - m + 1, 0) / np.maximum(t - r, 1)
    return np.where(_n_targets(ranks, n_queries) > 0, out, np.nan)


def top_items(masked_scores: np.ndarray, k: int) -> np.ndarray:
    """Returns the k best items of each query, best first, equal scores in item order.

    Lists need a definite order, so ties are broken here; the ranking metrics never use this function.

    Args:
      masked_scores: Float32 ``[B, N]``; items at minus infinity are never returned.
      k: The length of the lists.

    Returns:
      int64 ``[B, k]``, filled with -1 if fewer than k items are left.
    """
    n_queries, n_items = masked_scores.shape
    out = np.full((n_queries, k), -1, dtype=np.int64)
    # At least k items reach the k-th best maximum of disjoint groups, so no item below it can be in the answer. This
    # bound is far cheaper than a partition of the whole catalogue.
    size = max(1, int(np.sqrt(n_items / k)))
    groups = n_items // size
    bound = np.full(n_queries, -np.inf, dtype=np.float32)
    if groups > k:
        best_of_group = masked_scores[:, : groups * size].reshape(n_queries, size, groups).max(axis=1)
        bound = np.partition(best_of_group, groups - k, axis=1)[:, groups - k]
    bound = np.maximum(bound, np.finfo(np.float32).min)
    for row in range(n_queries):
        candidates = np.flatnonzero(masked_scores[row] >= bound[row])
        best = candidates[np.argsort(-masked_scores[row, candidates], kind="stable")[:k]]
        out[row, : len(best)] = best
    return out


def coverage(exposure: np.ndarray) -> float:
    """Computes the share of items that were recommended to anyone: ``|{i: exposure_i > 0}| / N``; NaN without items.

    Args:
      exposure: Int64 ``[N]``, how often each item was in a top-k list.
    """
    return float(np.count_nonzero(exposure) / len(exposure)) if len(exposure) else float("nan")


def gini(exposure: np.ndarray) -> float:
    """Computes the Gini coefficient of exposure: 0 if all items are shown equally often, near 1 if only one is shown.

    ``sum_i (2 i - N - 1) x_i / (N sum x)`` with x ascending and i from 1. NaN if nothing was recommended.
    """
    n, total = len(exposure), float(exposure.sum())
    if total == 0:
        return float("nan")
    return float(((2 * np.arange(1, n + 1) - n - 1) * np.sort(exposure)).sum() / (n * total))


def novelty(exposure: np.ndarray, surprise: np.ndarray) -> float:
    """Computes the mean :func:`self_information` of the recommended items, in bits; NaN if nothing was recommended."""
    total = exposure.sum()
    return float((exposure * surprise).sum() / total) if total else float("nan")


def self_information(train_counts: np.ndarray) -> np.ndarray:
    """Returns ``-log2`` of each item's share of the training events, float64 ``[N]``, in bits.

    One event is added to every item, so that items without events have a finite value, the largest one.
    """
    counts = train_counts + 1.0
    return -np.log2(counts / counts.sum())


def _found(ranks: TargetRanks, n_queries: int, k: int) -> np.ndarray:
    """Returns float64 ``[n_queries]``: the expected number of targets among the first k."""
    return _sums(ranks, np.clip((k - ranks.better) / ranks.ties, 0.0, 1.0), n_queries)


def _other_targets(ranks: TargetRanks) -> tuple[np.ndarray, np.ndarray]:
    """Counts targets of the query that score higher, and those that score the same, itself included: int64 ``[T]``."""
    order = np.lexsort((ranks.better, ranks.row))
    row, better = ranks.row[order], ranks.better[order]
    starts = np.flatnonzero(np.r_[True, (row[1:] != row[:-1]) | (better[1:] != better[:-1])][: len(row)])
    sizes = np.diff(np.r_[starts, len(row)])
    in_front, together = np.empty(len(row), np.int64), np.empty(len(row), np.int64)
    in_front[order] = np.repeat(starts - np.searchsorted(row, row[starts]), sizes)
    together[order] = np.repeat(sizes, sizes)
    return in_front, together


def _n_targets(ranks: TargetRanks, n_queries: int) -> np.ndarray:
    return np.bincount(ranks.row, minlength=n_queries)


def _sums(ranks: TargetRanks, values: np.ndarray, n_queries: int) -> np.ndarray:
    return np.bincount(ranks.row, weights=values, minlength=n_queries)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Returns ``part / whole``; NaN for 0 / 0, which is a query without targets."""
    with np.errstate(invalid="ignore"):
        return part / whole
