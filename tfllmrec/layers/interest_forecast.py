"""Which labels a user's next items will have: a mixture of counted, learned and recommended labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfllmrec.layers.interest_profile import InterestProfile, Profile

CELLS_AT_ONCE = 1 << 22
"""Requests times labels up to which a batch is answered together; a larger one is answered row by row."""

CANDIDATES = 200
"""Recommended items whose labels count, the best ones."""

SCALE = 10.0
"""What shares are multiplied by before they enter the head: a label of a varied history has a tenth at most."""


class LabelHead(tf.Module):
    """A softmax over labels from two distributions of labels, one of the whole history and one of its newest events.

        logits = bias + tanh(scale (slow^T p + fast^T p')) out^T

    Args:
      slow, fast, out: float32 ``[C, R]``. bias: float32 ``[C]``.
    """

    def __init__(
        self, slow: np.ndarray, fast: np.ndarray, out: np.ndarray, bias: np.ndarray, scale: float = SCALE
    ) -> None:
        super().__init__(name="label_head")
        self.scale = scale
        self.slow, self.fast, self.out, self.bias = (
            tf.Variable(values, dtype=tf.float32, name=name)
            for name, values in (("slow", slow), ("fast", fast), ("out", out), ("bias", bias))
        )

    def logits(
        self, slow: tf.Tensor, fast: tf.Tensor, dropout: float = 0.0, seed: tf.Tensor | None = None
    ) -> tf.Tensor:
        """float32 ``[B, C]``, of two distributions float32 ``[B, C]``; ``dropout`` and ``seed`` are for training."""
        hidden = tf.tanh(self.scale * (tf.matmul(slow, self.slow) + tf.matmul(fast, self.fast)))
        if dropout:
            hidden = tf.nn.experimental.stateless_dropout(hidden, dropout, seed)
        return self.bias + tf.matmul(hidden, self.out, transpose_b=True)


class Learned(NamedTuple):
    """What an :class:`InterestForecast` has learned: the ``mixture`` float ``[3]`` weighs counted labels, those of the
    ``head`` and those of recommended items, whose scores are multiplied by ``sharpness``."""

    head: LabelHead
    mixture: Sequence[float]
    sharpness: float


class InterestForecast(tf.Module):
    """The strongest labels of a history.

    Args:
      profile: counts the labels.
      learned: ``None``: the counted labels are the answer.
    """

    def __init__(self, profile: InterestProfile, learned: Learned | None = None) -> None:
        super().__init__(name="interest_forecast")
        self.profile, self.learned = profile, learned
        self.head = None if learned is None else learned.head  # a module inside a tuple would not be tracked

    def __call__(
        self, history: tf.Tensor, ratings: tf.Tensor, items: tf.Tensor | None, scores: tf.Tensor | None, k: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """The best ``k`` labels of each history.

        Args:
          history: int32 ``[B, L]``, left-aligned, padded with N, newest last.
          ratings: float32 ``[B, L]``, NaN for none.
          items: int32 ``[B, M]``, recommended items that the history does not have; N for none. scores: float32
            ``[B, M]``. Both may be ``None`` where nothing was learned.
          k: int32 ``[B]``, or ``[1]`` for all.

        Returns:
          Labels int32 ``[B, K]``, weights float32 ``[B, K]`` that sum to 1 in each row that has any, the positions in
          ``history`` of the events that add the most to each, int32 ``[B, K]``, -1 if no event has the label, and
          ``Profile.trend`` float32 ``[B, K]``. K is the largest ``k``, or C where that is less; rows are filled up with
          C, 0, -1 and 0. A row without a history has no labels.
        """
        batch, n_labels = tf.shape(history)[0], self.profile.n_labels
        k = tf.broadcast_to(k, (batch,))
        width = tf.clip_by_value(tf.reduce_max(tf.concat([k, [0]], axis=0)), 0, n_labels)
        if self.learned is None:
            items, scores = tf.zeros((batch, 0), tf.int32), tf.zeros((batch, 0))
        inputs = (history, ratings, items, scores, k)
        types = (tf.int32, tf.float32, tf.int32, tf.float32)

        def alone(row: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
            history, ratings, items, scores, k = (value[tf.newaxis] for value in row)
            return tuple(value[0] for value in self._best(history, ratings, items, scores, k, width))

        return tf.cond(
            batch <= CELLS_AT_ONCE // (n_labels + 1),
            lambda: self._best(*inputs, width),
            lambda: tf.map_fn(alone, inputs, fn_output_signature=tuple(tf.TensorSpec([None], one) for one in types)),
        )

    def _best(
        self,
        history: tf.Tensor,
        ratings: tf.Tensor,
        items: tf.Tensor,
        scores: tf.Tensor,
        k: tf.Tensor,
        width: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """As :meth:`__call__`, for a batch with room for a number of each label; K is ``width``."""
        profile = self.profile(history, ratings)
        known = tf.reduce_any(history < self.profile.n_items, axis=1, keepdims=True)
        strength = profile.slow
        if self.learned is not None:
            parts = (*self.of_history(profile), self.recommended(items, scores, self.learned.sharpness))
            strength = tf.add_n([weight * part for weight, part in zip(self.learned.mixture, parts, strict=True)])
        best, found = tf.math.top_k(tf.where(known, strength, 0.0), width)
        kept = (best > 0) & (tf.range(width) < k[:, tf.newaxis])
        best = tf.where(kept, best, 0.0)
        best = tf.math.divide_no_nan(best, tf.reduce_sum(best, axis=1, keepdims=True))
        because, trend = (tf.gather(values, found, batch_dims=1) for values in (profile.because, profile.trend))
        labels = tf.where(kept, found, self.profile.n_labels)
        return labels, best, tf.where(kept, because, -1), tf.where(kept, trend, 0.0)

    def of_history(self, profile: Profile) -> tuple[tf.Tensor, tf.Tensor]:
        """The counted and the learned distribution, float32 ``[B, C]``; rows without any label are counted as 0."""
        assert self.learned is not None
        slow, fast = distribution(profile.slow), distribution(profile.fast)
        return slow, tf.nn.softmax(self.learned.head.logits(slow, fast))

    def recommended(self, items: tf.Tensor, scores: tf.Tensor, sharpness: tf.Tensor | float) -> tf.Tensor:
        """The distribution of the labels of recommended items, float32 ``[B, C]``; 0 without items."""
        there = items < self.profile.n_items
        shares = tf.nn.softmax(tf.where(there, sharpness * scores, -1e9))
        return distribution(self.profile.of_items(items, tf.where(there, shares, 0.0)))


def distribution(weights: tf.Tensor) -> tf.Tensor:
    """Sets negative weights to 0 and scales each row to sum 1; a row without positive weights stays 0."""
    positive = tf.maximum(weights, 0.0)
    return tf.math.divide_no_nan(positive, tf.reduce_sum(positive, axis=1, keepdims=True))
