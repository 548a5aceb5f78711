"""Measures a ranking model on the test queries: its lists, its click probabilities and its ratings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.splits import Split
from tfllmrec.evaluation.calibration import calibration_error
from tfllmrec.evaluation.protocol import Result, paired_difference
from tfllmrec.models.ranking import NAN, RatingScale, Reranked
from tfllmrec.models.servable import SCORE_BATCH
from tfllmrec.training.ranking.examples import ratings_of_targets, without_other_targets

#: Largest number of queries on which probabilities and ratings are measured.
MEASURED = 6_000


def measure_ranking(
    reranked: Reranked, split: Split, result: Result | None, hybrids: Result, seed: int
) -> dict[str, Any]:
    """Returns the entry ``ranking`` of ``metrics.json``: metrics on the test queries.

    Args:
      reranked: The fitted model.
      result: The result of ``reranked``; ``None`` if its order is that of the hybrid.
      hybrids: The result of the hybrid on the same queries.
      split: The split with the test queries.
      seed: Random seed of the sampled queries and the bootstrap.

    Returns:
      A mapping with ``candidates``, the number of candidates, and

      - if there is a ``result``: ``reranked``, all its metrics; ``intervals``, their intervals; and ``difference``, the
        differences to the hybrid's order in ``ndcg@10`` and ``recall@10``, of all targets and of the tail, with 95 %
        intervals, as far as these metrics were measured;
      - ``offered``, the number of queries, out of at most :data:`MEASURED`, whose next item is among the candidates,
        and metrics of these queries: ``log_loss``, the mean negative log probability of the next item;
        ``log_loss_even``, the same with equal probabilities; ``auc``, the share of other candidates that are less
        likely than the next item; ``auc_hybrid``, the same by the hybrid's score; ``accuracy``, the share of queries
        whose most likely candidate is the next item, with ties counted proportionally; and ``ece``, the calibration
        error of the probabilities of all candidates;
      - if the data has ratings: ``rated``, the number of rated targets; ``rmse``; ``rmse_mean``, the RMSE of the mean
        rating; ``rmse_biases``, the RMSE of the biases of item and user; and ``rating_ece``, the calibration error of
        the ratings.

      The metrics of ratings are over all rated targets. Those of probabilities are over the first target of each query,
      whose other targets are removed from the candidates. Metrics are ``None`` if there is nothing to average.
    """
    labels = [f"{name}@10{suffix}" for name in ("ndcg", "recall") for suffix in ("", "/tail")]
    measured: dict[str, Any] = {"candidates": reranked.candidates}
    if result is not None:
        measured |= {
            "reranked": dict(result.metrics),
            "intervals": {label: list(interval) for label, interval in result.intervals.items()},
            "difference": {
                label: list(paired_difference(result, hybrids, label, seed=seed))
                for label in labels
                if result.metrics.get(label) is not None
            },
        }
    asked = measured_queries(split, seed)
    return measured | _of_probabilities(reranked, asked) | _of_ratings(reranked, split, asked)


def measured_queries(split: Split, seed: int) -> Queries:
    """Returns the test queries, a sample of at most :data:`MEASURED`, for metrics of probabilities and ratings."""
    asked = split.test.take(split.test.targets.lengths > 0)
    return asked.take(np.random.default_rng(seed).permutation(len(asked))[:MEASURED])


@dataclass(frozen=True)
class Offered:
    """The candidates of those queries whose next item is among the candidates.

    Attributes:
      items: Int64 ``[B, M]``, the candidates; N for none.
      probability: Float32 ``[B, M]``, the probability that the candidate is the next item.
      label: Bool ``[B, M]``, whether the candidate is the next item.
      there: Bool ``[B, M]``, False for padding.
      score: Float32 ``[B, M]``, the score by the hybrid.
      asked: The number of queries in the batch, including those whose next item is not a candidate.
    """

    items: np.ndarray
    probability: np.ndarray
    label: np.ndarray
    there: np.ndarray
    score: np.ndarray
    asked: int


def offered_candidates(reranked: Reranked, queries: Queries) -> Iterator[Offered]:
    """Yields the candidates of ``queries`` in batches."""
    for batch in queries.batches(SCORE_BATCH):
        scores = reranked.hybrid.score(batch)
        items = reranked.best(scores, batch)
        items = without_other_targets(items, batch.targets, reranked.model.n_items)
        label = items == batch.targets.values[batch.targets.offsets[:-1]][:, np.newaxis]
        rows = label.any(axis=1)
        probability = reranked.rank(batch, items)[0][rows]
        there = (items < reranked.model.n_items)[rows]
        score = np.take_along_axis(scores[rows], np.where(there, items[rows], 0), axis=1)
        yield Offered(items[rows], probability, label[rows], there, score, len(batch))


def _of_probabilities(reranked: Reranked, queries: Queries) -> dict[str, Any]:
    losses, even, ours, hybrids, right, likely, happened = ([] for _ in range(7))
    for batch in offered_candidates(reranked, queries):
        probability, label, there = batch.probability, batch.label, batch.there
        losses.append(-np.log(np.maximum(probability[label], 1e-30)))
        even.append(np.log(there.sum(axis=1)))
        ours.append(_auc(probability, label, there))
        hybrids.append(_auc(batch.score, label, there))
        first = probability == probability.max(axis=1, keepdims=True, initial=0)
        right.append((first & label).sum(axis=1) / np.maximum(first.sum(axis=1), 1))
        likely.append(probability[there])
        happened.append(label[there])
    names = ("log_loss", "log_loss_even", "auc", "auc_hybrid", "accuracy")
    values = [np.concatenate(parts) for parts in (losses, even, ours, hybrids, right)]
    means = {name: _mean(value[np.isfinite(value)]) for name, value in zip(names, values, strict=True)}
    ece = calibration_error(np.concatenate(likely), np.concatenate(happened)) if len(values[0]) else None
    return {"offered": len(values[0]), **means, "ece": ece}


def _auc(values: np.ndarray, label: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Returns the share of other values below that of ``label``, ties half: float64 ``[B]``, NaN without others."""
    own, others = values[label][:, np.newaxis], there & ~label
    lower = ((values < own) & others).sum(axis=1) + 0.5 * ((values == own) & others).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return lower / others.sum(axis=1)


