"""Counts the labels of the items in a history, in the graph, with core TensorFlow operations only."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfllmrec.data.queries import LONGEST
from tfllmrec.layers.neighbour_scores import FAINT
from tfllmrec.layers.newest_events import newest_events
from tfllmrec.layers.rows_of import rows_of

NEWEST = 4
"""The newest part of a history, which a trend compares with the whole history, is ``1 / NEWEST`` of its events."""

PRIOR_EVENTS = 5.0
"""Number of average events of the history that a trend adds to the newest part, which may have few events (a prior)."""

RISING = 1.5
"""A label rises if its share in the newest part is at least 1.5 times its share in the whole history, and falls if it
is at most 1 / 1.5 of that share."""


class Profile(NamedTuple):
    """The counted labels of each history.

    Only the newest events count, see ``InterestProfile.reach``.

    Attributes:
      slow: Float32 ``[B, C]``, the weights of the labels; ``tfllmrec.models.interests.Interests`` has the formula.
      fast: Float32 ``[B, C]``, the weights with the fast decay.
      because: Int32 ``[B, C]``, the position in the history of the event that contributes most; -1 for none.
      trend: Float32 ``[B, C]``, the label's share of the newest quarter of the n events, divided by its share ``m / n``
        of all events, and smoothed: ``(m' + 5 m / n) / (n' + 5) / (m / n)``, where m' of the newest
        ``n' = ceil(n / 4)`` events have the label. 0 for a label without events, and if the order of events is
        ignored.
    """

    slow: tf.Tensor
    fast: tf.Tensor
    because: tf.Tensor
    trend: tf.Tensor


class InterestProfile(tf.Module):
    """Counts the labels of a history.

    Args:
      columns: Int ``[N, P]``, the labels of each item, padded with ``n_labels``.
      weights: Float ``[N, P]``, the weights of the labels; 0 for padding.
      n_labels: The number C of labels.
      decay: The factor, in (0, 1], by which an event weighs less than the next newer one. With 1, the order of events
        is ignored.
      liking: The weight that a rating one ``spread`` above the mean of the history's ratings adds to its event.
      spread: The standard deviation of the ratings in the training data. With 0, ratings are ignored.
      fast: The decay of ``Profile.fast``; ignored if ``decay`` is 1.
    """

    def __init__(
        self,
        columns: np.ndarray,
        weights: np.ndarray,
        n_labels: int,
        decay: float,
        liking: float,
        spread: float,
        fast: float = 1.0,
    ) -> None:
        super().__init__(name="interest_profile")
        self.n_items, self.n_labels = len(columns), n_labels
        self.decay, self.fast = decay, fast if decay < 1 else 1.0
        self.per_mark = liking / spread if spread > 0 else 0.0
        #: Number of newest events that count, as in :class:`tfllmrec.layers.neighbour_scores.NeighbourScores`.
        self.reach = min(math.ceil(math.log(FAINT) / math.log(decay)), LONGEST) if decay < 1 else LONGEST
        # The last row is the padding item.
        padded = np.vstack([columns, np.full_like(columns[:1], n_labels)]).astype(np.int32)
        self.columns = tf.Variable(padded, trainable=False, name="columns")
        padded = np.vstack([weights, np.zeros_like(weights[:1])]).astype(np.float32)
        self.weights = tf.Variable(padded, trainable=False, name="weights")

    def __call__(self, history: tf.Tensor, ratings: tf.Tensor) -> Profile:
        """Returns the profile of each history.

        Args:
          history: Int32 ``[B, L]``, left-aligned, padded with N, newest last.
          ratings: Float32 ``[B, L]``, NaN for none.
        """
        present = history < self.n_items
        length = tf.reduce_sum(tf.cast(present, tf.int32), axis=1)
        newest, liked = (
            newest_events(values, length, self.reach, padding)
            for values, padding in ((history, self.n_items), (self._liked(present, ratings), 0.0))
        )
        labels = rows_of(self.columns, newest)  # [B, R, P]
        weights = rows_of(self.weights, newest)
        count = tf.minimum(length, self.reach)[:, tf.newaxis]
        place = tf.range(tf.shape(newest)[1])
        back = tf.maximum(count - 1 - place, 0)
        added = weights * (liked * tf.pow(self.decay, tf.cast(back, tf.float32)))[..., tf.newaxis]
        lately = weights * (liked * tf.pow(self.fast, tf.cast(back, tf.float32)))[..., tf.newaxis]
        has = tf.where(labels < self.n_labels, 1.0, 0.0)
        few = (count + NEWEST - 1) // NEWEST
        with tf.device("CPU:0"):  # on GPUs these sums are not deterministic
            cells, size = self._cells(labels)
            slow, fast, met, met_lately = (
                self._by_label(tf.math.unsorted_segment_sum(values, cells, size))
                for values in (added, lately, has, has * tf.cast(back < few, tf.float32)[..., tf.newaxis])
            )
            most = tf.math.unsorted_segment_max(added, cells, size)
            # Of several events with the same contribution, the newest is taken.
            leads = (added == tf.gather(most, cells)) & (added > 0)
            position = (length[:, tf.newaxis] - count + place)[..., tf.newaxis]
            because = self._by_label(tf.math.unsorted_segment_max(tf.where(leads, position, -1), cells, size))
        if self.decay == 1:
            trend = tf.zeros_like(slow)
        else:
            share = met / tf.maximum(tf.cast(count, tf.float32), 1.0)
            smoothed = (met_lately + PRIOR_EVENTS * share) / (tf.cast(few, tf.float32) + PRIOR_EVENTS)
            trend = tf.math.divide_no_nan(smoothed, share)
        return Profile(slow, fast, because, trend)

    def of_items(self, items: tf.Tensor, shares: tf.Tensor) -> tf.Tensor:
        """Sums labels of ``items`` int32 ``[B, M]`` weighted by ``shares`` float32 ``[B, M]``; float32 ``[B, C]``."""
        labels = rows_of(self.columns, items)
        added = rows_of(self.weights, items) * shares[..., tf.newaxis]
        with tf.device("CPU:0"):
            return self._by_label(tf.math.unsorted_segment_sum(added, *self._cells(labels)))

    def _cells(self, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the positions of ``labels``, int32 ``[B, *, P]``, in a flat table ``[B, C + 1]``, and its size."""
        batch = tf.shape(labels)[0]
        rows = tf.range(batch)[:, tf.newaxis, tf.newaxis] * (self.n_labels + 1)
        return labels + rows, batch * (self.n_labels + 1)

    def _by_label(self, flat: tf.Tensor) -> tf.Tensor:
        return tf.reshape(flat, (-1, self.n_labels + 1))[:, : self.n_labels]

    def _liked(self, present: tf.Tensor, ratings: tf.Tensor) -> tf.Tensor:
        """Returns the weight of each event by its rating, float32 ``[B, L]``: 1 without a rating, 0 for padding."""
        rated = present & tf.math.is_finite(ratings)
        marks = tf.where(rated, ratings, 0.0)
        count = tf.reduce_sum(tf.cast(rated, tf.float32), axis=1, keepdims=True)
        mean = tf.math.divide_no_nan(tf.reduce_sum(marks, axis=1, keepdims=True), count)
        return tf.where(present, 1.0 + self.per_mark * tf.where(rated, marks - mean, 0.0), 0.0)
