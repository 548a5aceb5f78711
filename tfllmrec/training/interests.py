"""Learns the labels of a user's next items. The result is kept only if it is better than counting the labels of the
history.

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
from tfllmrec.models.interests import FAST, Interests, LabelForecast
from tfllmrec.models.servable import SCORE_BATCH, Servable
from tfllmrec.progress import Tell, show_progress
from tfllmrec.training.callbacks import claim
from tfllmrec.training.fingerprint import fingerprint, queries_fingerprint
from tfllmrec.training.optimizer import adamw

#: Training events that the head learns from at most, and validation queries that are looked at.
EVENTS, QUERIES = 150_000, 5_000
#: Validation queries below which nothing is learned: fewer give no reliable estimate.
FEWEST = 30
EPOCHS, BATCH, RANK = 4, 256, 64
PEAK, WEIGHT_DECAY, DROPOUT = 5e-3, 0.05, 0.3
#: Epochs and peak learning rate of a head that goes on from an earlier one.
MORE_EPOCHS, MORE_PEAK = 1, 2e-3
#: What the scores of recommended items may be multiplied by.
SHARPNESS = np.geomspace(0.25, 4, 9)
#: Steps of the expectation maximisation of the mixture.
STEPS = 50
#: Labels of a list that is measured.
LISTED = 5

RECORD, FORECAST, MADE_FROM = "record.json", "forecast.npz", "made_from.json"
REMEDY = "copy the folder back, or fit again"


@dataclass(frozen=True, kw_only=True)
class InterestRecord:
    """How a forecast of labels was trained, and its quality on validation queries.

    Attributes:
      events: training events that the head learned from. queries: validation queries.
      epochs: of the head, with the lowest loss on the validation queries; 0: it knows only how frequent labels are, or,
        in an update, what the head of its parent knew.
      mixture: the weights of counted, learned and recommended labels. sharpness: of the recommended items' scores.
      precision: the share of the first five labels that the next item has, by the mixture and as counted.
      precision_interval: low and high end of the 95 % interval of the difference, paired over users; empty if there are
        too few users for one.
      specific: recall@5, each label weighted by its inverse document frequency; of the mixture, then of counted labels.
      kept: whether the interval of the difference is above 0 in precision, and ``specific`` is no lower.
      seconds: time to learn it.
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
        """That of a folder that :func:`prepared_forecast` made.

        Raises:
          ModelError: it is damaged.
        """
        return read_json(folder / RECORD, cls, REMEDY)

    def line(self) -> str:
        """For display."""
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
    """What an update learns labels from.

    Attributes:
      forecast: of the earlier run, whether it was kept or left out; of any labels.
      users: bool ``[U]``, the users of ``train`` whose events the head is trained on.
    """

    forecast: LabelForecast
    users: np.ndarray

    @classmethod
    def of(cls, folder: Path, users: np.ndarray) -> HeadStart | None:
        """That of a folder which :func:`prepared_forecast` made; ``None`` if it made none.

        Raises:
          ModelError: the folder is damaged.
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
    """The forecast in ``folder``, made where it is not there yet; ``None`` if it was left out.

    Arguments as in :func:`fit_forecast`; ``tell`` is called with a line for each step.

    Raises:
      ModelError: the folder is damaged, or belongs to other labels, other data or another hybrid.
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
    """All settings and data on which the forecast depends, as JSON values."""
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
    """The forecast that :func:`prepared_forecast` made; ``None`` if it was left out, or in runs without.

    Raises:
      ModelError: the folder is damaged.
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
    """Learns from training events and weighs on validation queries.

    Args:
      found: the labels of the catalogue.
      train: the training history of each user.
      validation: queries with targets, which the hybrid has not seen.
      hybrid: fitted; it is not changed.
      seed: of the events, their order, and the first weights.
      start: the head starts from its weights and is trained for :data:`MORE_EPOCHS` on its users. Labels that it does
        not know begin with no weights and their frequency. By default it starts from random weights and is trained for
        at most :data:`EPOCHS` on all users.

    Returns:
      The forecast and its record, which says whether it is better than counted labels; ``None`` if there is too little
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
    """The queries as the signature ``interests`` has them: the history's choices and their ratings, no other field."""
    ratings, weights = queries.ratings, queries.weights
    if weights is not None:
        ratings = ratings.where(weights.values > 0)
    return replace(queries, history=queries.choices, fields={RATING_KEY: ratings}, weights=None)


def profile_of(found: Interests, fast: float = FAST) -> InterestProfile:
    """The layer that counts these labels."""
    return InterestProfile(
        found.columns, found.weights, len(found.labels), found.decay, found.liking, found.spread, fast
    )


def forecast_of(found: Interests, forecast: LabelForecast | None) -> InterestForecast:
    """The layer that lists these labels; without a ``forecast``, as they are counted."""
    if forecast is None:
        return InterestForecast(profile_of(found))
    known = forecast.of_labels(found.labels)
    head = LabelHead(known.slow, known.fast, known.out, known.bias, known.scale)
    return InterestForecast(profile_of(found, known.fast_decay), Learned(head, known.mixture.tolist(), known.sharpness))