@dataclass(frozen=True)
class RatedTargets:
    """Predicted and given ratings of targets.

    Attributes:
      predicted: Float ``[R]``, the ratings predicted by the model.
      by_biases: Float ``[R]``, the ratings predicted by biases.
      given: Float ``[R]``, the ratings by the users.
    """

    predicted: np.ndarray
    by_biases: np.ndarray
    given: np.ndarray


def predicted_ratings(reranked: Reranked, split: Split, queries: Queries) -> RatedTargets | None:
    """Returns the ratings of the rated targets of ``queries``; ``None`` if the model does not predict ratings."""
    model = reranked.model
    scale = RatingScale.of_split(split, model.n_items) if model.rates else None
    if scale is None:
        return None
    targets = queries.targets.padded(int(queries.targets.lengths.max(initial=1)), model.n_items)
    ratings = Ragged(ratings_of_targets(split.test_events, queries), queries.targets.offsets).padded(
        targets.shape[1], NAN
    )
    rated = np.isfinite(ratings)
    by_biases = scale.ratings(queries, np.where(rated, targets, 0))
    return RatedTargets(reranked.rank(queries, targets)[1][rated], by_biases[rated], ratings[rated])


def _of_ratings(reranked: Reranked, split: Split, queries: Queries) -> dict[str, Any]:
    found = predicted_ratings(reranked, split, queries)
    if found is None:
        return {}
    predicted = {
        "rmse": found.predicted,
        "rmse_mean": np.full_like(found.given, reranked.model.mean),
        "rmse_biases": found.by_biases,
    }
    errors = {name: _mean((values - found.given) ** 2) for name, values in predicted.items()}
    return {
        "rated": len(found.given),
        **{name: None if e is None else float(np.sqrt(e)) for name, e in errors.items()},
        "rating_ece": calibration_error(found.predicted, found.given) if len(found.given) else None,
    }


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def ranking_lines(measured: dict[str, Any], hybrids: dict[str, float | None]) -> list[str]:
    """Returns lines for users about the entry ``ranking`` of ``metrics.json``; ``hybrids`` are the hybrid's metrics."""
    if "left_out" in measured:
        return [measured["left_out"]]
    lines = [f"the hybrid's best {measured['candidates']} stay in its order"]
    if "reranked" in measured:
        shown = [label for label in ("ndcg@10", "recall@10", "recall@10/tail") if label in measured["difference"]]
        orders = [f"{label} {measured['reranked'][label]:.4f} (hybrid {hybrids[label]:.4f})" for label in shown]
        lines = [f"the hybrid's best {measured['candidates']} in the new order: {', '.join(orders)}"]
    if measured["log_loss"] is not None and measured["auc"] is not None:
        lines.append(
            f"where the next item is among them ({measured['offered']:,}): log-loss {measured['log_loss']:.4f} (all "
            f"alike {measured['log_loss_even']:.4f}), AUC {measured['auc']:.4f} (hybrid {measured['auc_hybrid']:.4f})"
            + _calibration(measured.get("ece"))
        )
    if measured.get("rated"):
        lines.append(
            f"ratings of {measured['rated']:,}: RMSE {measured['rmse']:.4f}, by biases of item and user "
            f"{measured['rmse_biases']:.4f}, by the mean of all {measured['rmse_mean']:.4f}"
            + _calibration(measured.get("rating_ece"))
        )
    return lines


def _calibration(error: float | None) -> str:
    """Returns the end of a line; empty for metrics of earlier versions, which lack the calibration error."""
    return "" if error is None else f", expected calibration error {error:.4f}"
