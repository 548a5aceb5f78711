"""Evaluates recommenders on the whole catalogue: masks known items; computes strata, intervals and means over seeds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from tfllmrec.data.queries import Queries
from tfllmrec.errors import ModelError
from tfllmrec.evaluation import alarms, metrics
from tfllmrec.evaluation.recommender import Recommender

#: Metrics that are always measured. The others, and those without a list length, are measured on demand.
ALWAYS = ("recall", "ndcg", "mrr")
RANKING_METRICS = {
    "recall": metrics.recall,
    "ndcg": metrics.ndcg,
    "mrr": metrics.mrr,
    "precision": metrics.precision,
    "f1": metrics.f1,
    "map": metrics.average_precision,
}
WITHOUT_LENGTH = {"accuracy": metrics.accuracy, "auc": metrics.auc}


@dataclass(frozen=True)
class Result:
    """The metrics of one recommender on one set of queries, from one seed or averaged over several.

    Attributes:
      metrics: Values by label: ``ndcg@10``, ``recall@10/tail``, ``coverage@10``, ``gini@10/tail``, ``novelty@10``, ...
        Ranking metrics of a stratum cover the targets in it; coverage, Gini and novelty of a stratum cover the
        candidates in it. ``None`` (never NaN) if there is nothing to average, such as for a stratum without targets.
      intervals: 95 % percentile bootstrap intervals over users, by label of each ranking metric that has a value.
      counts: ``queries``, ``queries_without_targets`` (left out of ranking metrics), ``targets``,
        ``targets/<stratum>``, ``targets_excluded`` (impossible to recommend, counted as misses).
      per_query: Float64 ``[B]`` by label of each ranking metric, NaN for a query without such a target.
      alarms: Signs of collapse, each with a remedy.
      spread: Lowest and highest value over the seeds, by label, in a result of :func:`averaged`; otherwise empty.
      users: Int64 ``[B]``, equal numbers for queries of one user, which are resampled together because they are alike.
        None: each query is from a different user.
    """

    metrics: dict[str, float | None]
    intervals: dict[str, tuple[float, float]]
    counts: dict[str, int]
    per_query: dict[str, np.ndarray]
    alarms: list[str]
    spread: dict[str, tuple[float, float]] = field(default_factory=dict)
    users: np.ndarray | None = None


def evaluate(
    recommender: Recommender | Callable[[Queries], np.ndarray],
    queries: Queries,
    *,
    train_counts: np.ndarray,
    strata: Mapping[str, np.ndarray],
    ks: Sequence[int] = (5, 10, 20),
    further: Sequence[str] = (),
    batch_size: int = 512,
    bootstrap: int = 1000,
    seed: int = 42,
    progress: Callable[[int], None] | None = None,
) -> Result:
    """Scores every query against the whole catalogue and computes the metrics.

    Args:
      recommender: Returns float32 ``[B, N]``, from its method ``score`` or as a function of the queries. The scores are
        masked here by ``queries.exclude`` and ``queries.candidates``.
      queries: Queries with targets; those without targets still count for coverage, Gini and novelty.
      train_counts: Int64 ``[N]``, training events of each item; also defines the size of the catalogue.
      strata: Name -> bool ``[N]``, as in ``Split.strata``. May be empty.
      ks: List lengths.
      further: Metrics to compute besides recall, ndcg and mrr: any of precision, f1, map, accuracy and auc.
      batch_size: Number of queries scored at once; takes about ``8 * batch_size * N`` bytes of memory besides the
        recommender's own.
      bootstrap: Number of resamples for the intervals; 0 leaves them out.
      seed: Seed of the resamples. Two results on the same queries and seed use the same resamples.
      progress: Called after each batch with the number of queries in it.

    Raises:
      ModelError: Scores or a stratum have a wrong shape, scores are not finite, items are outside the catalogue, ``ks``
        is invalid, or a metric is unknown.
    """
    n_items = len(train_counts)
    ks = sorted(set(ks))
    if not ks or ks[0] < 1:
        raise ModelError(f"Expected list lengths of at least 1 in ks, got {ks}.")
    if unknown := sorted(set(further) - {*RANKING_METRICS, *WITHOUT_LENGTH}):
        known = ", ".join([*RANKING_METRICS, *WITHOUT_LENGTH])
        raise ModelError(f"Expected metrics among {known}, got {', '.join(unknown)}.")
    for name, stratum in strata.items():
        if stratum.shape != (n_items,) or stratum.dtype != bool:
            raise ModelError(f"Expected stratum {name!r} as bool [{n_items}], got {stratum.dtype} {stratum.shape}.")

    score = recommender.score if isinstance(recommender, Recommender) else recommender
    parts, first_rows, alike = [], [], []
    shown_from = metrics.recommendable(queries, n_items)
    exposure = {k: np.zeros(n_items, dtype=np.int64) for k in ks}
    done = 0
    for batch in queries.batches(batch_size):
        scores = np.asarray(score(batch))
        if scores.shape != (len(batch), n_items):
            raise ModelError(
                f"Expected scores of shape [{len(batch)}, {n_items}] (queries, items), got {list(scores.shape)} from "
                f"{getattr(recommender, '__name__', type(recommender).__name__)}: it was fitted on another catalogue."
            )
        masked_scores = metrics.masked(scores, batch)
        alike.append(alarms.scores_alike(scores if shown_from.all() else scores[:, shown_from]))
        parts.append(metrics.rank_targets(masked_scores, batch.targets))
        first_rows.append(done)
        top = metrics.top_items(masked_scores, ks[-1])
        for k in ks:
            shown = top[:, :k]
            exposure[k] += np.bincount(shown[shown >= 0], minlength=n_items)
        done += len(batch)
        if progress is not None:
            progress(len(batch))

    ranks = metrics.TargetRanks.concatenate(parts, first_rows)
    counts = {
        "queries": len(queries),
        "queries_without_targets": len(queries) - len(np.unique(ranks.row)),
        "targets": len(ranks),
        **{f"targets/{name}": len(ranks.within(stratum)) for name, stratum in strata.items()},
        "targets_excluded": ranks.excluded,
    }
    views = {"": np.ones(n_items, dtype=bool)} | {f"/{name}": stratum for name, stratum in strata.items()}
    per_query = {
        f"{name}@{k}{suffix}": RANKING_METRICS[name](ranks.within(stratum), len(queries), k)
        for suffix, stratum in views.items()
        for name in RANKING_METRICS
        if name in ALWAYS or name in further
        for k in ks
    }
    per_query |= {
        f"{name}{suffix}": metric(ranks.within(stratum), len(queries))
        for suffix, stratum in views.items()
        for name, metric in WITHOUT_LENGTH.items()
        if name in further
    }
    surprise = metrics.self_information(train_counts)
    lists = {}
    for suffix, stratum in views.items():
        for k in ks:
            shown = exposure[k][stratum & shown_from]
            lists[f"coverage@{k}{suffix}"] = metrics.coverage(shown)
            lists[f"gini@{k}{suffix}"] = metrics.gini(shown)
            lists[f"novelty@{k}{suffix}"] = metrics.novelty(shown, surprise[stratum & shown_from])

    means = {label: _mean(values) for label, values in per_query.items()}
    users = users_of(queries.user_ids)
    return Result(
        metrics={label: None if np.isnan(value) else value for label, value in (means | lists).items()},
        intervals=_intervals(per_query, bootstrap, seed, users),
        counts=counts,
        per_query=per_query,
        alarms=alarms.collapse(
            np.concatenate(alike) if alike else np.empty(0, bool), exposure[ks[-1]][shown_from], ks[-1]
        ),
        users=users,
    )


def users_of(user_ids: np.ndarray) -> np.ndarray:
    """Returns :attr:`Result.users` of queries with these user ids, object ``[B]``; each ``""`` (unknown) is a new user.

    Users are numbered in the order in which they first occur.
    """
    users = user_ids.astype(object)
    unknown = np.flatnonzero(users == "")
    users[unknown] = unknown
    return pd.factorize(users)[0].astype(np.int64)


def selection_value(result: Result) -> float:
    """Returns the value by which settings are chosen on validation: a mean of ndcg@10 that counts tail queries twice.

    The mean is taken over the ndcg@10 of all queries and, once more, over that of queries with tail targets among these
    targets. A model that serves only the head does not win, nor does one that gives up the head if few targets are
    tail.

    Without tail metrics, it is the plain mean. Without ndcg@10, the largest k is used. Without targets, it is 0.
    """
    return _mean_or_zero(_selection_values(result))


def selection_value_of_ranks(ranks: metrics.TargetRanks, n_queries: int, strata: Mapping[str, np.ndarray]) -> float:
    """Computes :func:`selection_value` at 10 from the ranks of targets alone, in a fraction of :func:`evaluate`'s time.

    Args:
      ranks: The ranks of the targets.
      n_queries: The number of queries.
      strata: As in :func:`evaluate`; only ``tail`` is used, if present.
    """
    views = [ranks, *([ranks.within(strata["tail"])] if "tail" in strata else [])]
    return _mean_or_zero(np.stack([metrics.ndcg(view, n_queries, 10) for view in views]))


def _mean_or_zero(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0


def selection_gain(
    a: Result, b: Result, *, confidence: float = 0.95, bootstrap: int = 1000, seed: int = 42
) -> tuple[float, float, float]:
    """Measures how much higher :func:`selection_value` is for ``a`` than for ``b`` on the same queries.

    Returns:
      The difference, and the low and high end of its percentile interval, by paired bootstrap over users.

    Raises:
      ModelError: The results have different queries, or no query has a target.
    """
    x, y = _selection_values(a), _selection_values(b)
    if x.shape != y.shape or not np.array_equal(np.isnan(x), np.isnan(y)) or np.isnan(x).all():
        raise ModelError("Expected two results of the same queries, of which at least one has a target.")
    difference = np.nan_to_num(x - y).sum(axis=0)
    weight = (~np.isnan(x)).sum(axis=0).astype(np.float64)
    resampled = _resampled_ratios(difference[:, None], weight[:, None], bootstrap, seed, a.users)[:, 0]
    low, high = np.nanquantile(resampled, ((1 - confidence) / 2, (1 + confidence) / 2))
    return float(difference.sum() / weight.sum()), float(low), float(high)


def shown_length(ks: Collection[int]) -> int:
    """Returns the length in ``evaluation.ks`` whose metrics are shown: 10, or the largest one if 10 is missing."""
    return 10 if 10 in ks else max(ks)


def _selection_values(result: Result) -> np.ndarray:
    """Returns float64 ``[1 or 2, B]``: each query's ndcg, and that among tail targets; NaN without such a target."""
    k = shown_length([int(label[5:]) for label in result.metrics if label.startswith("ndcg@") and "/" not in label])
    labels = [label for label in (f"ndcg@{k}", f"ndcg@{k}/tail") if label in result.per_query]
    return np.stack([result.per_query[label] for label in labels])


