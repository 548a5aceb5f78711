"""What the ranking model of a run predicts for test queries, and what happened."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tfllmrec.progress import show_progress

if TYPE_CHECKING:
    from tfllmrec.models.hybrid import Hybrid
    from tfllmrec.models.ranking import RankingModel
    from tfllmrec.runs.run import Run


def predictions_of(run: Run, hybrid: Hybrid, model: RankingModel) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Predictions and outcomes, on the queries that ``metrics.json`` has figures of.

    Returns:
      ``probability``: of each candidate where the next item is among them, and whether it is the next item. ``rating``:
      of each rated target, and the rating given. Those without a prediction are left out.
    """
    from tfllmrec.models.ranking import Reranked
    from tfllmrec.training.ranking import measured_queries, offered_candidates, predicted_ratings

    reranked = Reranked(hybrid, model, run.config.ranking.candidates)
    queries = measured_queries(run.split, run.config.seed)
    likely, happened, done = [], [], 0
    with show_progress("Ranking candidates of test queries", "queries") as progress:
        for batch in offered_candidates(reranked, queries):
            likely.append(batch.probability[batch.there])
            happened.append(batch.label[batch.there])
            done += batch.asked
            progress(done, len(queries))
    found = {}
    if sum(map(len, likely)):
        found["probability"] = (np.concatenate(likely), np.concatenate(happened))
    ratings = predicted_ratings(reranked, run.split, queries)
    if ratings is not None and len(ratings.given):
        found["rating"] = (ratings.predicted, ratings.given)
    return found
