"""Whole-catalogue metrics from scores, every tie counted at its expected value.

A recommender may give many items the same score (popularity counts, text similarities of duplicates, a collapsed
tower). Ranking such a group by item order rewards or punishes by accident, and counting every tie as a hit lets a
constant score look perfect. Here a tie group is a fair lottery: with ``g`` items strictly better than a target and
``t`` items in its tie group (itself included), its rank is uniform on ``g + 1 .. g + t``, and each metric is the
expectation over that.

What all ranking metrics share:

- Excluded items, and items that are no candidates, are masked to minus infinity before ranking. A target that is itself
  masked is a miss at every k; it still counts among the targets, and :attr:`TargetRanks.excluded` tells how many there
  were.
- Queries without targets have no value (NaN per query) and are left out of means.
- An item index outside the catalogue is an error, never a miss: queries and scores do not belong together then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.errors import ModelError

UNREACHABLE = 2**62
"""``better`` of an excluded target: beyond every k."""


@dataclass(frozen=True)
class TargetRanks:
    """Where each of T targets came among the unmasked items, with its ties still open.

    Attributes:
      row: int64 ``[T]``, the query.
      item: int64 ``[T]``, the target.
      better: int64 ``[T]``, how many items score strictly higher; ``UNREACHABLE`` for an excluded target.
      ties: int64 ``[T]``, how many items score the same, itself included (other targets too); at least 1.
      unmasked: int64 ``[T]``, how many items of the query are not excluded.
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
        """Only the targets in ``stratum`` (bool ``[N]``); ranks stay those among the whole catalogue."""
        kept = stratum[self.item]
        return TargetRanks(self.row[kept], self.item[kept], self.better[kept], self.ties[kept], self.unmasked[kept])

    @property
    def excluded(self) -> int:
        """How many targets could not be recommended, being excluded themselves."""
        return int(np.count_nonzero(self.better == UNREACHABLE))

    def __len__(self) -> int:
        return len(self.row)


def masked(scores: np.ndarray, queries: Queries) -> np.ndarray:
    """A float32 copy of ``scores`` ``[B, N]`` in which what ``queries`` exclude, or do not ask among, is -infinity.

    That is ``queries.exclude``, and all items but ``queries.candidates``.

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


def rank_targets(masked_scores: np.ndarray, targets: Ragged) -> TargetRanks:
    """Finds each target among the scores of its query.

    Args:
      masked_scores: float32 ``[B, N]`` from :func:`masked`.
      targets: B rows of item indices. An item named twice in a row counts once.

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
    """Share of a query's targets that are among its first k, in expectation over ties.

    ``recall@k = sum over targets of clip((k - g) / t, 0, 1) / |targets|``. By linearity this is exact for several
    targets in one tie group too. With one target it is the hit rate.

    Returns:
      float64 ``[n_queries]``; NaN for a query without targets; a query whose targets are all excluded has 0.
    """
    return _share(_found(ranks, n_queries, k), _n_targets(ranks, n_queries))


def precision(ranks: TargetRanks, n_queries: int, k: int) -> np.ndarray:
    """Share of the first k places that are taken by targets, in expectation over ties; a list is never shorter than k.

    Returns:
      float64 ``[n_queries]``; NaN for a query without targets.
    """
    return np.where(_n_targets(ranks, n_queries) > 0, _found(ranks, n_queries, k) / k, np.nan)


def f1(ranks: TargetRanks, n_queries: int, k: int) -> np.ndarray:
    """Harmonic mean of :func:`precision` and :func:`recall`: ``2 found / (k + |targets|)``, exact over ties.

    Returns:
      float64 ``[n_queries]``; NaN for a query without targets.
    """
    n_targets = _n_targets(ranks, n_queries)
    return np.where(n_targets > 0, 2 * _found(ranks, n_queries, k) / (k + n_targets), np.nan)