def averaged(results: Sequence[Result], *, bootstrap: int = 1000, seed: int = 42) -> Result:
    """Averages the results of one recommender trained with several seeds, measured on the same queries.

    Each query's values are averaged over the seeds first, so that intervals, and :func:`paired_difference` between two
    averaged results, come from a bootstrap over users alone; ``spread`` shows how far the seeds differ.

    Args:
      results: One result for each seed. If the seed also draws the targets, a query counts for a stratum if it has a
        target there with any of the seeds.
      bootstrap: Number of resamples for the intervals; 0 leaves them out.
      seed: Seed of the resamples.

    Returns:
      The means. ``counts`` has the smallest count of each kind, and ``alarms`` every alarm once. A single result is
      returned unchanged.

    Raises:
      ModelError: There is no result, or the results differ in their metrics, number of queries or users.
    """
    if not results:
        raise ModelError("Expected at least one result to average, got none.")
    first = results[0]
    if len(results) == 1:
        return first
    for other in results[1:]:
        if other.metrics.keys() != first.metrics.keys() or other.per_query.keys() != first.per_query.keys():
            raise ModelError("Expected results with the same metrics and strata; measure every seed in the same way.")
        if any(len(other.per_query[label]) != len(values) for label, values in first.per_query.items()):
            raise ModelError("Expected results on the same queries; the seeds have different numbers of them.")
    if any(not _same_users(first, other) for other in results[1:]):
        raise ModelError(
            "Expected results on the same queries; the seeds assign them to different users. Measure one split."
        )
    per_query = {
        label: _mean_over_seeds(np.stack([result.per_query[label] for result in results])) for label in first.per_query
    }
    values = {
        label: [value for result in results if (value := result.metrics[label]) is not None] for label in first.metrics
    }
    means = {label: float(np.mean(known)) if known else None for label, known in values.items()}
    means |= {label: None if np.isnan(mean := _mean(column)) else mean for label, column in per_query.items()}
    return Result(
        metrics=means,
        intervals=_intervals(per_query, bootstrap, seed, first.users),
        counts={name: min(result.counts[name] for result in results) for name in first.counts},
        per_query=per_query,
        alarms=list(dict.fromkeys(alarm for result in results for alarm in result.alarms)),
        spread={label: (min(known), max(known)) for label, known in values.items() if known},
        users=first.users,
    )


