"""Learns the labels of a user's next items; drops the result if it is not better than counting the history's labels.

The head is trained on training events without the hybrid. The hybrid was fitted on the same events, so its
recommendations for them are better than for new events. The three weights and the sharpness are therefore chosen on
validation queries.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import tensorflow as tf

from tfllmrec.data.queries import LONGEST, Queries
from tfllmrec.data.sampling import evenly_spread
from tfllmrec.data.schema import RATING_KEY
from tfllmrec.durable import read_json, write_folder
from tfllmrec.evaluation.metrics import masked, top_items
from tfllmrec.evaluation.protocol import mean_interval, users_of
from tfllmrec.layers.interest_forecast import (
    CANDIDATES,
    CELLS_AT_ONCE,
    SCALE,
    InterestForecast,
    LabelHead,
    Learned,
    distribution,
)
from tfllmrec.layers.interest_profile import InterestProfile
from tfllmrec.layers.label_match import LabelMatch
from tfllmrec.models.interests import FAST, Interests, LabelForecast
from tfllmrec.models.servable import SCORE_BATCH, Servable
from tfllmrec.progress import Tell, show_progress
from tfllmrec.training.callbacks import claim
from tfllmrec.training.fingerprint import fingerprint, queries_fingerprint
from tfllmrec.training.optimizer import adamw

#: Largest number of training events for the head, and of validation queries.
EVENTS, QUERIES = 150_000, 5_000
#: Smallest number of validation queries for learning; fewer give no reliable estimate.
FEWEST = 30
EPOCHS, BATCH, RANK = 4, 256, 64
PEAK, WEIGHT_DECAY, DROPOUT = 5e-3, 0.05, 0.3
#: Number of epochs and peak learning rate of a head that starts from an earlier one.
MORE_EPOCHS, MORE_PEAK = 1, 2e-3
#: Factors of the scores of recommended items to try.
SHARPNESS = np.geomspace(0.25, 4, 9)
#: Number of steps of the expectation maximisation of the mixture.
STEPS = 50
#: Number of labels of a list for evaluation.
LISTED = 5

RECORD, FORECAST, MADE_FROM = "record.json", "forecast.npz", "made_from.json"
REMEDY = "copy the folder back, or fit again"


@dataclass(frozen=True, kw_only=True)
class InterestRecord:
    """The training data of a forecast of labels, and its quality on validation queries.

    Attributes:
      events: The number of training events for the head.
      queries: The number of validation queries.
      epochs: The number of epochs with the lowest loss on the validation queries. With 0, the head only knows the
        frequencies of labels or, in an update, is that of the parent.
      mixture: The weights of counted, learned and recommended labels.
      sharpness: The factor of the scores of recommended items.
      precision: The share of the first five labels that a target has; of the mixture, then of counted labels.
      precision_interval: The low and the high end of the 95 % interval of the difference in precision, paired over
        users; empty if there are too few users for one.
      specific: The recall@5 in which each label is weighted by its inverse document frequency; of the mixture, then of
        counted labels.
      kept: Whether the interval of the difference in precision is above 0, and ``specific`` is not lower.
      seconds: The time of fitting in seconds.
    """

    events: int
    queries: int
    epochs: int
    mixture: list[float]
    sharpness: float
    precision: list[float]
    precision_interval: list[float]
    specific: list[float]
    kept: bool
    seconds: float

    @classmethod
    def load(cls, folder: Path) -> InterestRecord:
        """Loads the record of a folder that :func:`prepared_forecast` wrote.

        Raises:
          ModelError: The record is damaged.
        """
        return read_json(folder / RECORD, cls, REMEDY)

    def line(self) -> str:
        """Returns a line for users."""
        counted, learned, recommended = self.mixture
        interval = "no interval"
        if self.precision_interval:
            low, high = self.precision_interval
            interval = f"difference {low:+.4f} to {high:+.4f}, 95 % interval"
        return (
            f"{'kept' if self.kept else 'left out'}: precision@{LISTED} {self.precision[0]:.4f}, counted labels "
            f"{self.precision[1]:.4f} ({interval}, {self.queries:,} validation queries); recall@{LISTED} of specific "
            f"labels {self.specific[0]:.4f}, counted {self.specific[1]:.4f}; weights: counted {counted:.2f}, learned "
            f"{learned:.2f}, recommended {recommended:.2f}"
        )


@dataclass(frozen=True, eq=False)
class HeadStart:
    """The earlier forecast from which an update starts, and the users for its training.

    Attributes:
      forecast: The forecast of the earlier run, kept or dropped; its labels may be different.
      users: Bool ``[U]``, the users of ``train`` on whose events the head is trained.
    """

    forecast: LabelForecast
    users: np.ndarray

    @classmethod
    def of(cls, folder: Path, users: np.ndarray) -> HeadStart | None:
        """Loads the forecast of a folder that :func:`prepared_forecast` wrote; returns ``None`` if there is none.

        Raises:
          ModelError: The folder is damaged.
        """
        return cls(LabelForecast.load(folder / FORECAST, REMEDY), users) if folder.is_dir() else None


def prepared_forecast(
    folder: Path,
    found: Interests,
    train: Queries,
    validation: Queries,
    hybrid: Servable,
    seed: int,
    tell: Tell,
    start: HeadStart | None = None,
) -> LabelForecast | None:
    """Loads the forecast in ``folder``, or fits it if it is not there yet; returns ``None`` if it is dropped.

    It also returns ``None`` if there is too little to learn from. ``tell`` is called with a line for each step; the
    other arguments are those of :func:`fit_forecast`.

    Raises:
      ModelError: The folder is damaged, or belongs to other labels, other data or another hybrid.
    """
    asked = targets_of(found, validation.take(evenly_spread(len(validation), QUERIES)))
    if (usable := int((np.diff(asked.indptr) > 0).sum())) < FEWEST and not folder.is_dir():
        tell(
            f"interests: labels are counted, not learned: only {usable} validation queries have a target with labels; "
            f"at least {FEWEST} are needed"
        )
        return None
    made_from = _made_from(found, train, validation, hybrid, seed, start)
    if folder.is_dir():
        claim(folder / MADE_FROM, made_from)
    else:
        tell("interests: learning which labels come next")
        fitted = fit_forecast(found, train, validation, hybrid, seed, start)
        assert fitted is not None
        forecast, record = fitted

        def write(fresh: Path) -> None:
            fresh.mkdir()
            forecast.save(fresh / FORECAST)
            (fresh / RECORD).write_text(json.dumps(asdict(record), indent=1))
            claim(fresh / MADE_FROM, made_from)

        write_folder(folder, write)
        tell(f"interests: {record.line()}")
    return load_forecast(folder)


def _made_from(
    found: Interests, train: Queries, validation: Queries, hybrid: Servable, seed: int, start: HeadStart | None
) -> dict[str, Any]:
    """Returns all settings and data on which the forecast depends, as JSON values."""
    labels = found.labels.astype(str)
    settings: dict[str, Any] = {}
    if start is not None:
        earlier = start.forecast
        tables = fingerprint(earlier.labels.astype(str), earlier.slow, earlier.fast, earlier.out, earlier.bias)
        settings = {"start": [MORE_EPOCHS, MORE_PEAK, tables, fingerprint(start.users)]}
    return settings | {
        "seed": seed,
        "settings": [EVENTS, QUERIES, EPOCHS, BATCH, RANK, PEAK, WEIGHT_DECAY, DROPOUT, STEPS, CANDIDATES, SCALE, FAST],
        "counting": [found.decay, found.liking, found.spread],
        "labels": fingerprint(labels, found.columns, found.weights),
        "training events": queries_fingerprint(chosen(train)),
        "validation queries": queries_fingerprint(chosen(validation)),
        "weights of the hybrid": fingerprint(*hybrid.learned),
    }


def load_forecast(folder: Path) -> LabelForecast | None:
    """Loads the forecast that :func:`prepared_forecast` wrote; returns ``None`` if it was dropped or there is none.

    Raises:
      ModelError: The folder is damaged.
    """
    if not folder.is_dir():
        return None
    return LabelForecast.load(folder / FORECAST, REMEDY) if InterestRecord.load(folder).kept else None


def fit_forecast(
    found: Interests,
    train: Queries,
    validation: Queries,
    hybrid: Servable,
    seed: int,
    start: HeadStart | None = None,
) -> tuple[LabelForecast, InterestRecord] | None:
    """Trains the head on training events, and fits the mixture on validation queries.

    Args:
      found: The labels of the catalogue.
      train: The training history of each user.
      validation: Queries with targets that the hybrid has not seen.
      hybrid: A fitted hybrid; it is not changed.
      seed: Random seed of the sampled events, their order, and the initial weights.
      start: The head starts from the weights of this forecast, and is trained for at most :data:`MORE_EPOCHS` epochs on
        its users. Labels that it does not contain start with weights of 0 and the bias of their frequency. By default,
        the head starts from random weights, and is trained for at most :data:`EPOCHS` epochs on all users.

    Returns:
      The forecast and its record, which tells whether it is better than counted labels; ``None`` if there is too little
      to learn from.
    """
    began = time.monotonic()
    train, validation = chosen(train), chosen(validation.take(evenly_spread(len(validation), QUERIES)))
    validation = validation.take(np.flatnonzero(np.diff(targets_of(found, validation).indptr)))
    if len(validation) < FEWEST:
        return None
    profile = profile_of(found)
    after = _Events(train if start is None else train.take(start.users), profile, seed)
    first = _first_head(found, profile, train, seed, None if start is None else start.forecast)
    epochs, peak = (EPOCHS, PEAK) if start is None else (MORE_EPOCHS, MORE_PEAK)
    head, epochs = _fit_head(first, found, profile, after, validation, seed, epochs, peak)
    items, scores = recommended_items(hybrid, validation)
    mixture, sharpness = _weigh(found, profile, head, validation, items, scores)
    tables = (head.slow.numpy(), head.fast.numpy(), head.out.numpy(), head.bias.numpy())
    forecast = LabelForecast(found.labels, *tables, mixture, sharpness, FAST, head.scale)

    wanted = targets_of(found, validation)
    lists = (listed(found, one, validation, items, scores, LISTED) for one in (forecast, None))
    figures = [label_figures(found, some, wanted) for some in lists]
    gain = figures[0].precision - figures[1].precision
    interval = mean_interval(gain, users_of(validation.user_ids), seed=seed) or ()
    precision, specific = ([float(np.mean(getattr(f, name))) for f in figures] for name in ("precision", "specific"))
    record = InterestRecord(
        events=len(after),
        queries=len(validation),
        epochs=epochs,
        mixture=[float(weight) for weight in mixture],
        sharpness=sharpness,
        precision=precision,
        precision_interval=[float(end) for end in interval],
        specific=specific,
        kept=bool(interval and interval[0] > 0 and specific[0] >= specific[1]),
        seconds=round(time.monotonic() - began, 1),
    )
    return forecast, record


def chosen(queries: Queries) -> Queries:
    """Reduces queries to the inputs of the signature ``interests``: the history's choices and their ratings."""
    ratings, weights = queries.ratings, queries.weights
    if weights is not None:
        ratings = ratings.where(weights.values > 0)
    return replace(queries, history=queries.choices, fields={RATING_KEY: ratings}, weights=None)


