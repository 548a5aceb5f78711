"""Predictions of a run's ranking model for test queries, with the outcomes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tfllmrec.progress import show_progress

if TYPE_CHECKING:
    from tfllmrec.models.ranking import Reranked
    from tfllmrec.runs.run import Run


class Candidates(NamedTuple):
    """The candidates of test queries whose held-out item is among the candidates, ``[C]`` each.

    Attributes:
      items: Int64.
      probability: Float32, the probability that the candidate is the held-out item.
      label: Bool, whether the candidate is the held-out item.
    """

    items: np.ndarray
    probability: np.ndarray
    label: np.ndarray


def candidates_of(run: Run, reranked: Reranked) -> Candidates:
    """Returns the candidates of the test queries on which the figures of ``metrics.json`` were measured."""
    from tfllmrec.training.ranking.measure import measured_queries, offered_candidates

    queries, done = measured_queries(run.split, run.config.seed), 0
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, bool))]
    with show_progress("Ranking candidates of test queries", "queries") as progress:
        for batch in offered_candidates(reranked, queries):
            parts.append((batch.items[batch.there], batch.probability[batch.there], batch.label[batch.there]))
            done += batch.asked
            progress(done, len(queries))
    return Candidates(*map(np.concatenate, zip(*parts, strict=True)))


def predictions_of(run: Run, reranked: Reranked, candidates: Candidates) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns predictions and outcomes on the test queries on which the figures of ``metrics.json`` were measured.

    Args:
      run: A complete run.
      reranked: Its model with the ranking model.
      candidates: The result of :func:`candidates_of` for the same run and model.

    Returns:
      ``probability``: the probabilities of the candidates, and whether each is the held-out item. ``rating``: the
      predicted rating of each rated target, and the rating given. A key without predictions is left out.
    """
    from tfllmrec.training.ranking.measure import measured_queries, predicted_ratings

    found = {}
    if len(candidates.items):
        found["probability"] = (candidates.probability, candidates.label)
    ratings = predicted_ratings(reranked, run.split, measured_queries(run.split, run.config.seed))
    if ratings is not None and len(ratings.given):
        found["rating"] = (ratings.predicted, ratings.given)
    return found