def _same_users(a: Result, b: Result) -> bool:
    """Returns whether both results assign the same queries to one user."""
    if a.users is None or b.users is None:
        return a.users is b.users
    return np.array_equal(a.users, b.users)


def paired_difference(
    a: Result, b: Result, label: str, *, bootstrap: int = 1000, seed: int = 42
) -> tuple[float, float, float]:
    """Measures how much better ``a`` is than ``b`` on the same queries, by paired bootstrap.

    The same resamples of users for both remove variation that they share (hard and easy queries), so the interval is
    far narrower than the two results' own. If the interval is above 0, ``a`` is better with 95 % confidence.

    Returns:
      The difference of the means, and the low and high end of its 95 % percentile interval.

    Raises:
      ModelError: The label is unknown, the queries differ, no query has a target, or there are no resamples.
    """
    found = paired_differences(a, b, [label], bootstrap=bootstrap, seed=seed)
    if label not in found:
        raise ModelError(f"Expected queries with targets for {label!r} and bootstrap >= 1 ({bootstrap} given).")
    return found[label]


def paired_differences(
    a: Result, b: Result, labels: Sequence[str], *, bootstrap: int = 1000, seed: int = 42
) -> dict[str, tuple[float, float, float]]:
    """Computes :func:`paired_difference` for several metrics on the same resamples; leaves out those without targets.

    Raises:
      ModelError: A label is unknown, or the queries differ.
    """
    differences = {}
    for label in labels:
        for result in (a, b):
            if label not in result.per_query:
                known = sorted(a.per_query)
                raise ModelError(f"Expected a ranking metric of both results, one of {known}; got {label!r}.")
        x, y = a.per_query[label], b.per_query[label]
        if x.shape != y.shape or not np.array_equal(np.isnan(x), np.isnan(y)):
            raise ModelError(
                f"Expected both results to come from the same queries; {label!r} has other targets in each."
            )
        differences[label] = x - y
    intervals = _intervals(differences, bootstrap, seed, a.users)
    return {label: (_mean(differences[label]), *interval) for label, interval in intervals.items()}