def average_precision(ranks: TargetRanks, n_queries: int, k: int) -> np.ndarray:
    """Mean of the precision at the rank of each target, 0 beyond k, over ``min(k, |targets|)``; its mean is MAP@k.

    Of a tie group with m targets among its t items, behind h targets, a target at the j-th place has on average
    ``h + 1 + (j - 1) (m - 1) / (t - 1)`` targets up to itself. With one target it is :func:`mrr`.

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


def auc(ranks: TargetRanks, n_queries: int) -> np.ndarray:
    """Share of the unmasked items other than targets that are ranked behind a target, ties half; the mean over targets.

    It is the area under the ROC curve of a query (Hanley and McNeil 1982). An excluded target counts 0. In a stratum,
    targets outside of it are other items.

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
    """Discounted gain of the targets among the first k over the best that was possible (Järvelin, Kekäläinen 2002).

    ``DCG@k = sum over targets of E[1 / log2(rank + 1) where rank <= k]``, the mean over the t ranks that a tie group
    may give; divided by the DCG of ``min(k, |targets|)`` targets in front. Excluded targets count in ``|targets|``.

    Returns:
      float64 ``[n_queries]``; NaN for a query without targets.
    """
    dcg_of_first = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))])  # [k + 1]
    last, before = np.minimum(ranks.better + ranks.ties, k), np.minimum(ranks.better, k)
    gain = (dcg_of_first[last] - dcg_of_first[before]) / ranks.ties
    ideal = dcg_of_first[np.minimum(_n_targets(ranks, n_queries), k)]
    return _share(_sums(ranks, gain, n_queries), ideal)


def mrr(ranks: TargetRanks, n_queries: int, k: int) -> np.ndarray:
    """Expected reciprocal rank of the first target found, 0 beyond k.

    The first target is always in the best tie group that holds one. With m targets among its t items, the chance that
    the first of them is the r-th of the group is ``C(t - r, m - 1) / C(t, m)``; with m = 1 that is ``1 / t``.

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
    """The k best items of each query, best first, equal scores in item order.

    Lists need one definite answer, so ties are not shared out here; the ranking metrics never use this.

    Args:
      masked_scores: float32 ``[B, N]``; items at minus infinity never come back.

    Returns:
      int64 ``[B, k]``, filled with -1 where fewer than k items are left.
    """
    n_queries, n_items = masked_scores.shape
    out = np.full((n_queries, k), -1, dtype=np.int64)
    # At least k items reach the k-th best maximum of disjoint groups, so nothing below it can be in the answer: a far
    # cheaper sieve than a partition of the whole catalogue.
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
    """Share of items that were recommended to anybody: ``|{i: exposure_i > 0}| / N``; NaN for no items.

    Args:
      exposure: int64 ``[N]``, how often each item was in a top-k list.
    """
    return float(np.count_nonzero(exposure) / len(exposure)) if len(exposure) else float("nan")


def gini(exposure: np.ndarray) -> float:
    """Inequality of exposure, 0 = all items alike, towards 1 = one item takes all.

    ``sum_i (2 i - N - 1) x_i / (N sum x)`` with x ascending and i from 1. NaN where nothing was recommended.
    """
    n, total = len(exposure), float(exposure.sum())
    if total == 0:
        return float("nan")
    return float(((2 * np.arange(1, n + 1) - n - 1) * np.sort(exposure)).sum() / (n * total))


def novelty(exposure: np.ndarray, surprise: np.ndarray) -> float:
    """Mean :func:`self_information` of what was recommended, in bits; NaN where nothing was recommended."""
    total = exposure.sum()
    return float((exposure * surprise).sum() / total) if total else float("nan")


def self_information(train_counts: np.ndarray) -> np.ndarray:
    """``-log2`` of each item's share of the training events, float64 ``[N]``, in bits.

    One event is added to every item, so that an item without any has the largest finite value.
    """
    counts = train_counts + 1.0
    return -np.log2(counts / counts.sum())


def _found(ranks: TargetRanks, n_queries: int, k: int) -> np.ndarray:
    """float64 ``[n_queries]``: expected number of targets among the first k."""
    return _sums(ranks, np.clip((k - ranks.better) / ranks.ties, 0.0, 1.0), n_queries)


def _other_targets(ranks: TargetRanks) -> tuple[np.ndarray, np.ndarray]:
    """int64 ``[T]`` each: targets of the query that score higher, and those that score the same, itself included."""
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
    """``part / whole``, NaN for 0 / 0: the queries without targets."""
    with np.errstate(invalid="ignore"):
        return part / whole
