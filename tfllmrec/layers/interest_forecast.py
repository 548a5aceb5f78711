"""Predicts the labels of a user's next items from a mixture of counted, learned and recommended labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfllmrec.layers.interest_profile import InterestProfile, Profile

CELLS_AT_ONCE = 1 << 22
"""Largest number of requests times labels of a batch that is computed at once; a larger one is computed row by row."""

CANDIDATES = 200
"""Number of recommended items, the best ones, whose labels count."""

SCALE = 10.0
"""Factor of the labels' shares at the input of the head: in a varied history, a label has a share of 0.1 at most."""


class LabelHead(tf.Module):
    """Computes the logits of a softmax over labels from two distributions of labels.

        logits = bias + tanh(scale (slow^T p + fast^T p')) out^T

    ``p`` is the distribution of the whole history, and ``p'`` that of its newest events.

    Args:
      slow: Float32 ``[C, R]``.
      fast: Float32 ``[C, R]``.
      out: Float32 ``[C, R]``.
      bias: Float32 ``[C]``.
      scale: The factor of both distributions.
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
        """Returns the logits, float32 ``[B, C]``.

        Args:
          slow: Float32 ``[B, C]``, the distribution of labels in the whole history.
          fast: Float32 ``[B, C]``, the distribution of labels in its newest events.
          dropout: The dropout rate of the hidden units, for training.
          seed: The seed of ``tf.nn.experimental.stateless_dropout``, for training.
        """
        hidden = tf.tanh(self.scale * (tf.matmul(slow, self.slow) + tf.matmul(fast, self.fast)))
        if dropout:
            hidden = tf.nn.experimental.stateless_dropout(hidden, dropout, seed)
        return self.bias + tf.matmul(hidden, self.out, transpose_b=True)


class Learned(NamedTuple):
    """The learned parameters of an :class:`InterestForecast`.

    Attributes:
      head: Predicts labels from the history.
      mixture: Float ``[3]``, the weights of the counted labels, the labels from ``head`` and the labels of recommended
        items.
      sharpness: The factor of the scores of recommended items before the softmax.
    """

    head: LabelHead
    mixture: Sequence[float]
    sharpness: float


class InterestForecast(tf.Module):
    """Returns the strongest labels of a history.

    Args:
      profile: Counts the labels.
      learned: The learned parameters; ``None`` to use the counted labels alone.
    """

    def __init__(self, profile: InterestProfile, learned: Learned | None = None) -> None:
        super().__init__(name="interest_forecast")
        self.profile, self.learned = profile, learned
        self.head = None if learned is None else learned.head  # a module inside a tuple would not be tracked

    def __call__(
        self, history: tf.Tensor, ratings: tf.Tensor, items: tf.Tensor | None, scores: tf.Tensor | None, k: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns the best ``k`` labels of each history.

        Args:
          history: Int32 ``[B, L]``, left-aligned, padded with N, newest last.
          ratings: Float32 ``[B, L]``, NaN for none.
          items: Int32 ``[B, M]``, recommended items that are not in the history; N for none. May be ``None`` if
            ``learned`` is ``None``.
          scores: Float32 ``[B, M]``, the scores of ``items``. May be ``None`` if ``learned`` is ``None``.
          k: Int32 ``[B]``, or ``[1]`` for all rows.

        Returns:
          Labels, int32 ``[B, K]``.
          Weights of the labels, float32 ``[B, K]``. They sum to 1 in each row that has labels.
          Position in ``history`` of the event that contributes most to each label, int32 ``[B, K]``; -1 if no event
          has the label.
          ``Profile.trend`` of the labels, float32 ``[B, K]``.

          K is the smaller of the largest ``k`` and C. Rows are padded with C, 0, -1 and 0. A row without a history has
          no labels.
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
        """Computes :meth:`__call__` with K = ``width``, in tensors ``[B, C]``."""
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
        """Returns the counted and the learned distribution, float32 ``[B, C]``; the former is 0 without labels."""
        assert self.learned is not None
        slow, fast = distribution(profile.slow), distribution(profile.fast)
        return slow, tf.nn.softmax(self.learned.head.logits(slow, fast))

    def recommended(self, items: tf.Tensor, scores: tf.Tensor, sharpness: tf.Tensor | float) -> tf.Tensor:
        """Returns the distribution of the labels of recommended items, float32 ``[B, C]``; 0 without items."""
        there = items < self.profile.n_items
        shares = tf.nn.softmax(tf.where(there, sharpness * scores, -1e9))
        return distribution(self.profile.of_items(items, tf.where(there, shares, 0.0)))


def distribution(weights: tf.Tensor) -> tf.Tensor:
    """Sets negative weights to 0 and scales each row to sum 1; a row without positive weights stays 0."""
    positive = tf.maximum(weights, 0.0)
    return tf.math.divide_no_nan(positive, tf.reduce_sum(positive, axis=1, keepdims=True))