# What is measured ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelFigures:
    """How good lists of labels are: float64 ``[B]`` each, over the queries whose target has any label.

    Attributes:
      precision: the share of the listed labels that a target has.
      recall: the share of the targets' labels that are listed.
      specific: the same, each label counting by its inverse document frequency.
    """

    precision: np.ndarray
    recall: np.ndarray
    specific: np.ndarray


def targets_of(found: Interests, queries: Queries) -> sp.csr_array:
    """The labels of the targets of each query: float32 ``[B, C]``, the sum of each label's weights."""
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
    """How good lists are.

    Args:
      lists: int ``[B, K]``, padded with C. wanted: the labels of the targets, as :func:`targets_of` gives them; no row
        without any.
    """
    idf = np.append(-np.log(np.maximum(found.share, 1 / len(found.columns))), 0.0)
    c, count = len(found.labels), np.diff(wanted.indptr)
    row = np.repeat(np.arange(len(lists)), count)
    # Rows times C + 1 labels, laid out flat.
    hit = np.isin(np.arange(len(lists))[:, np.newaxis] * (c + 1) + lists, row * (c + 1) + wanted.indices)
    whole = np.bincount(row, idf[wanted.indices], minlength=len(lists))
    return LabelFigures(hit.mean(axis=1), hit.sum(axis=1) / count, (hit * idf[lists]).sum(axis=1) / whole)


def recommended_items(hybrid: Servable, queries: Queries) -> tuple[np.ndarray, np.ndarray]:
    """The best items of each query that are not excluded: int32 and their scores float32, ``[B, M]``; N for none.

    As in the signature ``interests``, the hybrid knows histories and ratings, and no other field.
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
    """The labels of each query, int ``[B, k]``, padded with C, as the exported model lists them.

    Args:
      forecast: ``None``: as they are counted. items, scores: as :func:`recommended_items` gives them.
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
    """Rows that are counted together: tables of so many rows and a column for each label have to fit into memory."""
    return max(min(BATCH, CELLS_AT_ONCE // (n_labels + 1)), 1)


def _inputs(queries: Queries, n_items: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Histories and ratings."""
    inputs = queries.inputs(n_items, [RATING_KEY])
    return tf.constant(inputs["history"]), tf.constant(inputs[RATING_KEY])


# How it is learned ---------------------------------------------------------------------------------------------------


class _Events:
    """Training events that have labels, each with the history before it.

    Args:
      profile: counts the labels. Where the order of events says nothing, each history is shuffled once: otherwise what
        comes before an event would depend on how the file happens to be sorted.
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
        """One epoch: histories int32 and ratings float32 ``[B, L]`` before events, and the items int32 ``[B]``."""
        order = self.rng.permutation(len(self))
        items, ratings, size = self.items, self.ratings, _batch(self.profile.n_labels)
        for start in range(0, len(order), size):
            some = order[start : start + size]
            # Longer than what is counted: ratings are compared with the mean of all.
            event, length = self.event[some], np.minimum(self.event[some] - self.first[some], LONGEST)
            place = np.arange(length.max())
            there = place < length[:, np.newaxis]
            at = np.where(there, (event - length)[:, np.newaxis] + place, 0)
            history = np.where(there, items[at], self.profile.n_items).astype(np.int32)
            yield history, np.where(there, ratings[at], np.nan).astype(np.float32), items[event].astype(np.int32)


def _first_head(
    found: Interests, profile: InterestProfile, train: Queries, seed: int, earlier: LabelForecast | None
) -> LabelHead:
    """The head before its training: with the weights of an earlier one, else random; without them, it knows how
    frequent labels are."""
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
    """The head, trained, with the lowest loss on the validation queries, and the number of its epochs.

    The loss of an event is ``-sum_c w_c log p_c`` over the labels c of its item, whose weights are w.
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
    """The mixture float32 ``[3]`` and the sharpness under which the labels of the targets are most likely."""
    forecast = InterestForecast(profile, Learned(head, (1.0, 0.0, 0.0), 1.0))

    @tf.function(reduce_retracing=True, autograph=False)
    def of_history(history: tf.Tensor, ratings: tf.Tensor, at: tf.Tensor) -> tf.Tensor:
        """What is counted and learned of the labels of the targets."""
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
    """The mixture of distributions under which observations are most likely (expectation maximisation).

    Args:
      parts: float ``[K, E]``, the probability of each observation by each distribution.
      weight: float ``[E]``, how many times each observation counts.

    Returns:
      float64 ``[K]`` with the sum 1, and the mean log likelihood.
    """
    mixture = np.full(len(parts), 1 / len(parts))
    tiny = np.finfo(np.float64).tiny
    for _ in range(STEPS):
        joint = mixture[:, np.newaxis] * parts
        mixture = (weight * joint / np.maximum(joint.sum(axis=0), tiny)).sum(axis=1)
        mixture /= max(mixture.sum(), tiny)
    likelihood = np.log(np.maximum(mixture @ parts, tiny))
    return mixture, float((weight * likelihood).sum() / weight.sum())
