"""What a model relies on: the share of each term in the lists that it makes, and the worth of each field."""

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

#: Test queries that are looked at.
QUERIES = 2000
#: Fields that are shuffled; each takes as long as measuring the model on :data:`QUERIES`.
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
    """How much of the scores of recommended items each term makes up.

    The share of a term is its absolute value, divided by the sum of those of all terms.

    Args:
      queries: asked; those without a history are left out, because popularity decides on their lists.
      strata: bool ``[N]`` by name. k: length of the lists.
      progress: called with the number of queries done, and of all.

    Returns:
      For each stratum with a recommended item: how many places of lists its items have, and the mean shares by term.
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
    """The queries with the values of a field permuted, over queries, or over all events where it is of events."""
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
    """Permutation importance of the fields that a model reads (Breiman, "Random Forests", Machine Learning 2001).

    Args:
      queries: with targets. train_counts: int64 ``[N]``. k: of ndcg@k. seed: of the permutations and resamples.
      progress: called with the number of fields done, and of all.

    Returns:
      By the key of each field that the queries have, for at most :data:`FIELDS`: by how much ndcg@k falls if its values
      are shuffled, with the low and high end of the paired 95 % interval over users. The largest fall comes first.
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
    """Whether shuffling changes anything."""
    flat = values.values if isinstance(values, Ragged) else values
    first = flat[:1]
    same = (flat == first) | ((flat != flat) & (first != first))  # NaN differs from itself
    return not bool(np.all(same))
