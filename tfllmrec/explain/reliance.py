"""Measures how much a model relies on its inputs: the share of each term in its lists, and the value of each field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.evaluation.metrics import masked, top_items
from tfllmrec.evaluation.protocol import Result, evaluate, paired_difference
from tfllmrec.evaluation.recommender import Recommender
from tfllmrec.progress import Progress

#: The number of test queries on which a report measures reliance.
QUERIES = 2000
#: The maximum number of fields that are shuffled; each takes as long as evaluating the model on :data:`QUERIES`.
FIELDS = 20
_BATCH = 256


class Explains(Recommender, Protocol):
    """A recommender whose scores are sums of terms, such as :class:`tfllmrec.models.hybrid.Hybrid`."""

    @property
    def term_names(self) -> Sequence[str]: ...

    @property
    def reads(self) -> Sequence[str]: ...

    def explain(self, queries: Queries, items: np.ndarray) -> Mapping[str, np.ndarray]: ...


def term_shares(
    model: Explains, queries: Queries, strata: Mapping[str, np.ndarray], k: int, progress: Progress | None = None
) -> dict[str, tuple[int, dict[str, float]]]:
    """Measures the share of each term in the scores of recommended items.

    The share of a term is its absolute value, divided by the sum of the absolute values of all terms.

    Args:
      model: The model.
      queries: The queries; those without a history are left out, because popularity determines their lists.
      strata: Bool ``[N]`` by name.
      k: The length of the lists.
      progress: Called with the number of queries done and the number of all queries.

    Returns:
      For each stratum with a recommended item: the number of its items in all lists, and the mean shares by term.
    """
    queries = queries.take(np.flatnonzero(queries.history.lengths > 0))
    items, shares = [np.zeros(0, np.int64)], [np.zeros((0, len(model.term_names)))]
    done = 0
    for batch in queries.batches(_BATCH):
        scores = masked(model.score(batch), batch)
        best = top_items(scores, min(k, scores.shape[1]))
        there = best >= 0
        explained = model.explain(batch, np.where(there, best, scores.shape[1]))
        terms = np.abs(np.stack([explained[name] for name in model.term_names], axis=-1))[there]
        total = terms.sum(axis=1, keepdims=True)
        items.append(best[there])
        shares.append(np.divide(terms, total, out=np.zeros_like(terms), where=total > 0))
        done += len(batch)
        if progress is not None:
            progress(done, len(queries))
    item, share = np.concatenate(items), np.concatenate(shares)
    found = {}
    for name, stratum in strata.items():
        own = share[stratum[item]]
        if len(own):
            means = dict(zip(model.term_names, own.mean(axis=0).tolist(), strict=True))
            found[name] = (len(own), means)
    return found


def shuffled(queries: Queries, key: str, seed: int) -> Queries:
    """Permutes the values of a field over all queries, or over all events if it is a field of events."""
    values = queries.fields[key]
    order = np.random.default_rng(seed).permutation(len(values.values if isinstance(values, Ragged) else values))
    moved = Ragged(values.values[order], values.offsets) if isinstance(values, Ragged) else values[order]
    return replace(queries, fields={**queries.fields, key: moved})


def field_importance(
    model: Explains,
    queries: Queries,
    train_counts: np.ndarray,
    k: int,
    seed: int,
    progress: Progress | None = None,
) -> dict[str, tuple[float, float, float]]:
    """Measures permutation importance of a model's fields (Breiman, "Random Forests", Machine Learning 2001).

    Args:
      model: The model.
      queries: Queries with targets.
      train_counts: Int64 ``[N]``, the training events of each item.
      k: The length of the lists for ndcg@k.
      seed: The seed of the permutations and resamples.
      progress: Called with the number of fields done and the number of all fields.

    Returns:
      For each field that the model reads and the queries have, at most :data:`FIELDS`, by its key: the decrease of
      ndcg@k if its values are shuffled, with the low and high end of the paired 95 % interval over users. The largest
      decrease comes first.
    """
    keys = [key for key in model.reads if key in queries.fields and _varies(queries.fields[key])][:FIELDS]

    def measured(asked: Queries) -> Result:
        return evaluate(model, asked, train_counts=train_counts, strata={}, ks=[k], batch_size=_BATCH, bootstrap=0)

    found: dict[str, tuple[float, float, float]] = {}
    if not keys or not (queries.targets.lengths > 0).any():
        return found
    as_they_are = measured(queries)
    for done, key in enumerate(keys, start=1):
        without = measured(shuffled(queries, key, seed))
        found[key] = paired_difference(as_they_are, without, f"ndcg@{k}", seed=seed)
        if progress is not None:
            progress(done, len(keys))
    return dict(sorted(found.items(), key=lambda row: -row[1][0]))


def _varies(values: Ragged | np.ndarray) -> bool:
    """Returns whether the values differ, so that shuffling changes them."""
    flat = values.values if isinstance(values, Ragged) else values
    first = flat[:1]
    same = (flat == first) | ((flat != flat) & (first != first))  # NaN differs from itself
    return not bool(np.all(same))