def profile_of(found: Interests, fast: float = FAST) -> InterestProfile:
    """Creates the layer that counts the labels ``found``."""
    return InterestProfile(
        found.columns, found.weights, len(found.labels), found.decay, found.liking, found.spread, fast
    )


def forecast_of(found: Interests, forecast: LabelForecast | None) -> InterestForecast:
    """Creates the layer that lists the labels ``found``; without a ``forecast``, it lists counted labels."""
    if forecast is None:
        return InterestForecast(profile_of(found))
    profile, head = _counted_and_learned(found, forecast)
    return InterestForecast(profile, Learned(head, forecast.mixture.tolist(), forecast.sharpness))


def match_of(found: Interests | None, forecast: LabelForecast | None) -> LabelMatch | None:
    """Creates the layer that compares the labels ``found`` of candidates with a user's interests.

    Without labels, or without a forecast, there is no such layer: ``None``.
    """
    if found is None or forecast is None:
        return None
    return LabelMatch(*_counted_and_learned(found, forecast), name="labels")


def _counted_and_learned(found: Interests, forecast: LabelForecast) -> tuple[InterestProfile, LabelHead]:
    known = forecast.of_labels(found.labels)
    return profile_of(found, known.fast_decay), LabelHead(known.slow, known.fast, known.out, known.bias, known.scale)


