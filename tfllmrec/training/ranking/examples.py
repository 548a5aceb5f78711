"""Examples for the ranking model: lists of candidates with the next item, and rated events with their histories."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from tfllmrec.columns import ITEM_INDEX, RATING, USER
from tfllmrec.config import RankingConfig
from tfllmrec.data.batches import like_lengths
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.schema import RATING_KEY
from tfllmrec.data.splits import Split
from tfllmrec.evaluation.metrics import masked, top_items
from tfllmrec.models.ranking import RankingModel, RatingScale
from tfllmrec.models.rating_factors import RatingFactors
from tfllmrec.models.servable import Servable
from tfllmrec.progress import show_progress

#: Number of items sampled for each list from those that are not candidates; they represent all others.
DRAWN = 50
#: Largest numbers of lists (of up to 100 candidates), rated events, and users of rated events for training. If lists
#: are longer, fewer are used.
LISTS, RATED, RATERS = 20_000, 20_000, 1_000
#: Largest number of scores that the hybrid computes for the lists, and again for the rated events; with more than
#: 150,000 items, there are fewer lists and events. It limits the work and not the time, so that the same seed gives the
#: same model on every machine.
SCORED = 3_000_000_000
#: Number of rated events in a step, in addition to its lists.
RATED_BATCH = 256
#: Largest number of scores in a block.
SCORES = 50_000_000

#: Entries of the examples that have one column for each event of the history.
OF_EVENTS = ("recent", "marks")

Examples = dict[str, np.ndarray]


def most_lists(config: RankingConfig, n_items: int) -> int:
    """Returns the largest number of lists for training."""
    return min(LISTS * 100 // max(config.candidates, 100), SCORED // n_items)


def lists_of(model: RankingModel, hybrid: Servable, queries: Queries, candidates: int, seed: int) -> Examples:
    """Returns the examples ``lists`` of ``RankingModel.compute_loss`` for all queries.

    A list contains the hybrid's best ``candidates`` that are not excluded, the first target even if it is not among
    these, and a sample of all other items, but none of the query's other targets, which are not wrong. Each sampled
    item represents many items and is weighted accordingly (``log_times``), and so is a target that is not among the
    candidates. Otherwise, a low score would reveal the target, because no other item could be in the list with a low
    score. So the loss approximates that of the softmax over the catalogue, and the model is valid for lists from any
    source (importance sampling: Bengio and Senecal 2003, "Quick training of probabilistic neural nets by importance
    sampling").

    Args:
      model: The ranking model.
      hybrid: The fitted hybrid.
      queries: Queries that all have targets.
      candidates: The number of candidates.
      seed: Random seed of the sampled items.
    """
    generator = np.random.default_rng(seed)
    n_items, parts = hybrid.n_items, []
    given = tf.function(model.given, reduce_retracing=True, autograph=False)
    order = np.argsort(queries.history.lengths, kind="stable")  # similar lengths together, as in the model's score
    ordered, size = queries.take(order), max(1, min(hybrid.rows_at_once, SCORES // n_items))
    for start in _starts("Scoring lists to learn from", "lists", len(ordered), size):
        batch = ordered.slice(start, start + size)
        target = batch.targets.values[batch.targets.offsets[:-1]]
        scores = masked(hybrid.score(batch), batch)
        best = top_items(scores, min(candidates, n_items))
        row = np.arange(len(batch))
        found = (best == target[:, np.newaxis]).any(axis=1)
        best = without_other_targets(best, batch.targets, -1)
        scores[batch.targets.row_of_value, batch.targets.values] = -np.inf
        scores[row[:, np.newaxis], np.where(best >= 0, best, target[:, np.newaxis])] = -np.inf
        drawn = np.full((len(batch), min(DRAWN, n_items)), -1)
        times = np.ones(len(batch))
        for i in row:
            others = np.flatnonzero(np.isfinite(scores[i]))
            chosen = generator.choice(others, min(drawn.shape[1], len(others)), replace=False)
            drawn[i, : len(chosen)] = chosen
            times[i] = max(len(others) / max(len(chosen), 1), 1)
        items = np.hstack([best, np.where(found, -1, target)[:, np.newaxis], drawn])
        items = np.where(items >= 0, items, n_items).astype(np.int32)
        known = given(
            model.item_vectors,
            {key: tf.constant(values) for key, values in hybrid.query_inputs(batch).items()},
            tf.constant(items),
        )
        log_times = np.where(np.arange(items.shape[1]) < best.shape[1], 0, np.log(times)[:, np.newaxis])
        label = np.argmax(items == target[:, np.newaxis], axis=1)
        parts.append(known | {"log_times": log_times.astype(np.float32), "label": label.astype(np.int32)})
    return rows_of(_joined(parts, model), np.argsort(order))


def without_other_targets(items: np.ndarray, targets: Ragged, absent: int) -> np.ndarray:
    """Replaces all targets of a query except the first by ``absent`` in ``items``, int ``[B, M]``."""
    row, target = targets.row_of_value, targets.values
    other = target != target[targets.offsets[:-1]][row]
    width = max(int(items.max(initial=0)), int(target.max(initial=0))) + 2
    codes = np.arange(len(items))[:, np.newaxis] * width + items
    return np.where(np.isin(codes, row[other] * width + target[other]), absent, items)


def rated_events(
    model: RankingModel,
    hybrid: Servable,
    split: Split,
    scale: RatingScale,
    seed: int,
    factors: RatingFactors | None = None,
    among: np.ndarray | None = None,
) -> tuple[Examples | None, np.ndarray]:
    """Returns the examples ``rated`` of ``RankingModel.compute_loss``: training events with their previous histories.

    There are at most :data:`RATED` events of :data:`RATERS` users, among the newest events that the hybrid reads, and
    fewer if :data:`SCORED` limits them. The bias of an item, or its ``factors``, are computed without the rating that
    is to be predicted. The fields of the request are those of the rated event, except texts, which are missing.

    Args:
      model: The ranking model.
      hybrid: The fitted hybrid.
      split: The split with the training events.
      scale: The biases of ratings.
      seed: Random seed of the sampled users and events.
      factors: The factor model of ratings, if it replaces the biases.
      among: Bool ``[U]``, users of ``Split.train_queries()`` whose events are used; by default all.

    Returns:
      The examples, ``None`` if there are none; and the user id of each, object ``[E]``.
    """
    generator = np.random.default_rng(seed)
    everybody = split.train_queries()
    may = everybody.history.lengths >= 2
    may = may if among is None else may & among
    users = everybody.take(generator.permutation(np.flatnonzero(may))[:RATERS])
    users = users.take(np.argsort(users.history.lengths, kind="stable"))
    of_users = None if factors is None else factors.users(users.history, users.ratings)
    n_items, width = hybrid.n_items, hybrid.history_length
    inputs = users.inputs(n_items, [RATING_KEY], width + 1)
    items, ratings = inputs["history"], inputs[RATING_KEY]
    wanted = np.argwhere(np.isfinite(ratings[:, 1:]))
    wanted = wanted[np.sort(generator.permutation(len(wanted))[: min(RATED, SCORED // n_items)])].astype(np.int32)

    # Training queries have no request: each event has its own, which is known after the event before it.
    of_requests = {key: f"event.{key.partition('.')[2]}" for key in hybrid.reads if key.startswith("request.")}
    of_requests = {
        key: of_event
        for key, of_event in of_requests.items()
        if of_event in users.fields and key not in hybrid.reads_texts
    }

    def after_events(query, row, at, target):
        """Returns the inputs of the network after the events ``at`` of the rows ``row`` of ``query``."""
        terms = hybrid.terms_after(model.item_vectors, query, row, at, target)
        event = tf.stack([row, at], axis=1)
        before = {
            key: tf.gather_nd(values, event) if key in of_requests else tf.gather(values, row)
            for key, values in query.items()
        }
        known = tf.range(tf.shape(query["history"])[1]) <= at[:, tf.newaxis]
        before["history"] = tf.where(known, before["history"], n_items)
        return model.given(model.item_vectors, before, target, terms)

    given = tf.function(after_events, reduce_retracing=True, autograph=False)
    size = max(1, min(16, hybrid.rows_at_once, SCORES // (n_items * width)))
    parts = []
    for start in _starts("Scoring rated events", "users", len(users), size):
        here = wanted[slice(*np.searchsorted(wanted[:, 0], [start, start + size]))]
        if not len(here):
            continue
        target = items[here[:, 0], here[:, 1] + 1]
        until = here[:, 1].max() + 1
        batch = users.slice(start, start + size)
        some = hybrid.query_inputs(batch, width + 1)
        asked = batch.inputs(n_items, of_requests.values(), width + 1)
        some |= {key: asked[of_event][:, 1:] for key, of_event in of_requests.items()}
        of_events = {"history", *of_requests}
        known = given(
            {
                key: tf.constant(values[:, :until] if key in of_events or key.startswith("event.") else values)
                for key, values in some.items()
            },
            tf.constant(here[:, 0] - start),
            tf.constant(here[:, 1]),
            tf.constant(target[:, np.newaxis]),
        )
        rating = ratings[here[:, 0], here[:, 1] + 1]
        if factors is None or of_users is None:
            own = scale.item_bias[target] - scale.bias_without(target, rating)
        else:
            own = factors.without(of_users[here[:, 0]], target, rating)
        parts.append(known | {"rating": rating, "prior": known["prior"] - own[:, np.newaxis].astype(np.float32)})
    return _joined(parts, model) if parts else None, users.user_ids[wanted[:, 0]]


def _starts(label: str, unit: str, total: int, size: int) -> Iterator[int]:
    """Yields the start of each block of ``size``, with a progress bar over ``total``."""
    with show_progress(label, unit) as progress:
        for start in range(0, total, size):
            yield start
            progress(min(start + size, total), total)


def target_ratings(events: pd.DataFrame | None, queries: Queries) -> np.ndarray:
    """Returns the rating of the first target of each query, float32 ``[B]``; NaN for none.

    Args:
      events: As in :func:`ratings_of_targets`.
      queries: Queries that all have targets.
    """
    return ratings_of_targets(events, queries)[queries.targets.offsets[:-1]]


def ratings_of_targets(events: pd.DataFrame | None, queries: Queries) -> np.ndarray:
    """Returns the rating of each target, float32 ``[V]``, in the order of ``queries.targets.values``; NaN for none.

    Args:
      events: The events with the targets, ``Split.validation_events`` or ``Split.test_events``. Several events of a
        user with the same item are matched in their order.
      queries: The queries.
    """
    assert events is not None
    targets = pd.DataFrame({USER: queries.user_ids[queries.targets.row_of_value], ITEM_INDEX: queries.targets.values})
    pair = [USER, ITEM_INDEX]
    own, asked = (
        pd.MultiIndex.from_arrays([*(table[name] for name in pair), table.groupby(pair, sort=False).cumcount()])
        for table in (events, targets)
    )
    return pd.Series(events[RATING].to_numpy(), index=own).reindex(asked).to_numpy(np.float32)


def batches(
    lists: Examples, rated: Examples | None, batch_size: int, seed: list[int], n_items: int
) -> Iterator[dict[str, Examples]]:
    """Yields the batches of one epoch, which depend only on the seed and the examples.

    An epoch contains every list once, and each batch also :data:`RATED_BATCH` rated events. Lists with histories of
    similar length are batched together, because the time of a step depends on its longest history.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(lists["label"]))
    lengths = lengths_of(lists, n_items)[order]
    others = generator.permutation(len(rated["rating"])) if rated is not None else np.empty(0, int)
    for step, rows in enumerate(like_lengths(order, lengths, batch_size, generator)):
        batch = {"lists": trimmed(rows_of(lists, rows), n_items)}
        if rated is not None:
            places = np.arange(step * RATED_BATCH, (step + 1) * RATED_BATCH)
            batch["rated"] = trimmed(rows_of(rated, np.take(others, places, mode="wrap")), n_items)
        yield batch