def mean_interval(
    values: np.ndarray,
    users: np.ndarray | None = None,
    *,
    confidence: float = 0.95,
    bootstrap: int = 1000,
    seed: int = 42,
) -> tuple[float, float] | None:
    """Computes the percentile bootstrap interval of the mean of ``values``.

    Args:
      values: Float64 ``[B]``; NaN are left out.
      users: As :attr:`Result.users`.
      confidence: The confidence level of the interval.
      bootstrap: Number of resamples.
      seed: Seed of the resamples.

    Returns:
      The low and high end, or ``None`` if all values are NaN or there are no resamples.
    """
    return _intervals({"": values}, bootstrap, seed, users, confidence).get("")


def _mean_over_seeds(values: np.ndarray) -> np.ndarray:
    """Returns the mean of each column of ``[S, B]`` without its NaN; NaN if a column has only NaN."""
    known = ~np.isnan(values)
    sizes = known.sum(axis=0)
    return np.where(sizes > 0, np.where(known, values, 0.0).sum(axis=0) / np.maximum(sizes, 1), np.nan)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _intervals(
    per_query: Mapping[str, np.ndarray], resamples: int, seed: int, users: np.ndarray | None, confidence: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Returns percentile intervals of the means over the queries that have a value."""
    labels = [label for label, values in per_query.items() if not np.isnan(values).all()]
    if not labels or resamples < 1:
        return {}
    values = np.stack([per_query[label] for label in labels], axis=1)  # [B, M]
    known = ~np.isnan(values)
    resampled = _resampled_ratios(np.where(known, values, 0.0), known.astype(np.float64), resamples, seed, users)
    # A rare stratum may be missing from some resamples; these are left out.
    return {
        label: (float(np.quantile(column, (1 - confidence) / 2)), float(np.quantile(column, (1 + confidence) / 2)))
        for label, column in ((label, c[~np.isnan(c)]) for label, c in zip(labels, resampled.T, strict=True))
        if len(column)
    }


def _resampled_ratios(
    sums: np.ndarray, sizes: np.ndarray, resamples: int, seed: int, users: np.ndarray | None
) -> np.ndarray:
    """Computes ``sum(sums) / sum(sizes)`` of users drawn with replacement: float64 ``[B, M]`` -> ``[resamples, M]``.

    Queries of one user are not independent, so they are drawn together (cluster bootstrap: Davison and Hinkley 1997,
    "Bootstrap methods and their application", section 3.8).
    """
    both = np.concatenate([sums, sizes], axis=1)
    if users is not None:
        user = np.unique(users, return_inverse=True)[1]
        both = np.stack([np.bincount(user, column) for column in both.T], axis=1)
    n = len(both)
    rng = np.random.default_rng(seed)
    ratios = []
    for start in range(0, resamples, 64):  # in parts, so that the [64, B] weights stay small
        rows = min(64, resamples - start)
        drawn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
        drawn_sums, drawn_sizes = np.split(weights @ both, 2, axis=1)
        ratios.append(np.where(drawn_sizes > 0, drawn_sums / np.maximum(drawn_sizes, 1e-300), np.nan))
    return np.concatenate(ratios)