# Evaluation ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelFigures:
    """The quality of lists of labels, for queries whose targets have labels.

    Attributes:
      precision: Float64 ``[B]``, the share of the listed labels that a target has.
      recall: Float64 ``[B]``, the share of the targets' labels that are listed.
      specific: Float64 ``[B]``, the recall in which each label is weighted by its inverse document frequency.
    """

    precision: np.ndarray
    recall: np.ndarray
    specific: np.ndarray


def targets_of(found: Interests, queries: Queries) -> sp.csr_array:
    """Sums the weights of the labels of the targets of each query: sparse float32 ``[B, C]``."""
    n, c = len(found.columns), len(found.labels)
    rows = np.arange(n).repeat(found.columns.shape[1])
    weights = sp.csr_array((found.weights.ravel(), (rows, found.columns.ravel())), (n, c + 1))
    target = queries.targets
    held = sp.csr_array(
        (np.ones(len(target.values), np.float32), (target.row_of_value, target.values)), (len(target), n)
    )
    wanted = sp.csr_array((held @ weights)[:, :c])
    wanted.eliminate_zeros()
    wanted.sort_indices()
    return wanted


def label_figures(found: Interests, lists: np.ndarray, wanted: sp.csr_array) -> LabelFigures:
    """Measures lists of labels.

    Args:
      found: The labels of the catalogue.
      lists: Int ``[B, K]``, padded with C.
      wanted: The labels of the targets, from :func:`targets_of`; at least one in each row.
    """
    idf = np.append(-np.log(np.maximum(found.share, 1 / len(found.columns))), 0.0)
    c, count = len(found.labels), np.diff(wanted.indptr)
    row = np.repeat(np.arange(len(lists)), count)
    # Pairs of row and label are compared as positions in a flat table ``[B, C + 1]``.
    hit = np.isin(np.arange(len(lists))[:, np.newaxis] * (c + 1) + lists, row * (c + 1) + wanted.indices)
    whole = np.bincount(row, idf[wanted.indices], minlength=len(lists))
    return LabelFigures(hit.mean(axis=1), hit.sum(axis=1) / count, (hit * idf[lists]).sum(axis=1) / whole)


