"""What the ranking model of a run predicts for test queries, and what happened."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tfllmrec.progress import show_progress

if TYPE_CHECKING:
    from tfllmrec.models.ranking import Reranked
    from tfllmrec.runs.run import Run


class Candidates(NamedTuple):
    """The candidates of test queries whose held-out item is among them, ``[C]`` each.

    Attributes:
      items: int64. probability: float32, that the candidate is the held-out item. label: bool, whether it is.
    """

    items: np.ndarray
    probability: np.ndarray
    label: np.ndarray


def candidates_of(run: Run, reranked: Reranked) -> Candidates:
    """The candidates of the queries that ``metrics.json`` has figures of."""
    from tfllmrec.training.ranking import measured_queries, offered_candidates

    queries, done = measured_queries(run.split, run.config.seed), 0
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, bool))]
    with show_progress("Ranking candidates of test queries", "queries") as progress:
        for batch in offered_candidates(reranked, queries):
            parts.append((batch.items[batch.there], batch.probability[batch.there], batch.label[batch.there]))
            done += batch.asked
            progress(done, len(queries))
    return Candidates(*map(np.concatenate, zip(*parts, strict=True)))


def predictions_of(run: Run, reranked: Reranked, candidates: Candidates) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Predictions and outcomes, on the queries that ``metrics.json`` has figures of.

    Args:
      candidates: :func:`candidates_of` the same run and model.

    Returns:
      ``probability``: of each candidate where the next item is among them, and whether it is the next item. ``rating``:
      of each rated target, and the rating given. Those without a prediction are left out.
    """
    from tfllmrec.training.ranking import measured_queries, predicted_ratings

    found = {}
    if len(candidates.items):
        found["probability"] = (candidates.probability, candidates.label)
    ratings = predicted_ratings(reranked, run.split, measured_queries(run.split, run.config.seed))
    if ratings is not None and len(ratings.given):
        found["rating"] = (ratings.predicted, ratings.given)
    return found
