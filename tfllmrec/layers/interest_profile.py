"""What a history is about, in labels of its items: in the graph, core TensorFlow operations only."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from tfllmrec.data.queries import LONGEST
from tfllmrec.layers.neighbour_scores import FAINT
from tfllmrec.layers.newest_events import newest_events
from tfllmrec.layers.rows_of import rows_of

CELLS_AT_ONCE = 1 << 22
"""Requests times labels up to which a batch is answered together; a larger one is answered row by row."""


class InterestProfile(tf.Module):
    """The strongest labels of a history; ``tfllmrec.models.interests.Interests`` has the formula.

    Args:
      columns: int ``[N, P]``, labels of each item, padded with ``n_labels``. weights: float ``[N, P]``, 0 for padding.
      n_labels: C.
      decay: weight of an event one step further back, in (0, 1]. liking: weight of a rating one ``spread`` above the
        mean of the history's ratings. spread: their standard deviation in the training data; 0: ratings say nothing.
    """

    def __init__(
        self, columns: np.ndarray, weights: np.ndarray, n_labels: int, decay: float, liking: float, spread: float
    ) -> None:
        super().__init__(name="interest_profile")
        self.n_items, self.n_labels = len(columns), n_labels
        self.decay = decay
        self.per_mark = liking / spread if spread > 0 else 0.0
        #: As in :class:`tfllmrec.layers.neighbour_scores.NeighbourScores`.
        self.reach = min(math.ceil(math.log(FAINT) / math.log(decay)), LONGEST) if decay < 1 else LONGEST
        # The last row is the padding item.
        padded = np.vstack([columns, np.full_like(columns[:1], n_labels)]).astype(np.int32)
        self.columns = tf.Variable(padded, trainable=False, name="columns")
        padded = np.vstack([weights, np.zeros_like(weights[:1])]).astype(np.float32)
        self.weights = tf.Variable(padded, trainable=False, name="weights")

    def __call__(self, history: tf.Tensor, ratings: tf.Tensor, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The best ``k`` labels of each history.

        Args:
          history: int32 ``[B, L]``, left-aligned, padded with N, newest last.
          ratings: float32 ``[B, L]``, NaN for none.
          k: int32 ``[B]``, or ``[1]`` for all.

        Returns:
          Labels int32 ``[B, K]``, weights float32 ``[B, K]`` that sum to 1 in each row that has any, and the positions
          in ``history`` of the events that add the most to each, int32 ``[B, K]``. K is the largest ``k``, or C where
          that is less; rows are filled up with C, 0 and -1.
        """
        batch = tf.shape(history)[0]
        k = tf.broadcast_to(k, (batch,))
        width = tf.clip_by_value(tf.reduce_max(tf.concat([k, [0]], axis=0)), 0, self.n_labels)
        one_by_one = (
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([None], tf.float32),
            tf.TensorSpec([None], tf.int32),
        )
        return tf.cond(
            batch <= CELLS_AT_ONCE // (self.n_labels + 1),
            lambda: self._best(history, ratings, k, width),
            lambda: tf.map_fn(
                lambda row: tuple(x[0] for x in self._best(row[0][tf.newaxis], row[1][tf.newaxis], row[2], width)),
                (history, ratings, k[:, tf.newaxis]),
                fn_output_signature=one_by_one,
            ),
        )

    def _best(
        self, history: tf.Tensor, ratings: tf.Tensor, k: tf.Tensor, width: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """As :meth:`__call__`, for a batch with room for a number of each label; K is ``width``."""
        batch = tf.shape(history)[0]
        present = history < self.n_items
        length = tf.reduce_sum(tf.cast(present, tf.int32), axis=1)
        newest, strength = (
            newest_events(values, length, self.reach, padding)
            for values, padding in ((history, self.n_items), (self._strength(present, length, ratings), 0.0))
        )
        labels = rows_of(self.columns, newest)  # [B, R, P]
        added = rows_of(self.weights, newest) * strength[..., tf.newaxis]
        first = tf.maximum(length - self.reach, 0)
        position = (first[:, tf.newaxis] + tf.range(tf.shape(newest)[1]))[..., tf.newaxis]
        rows = tf.range(batch)[:, tf.newaxis, tf.newaxis] * (self.n_labels + 1)
        cells, size = labels + rows, batch * (self.n_labels + 1)
        with tf.device("CPU:0"):  # on GPUs these sums are not deterministic
            total = tf.math.unsorted_segment_sum(added, cells, size)
            most = tf.math.unsorted_segment_max(added, cells, size)
            # Of events that add the same, the newest.
            leads = (added == tf.gather(most, cells)) & (added > 0)
            leading = tf.math.unsorted_segment_max(tf.where(leads, position, -1), cells, size)
        total, leading = (tf.reshape(cell, (batch, self.n_labels + 1)) for cell in (total, leading))

        best, found = tf.math.top_k(total[:, : self.n_labels], width)
        kept = (best > 0) & (tf.range(width) < k[:, tf.newaxis])
        best = tf.where(kept, best, 0.0)
        best = tf.math.divide_no_nan(best, tf.reduce_sum(best, axis=1, keepdims=True))
        because = tf.gather(leading, found, batch_dims=1)
        return tf.where(kept, found, self.n_labels), best, tf.where(kept, because, -1)

    def _strength(self, present: tf.Tensor, length: tf.Tensor, ratings: tf.Tensor) -> tf.Tensor:
        """What each event counts for, float32 ``[B, L]``."""
        rated = present & tf.math.is_finite(ratings)
        marks = tf.where(rated, ratings, 0.0)
        count = tf.reduce_sum(tf.cast(rated, tf.float32), axis=1, keepdims=True)
        mean = tf.math.divide_no_nan(tf.reduce_sum(marks, axis=1, keepdims=True), count)
        liked = 1.0 + self.per_mark * tf.where(rated, marks - mean, 0.0)
        back = tf.cast(length[:, tf.newaxis] - 1 - tf.range(tf.shape(present)[1]), tf.float32)
        return tf.where(present, liked * tf.pow(self.decay, tf.maximum(back, 0.0)), 0.0)
