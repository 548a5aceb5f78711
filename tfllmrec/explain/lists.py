"""The lists that a model recommends for test queries: how often each item is shown, and examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tfllmrec.data.queries import Queries
from tfllmrec.evaluation.metrics import UNREACHABLE, masked, rank_targets, top_items
from tfllmrec.evaluation.recommender import Recommender

#: The number of examples of each kind.
EXAMPLES = 5


@dataclass(frozen=True)
class Example:
    """A test query, the list that the model recommends, and the ranks of the query's targets.

    Attributes:
      user_id: The user of the query.
      history: Int64, the items of the history, oldest first.
      recommended: Int64 ``[K]``, the best items, best first.
      targets: The item index of each target, and the first and last rank that it may have among equal scores; the
        ranks are ``None`` if the target is excluded.
    """

    user_id: str
    history: np.ndarray
    recommended: np.ndarray
    targets: list[tuple[int, tuple[int, int] | None]]


def draw_examples(found: np.ndarray, user_ids: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws rows of queries with a found target and rows of queries with only missed targets, each user at most once.

    Args:
      found: Float64 ``[B]``, recall@k of each query; NaN without targets.
      user_ids: Object ``[B]``.
      seed: The random seed.

    Returns:
      The rows of each kind, int64, at most :data:`EXAMPLES` each.
    """
    order = np.random.default_rng(seed).permutation(len(found))
    _, first = np.unique(user_ids[order].astype(str), return_index=True)
    order = order[np.sort(first)]
    return order[found[order] > 0][:EXAMPLES], order[found[order] == 0][:EXAMPLES]


def examples_of(recommender: Recommender, queries: Queries, k: int) -> list[Example]:
    """Returns the lists of a few queries, and the ranks of their targets in the whole catalogue."""
    if not len(queries):
        return []
    scores = masked(recommender.score(queries), queries)
    ranks, best = rank_targets(scores, queries.targets), top_items(scores, k)
    examples = []
    for row, history in enumerate(queries.history):
        own = np.flatnonzero(ranks.row == row)
        targets = [
            (
                int(ranks.item[at]),
                None
                if ranks.better[at] == UNREACHABLE
                else (int(ranks.better[at]) + 1, int(ranks.better[at] + ranks.ties[at])),
            )
            for at in own
        ]
        examples.append(Example(str(queries.user_ids[row]), history, best[row][best[row] >= 0], targets))
    return examples


def queries_with_one_target(queries: Queries) -> np.ndarray:
    """Returns the rows of queries with exactly one target, int64; none if they are less than half of all queries."""
    single = np.flatnonzero(queries.targets.lengths == 1)
    return single if len(single) >= len(queries) / 2 else single[:0]


def exposure_of(
    recommender: Recommender,
    queries: Queries,
    n_items: int,
    k: int,
    batch_size: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Counts how often each item is in a list of ``k`` for the queries, int64 ``[N]``.

    Args:
      recommender: The model.
      queries: The queries.
      n_items: The number of items, N.
      k: The length of the lists.
      batch_size: The number of queries scored at once.
      progress: Called with the number of queries done and the number of all queries.
    """
    exposure, done = np.zeros(n_items, np.int64), 0
    for batch in queries.batches(batch_size):
        shown = top_items(masked(recommender.score(batch), batch), k)
        exposure += np.bincount(shown[shown >= 0], minlength=n_items)
        done += len(batch)
        if progress is not None:
            progress(done, len(queries))
    return exposure
