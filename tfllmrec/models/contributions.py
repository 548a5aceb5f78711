"""Splits a score into the contributions of the events of a history, and remainders. The parts add up to the score.

The behaviour term is a sum over events. So is the feedback profile before it is divided by its length; all parts are
divided by the same length. The meaning term is not a sum, so its parts are integrated gradients (Sundararajan et al.,
"Axiomatic Attribution for Deep Networks", ICML 2017). The path scales the vectors of the events from zero to their
values, and the fields of the request and its user from missing to given. Layer norms make the term change most near the
start of the path, so the steps are evenly spaced in the logarithm of the scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tensorflow as tf

from tfllmrec.data.queries import LONGEST, Queries
from tfllmrec.data.schema import RATING_KEY
from tfllmrec.errors import DataError
from tfllmrec.layers.rows_of import rows_of
from tfllmrec.layers.unit import unit
from tfllmrec.models.servable import Query

if TYPE_CHECKING:
    from tfllmrec.models.hybrid import Hybrid

#: Number of steps of the integration path, and the scale at which it starts.
STEPS, START = 32, 1e-5
#: Number of items explained at once. It bounds the memory: ``AT_ONCE * STEPS`` histories go through the encoder.
AT_ONCE = 4
#: Largest number of items that one call explains.
MOST_ITEMS = 100


class Contributions(NamedTuple):
    """The parts of the scores of M items for one query, with T terms in the order of ``Hybrid.term_names``.

    ``score = popularity + sum(events) + fields + sum(anyone)``.

    Attributes:
      events: The contribution of each of the newest :data:`LONGEST` events of the history, float32 ``[L, M, T]``.
      fields: The contribution of the fields of the request and its user to the meaning term, float32 ``[M]``.
      anyone: The remainder of each term, float32 ``[M, T]``: the score of a user of whom nothing is known, the offset
        of the gates, and the error of the integration.
      popularity: The popularity log(1 + n) for a query without a history, otherwise 0; float32 ``[M]``.
    """

    events: np.ndarray
    fields: np.ndarray
    anyone: np.ndarray
    popularity: np.ndarray

    @property
    def terms(self) -> np.ndarray:
        """The terms of the scores, float32 ``[M, T]``; the score is their sum plus ``popularity``."""
        terms = self.events.sum(axis=0) + self.anyone
        terms[:, 0] += self.fields
        return terms

    @property
    def scores(self) -> np.ndarray:
        """The scores, float32 ``[M]``."""
        return self.terms.sum(axis=1) + self.popularity


def contributions(model: Hybrid, query: Queries, items: np.ndarray) -> Contributions:
    """Computes the parts of the scores of ``items``.

    Args:
      model: The fitted hybrid.
      query: A single query.
      items: Item indices, int ``[M]``, at most :data:`MOST_ITEMS`; all must be in the catalogue.

    Raises:
      DataError: There is not exactly one query, there are too many items, or an item is not in the catalogue.
    """
    if len(query) != 1 or len(items) > MOST_ITEMS:
        raise DataError(
            f"Expected one query and at most {MOST_ITEMS} items, found {len(query)} and {len(items):,}: explain fewer "
            "at once."
        )
    if len(items) and not (np.min(items) >= 0 and np.max(items) < model.n_items):
        raise DataError(f"Expected items from 0 to {model.n_items - 1}, found {np.min(items)} to {np.max(items)}.")
    vectors = tf.convert_to_tensor(model.item_vectors())
    inputs = {key: tf.constant(values) for key, values in model.query_inputs(query).items()}
    starts = range(0, max(len(items), 1), AT_ONCE)
    parts = [
        model.contributions_batch(vectors, inputs, tf.constant(items[start : start + AT_ONCE], tf.int32)[tf.newaxis])
        for start in starts
    ]
    events, *others = ([values[0].numpy() for values in every] for every in zip(*parts, strict=True))
    n_events = int(query.history.lengths[0])
    return Contributions(np.concatenate(events, axis=1)[:n_events], *map(np.concatenate, others))


def contributions_of(model: Hybrid, item_vectors: tf.Tensor, query: Query, items: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Computes the attributes of :class:`Contributions` for each query of a batch.

    Args:
      model: The fitted hybrid.
      item_vectors, query: As in :meth:`Hybrid.score_items`.
      items: Item indices, int32 ``[B, M]``; all must be in the catalogue.

    Returns:
      ``events``, ``fields``, ``anyone`` and ``popularity``: float32 ``[B, L, M, T]``, ``[B, M]``, ``[B, M, T]`` and
      ``[B, M]``.
    """
    lengths = tf.reduce_sum(tf.cast(query["history"] < model.n_items, tf.int32), axis=1)
    longest = model.newest(query, lengths, LONGEST)
    factors = model.factors_of(items)
    behaviour = model.behaviour.by_event(longest["history"], items, model.event_weights(longest))
    behaviour *= factors.sparse[:, tf.newaxis]

    size = model.history_length
    newest = model.newest(query, lengths, size)
    last = tf.maximum(tf.minimum(lengths, size) - 1, 0)
    vectors = rows_of(item_vectors, items)
    events, present = model.events_of(item_vectors, newest)
    feedback, gate = (
        tf.zeros(tf.concat([tf.shape(present), [tf.shape(items)[1]]], axis=0)),
        tf.zeros_like(events)[:, 0, :1],
    )
    if model.use_feedback:
        feedback, gate = feedback_by_event(model, vectors, events, newest, present, last)
    meaning, fields = tf.zeros_like(feedback), tf.zeros(tf.shape(items))
    if "meaning" in model.config.terms:
        asked = model.with_texts_read(newest)
        read = model.events_read(events, asked)
        meaning, fields = _meaning_by_event(model, vectors, read, asked, present, last)
    dense = tf.stack([meaning * (1.0 - gate)[:, tf.newaxis], feedback], axis=-1)
    factor = factors.dense / model.config.temperature
    weight = model.weight_of_meaning(query, lengths)[:, tf.newaxis]
    dense *= factor[:, tf.newaxis, :, tf.newaxis]
    by_event = tf.concat([among(dense, lengths, size, behaviour), behaviour[..., tf.newaxis]], axis=-1)
    fields *= factor * weight * (1.0 - gate)
    rest = model.terms_of_items(item_vectors, query, items) - tf.reduce_sum(by_event, axis=1)
    anyone = rest - tf.pad(fields[..., tf.newaxis], [[0, 0], [0, 0], [0, 2]])
    popularity = tf.math.log1p(rows_of(model.train_counts, items))
    return by_event, fields, anyone, tf.where(lengths[:, tf.newaxis] > 0, 0.0, popularity)