def recommended_items(hybrid: Servable, queries: Queries) -> tuple[np.ndarray, np.ndarray]:
    """Returns the best items of each query that are not excluded, and their scores: int32 and float32 ``[B, M]``.

    Rows are padded with N and 0. As in the signature ``interests``, the hybrid reads histories and ratings, and no
    other field.
    """
    queries = chosen(queries)
    items = np.full((len(queries), min(CANDIDATES, hybrid.n_items)), hybrid.n_items, np.int32)
    values = np.zeros(items.shape, np.float32)
    with show_progress("Scoring items for interests", "queries") as progress:
        for start in range(0, len(queries), SCORE_BATCH):
            batch = queries.slice(start, start + SCORE_BATCH)
            scores = masked(hybrid.score(batch), batch)
            best, rows = top_items(scores, items.shape[1]), slice(start, start + len(batch))
            there = best >= 0
            items[rows] = np.where(there, best, hybrid.n_items)
            values[rows] = np.where(there, np.take_along_axis(scores, np.maximum(best, 0), axis=1), 0)
            progress(start + len(batch), len(queries))
    return items, values


def listed(
    found: Interests, forecast: LabelForecast | None, queries: Queries, items: np.ndarray, scores: np.ndarray, k: int
) -> np.ndarray:
    """Returns the labels that the exported model lists for each query, int ``[B, k]``, padded with C.

    Args:
      found: The labels of the catalogue.
      forecast: The forecast; ``None`` for counted labels.
      queries: The queries.
      items: The recommended items, from :func:`recommended_items`.
      scores: Their scores, from :func:`recommended_items`.
      k: The number of labels.
    """
    ask, rows = tf.function(forecast_of(found, forecast), reduce_retracing=True, autograph=False), []
    queries = chosen(queries)
    for start in range(0, len(queries), BATCH):
        some = slice(start, start + BATCH)
        inputs = _inputs(queries.slice(start, start + BATCH), len(found.columns))
        labels = ask(*inputs, tf.constant(items[some]), tf.constant(scores[some]), tf.constant([k]))[0].numpy()
        rows.append(np.pad(labels, ((0, 0), (0, k - labels.shape[1])), constant_values=len(found.labels)))
    return np.concatenate(rows)