def _joined(parts: list[dict[str, Any]], model: RankingModel) -> Examples:
    """Concatenates batches of examples, and pads their events to the same width."""
    fill = {"recent": model.n_items, "marks": np.nan}
    for part in parts:
        for name, value in fill.items():
            missing = model.length - part[name].shape[1]
            part[name] = np.pad(part[name], ((0, 0), (0, missing)), constant_values=value)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def rows_of(examples: Examples, rows: np.ndarray) -> Examples:
    return {name: values[rows] for name, values in examples.items()}


def lengths_of(examples: Examples, n_items: int) -> np.ndarray:
    """Returns the number of events in each history, int64 ``[B]``."""
    return (examples["recent"] < n_items).sum(axis=1)


def trimmed(examples: Examples, n_items: int) -> Examples:
    """Cuts histories to the longest one, so that no column is empty in every row."""
    width = max(lengths_of(examples, n_items).max(initial=0), 1)
    return examples | {name: examples[name][:, :width] for name in OF_EVENTS}


def dataset_of(
    generator: Callable[[], Iterator[dict[str, Examples]]], lists: Examples, rated: Examples | None, steps: int
) -> tf.data.Dataset:
    groups = {"lists": lists} | ({} if rated is None else {"rated": rated})
    signature = {
        group: {
            name: tf.TensorSpec((None, None) if name in OF_EVENTS else (None, *values.shape[1:]), values.dtype)
            for name, values in examples.items()
        }
        for group, examples in groups.items()
    }
    made = tf.data.Dataset.from_generator(generator, output_signature=signature)
    return made.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(2)