def feedback_by_event(
    model: Hybrid, vectors: tf.Tensor, events: tf.Tensor, query: Query, present: tf.Tensor, last: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the contribution of each event to ``b_u <e_i, r_u>``, float32 ``[B, L, M]``, and ``b_u``, ``[B, 1]``."""
    parts, everyone, gate = model.feedback.by_event(events, query[RATING_KEY], present, last)
    profile = tf.reduce_sum(parts, axis=1) + everyone
    scale = tf.math.rsqrt(tf.maximum(tf.reduce_sum(profile**2, axis=-1, keepdims=True), 1e-9)) * gate
    return tf.einsum("bld,bmd->blm", parts, vectors) * scale[..., tf.newaxis], gate


def _meaning_by_event(
    model: Hybrid, vectors: tf.Tensor, events: tf.Tensor, query: Query, present: tf.Tensor, last: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes integrated gradients of ``<e_i, q_u>``: of events, float32 ``[B, L, M]``, and of fields, ``[B, M]``."""
    batch, length, n_items = tf.shape(events)[0], tf.shape(events)[1], tf.shape(vectors)[1]
    step = -np.log(START) / STEPS
    scales = tf.constant(np.exp(np.log(START) + step * (np.arange(STEPS) + 0.5)), tf.float32)
    times = n_items * STEPS  # each query, for each item, for each step

    def for_each(values: tf.Tensor) -> tf.Tensor:
        return tf.repeat(values, times, axis=0)

    scale = tf.tile(scales, [batch * n_items])
    scaled = for_each(events) * tf.cast(scale[:, tf.newaxis, tf.newaxis], events.dtype)
    ends = for_each(last)
    asked = tf.repeat(tf.reshape(vectors, [-1, model.config.embedding_dim]), STEPS, axis=0)
    others = {key: for_each(values) for key, values in query.items()}
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([scaled, scale])
        state = model.meaning(scaled, for_each(present), others, fields_given=scale)
        found = unit(tf.gather(state, ends, batch_dims=1))
        cosines = tf.reduce_sum(found * asked, axis=-1)
    of_events, of_fields = tape.gradient(cosines, [scaled, scale], unconnected_gradients="zero")
    # Substitution: d scale = scale * d log(scale).
    by_event = tf.reduce_sum(tf.cast(of_events * scaled, tf.float32), axis=-1)
    by_event = tf.reduce_sum(tf.reshape(by_event, [batch, n_items, STEPS, length]), axis=2) * step
    by_fields = tf.reduce_sum(tf.reshape(of_fields * scale, [batch, n_items, STEPS]), axis=2) * step
    return tf.transpose(by_event, [0, 2, 1]), by_fields


def among(values: tf.Tensor, lengths: tf.Tensor, size: int, like: tf.Tensor) -> tf.Tensor:
    """Aligns values of the ``size`` newest events with the :data:`LONGEST` newest events; the other values are 0.

    Args:
      values: Values of the ``size`` newest events, float32 ``[B, L', M, ...]``.
      lengths: Lengths of the histories, int32 ``[B]``.
      size: The largest number of events that have values.
      like: A tensor ``[B, L, M]`` with the length L of the result.
    """
    first = tf.maximum(tf.minimum(lengths, LONGEST) - size, 0)
    at = tf.range(tf.shape(like)[1]) - first[:, tf.newaxis]
    inside = (at >= 0) & (at < tf.minimum(lengths, size)[:, tf.newaxis])
    found = tf.gather(values, tf.where(inside, at, 0), batch_dims=1)
    return tf.where(tf.reshape(inside, [*tf.unstack(tf.shape(inside)), *[1] * (len(values.shape) - 2)]), found, 0.0)