def _batch(n_labels: int) -> int:
    """Returns the number of rows of a batch, so that a table with a column for each label fits into memory."""
    return max(min(BATCH, CELLS_AT_ONCE // (n_labels + 1)), 1)


def _inputs(queries: Queries, n_items: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns histories and ratings as tensors."""
    inputs = queries.inputs(n_items, [RATING_KEY])
    return tf.constant(inputs["history"]), tf.constant(inputs[RATING_KEY])


# Training ------------------------------------------------------------------------------------------------------------


class _Events:
    """Training events that have labels, each with its previous history.

    Args:
      train: The training history of each user.
      profile: Counts the labels. If it ignores the order of events, each history is shuffled once, because otherwise
        the history before an event would depend on the order of the file.
      seed: Random seed of the sampled events and their order.
    """

    def __init__(self, train: Queries, profile: InterestProfile, seed: int) -> None:
        self.train, self.profile, self.rng = train, profile, np.random.default_rng(seed)
        history = train.history
        order = np.arange(len(history.values))
        if profile.decay == 1:
            order = np.lexsort((self.rng.random(len(order)), history.row_of_value))
        self.items, self.ratings = history.values[order], train.ratings.values[order]
        place = np.arange(len(history.values)) - history.offsets[history.row_of_value]
        labelled = profile.columns.numpy()[self.items, 0] < profile.n_labels
        event = np.flatnonzero((place > 0) & labelled)
        self.event = self.rng.permutation(event)[:EVENTS]
        self.first = history.offsets[history.row_of_value[self.event]]

    def __len__(self) -> int:
        return len(self.event)

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields the batches of one epoch.

        Each contains the histories int32 ``[B, L]`` and ratings float32 ``[B, L]`` before events, and the items of the
        events, int32 ``[B]``.
        """
        order = self.rng.permutation(len(self))
        items, ratings, size = self.items, self.ratings, _batch(self.profile.n_labels)
        for start in range(0, len(order), size):
            some = order[start : start + size]
            # More events than are counted, because ratings are compared with the mean of the whole history.
            event, length = self.event[some], np.minimum(self.event[some] - self.first[some], LONGEST)
            place = np.arange(length.max())
            there = place < length[:, np.newaxis]
            at = np.where(there, (event - length)[:, np.newaxis] + place, 0)
            history = np.where(there, items[at], self.profile.n_items).astype(np.int32)
            yield history, np.where(there, ratings[at], np.nan).astype(np.float32), items[event].astype(np.int32)


def _first_head(
    found: Interests, profile: InterestProfile, train: Queries, seed: int, earlier: LabelForecast | None
) -> LabelHead:
    """Creates the untrained head, with the weights of an earlier one or random weights.

    Without an earlier head, its bias is the log frequency of each label, and all other terms of its logits are 0.
    """
    rng, c = np.random.default_rng(seed), len(found.labels)
    counts = np.bincount(train.history.values, minlength=len(found.columns)).astype(np.float32)
    frequency = 1.0 + profile.of_items(tf.range(len(found.columns))[tf.newaxis], counts[np.newaxis]).numpy()[0]
    bias = np.log(frequency / frequency.sum())
    if earlier is None:
        slow, fast = (rng.normal(0, 0.05, (c, RANK)) for _ in range(2))
        return LabelHead(slow, fast, np.zeros((c, RANK)), bias)
    known = earlier.of_labels(found.labels)
    bias = np.where(earlier.knows(found.labels), known.bias, bias)
    return LabelHead(known.slow, known.fast, known.out, bias, known.scale)


def _fit_head(
    head: LabelHead,
    found: Interests,
    profile: InterestProfile,
    after: _Events,
    validation: Queries,
    seed: int,
    most_epochs: int,
    peak: float,
) -> tuple[LabelHead, int]:
    """Trains the head; returns it with the weights of the best epoch, and the number of that epoch.

    The best epoch has the lowest loss on the validation queries; it is 0 if no epoch improves the loss. The loss
    of an event is ``-sum_c w_c log p_c`` over the labels c of its item, with weights w.
    """
    c = len(found.labels)

    def loss_of(
        history: tf.Tensor, ratings: tf.Tensor, wanted: tf.Tensor, dropout: float, noise: tf.Tensor | None = None
    ) -> tf.Tensor:
        read = profile(history, ratings)
        logits = head.logits(distribution(read.slow), distribution(read.fast), dropout, noise)
        return -tf.reduce_mean(tf.reduce_sum(wanted * tf.nn.log_softmax(logits), axis=1))

    size = _batch(c)
    optimizer = adamw(peak, max(most_epochs * -(-len(after) // size), 1), 0.05, WEIGHT_DECAY)

    @tf.function(reduce_retracing=True, autograph=False)
    def step(history: tf.Tensor, ratings: tf.Tensor, items: tf.Tensor) -> None:
        wanted = profile.of_items(items[:, tf.newaxis], tf.ones_like(items[:, tf.newaxis], tf.float32))
        with tf.GradientTape() as tape:
            noise = tf.stack([tf.constant(seed, tf.int64), tf.cast(optimizer.iterations, tf.int64)])
            loss = loss_of(history, ratings, wanted, DROPOUT, noise)
        variables = head.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    measured = tf.function(loss_of, reduce_retracing=True, autograph=False)

    def validation_loss() -> float:
        total = 0.0
        for batch in validation.batches(size):
            wanted = tf.constant(targets_of(found, batch).toarray())
            total += len(batch) * float(measured(*_inputs(batch, len(found.columns)), wanted, 0.0))
        return total / len(validation)

    def weights() -> list[np.ndarray]:
        return [variable.numpy() for variable in head.trainable_variables]

    best, lowest, epochs = weights(), validation_loss(), 0
    with show_progress("Learning interests", "events") as progress:
        for epoch in range(most_epochs if len(after) else 0):
            for number, batch in enumerate(after.batches()):
                step(*map(tf.constant, batch))
                progress(epoch * len(after) + min((number + 1) * size, len(after)), most_epochs * len(after))
            if (loss := validation_loss()) < lowest:
                best, lowest, epochs = weights(), loss, epoch + 1
    for variable, value in zip(head.trainable_variables, best, strict=True):
        variable.assign(value)
    return head, epochs


def _weigh(
    found: Interests,
    profile: InterestProfile,
    head: LabelHead,
    queries: Queries,
    items: np.ndarray,
    scores: np.ndarray,
) -> tuple[np.ndarray, float]:
    """Returns the mixture, float32 ``[3]``, and the sharpness that maximise the likelihood of the targets' labels."""
    forecast = InterestForecast(profile, Learned(head, (1.0, 0.0, 0.0), 1.0))

    @tf.function(reduce_retracing=True, autograph=False)
    def of_history(history: tf.Tensor, ratings: tf.Tensor, at: tf.Tensor) -> tf.Tensor:
        """Returns the counted and the learned probabilities of the targets' labels."""
        return tf.stack([tf.gather_nd(part, at) for part in forecast.of_history(profile(history, ratings))])

    @tf.function(reduce_retracing=True, autograph=False)
    def of_items(items: tf.Tensor, scores: tf.Tensor, sharpness: tf.Tensor, at: tf.Tensor) -> tf.Tensor:
        return tf.gather_nd(forecast.recommended(items, scores, sharpness), at)

    found_parts, weights, size = [], [], _batch(len(found.labels))
    for start in range(0, len(queries), size):
        some, batch = slice(start, start + size), queries.slice(start, start + size)
        wanted = targets_of(found, batch)
        row = np.repeat(np.arange(len(batch)), np.diff(wanted.indptr))
        at = tf.constant(np.stack([row, wanted.indices], axis=1), tf.int64)
        best = tf.constant(items[some]), tf.constant(scores[some])
        recommended = [of_items(*best, tf.constant(sharpness, tf.float32), at).numpy() for sharpness in SHARPNESS]
        found_parts.append(np.vstack([of_history(*_inputs(batch, len(found.columns)), at).numpy(), *recommended]))
        weights.append(wanted.data)
    every, weight = np.concatenate(found_parts, axis=1).astype(np.float64), np.concatenate(weights)
    results = []
    for number, sharpness in enumerate(SHARPNESS):
        mixture, likelihood = mixture_of(every[[0, 1, 2 + number]], weight)
        results.append((likelihood, mixture, float(sharpness)))
    _, mixture, sharpness = max(results, key=lambda result: result[0])
    return mixture.astype(np.float32), sharpness


def mixture_of(parts: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the mixture of distributions that maximises the likelihood of observations (expectation maximisation).

    Args:
      parts: Float ``[K, E]``, the probability of each observation by each distribution.
      weight: Float ``[E]``, the weight of each observation.

    Returns:
      The mixture, float64 ``[K]`` with the sum 1, and the mean log likelihood.
    """
    mixture = np.full(len(parts), 1 / len(parts))
    tiny = np.finfo(np.float64).tiny
    for _ in range(STEPS):
        joint = mixture[:, np.newaxis] * parts
        mixture = (weight * joint / np.maximum(joint.sum(axis=0), tiny)).sum(axis=1)
        mixture /= max(mixture.sum(), tiny)
    likelihood = np.log(np.maximum(mixture @ parts, tiny))
    return mixture, float((weight * likelihood).sum() / weight.sum())
